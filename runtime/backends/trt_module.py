"""Finds the TensorRT of this machine: `tensorrt` or `tensorrt_rtx`, one API. Knows nothing of what is done with it."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from videomar.errors import InputError

BUILDERS = ("auto", "tensorrt", "tensorrt-rtx")
# TensorRT-RTX's own libraries, in the order they depend on each other, as packaged for ONNX Runtime.
_RTX_LIBRARIES = "onnxruntime_ep_nv_tensorrt_rtx"
_RTX_FILES = ("libcudart.so.1*", "libtensorrt_rtx.so.1*", "libtensorrt_onnxparser_rtx.so.1*")


def load_tensorrt(builder: str = "auto") -> tuple[ModuleType, bool]:
    """The module and whether it is TensorRT-RTX; `auto` prefers TensorRT. Raises InputError when there is none."""
    if builder in ("auto", "tensorrt"):
        try:
            return _checked(importlib.import_module("tensorrt")), False
        except ImportError as error:
            why = str(error)
    if builder in ("auto", "tensorrt-rtx"):
        try:
            return _checked(_rtx()), True
        except (ImportError, OSError) as error:
            why = str(error)
    what = "TensorRT-RTX" if builder == "tensorrt-rtx" else "TensorRT"
    mend = "pip install --no-deps onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0 tensorrt-rtx-cu13-bindings==1.7.1.116"
    if builder != "tensorrt-rtx":
        mend = f"on a Jetson `sudo apt install nvidia-jetpack`; without a GPU TensorRT-RTX builds: {mend}"
    raise InputError(f"needs {what}, which cannot be loaded ({why}); {mend}")


def _checked(module: ModuleType) -> ModuleType:
    # The package of that name on the public registry is a shell that fetches the real one.
    if not hasattr(module, "Builder"):
        raise ImportError(f"{module.__name__} is installed without its libraries")
    return module


def _rtx() -> ModuleType:
    if importlib.util.find_spec("tensorrt_rtx"):
        return importlib.import_module("tensorrt_rtx")
    spec = importlib.util.find_spec(_RTX_LIBRARIES)
    folder = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
    for pattern in _RTX_FILES if folder else ():
        for file in sorted(folder.glob(pattern))[:1] if folder else ():
            ctypes.CDLL(str(file), ctypes.RTLD_GLOBAL)
    return importlib.import_module("tensorrt_rtx_bindings")
