"""Which instruction multiplies int8, by the features that kernels print for CPUs of several kinds."""

from __future__ import annotations

from pathlib import Path

import pytest

from videomar.runtime.arithmetic import integer_arithmetic
from videomar.runtime.system import System

# Of x86 the vector extensions only; the ARM lines are whole.
GENOA = (
    "sse sse2 sse4_1 sse4_2 avx f16c fma avx2 avx512f avx512dq avx512ifma avx512cd avx512bw avx512vl avx512_bf16 "
    "avx512vbmi avx512_vbmi2 gfni vaes vpclmulqdq avx512_vnni avx512_bitalg avx512_vpopcntdq"
)
MILAN = "sse sse2 sse4_1 sse4_2 avx f16c fma avx2 vaes vpclmulqdq"
SAPPHIRE_RAPIDS = f"{GENOA} avx_vnni amx_bf16 avx512_fp16 amx_tile amx_int8"
ALDER_LAKE = "sse sse2 ssse3 fma sse4_1 sse4_2 avx f16c avx2 avx_vnni gfni vaes vpclmulqdq"
SKYLAKE_SERVER = "sse sse2 ssse3 fma sse4_1 sse4_2 avx f16c avx2 avx512f avx512dq avx512cd avx512bw avx512vl"
RASPBERRY_PI_4 = "fp asimd evtstrm crc32 cpuid"
ORIN = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp uscat ilrcpc"
GRAVITON_3 = f"{ORIN} flagm ssbs paca pacg dcpodp svei8mm svebf16 i8mm bf16 dgh rng sve"


class Cpu(System):
    def __init__(self, text: str | None) -> None:
        self.text = text

    def read(self, path: str) -> str | None:
        return self.text if path == "/proc/cpuinfo" else None


@pytest.mark.parametrize(
    ("features", "name", "dot_product"),
    [
        (GENOA, "AVX-512 VNNI", True),
        (MILAN, "AVX2 without VNNI", False),
        (SAPPHIRE_RAPIDS, "AMX", True),
        (ALDER_LAKE, "AVX-VNNI", True),
        (SKYLAKE_SERVER, "AVX-512 without VNNI", False),
        ("fpu sse sse2 ssse3", "SSE2", False),
        (RASPBERRY_PI_4, "ARM NEON without dot product", False),
        (ORIN, "ARM dot product", True),
        (GRAVITON_3, "ARM i8mm", True),
    ],
)
def test_the_best_instruction_is_named(features: str, name: str, dot_product: bool) -> None:
    key = "Features\t" if "asimd" in features else "flags\t\t"
    lines = f"processor\t: 0\nmodel name\t: avx512_vnni or i8mm by name\n{key}: {features}\n"
    found = integer_arithmetic(Cpu(lines + "\n" + lines))
    assert found is not None and (found.name, found.dot_product) == (name, dot_product)
    assert ("calibrate" in str(found)) is not dot_product


@pytest.mark.parametrize("text", [None, "", "flags\t\t:\n", "processor : 0\nisa : rv64imafdc\n"])
def test_what_a_system_does_not_say_is_unknown(text: str | None) -> None:
    assert integer_arithmetic(Cpu(text)) is None


def test_this_machine_is_known() -> None:
    if Path("/proc/cpuinfo").exists():
        assert integer_arithmetic(System()) is not None
