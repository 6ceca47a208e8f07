"""What each TensorRT can do, as data: operators, opset, names of calls, GPUs. Imports nothing that may be absent.

Rows are the versions that devices ship (docs/build.md, with where the numbers come from); a version between two rows
counts as the older one. The RTX row was measured with its builder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from videomar.errors import InputError

NATIVE_OPS = frozenset({"Attention", "RotaryEmbedding", "RMSNormalization", "TensorScatter"})


@dataclass(frozen=True)
class Capability:
    """One row: what a TensorRT of at least `version` does."""

    version: tuple[int, int]
    rtx: bool
    max_opset: int  # of the ONNX parser; a newer one is read with a warning, and nobody knows how
    native_ops: frozenset[str]  # of NATIVE_OPS, imported as one layer
    # Names that moved between versions, the one to prefer first; callers take the first that exists.
    context_memory: tuple[str, ...]  # on an execution context: hand it its memory
    memory_size: tuple[str, ...]  # on an engine: bytes of that memory
    strong_typing_flag: bool  # False: networks are always strongly typed, the flag is accepted and ignored
    weak_typing: bool  # has precision flags and calibrators, which this project never touches
    timing_cache: bool
    gpus: frozenset[int]  # SM numbers it makes engines for; empty: what the build machine has

    @property
    def name(self) -> str:
        """For people: "TensorRT 10.3"."""
        return f"TensorRT{'-RTX' if self.rtx else ''} {self.version[0]}.{self.version[1]}"

    @property
    def emitters(self) -> dict[str, str]:
        """Emitter -> why it cannot be built ("" when it can)."""
        missing = ", ".join(sorted(NATIVE_OPS - self.native_ops))
        return {"portable": "", "native": missing and f"it has no {missing}"}


_BOTH = ("set_device_memory", "device_memory")
_SIZES = ("device_memory_size_v2", "device_memory_size")
_ANY: frozenset[int] = frozenset()


def _row(version: tuple[int, int], max_opset: int, native: bool) -> Capability:
    """A TensorRT of the 10 series."""
    ops = NATIVE_OPS if native else frozenset()
    return Capability(version, False, max_opset, ops, _BOTH, _SIZES, True, True, True, _ANY)


TABLE: tuple[Capability, ...] = (
    _row((10, 3), 20, native=False),  # JetPack 6.1, 6.2
    _row((10, 7), 20, native=False),
    _row((10, 13), 22, native=False),  # JetPack 7.0, 7.1
    _row((10, 15), 24, native=True),  # the first with all of NATIVE_OPS
    _row((10, 16), 24, native=True),  # JetPack 7.2
    Capability((11, 0), False, 24, NATIVE_OPS, _BOTH[:1], _SIZES[:1], False, False, True, _ANY),
    Capability(
        (1, 7), True, 24, NATIVE_OPS, _BOTH, _SIZES[:1], True, False, False, frozenset({75, 80, 86, 89, 120, 121})
    ),
)


def capabilities(version: str, rtx: bool = False) -> Capability:
    """The newest row not newer than `version` ("10.3.0"); raises InputError when there is none."""
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    rows = [row for row in TABLE if row.rtx == rtx]
    fitting = [row for row in rows if row.version <= numbers]
    if not fitting:
        oldest = min(rows, key=lambda row: row.version)
        mend = "pip install -U tensorrt-rtx-cu13-bindings" if rtx else "on a Jetson that is JetPack 6.1 or newer"
        raise InputError(
            f"TensorRT{'-RTX' if rtx else ''} is {version}, expected {oldest.name} or newer; upgrade it ({mend})"
        )
    return max(fitting, key=lambda row: row.version)


def check_graphs(capability: Capability, emitter: str, opset: int) -> None:
    """Raise InputError when this TensorRT cannot take graphs of that emitter and opset, saying what to export."""
    if why := capability.emitters[emitter]:
        raise InputError(f"{capability.name} cannot build {emitter} graphs: {why}; export with --emitter portable")
    if opset > capability.max_opset:
        raise InputError(
            f"the graphs use ONNX opset {opset}, {capability.name} reads up to {capability.max_opset}; "
            "export with --emitter portable"
        )
