"""`--backend`: which backend runs a directory here, why, and what is missing where none can.

Decides from the manifest and from what is installed and visible; loads a backend's libraries only to open it. Knows
nothing of how a backend works.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from videomar.artifacts import Manifest
from videomar.errors import DeviceError, InputError
from videomar.runtime.backends.base import Backend
from videomar.runtime.system import ABSENT, System, numbers

BACKENDS = ("auto", "ort-cpu", "ort-cuda", "ort-trt", "trt", "trt-rtx")
ORT_FOR_NATIVE = (1, 24)
JETSON_SMS = ("53", "62", "72", "87", "110")  # no GPU of a Jetson has kernels in onnxruntime-gpu's wheels
NO_GPU = "no NVIDIA GPU is visible to this process; check with `nvidia-smi` (a container needs --gpus all)"
CUDA_WHEEL = "pip uninstall onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'"


@dataclass(frozen=True)
class Choice:
    """A backend's name and, in one sentence, why it is the one."""

    name: str
    why: str


def choose(
    directory: Path, manifest: Manifest, name: str = "auto", threads: int | None = None, lean: bool = False
) -> tuple[Backend, str]:
    """Open the backend called `name`, or what is best here; also the sentence that says why.

    lean: graphs are loaded when they are first needed, and the text encoder goes once it has been used.
    Raises UserError for a name that cannot run this directory here: what is missing and what mends it.
    """
    choice = pick(directory, manifest, name)
    try:
        return OPENERS[choice.name](directory, manifest, threads, lean), choice.why
    except DeviceError as error:
        if name != "auto" or choice.name != "ort-cuda":
            raise
        why = f"backend ort-cpu, since ort-cuda cannot be used here: {error}"
        return OPENERS["ort-cpu"](directory, manifest, threads, lean), why


def pick(directory: Path, manifest: Manifest, name: str = "auto", system: System | None = None) -> Choice:
    """What `choose` would open; raises as it does."""
    system = system or System()
    if name not in BACKENDS:
        raise InputError(f"backend is {name!r}, expected one of {', '.join(BACKENDS)}; change --backend")
    if name == "auto":
        choice = _automatic(directory, manifest, system)
        refuse(directory, manifest, choice.name, system)
        return choice
    refuse(directory, manifest, name, system)
    return Choice(name, f"backend {name}, as asked")


def refuse(directory: Path, manifest: Manifest, name: str, system: System) -> None:
    """Raise UserError unless the backend `name` can run this directory here, as far as can be told before trying."""
    place, flavour = shlex.quote(str(directory)), engine_flavour(manifest)
    if name.startswith("trt"):
        if flavour is None:
            raise InputError(
                f"{directory} holds ONNX graphs, expected engines for --backend {name}; run `videomar build {place} "
                "-o ENGINES` and give those"
            )
        if flavour != name:
            raise InputError(
                f"{directory} holds engines for --backend {flavour}, got --backend {name}; leave --backend away"
            )
        if problem := missing_for_engines(name, system):
            raise DeviceError(f"--backend {name}: {problem}")
        return
    if flavour is not None:
        raise InputError(
            f"{directory} holds TensorRT engines, expected ONNX graphs for --backend {name}; give the directory they "
            f"were built from, or --backend {flavour}"
        )
    if problem := missing_for_onnx(name, manifest.emitter, system):
        raise DeviceError(f"--backend {name}: {problem}")


def missing_for_engines(name: str, system: System) -> str:
    """Why engines cannot be run here, "" if nothing is seen: what is missing, and the command that mends it."""
    modules, mend = (
        (("tensorrt",), tensorrt_mend(system))
        if name == "trt"
        else (("tensorrt_rtx", "tensorrt_rtx_bindings"), "pip install tensorrt-rtx")
    )
    if not any(system.has(module) for module in modules):
        return f"the Python package {modules[0]} is not installed; {mend}"
    if not any(system.has(module) for module in ("cuda.bindings.runtime", "cuda.cudart")):
        return "cuda-python is not installed; pip install cuda-python"
    return "" if system.gpu()[0] != ABSENT else NO_GPU


def missing_for_onnx(name: str, emitter: str, system: System) -> str:
    """Why ONNX graphs of that emitter cannot be run here by ort-cpu, ort-cuda or ort-trt; "" if nothing is seen."""
    found = system.onnxruntime()
    if found is None:
        return "onnxruntime cannot be imported; pip install onnxruntime"
    version, providers = found
    if emitter == "native" and numbers(version)[:2] < ORT_FOR_NATIVE:
        return (
            f"ONNX Runtime is {version}, native graphs need 1.24 or newer; pip install -U onnxruntime, or export with "
            "--emitter portable"
        )
    if name == "ort-cpu":
        return ""
    if name == "ort-trt" and emitter == "native":
        return "ONNX Runtime's TensorRT provider cannot write K/V in place; export with --emitter portable"
    provider = {"ort-cuda": "CUDAExecutionProvider", "ort-trt": "TensorrtExecutionProvider"}[name]
    if provider not in providers:
        if system.arch != "x86_64" and name == "ort-trt":
            return f"no ONNX Runtime wheel for {system.arch} has {provider}; build engines with `videomar build`"
        return f"ONNX Runtime {version} here has no {provider}; {CUDA_WHEEL}"
    return "" if system.gpu()[0] != ABSENT else NO_GPU


def tensorrt_mend(system: System) -> str:
    """The command that brings TensorRT's Python package to this machine."""
    if system.read("/etc/nv_tegra_release"):
        return "sudo apt install nvidia-jetpack, and make the virtual environment with --system-site-packages"
    return "pip install 'tensorrt>=10.3' cuda-python"


def engine_flavour(manifest: Manifest) -> str | None:
    """The backend whose engines these are, None for ONNX graphs."""
    if manifest.kind != "engine":
        return None
    fingerprint = manifest.extra.get("fingerprint")
    machine = fingerprint.get("machine") if isinstance(fingerprint, dict) else None
    return "trt-rtx" if isinstance(machine, dict) and machine.get("flavour") == "TensorRT-RTX" else "trt"


def _automatic(directory: Path, manifest: Manifest, system: System) -> Choice:
    if flavour := engine_flavour(manifest):
        product = "TensorRT-RTX" if flavour == "trt-rtx" else "TensorRT"
        return Choice(flavour, f"backend {flavour}: {directory} holds {manifest.precision} engines of {product}")
    graphs = f"{directory} holds {manifest.precision} ONNX graphs ({manifest.emitter})"
    name, why = automatic_for_onnx(manifest.precision, manifest.emitter, system)
    return Choice(name, f"backend {name}: {graphs} and {why}")


def automatic_for_onnx(precision: str, emitter: str, system: System) -> tuple[str, str]:
    """The backend for ONNX graphs and the reason. Never ort-trt: it would build for minutes, unasked."""
    gpu, sm = system.gpu()
    if gpu == ABSENT:
        slow = " (a CPU computes FP16 slower than FP32)" if precision == "fp16" else ""
        return "ort-cpu", f"no NVIDIA GPU is visible{slow}"
    build = "`videomar build` makes engines for it"
    if sm in JETSON_SMS:
        return "ort-cpu", f"onnxruntime-gpu has no kernels for {gpu}; {build}"
    if problem := missing_for_onnx("ort-cuda", emitter, system):
        return "ort-cpu", f"{gpu} cannot be used: {problem}"
    int8 = ", which computes INT8 layers in floating point" if precision == "int8" else ""
    return "ort-cuda", f"ONNX Runtime's CUDA provider runs on {gpu}{int8}; {build} that are faster"


Opener = Callable[[Path, Manifest, "int | None", bool], Backend]  # directory, manifest, threads, lean


def _ort_cpu(directory: Path, manifest: Manifest, threads: int | None, lean: bool) -> Backend:
    from videomar.runtime.backends.ort import OrtBackend

    return OrtBackend(directory, manifest, threads, lean=lean)


def _ort_cuda(directory: Path, manifest: Manifest, threads: int | None, lean: bool) -> Backend:
    from videomar.runtime.backends import ort_providers
    from videomar.runtime.backends.ort import OrtBackend

    return OrtBackend(directory, manifest, threads, ort_providers.cuda(), lean=lean)


def _ort_tensorrt(directory: Path, manifest: Manifest, threads: int | None, lean: bool) -> Backend:
    from videomar.runtime.backends import ort_providers
    from videomar.runtime.backends.ort import OrtBackend

    return OrtBackend(directory, manifest, threads, ort_providers.tensorrt(manifest), lean=lean)


def _tensorrt(name: str) -> Opener:
    def open_engines(directory: Path, manifest: Manifest, threads: int | None, lean: bool) -> Backend:
        from videomar.runtime.backends.trt import TrtBackend

        return TrtBackend(directory, manifest, name, lean=lean)

    return open_engines


OPENERS: dict[str, Opener] = {
    "ort-cpu": _ort_cpu,
    "ort-cuda": _ort_cuda,
    "ort-trt": _ort_tensorrt,
    "trt": _tensorrt("trt"),
    "trt-rtx": _tensorrt("trt-rtx"),
}
