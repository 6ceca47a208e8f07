"""Which instructions multiply int8 on this CPU, as the kernel names its features. Knows nothing of sessions or times.

All of them are exact in this project's sessions (backends/ort_session.py); they differ in what that costs. A
dot-product instruction adds four products of int8 in 32 bits at once. Without one, x86 has to widen to 16 bits first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from videomar.runtime.system import System


@dataclass(frozen=True)
class Arithmetic:
    """The best that ONNX Runtime uses here."""

    name: str
    dot_product: bool  # one instruction multiplies int8 and adds in 32 bits

    def __str__(self) -> str:
        if self.dot_product:
            return f"{self.name}: int8 products are one instruction, INT8 pays"
        return (
            f"{self.name}: int8 is widened to 16 bits to be exact, INT8 may not pay; `videomar calibrate` measures it"
        )


# Feature of /proc/cpuinfo -> what ONNX Runtime then uses, the best first. One line holds an x86 CPU's, one an ARM's.
KINDS = {
    "amx_int8": Arithmetic("AMX", dot_product=True),
    "avx512_vnni": Arithmetic("AVX-512 VNNI", dot_product=True),
    "avx_vnni": Arithmetic("AVX-VNNI", dot_product=True),
    "avx512bw": Arithmetic("AVX-512 without VNNI", dot_product=False),
    "avx2": Arithmetic("AVX2 without VNNI", dot_product=False),
    "sse2": Arithmetic("SSE2", dot_product=False),
    "i8mm": Arithmetic("ARM i8mm", dot_product=True),
    "asimddp": Arithmetic("ARM dot product", dot_product=True),
    "asimd": Arithmetic("ARM NEON without dot product", dot_product=False),
}


def integer_arithmetic(system: System) -> Arithmetic | None:
    """What multiplies int8 here; None where the system does not say (no Linux)."""
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", system.read("/proc/cpuinfo") or "", re.M)
    features = set(line[1].split()) if line else set()
    return next((kind for feature, kind in KINDS.items() if feature in features), None)
