"""What follows from what is installed: rules, each a few lines, from `Facts` to problems and what mends them.

Knows versions that fit each other and those that do not. Asks the machine nothing; `doctor` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from videomar.capabilities import TABLE
from videomar.runtime.arithmetic import Arithmetic
from videomar.runtime.backends.choose import CUDA_WHEEL, JETSON_SMS, ORT_FOR_NATIVE
from videomar.runtime.cores import Cores
from videomar.runtime.kernels.binding import BUILD
from videomar.runtime.probes import Found, Gpu, Jetson, Ort
from videomar.runtime.system import numbers

ORT_LEAST = (1, 22)
TENSORRT_LEAST = min(row.version for row in TABLE if not row.rtx)
RTX_SMS = next(row.gpus for row in TABLE if row.rtx)
LITTLE_MEMORY, LITTLE_DISK = 4.0, 5.0  # GiB: what a full-size clip or build needs at the very least
MAXN = {"MAXN", "MAXN_SUPER"}


@dataclass(frozen=True)
class Facts:
    """What the probes said."""

    videomar: str
    python: str
    arch: str
    gpu: Gpu
    jetson: Jetson | None
    ort: Ort
    ort_packages: dict[str, str]  # distributions that install onnxruntime, with versions
    tensorrt: Found
    tensorrt_library: str  # file of libnvinfer, "" if the loader knows none
    tensorrt_cuda: int  # major CUDA version of TensorRT's wheel, 0 if it is no wheel
    rtx: Found
    cuda_python: str
    torch: str
    kernels: Found
    memory: tuple[float, float]  # GiB available, in all; zeros if unknown
    memory_limit: tuple[float, float] | None  # GiB free and allowed by the container's tightest limit
    cores: Cores
    arithmetic: Arithmetic | None  # of int8 on the CPU; None if unknown
    disk: float | None  # GiB free here


@dataclass(frozen=True)
class Problem:
    """Something to mend. Broken: what is installed cannot work as it is; otherwise it could just be better."""

    what: str
    mend: str
    broken: bool = False


Rule = Callable[[Facts], Iterator[Problem]]


def problems(facts: Facts) -> list[Problem]:
    """All of them, the broken first."""
    found = [problem for rule in RULES for problem in rule(facts)]
    return sorted(found, key=lambda problem: not problem.broken)


def _major(version: str) -> int:
    return numbers(version)[0] if numbers(version) else 0


def gpu_answers(f: Facts) -> Iterator[Problem]:
    if f.gpu.silent:
        yield Problem(
            "an NVIDIA GPU is in this machine, but its driver does not answer",
            "install or update the driver (`sudo apt install nvidia-driver-580`, then restart), and try `nvidia-smi`",
            broken=True,
        )
    if f.jetson and not f.gpu.name:
        yield Problem(
            f"{f.jetson.model}: its GPU does not answer",
            "sudo usermod -aG video,render $USER, and log in again (in a container: --runtime nvidia)",
            broken=True,
        )


def onnxruntime_fits(f: Facts) -> Iterator[Problem]:
    ort, version = f.ort, numbers(f.ort.version)[:2]
    if not ort.version:
        yield Problem(
            f"ONNX Runtime {f'cannot be loaded ({ort.error})' if ort.error else 'is not installed'}",
            "pip install --force-reinstall onnxruntime",
            broken=True,
        )
        return
    if version < ORT_LEAST:
        yield Problem(
            f"ONNX Runtime is {ort.version}, expected 1.22 or newer", "pip install -U onnxruntime", broken=True
        )
    elif version < ORT_FOR_NATIVE:
        mend = "pip install -U onnxruntime, or export with --emitter portable"
        if numbers(f.python)[:2] < (3, 11):
            mend = "export with --emitter portable (newer ONNX Runtimes need Python 3.11)"
        yield Problem(f"ONNX Runtime is {ort.version}; native artifacts need 1.24", mend)
    if len(f.ort_packages) > 1:
        yield Problem(
            f"{' and '.join(sorted(f.ort_packages))} are both installed and overwrite each other's files",
            f"pip uninstall {' '.join(sorted(f.ort_packages))}, then install one of them again",
            broken=True,
        )


def onnxruntime_on_gpu(f: Facts) -> Iterator[Problem]:
    ort, gpu = f.ort, f.gpu
    if not ort.version:
        return
    has_cuda = "CUDAExecutionProvider" in ort.providers
    if gpu.sm in JETSON_SMS and has_cuda:
        yield Problem(
            f"ONNX Runtime's CUDA provider is here, but the public wheel has no kernels for {gpu.name} (SM {gpu.sm})",
            "run engines instead (`videomar build`); `pip install onnxruntime` is smaller",
        )
        return
    if gpu.name and not has_cuda and gpu.sm not in JETSON_SMS:
        yield Problem(f"{gpu.name} is not used by ONNX Runtime, which has no CUDA provider here", CUDA_WHEEL)
    if has_cuda and (why := cuda_too_new(f, ort.cuda)):
        mend = "update the driver (CUDA 13 needs 580 or newer), or install an onnxruntime-gpu that is built for CUDA "
        yield Problem(f"ONNX Runtime {why}", mend + str(_major(gpu.cuda)), broken=True)
    elif has_cuda and gpu.name and (why := dict(ort.errors).get("cuda", "")):
        yield Problem(f"ONNX Runtime's CUDA provider cannot be loaded: {why}", CUDA_WHEEL, broken=True)


def cuda_too_new(f: Facts, cuda: str) -> str:
    """How something built for that CUDA is too new for the driver, "" if it is not or nobody knows."""
    driver = _major(f.gpu.cuda)
    return f"is built for CUDA {cuda}, the driver runs at most CUDA {f.gpu.cuda}" if 0 < driver < _major(cuda) else ""


def tensorrt_fits(f: Facts) -> Iterator[Problem]:
    least = ".".join(map(str, TENSORRT_LEAST))
    if f.tensorrt.error:
        yield Problem(f"the Python package tensorrt cannot be loaded ({f.tensorrt.error})", _tensorrt(f), broken=True)
    elif f.tensorrt.version and numbers(f.tensorrt.version)[:2] < TENSORRT_LEAST:
        mend = "flash JetPack 6.1 or newer" if f.jetson else "pip install -U tensorrt"
        yield Problem(f"TensorRT is {f.tensorrt.version}, expected {least} or newer", mend, broken=True)
    elif not f.tensorrt.version and f.gpu.name:
        library = ", though its library is" if f.tensorrt_library else ""
        yield Problem(
            f"TensorRT's Python package is not installed{library}; the GPU runs fastest with it", _tensorrt(f)
        )
    if f.tensorrt.version and (why := cuda_too_new(f, str(f.tensorrt_cuda))):
        mend = f"pip uninstall tensorrt && pip install tensorrt-cu{_major(f.gpu.cuda)}, or update the driver"
        yield Problem(f"TensorRT's wheel {why}", mend, broken=True)
    if f.rtx.error:
        yield Problem(f"TensorRT-RTX cannot be loaded ({f.rtx.error})", "pip install -U tensorrt-rtx", broken=True)
    elif f.rtx.version and f.gpu.sm and int(f.gpu.sm) not in RTX_SMS:
        yield Problem(
            f"TensorRT-RTX builds nothing for {f.gpu.name} (SM {f.gpu.sm})",
            f"use TensorRT for this GPU: {_tensorrt(f)}",
        )


def _tensorrt(f: Facts) -> str:
    if f.jetson:
        return (
            "sudo apt install nvidia-jetpack, and make the environment with `python3 -m venv --system-site-packages`, "
            "by the system's own python3"
        )
    return f"pip install 'tensorrt-cu{_major(f.gpu.cuda) or 13}>={'.'.join(map(str, TENSORRT_LEAST))}'"


def cuda_python_fits(f: Facts) -> Iterator[Problem]:
    cuda = _major(f.gpu.cuda)
    wanted = f"pip install 'cuda-python=={cuda}.*'" if cuda else "pip install cuda-python"
    if f.gpu.name and f.tensorrt.version and not f.cuda_python:
        yield Problem("cuda-python is not installed, engines cannot run without it", wanted)
    if why := cuda_too_new(f, f.cuda_python):
        yield Problem(f"cuda-python {why}", wanted, broken=True)


def kernels_load(f: Facts) -> Iterator[Problem]:
    if f.kernels.error:
        yield Problem(f"the native kernels cannot be used ({f.kernels.error})", f"rebuild them: {BUILD}", broken=True)
    elif f.kernels.version == "numpy":
        yield Problem("the native kernels are not built; numpy does their work, more slowly", BUILD)


def jetson_is_awake(f: Facts) -> Iterator[Problem]:
    if not f.jetson:
        return
    if f.jetson.power and f.jetson.power not in MAXN:
        yield Problem(
            f"the power mode is {f.jetson.power}, which holds the GPU back",
            "sudo nvpmodel -m 0 (an Orin Nano or NX with MAXN_SUPER: -m 2; `nvpmodel -p --verbose` lists them)",
        )
    if f.jetson.pinned is False:
        yield Problem("the GPU's clock rises only under load, so times vary", "sudo jetson_clocks")


def there_is_room(f: Facts) -> Iterator[Problem]:
    available, total = f.memory
    if f.memory_limit and f.memory_limit[0] < min(available, LITTLE_MEMORY):
        left, most = f.memory_limit
        yield Problem(
            f"this container may use {most:.1f} GiB memory, of which {left:.1f} are free",
            "give it more (docker run --memory, or the pod's limit)",
        )
    elif total and available < LITTLE_MEMORY:
        mend = "sudo systemctl isolate multi-user.target (no desktop)" if f.jetson else "close other programs"
        yield Problem(f"{available:.1f} of {total:.1f} GiB memory are available", mend)
    if f.disk is not None and f.disk < LITTLE_DISK:
        yield Problem(
            f"{f.disk:.1f} GiB disk are free here; engines and builds need more", "free some space: `df -h .`"
        )


RULES: tuple[Rule, ...] = (
    gpu_answers,
    onnxruntime_fits,
    onnxruntime_on_gpu,
    tensorrt_fits,
    cuda_python_fits,
    kernels_load,
    jetson_is_awake,
    there_is_room,
)
