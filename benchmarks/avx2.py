"""Run a command with ONNX Runtime's AVX2 kernels on a CPU that has VNNI or AVX-512: the other kind of machine.

    python benchmarks/avx2.py python benchmarks/int8.py out/demo-fp32
    python benchmarks/avx2.py python -m pytest tests/calibration
    python benchmarks/avx2.py videomar compare out/demo-fp32 out/demo-int8

The command gets a copy of the installed onnxruntime whose matrix library finds neither AVX-512 nor AVX-VNNI where it
asks the CPU; nothing else differs, so that numbers and times are those of AVX2 code on this CPU. Linux on x86-64 only.
It first makes sure by a product that only such code saturates.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# In MLAS's choice of kernels: cpuid; test al, 16 (AVX-VNNI of leaf 7.1); ...; test r10d, 1 << 16 (AVX-512 F of leaf 7).
ASKED = re.compile(rb"(\x0f\xa2\xa8)\x10(\x74.{50,70}?\x41\xf7[\xc0-\xc7])\x00\x00\x01\x00(\x74)", re.S)
SATURATES = "from videomar.runtime.backends.ort_session import saturates; print(saturates())"


def without_vnni(folder: Path) -> None:
    """Put the copy into `folder`; raises SystemExit where the code looks otherwise."""
    spec = importlib.util.find_spec("onnxruntime")
    assert spec and spec.origin
    shutil.copytree(Path(spec.origin).parent, folder / "onnxruntime")
    library = next((folder / "onnxruntime" / "capi").glob("onnxruntime_pybind11_state*"))
    made, count = ASKED.subn(lambda m: m[1] + b"\0" + m[2] + b"\0\0\0\0" + m[3], library.read_bytes())
    if count != 1:
        raise SystemExit(f"this ONNX Runtime asks the CPU in {count} places that look like MLAS's, expected 1")
    library.write_bytes(made)


def main() -> int:
    if not sys.argv[1:]:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as name:
        without_vnni(Path(name))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((name, os.environ.get("PYTHONPATH", "")))}
        ask = [sys.executable, "-c", SATURATES]
        said = subprocess.run(ask, env=environment, capture_output=True, text=True, check=False)
        if said.stdout.strip() != "True":
            raise SystemExit(f"a product that AVX2 code saturates did not: {said.stdout or said.stderr}")
        return subprocess.run(sys.argv[1:], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
