"""What a report says of where and from what it was made. Knows nothing of results."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from videomar.artifacts import hash_files
from videomar.parity.subject import Subject

PACKAGES = ("videomar", "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "torch")
SHORT = 12  # digits of a hash that are shown


def environment(argv: Sequence[str] | None = None) -> dict[str, str]:
    """Versions of what is loaded, processor, date and command."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        if package != "torch" or "torch" in sys.modules:
            with suppress(PackageNotFoundError):
                found[package] = version(package)
    found |= {"system": f"{platform.system()} {platform.machine()}", "processor": processor()}
    found["date"] = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    found["command"] = "videomar " + shlex.join(sys.argv[1:] if argv is None else argv)
    return found


def processor() -> str:
    """Its name where the system tells, such as Linux on x86-64."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def hashes(subject: Subject) -> dict[str, str]:
    """The first digits of every file's SHA-256."""
    if subject.manifest is not None:
        found = {name: entry.sha256 for name, entry in subject.manifest.files.items()}
    else:
        found = hash_files(sorted(p for p in subject.directory.iterdir() if p.suffix in (".json", ".safetensors")))
    return {name: sha256[:SHORT] for name, sha256 in found.items()}
