"""What an engine belongs to: the TensorRT, CUDA, GPU and JetPack it was built with, and the check before loading it.

Knows nothing of building or running; a TensorRT module is handed in, never imported.
"""

from __future__ import annotations

import ctypes
import dataclasses
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videomar.artifacts import Manifest
from videomar.capabilities import TABLE
from videomar.errors import ArtifactError

NO_GPU = "AOT, no GPU"  # built ahead of time: TensorRT-RTX needs no GPU to build


@dataclass(frozen=True)
class Machine:
    """One machine as an engine sees it."""

    flavour: str  # "TensorRT" or "TensorRT-RTX"
    tensorrt: str  # its version, such as "10.3.0"
    cuda: str  # runtime version, such as "12.6", or "" where none is found
    gpu: str  # name, or NO_GPU
    sm: str  # compute capability, such as "87", or ""
    jetpack: str = ""  # such as "L4T 36.4.3, JetPack 6.2", or "" off a Jetson

    @property
    def has_gpu(self) -> bool:
        """Whether an engine can be loaded here at all."""
        return self.gpu != NO_GPU

    def __str__(self) -> str:
        gpu = f"{self.gpu} (SM {self.sm})" if self.sm else self.gpu
        parts = [f"{self.flavour} {self.tensorrt}", f"CUDA {self.cuda}" if self.cuda else "", gpu, self.jetpack]
        return ", ".join(part for part in parts if part)


def this_machine(version: str, rtx: bool) -> Machine:
    """This machine with a TensorRT of that version; asks the driver for its first GPU, and loads nothing else."""
    gpu, sm = _gpu()
    flavour = "TensorRT-RTX" if rtx else "TensorRT"
    return Machine(flavour, version, _cuda_runtime(), gpu, sm, jetpack())


def check_fingerprint(manifest: Manifest, here: Machine) -> None:
    """Raise ArtifactError unless the engines were built for exactly this machine; the message has the command."""
    recorded = manifest.extra.get("fingerprint")
    if manifest.kind != "engine" or not isinstance(recorded, dict) or not isinstance(recorded.get("machine"), dict):
        raise ArtifactError(
            f"holds {manifest.kind} artifacts without a fingerprint; run `videomar build DIR -o ENGINES`"
        )
    mend = f"run `{recorded.get('command', 'videomar build DIR -o ENGINES')}` here"
    try:
        built = Machine(**recorded["machine"])
    except TypeError:
        raise ArtifactError(f"the engines' fingerprint is of another version of videomar; {mend}") from None
    if not here.has_gpu:
        raise ArtifactError(f"no GPU was found, the engines were built for {built}; check the driver with nvidia-smi")
    for what, got, expected in (
        ("", f"{here.flavour} {here.tensorrt}", f"{built.flavour} {built.tensorrt}"),
        ("CUDA ", here.cuda, built.cuda),
        ("", here.jetpack or "no Jetson", built.jetpack or "no Jetson"),
    ):
        if got != expected:
            raise ArtifactError(f"the engines were built with {what}{expected}, here is {what}{got}; {mend}")
    targets = recorded.get("targets") or _aot_targets(built)
    if not built.has_gpu:  # ahead of time: any GPU of the kinds it was compiled for
        if here.sm not in targets:
            raise ArtifactError(f"the engines were compiled for SM {', '.join(targets)}, here is {here}; {mend}")
    elif (built.gpu, built.sm) != (here.gpu, here.sm):
        raise ArtifactError(
            f"the engines were built on {built.gpu} (SM {built.sm}), here is {here.gpu} (SM {here.sm}); {mend}"
        )


def as_data(machine: Machine) -> dict[str, Any]:
    """JSON-ready; `Machine(**data)` reads it back."""
    return dataclasses.asdict(machine)


def jetpack(root: Path = Path("/")) -> str:
    """L4T release and JetPack version of a Jetson, "" elsewhere; read from files, nothing is run."""
    with suppress(OSError):
        text = (root / "etc/nv_tegra_release").read_text(errors="replace")
        if found := re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", text):
            release = f"L4T {found[1]}.{found[2]}"
            with suppress(OSError):
                packages = (root / "var/lib/dpkg/status").read_text(errors="replace")
                if pack := re.search(r"^Package: nvidia-jetpack\n(?:.+\n)*?Version: ([\w.]+)", packages, re.M):
                    release += f", JetPack {pack[1]}"
            return release
    return ""


def _aot_targets(built: Machine) -> list[str]:
    rows = [row for row in TABLE if row.rtx == (built.flavour == "TensorRT-RTX")]
    return sorted(str(sm) for sm in rows[-1].gpus)


def _cuda_runtime() -> str:
    version = ctypes.c_int()
    for name in ("libcudart.so.13", "libcudart.so.12", "libcudart.so"):
        with suppress(OSError, AttributeError):
            if ctypes.CDLL(name).cudaRuntimeGetVersion(ctypes.byref(version)) == 0:
                return f"{version.value // 1000}.{version.value % 1000 // 10}"
    return ""


def _gpu() -> tuple[str, str]:
    """Name and SM of the first GPU, through the driver; it needs neither a context nor a package."""
    with suppress(OSError, AttributeError):
        driver: Any = ctypes.CDLL("libcuda.so.1")
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        name = ctypes.create_string_buffer(256)
        calls: tuple[Callable[[], int], ...] = (
            lambda: driver.cuInit(0),
            lambda: driver.cuDeviceGet(ctypes.byref(device), 0),
            lambda: driver.cuDeviceGetName(name, len(name), device),
            lambda: driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device),
            lambda: driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device),
        )
        if all(call() == 0 for call in calls):
            return name.value.decode(errors="replace"), f"{major.value}{minor.value}"
    return NO_GPU, ""
