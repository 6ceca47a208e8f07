"""What a device is to a plan: its memory, and how fast it multiplies, reads and starts kernels. Data and its sources.

Nothing here was measured on a Jetson or a GPU: peaks are the makers' figures, launch costs and efficiencies assumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from videomar.errors import InputError

GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True)
class Device:
    """One place to run; bytes, bytes/s, operations/s, seconds, shares of the peak."""

    name: str
    title: str
    memory: int
    free: int  # of it, for this program
    bandwidth: float
    fp32: float
    fp16: float
    int8: float  # dense
    launch: float  # an operator that the host starts
    captured: float  # an operator of a captured graph, or one that ONNX Runtime's loop starts
    of_peak: float  # share of the peak that large products reach
    of_bandwidth: float
    backend: str = "trt"  # or "ort-cpu"
    sm: int = 0
    source: str = ""

    def __str__(self) -> str:
        return self.name


# What the system keeps for itself on a Jetson without a desktop: carve-outs, kernel, services.
_JETSON: dict[str, Any] = dict(launch=8e-6, captured=2.5e-6, of_peak=0.55, of_bandwidth=0.75)
_AMPERE = (
    "NVIDIA Jetson module data sheet; FP16 dense = tensor cores * 512 operations * GPU clock, INT8 dense twice that"
)

DEVICES: dict[str, Device] = {
    d.name: d
    for d in (
        # 32 tensor cores at 1.02 GHz (67 sparse INT8 TOPS), 102 GB/s in MAXN SUPER; 7.4 GiB visible to Linux.
        Device("orin-nano-8", "Jetson Orin Nano 8GB", 8 * GIB, int(6.4 * GIB), 102e9, 2.1e12, 16.7e12, 33.5e12,
               sm=87, source=f"{_AMPERE}; MAXN SUPER, 1.02 GHz, 102 GB/s", **_JETSON),
        # 32 tensor cores at 1.173 GHz (157 sparse INT8 TOPS with both DLAs, which are not used here).
        Device("orin-nx-16", "Jetson Orin NX 16GB", 16 * GIB, int(14.2 * GIB), 102.4e9, 2.4e12, 19.2e12, 38.4e12,
               sm=87, source=f"{_AMPERE}; MAXN SUPER, 1.173 GHz, 102.4 GB/s", **_JETSON),
        # 64 tensor cores at 1.3 GHz (170 sparse INT8 TOPS of the GPU), 204.8 GB/s.
        Device("agx-orin-64", "Jetson AGX Orin 64GB", 64 * GIB, int(60 * GIB), 204.8e9, 5.3e12, 42.6e12, 85.2e12,
               sm=87, source=f"{_AMPERE}; MAXN, 1.3 GHz, 204.8 GB/s", **_JETSON),
        # 2070 sparse FP4 TFLOPS, halved for density and for every doubling of the width; 273 GB/s.
        Device("thor-128", "Jetson Thor T5000 128GB", 128 * GIB, int(121 * GIB), 273e9, 8.0e12, 258e12, 517e12,
               sm=110, source="NVIDIA Jetson Thor data sheet: 2070 sparse FP4 TFLOPS / 8 (FP16), / 4 (INT8); 273 GB/s",
               **_JETSON),
        Device("h200", "H200 SXM 141GB", int(140.4 * GIB), int(138 * GIB), 4.8e12, 67e12, 989e12, 1979e12,
               launch=4e-6, captured=1.5e-6, of_peak=0.55, of_bandwidth=0.8, sm=90,
               source="NVIDIA H200 data sheet: 989 FP16 and 1979 INT8 dense TFLOPS, 4.8 TB/s, 141 GB"),
    )
}  # fmt: skip
LOCAL = "local"


def local(memory: int, free: int, flops: float, bandwidth: float) -> Device:
    """This machine's processor: bytes, and operations/s and bytes/s that it was just measured to reach."""
    return Device(
        LOCAL,
        "this machine",
        memory,
        free,
        bandwidth,
        flops,
        flops,  # FP16 graphs are computed in FP32
        2 * flops,
        launch=5e-6,
        captured=5e-6,
        of_peak=1.0,  # the measured rates are what is reached
        of_bandwidth=1.0,
        backend="ort-cpu",
        source="measured on this machine when the plan is made",
    )


def device(name: str) -> Device:
    """The device of the table with this name; raises InputError for an unknown one."""
    if name not in DEVICES:
        raise InputError(f"device is {name!r}, expected one of {', '.join([*DEVICES, LOCAL])}; change --device")
    return DEVICES[name]
