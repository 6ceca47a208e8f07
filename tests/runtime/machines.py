"""Machines that are not here, as a `System` each: what their commands, files and packages would answer.

The answers of Jetsons are written from NVIDIA's documentation, not recorded on boards.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import Any

from videomar.runtime import probes
from videomar.runtime.system import System

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


@dataclass
class Machine(System):
    """Answers from tables; what is not in them is not there."""

    arch: str = "x86_64"  # type: ignore[assignment]
    python: str = "3.12.3"  # type: ignore[assignment]
    commands: dict[tuple[str, ...], str] = field(default_factory=dict)  # first words of a command -> what it prints
    contents: dict[str, str] = field(default_factory=dict)  # path -> text
    packages: dict[str, str] = field(default_factory=dict)  # distributions -> versions
    modules: tuple[str, ...] = ("onnxruntime", "videomar.runtime.kernels")
    loads: dict[str, Any] = field(default_factory=dict)  # code -> what it prints as JSON, or a string: its error
    disk: int = 100 << 30
    processors: tuple[int, int] = (8, 8)  # there, allowed

    def cores(self) -> tuple[int, int]:
        return self.processors

    def run(self, command: Sequence[str], timeout: float = 10) -> str | None:
        return next((said for words, said in self.commands.items() if tuple(command[: len(words)]) == words), None)

    def evaluate(self, code: str, timeout: float = 60) -> tuple[bool, str]:
        answer = self.loads.get(code, "ModuleNotFoundError: nothing of that name")
        return (False, answer) if isinstance(answer, str) else (True, json.dumps(answer))

    def read(self, path: str) -> str | None:
        return self.contents.get(path)

    def files(self, pattern: str) -> list[str]:
        folders = {path.rsplit("/", 1)[0] for path in self.contents}
        return sorted(path for path in {*self.contents, *folders} if fnmatch(path, pattern))

    def has(self, module: str) -> bool:
        return module in self.modules

    def version(self, *distributions: str) -> str | None:
        return next((self.packages[name] for name in distributions if name in self.packages), None)

    def onnxruntime(self) -> tuple[str, tuple[str, ...]] | None:
        found = self.loads.get(probes.ORT_CODE)
        return (found["version"], tuple(found["providers"])) if isinstance(found, dict) else None

    def gpu(self) -> tuple[str, str]:
        found = self.loads.get(probes.GPU_CODE)
        return (found["name"], found["sm"]) if isinstance(found, dict) else ("", "")

    def free_disk(self, path: str) -> int | None:
        return self.disk

    def but(self, **changes: Any) -> Machine:
        """Another machine; entries of tables are added to those here."""
        return replace(self, **{k: getattr(self, k) | v if isinstance(v, dict) else v for k, v in changes.items()})


def ort(
    version: str, *providers: str, package: str = "onnxruntime", cuda: str = "", cuda_error: str = ""
) -> dict[str, Any]:
    return {
        "version": version,
        "package": package,
        "cuda": cuda,
        "providers": [*providers, CPU],
        "errors": {"cuda": cuda_error} if cuda_error else {},
    }


def gpu(name: str, sm: str, cuda: str) -> dict[str, str]:
    return {"name": name, "sm": sm, "cuda": cuda, "runtime": cuda}


def meminfo(available: float, total: float) -> str:
    return f"MemTotal:  {int(total * 2**20)} kB\nMemFree:  1 kB\nMemAvailable:  {int(available * 2**20)} kB\n"


LAPTOP = Machine(
    contents={"/proc/meminfo": meminfo(11, 16)},
    packages={"videomar": "0.1.0", "onnxruntime": "1.32.0"},
    loads={
        probes.GPU_CODE: {"name": "", "sm": "", "cuda": "", "runtime": ""},
        probes.ORT_CODE: ort("1.32.0"),
        probes.KERNELS_CODE: {"version": "cpu x86_64, GNU 12.2.0"},
    },
)

ORIN = Machine(
    arch="aarch64",
    python="3.10.12",
    commands={
        ("dpkg-query", "-W"): "6.2+b77",
        ("nvpmodel", "-q"): "NV Power Mode: MODE_30W\n2\n",
        ("ldconfig", "-p"): "\tlibnvinfer.so.10 (libc6,AArch64) => /lib/aarch64-linux-gnu/libnvinfer.so.10\n",
    },
    contents={
        "/etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
        "/proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit",
        "/proc/meminfo": meminfo(52, 61.3),
        "/sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
        "/sys/class/devfreq/17000000.gpu/max_freq": "1300500000\n",
    },
    packages={"videomar": "0.1.0", "onnxruntime": "1.23.2", "tensorrt": "10.3.0", "cuda-bindings": "12.9.4"},
    modules=("onnxruntime", "videomar.runtime.kernels", "tensorrt", "cuda.bindings.runtime"),
    loads={
        probes.GPU_CODE: gpu("Orin", "87", "12.6"),
        probes.ORT_CODE: ort("1.23.2"),
        probes.TENSORRT_CODE: {"version": "10.3.0"},
        probes.KERNELS_CODE: {"version": "cpu aarch64, GNU 11.4.0"},
    },
)

THOR = ORIN.but(
    python="3.12.3",
    commands={("dpkg-query", "-W"): "7.2", ("nvpmodel", "-q"): "NV Power Mode: MAXN\n0\n"},
    contents={
        "/etc/nv_tegra_release": "# R39 (release), REVISION: 2.0, GCID: 1, BOARD: generic, EABI: aarch64\n",
        "/proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit",
        "/proc/meminfo": meminfo(110, 122.8),
        "/sys/class/devfreq/17000000.gpu/min_freq": "1300500000\n",
    },
    packages={"onnxruntime": "1.32.0", "tensorrt": "10.16.0.72", "cuda-bindings": "13.2.0"},
    loads={
        probes.GPU_CODE: gpu("NVIDIA Thor", "110", "13.2"),
        probes.ORT_CODE: ort("1.32.0"),
        probes.TENSORRT_CODE: {"version": "10.16.0.72"},
    },
)

SERVER = Machine(  # all is well: a driver with CUDA 13, wheels for it
    commands={("nvidia-smi",): "580.95.05, 140000, 143771\n"},
    contents={"/proc/meminfo": meminfo(100, 128), "/sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n"},
    packages={
        "videomar": "0.1.0",
        "onnxruntime-gpu": "1.31.0",
        "tensorrt": "10.13.3.9",
        "tensorrt-cu13": "10.13.3.9",
        "cuda-bindings": "13.0.3",
    },
    modules=("onnxruntime", "videomar.runtime.kernels", "tensorrt", "cuda.bindings.runtime"),
    loads={
        probes.GPU_CODE: gpu("NVIDIA H200", "90", "13.0"),
        probes.ORT_CODE: ort("1.31.0", TENSORRT, CUDA, package="onnxruntime-gpu", cuda="13.0"),
        probes.TENSORRT_CODE: {"version": "10.13.3.9"},
        probes.KERNELS_CODE: {"version": "cpu x86_64, GNU 12.2.0"},
    },
)

OLD_DRIVER = SERVER.but(  # the same wheels over a driver of CUDA 12
    commands={("nvidia-smi",): "550.144.03, 80000, 81559\n"},
    loads={probes.GPU_CODE: gpu("NVIDIA H100", "90", "12.4")},
)
