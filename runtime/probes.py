"""What is installed on a machine: one small function a thing, each asking a `System`. Knows nothing of what follows.

No probe raises or hangs. Libraries that may not fit the machine are loaded in a process of their own.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from videomar.runtime.cgroups import memory_limits
from videomar.runtime.system import System

GPU_CODE = """
import ctypes, json
from videomar.fingerprint import this_machine
machine, version = this_machine("", False), ctypes.c_int()
try:
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
except OSError:
    pass
cuda = f"{version.value // 1000}.{version.value % 1000 // 10}" if version.value else ""
name = machine.gpu if machine.has_gpu else ""
print(json.dumps({"name": name, "sm": machine.sm, "cuda": cuda, "runtime": machine.cuda}))
"""
# Loading a provider's library says what it lacks; listing the providers only says that the file is there.
ORT_CODE = """
import ctypes, json, pathlib, onnxruntime as ort
from onnxruntime.capi import build_and_package_info as build
getattr(ort, "preload_dlls", lambda: None)()
found = {"version": ort.__version__, "package": build.package_name, "cuda": getattr(build, "cuda_version", "") or ""}
found["providers"], found["errors"] = ort.get_available_providers(), {}
for name in ("shared", "cuda", "tensorrt"):
    file = pathlib.Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{name}.so"
    try:
        file.exists() and ctypes.CDLL(str(file), ctypes.RTLD_GLOBAL)
    except OSError as error:
        found["errors"][name] = str(error)
print(json.dumps(found))
"""
TENSORRT_CODE = """
import json
from videomar.runtime.backends.trt_module import load_tensorrt
print(json.dumps({"version": load_tensorrt("tensorrt")[0].__version__}))
"""
RTX_CODE = TENSORRT_CODE.replace('"tensorrt"', '"tensorrt-rtx"')
KERNELS_CODE = """
import json, warnings
warnings.simplefilter("ignore")
from videomar.runtime.kernels import available
print(json.dumps({"version": available()}))
"""
# NVIDIA Jetson Linux -> JetPack, where its package is not installed.
JETPACKS = {"36.3": "6.0", "36.4.0": "6.1", "36.4": "6.2", "38.2": "7.0", "38.4": "7.1"}
PCI = "/sys/bus/pci/devices/*/vendor"
DEVFREQ = "/sys/class/devfreq/*gpu*"


@dataclass(frozen=True)
class Found:
    """A library: its version, or why it cannot be used. Neither: it is not installed."""

    version: str = ""
    error: str = ""


@dataclass(frozen=True)
class Ort(Found):
    """ONNX Runtime, loaded."""

    package: str = ""
    cuda: str = ""  # that it was built for
    providers: tuple[str, ...] = ()
    errors: tuple[tuple[str, str], ...] = ()  # provider ("cuda", "tensorrt") -> why its library does not load


@dataclass(frozen=True)
class Gpu:
    """The first GPU and its driver; empty strings where there is none."""

    name: str = ""
    sm: str = ""
    cuda: str = ""  # the newest that the driver runs
    runtime: str = ""  # CUDA runtime library found on the system
    driver: str = ""
    free: str = ""  # of its own memory, for people; a Jetson has none
    silent: bool = False  # the bus holds one, the driver does not answer


@dataclass(frozen=True)
class Jetson:
    """A Jetson board."""

    model: str
    l4t: str
    jetpack: str
    power: str  # mode's name, "" if unknown
    pinned: bool | None  # the GPU's clock, as jetson_clocks does it; None if unknown


def gpu(system: System) -> Gpu:
    """Asked of the driver; nvidia-smi only adds to it, since Jetsons have none or half of one."""
    data = _json(system, GPU_CODE)
    smi = system.run(
        ["nvidia-smi", "--query-gpu=driver_version,memory.free,memory.total", "--format=csv,noheader,nounits"]
    )
    driver, free, total = ([p.strip() for p in (smi or "").split("\n")[0].split(",")] + ["", "", ""])[:3]
    memory = f"{int(free) / 1024:.1f} of {int(total) / 1024:.1f} GiB free" if free.isdigit() and total.isdigit() else ""
    on_bus = any((system.read(path) or "").strip() == "0x10de" for path in system.files(PCI))
    name = str(data.get("name", ""))
    sm, cuda, runtime = (str(data.get(key, "")) for key in ("sm", "cuda", "runtime"))
    return Gpu(name, sm, cuda, runtime, driver, memory, silent=not name and on_bus)


def jetson(system: System) -> Jetson | None:
    """None on anything else."""
    release = system.read("/etc/nv_tegra_release") or ""
    model = (system.read("/proc/device-tree/model") or "").strip()
    found = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", release)
    if not found and "Jetson" not in model:
        return None
    l4t = f"{found[1]}.{found[2]}" if found else ""
    package = system.run(["dpkg-query", "-W", "-f", "${Version}", "nvidia-jetpack"]) or ""
    jetpack = package.split("+")[0].strip() or next(
        (version for prefix, version in JETPACKS.items() if l4t == prefix or l4t.startswith(f"{prefix}.")), ""
    )
    mode = re.search(r"NV Power Mode:\s*(\S+)", system.run(["nvpmodel", "-q"]) or "")
    clocks = [
        (system.read(f"{folder}/min_freq"), system.read(f"{folder}/max_freq")) for folder in system.files(DEVFREQ)
    ]
    pinned = [low == high for low, high in clocks if low and high]
    return Jetson(model or "unknown Jetson", l4t, jetpack, mode[1] if mode else "", all(pinned) if pinned else None)


def onnxruntime(system: System) -> Ort:
    if not system.has("onnxruntime"):
        return Ort()
    data, error = _loaded(system, ORT_CODE)
    if error:
        return Ort(error=error)
    return Ort(
        data["version"],
        package=data["package"],
        cuda=data["cuda"],
        providers=tuple(data["providers"]),
        errors=tuple(data["errors"].items()),
    )


def tensorrt(system: System) -> Found:
    return _found(system, ("tensorrt",), TENSORRT_CODE)


def tensorrt_rtx(system: System) -> Found:
    return _found(system, ("tensorrt_rtx", "tensorrt_rtx_bindings"), RTX_CODE)


def kernels(system: System) -> Found:
    """The native kernels library; the version is "numpy" where none was built."""
    return _found(system, ("videomar.runtime.kernels",), KERNELS_CODE)


def library(system: System, name: str) -> str:
    """File of a shared library in the loader's cache, "" if it is not there; "libnvinfer.so" finds libnvinfer.so.10."""
    for ldconfig in ("ldconfig", "/sbin/ldconfig"):  # not on every user's path
        if found := re.search(rf"^\s*({re.escape(name)}[.\d]*) .*=> (.+)$", system.run([ldconfig, "-p"]) or "", re.M):
            return found[2]
    return ""


def memory(system: System) -> tuple[float, float]:
    """GiB of host memory available and in all; zeros if unknown."""
    text = system.read("/proc/meminfo") or ""
    sizes = [re.search(rf"^{key}:\s*(\d+) kB", text, re.M) for key in ("MemAvailable", "MemTotal")]
    available, total = (int(size[1]) / 2**20 if size else 0.0 for size in sizes)
    return available, total


def memory_limit(system: System) -> tuple[float, float] | None:
    """GiB free and allowed of the limit that leaves this process least; None where the host's memory is the end."""
    left, most = min(((left, most) for most, left in memory_limits(system)), default=(0, 0))
    return (left / 2**30, most / 2**30) if 0 < most <= memory(system)[1] * 2**30 else None


def free_memory(system: System) -> int:
    """Bytes that this process could still take: what the host has, or less where a container is allowed less.

    0 if unknown.
    """
    free = int(memory(system)[0] * 2**30)
    return min([left for _, left in memory_limits(system)] + ([free] if free else []), default=0)


def resident(system: System) -> int:
    """Bytes of this process in memory now, 0 if unknown."""
    found = re.search(r"^VmRSS:\s*(\d+) kB", system.read("/proc/self/status") or "", re.M)
    return int(found[1]) << 10 if found else 0


def _found(system: System, modules: tuple[str, ...], code: str) -> Found:
    if not any(system.has(module) for module in modules):
        return Found()
    data, error = _loaded(system, code)
    return Found(error=error) if error else Found(str(data["version"]))


def _loaded(system: System, code: str) -> tuple[dict[str, Any], str]:
    fine, said = system.evaluate(code)
    if not fine:
        return {}, said or "it cannot be loaded"
    try:
        return json.loads(said), ""
    except ValueError:
        return {}, f"unexpected answer {said!r:.80}"


def _json(system: System, code: str) -> dict[str, Any]:
    data, _ = _loaded(system, code)
    return data
