"""The kernel library is ours and of this version or refused, is built for CUDA too, and is missed once, aloud."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest

from videomar.errors import ArtifactError
from videomar.runtime import kernels
from videomar.runtime.kernels import binding
from videomar.runtime.kernels.binding import NativeKernels

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "runtime" / "kernels"
HEADER = (SOURCES / "videomar_kernels.h").read_text()
FUNCTIONS = {"vm_abi_version", "vm_build_info", *binding.SIGNATURES}
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")

CPU = '#include "kernels.cpp"'
# A CPU library on CUDA's terms: nobody looked at the positions, and elements run in another order.
BLIND = """
#include "elements.h"
namespace vm {
template <class Element> int launch(int64_t rows, int64_t columns, const Element& element, void*) {
    for (int64_t i = rows * columns; i-- > 0;) element(i / columns, i % columns);
    return VM_OK;
}
inline bool inside(const int64_t*, int64_t, int64_t) { return true; }
}
#include "entries.h"
"""


def compiled(directory: Path, source: str) -> Path:
    if COMPILER is None:
        pytest.skip("a C++ compiler is missing")
    (directory / "source.cpp").write_text(source)
    command = [COMPILER, "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC", f"-I{SOURCES}", "-o"]
    subprocess.run([*command, str(directory / "made.so"), str(directory / "source.cpp")], check=True)
    return directory / "made.so"


@pytest.fixture(autouse=True)
def undecided(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process that has not chosen yet, in a checkout that built nothing."""
    monkeypatch.delenv(binding.VARIABLE, raising=False)
    monkeypatch.setattr(binding, "__file__", str(tmp_path / "checkout" / "runtime" / "kernels" / "binding.py"))
    monkeypatch.setattr(kernels, "implementation", kernels.functools.cache(kernels.implementation.__wrapped__))


# ---- the interface


def test_the_header_is_plain_c(tmp_path):
    if (compiler := shutil.which(os.environ.get("CC", "cc"))) is None:
        pytest.skip("a C compiler is missing")
    flags = ["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", "-x", "c"]
    subprocess.run([compiler, *flags, str(SOURCES / "videomar_kernels.h")], check=True)


def test_the_signature_table_is_the_headers():
    kinds = {"int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "float": ctypes.c_float}
    declared = {
        name: tuple(ctypes.c_void_p if "*" in a else kinds[a.split()[0]] for a in arguments.split(","))
        for name, arguments in re.findall(r"VM_API int (vm_\w+)\(([^)]+)\);", HEADER)
        if arguments != "void"
    }
    assert declared == binding.SIGNATURES
    numbers = {name: int(value) for name, value in re.findall(r"#define VM_(\w+) (\d+)", HEADER)}
    assert numbers["ABI_VERSION"] == binding.ABI_VERSION
    assert [numbers[name] for name in ("OK", "BAD_ARGUMENT", "BAD_POSITION", "LAUNCH_FAILED")] == [
        binding.OK,
        binding.BAD_ARGUMENT,
        binding.BAD_POSITION,
        binding.LAUNCH_FAILED,
    ]
    assert [binding.DTYPES[np.dtype(f"float{bits}")] for bits in (32, 16)] == [numbers["FLOAT32"], numbers["FLOAT16"]]


def test_nonsense_is_a_status_and_never_a_crash(tmp_path):
    c, data, positions = binding.load(compiled(tmp_path, CPU)), np.ones(64, np.float32), np.array([0, 99])
    p, where, refused = data.ctypes.data, positions.ctypes.data, []
    for dtype, branches, n, x in ((2, 1, 1, p), (0, 0, 1, p), (0, 3, 1, p), (0, 1, -1, p), (0, 1, 1, None)):
        refused.append(c.vm_guided_step(p, dtype, branches, n, 4, x, p, p, p, p, None))
    for n, channels, clip, masked in ((-1, 4, 1, p), (1, 0, 1, p), (1, 4, -1, p), (1, 4, np.nan, p), (1, 4, 1, None)):
        refused.append(c.vm_scatter_tokens(p, where, n, channels, 8, clip, p, masked, None))
    for dtype, size, rows in ((7, 8, p), (0, -1, p), (0, 8, None)):
        refused.append(c.vm_gather_rows(p, dtype, where, 1, size, 4, rows, None))
    refused.append(c.vm_pixels_to_frame(p, 0, 1, -2, 2, 4, 4, 2, 1, 0, p, None))
    assert set(refused) == {binding.BAD_ARGUMENT}
    lost = [c.vm_scatter_tokens(p, where, 2, 4, 8, 1, p, p, None), c.vm_gather_rows(p, 0, where, 2, 8, 4, p, None)]
    lost += [c.vm_pixels_to_frame(p, 0, 1, 2, 2, 4, 4, 2, 1, frame, p, None) for frame in (-1, 1)]
    assert lost == [binding.BAD_POSITION] * 4
    nothing = [c.vm_guided_step(None, 0, 1, 0, 4, *[None] * 6), c.vm_gather_rows(None, 0, None, 0, 8, 4, None, None)]
    assert nothing == [binding.OK] * 2 and (data == 1).all()


def test_where_the_host_cannot_look_elements_skip_bad_positions_in_whatever_order_they_run(tmp_path):
    blind, table = NativeKernels(compiled(tmp_path, BLIND)), np.arange(1, 37, dtype=np.float32).reshape(9, 4)
    for bad in (-1, 9, np.iinfo(np.int64).min, np.iinfo(np.int64).max):
        where = np.array([3, bad, 5], np.int64)
        tokens, masked = np.zeros((9, 4), np.float32), np.ones(9, bool)
        blind.scatter_tokens(tokens, masked, where, table[[3, 4, 5]], np.inf)
        assert np.array_equal(tokens[[3, 5]], table[[3, 5]]) and tokens.sum() == table[[3, 5]].sum()
        assert list(np.flatnonzero(~masked)) == [3, 5]
        for dtype in (np.float32, np.float16):
            out = np.zeros((3, 4), dtype)
            blind.gather_rows(table.astype(dtype), where, out)
            assert np.array_equal(out[[0, 2]], table[[3, 5]]) and np.isnan(out[1]).all()


# ---- finding and refusing


def test_a_library_is_found_where_the_variable_says_then_beside_the_package_then_in_the_checkouts_build(
    tmp_path, monkeypatch
):
    name = binding.CPU_LIBRARY
    assert binding.find() is None
    places = [tmp_path / "checkout" / "build", tmp_path / "checkout" / "runtime" / "kernels", tmp_path / "told"]
    for place in places:
        place.mkdir(parents=True)
        (place / name).touch()
        (place / binding.CUDA_LIBRARY).touch()
        if place.name == "told":
            monkeypatch.setenv(binding.VARIABLE, str(place))
        assert binding.find() == place / name
    monkeypatch.setenv(binding.VARIABLE, str(places[2] / name))
    assert binding.find() == places[2] / name and binding.find(binding.CUDA_LIBRARY) == places[2] / binding.CUDA_LIBRARY
    monkeypatch.setenv(binding.VARIABLE, str(tmp_path / "lost"))
    with pytest.raises(ArtifactError, match="lost, which does not exist"):
        kernels.available()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            'extern "C" int vm_abi_version() { return 99; }',
            r"ABI version 99, expected 1; rebuild it: cmake -S \. -B build",
        ),
        ('extern "C" int vm_abi_version() { return 1; }', "not a VideoMAR kernel library"),
        ("int other;", "not a VideoMAR kernel library"),
        ('#define VM_BUILD_INFO "cuda 13.0"\n' + CPU, "built for cuda 13.0, expected the CPU library"),
    ],
)
def test_a_library_of_another_version_or_kind_is_refused_in_one_line_that_mends_it(
    tmp_path, monkeypatch, source, message
):
    monkeypatch.setenv(binding.VARIABLE, str(compiled(tmp_path, source)))
    with pytest.raises(ArtifactError, match=message) as refusal:
        kernels.available()
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_no_library_is_refused(tmp_path, monkeypatch):
    (tmp_path / "torn.so").write_bytes(b"\x7fELF")
    monkeypatch.setenv(binding.VARIABLE, str(tmp_path / "torn.so"))
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        kernels.gather_rows(np.zeros((2, 2), np.float32), np.arange(2))


def test_a_library_that_is_found_is_used_and_named(tmp_path, monkeypatch):
    monkeypatch.setenv(binding.VARIABLE, str(compiled(tmp_path, CPU)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels.available() == "cpu, built without CMake"


def test_without_a_library_numpy_is_used_and_said_once():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):
            kernels.gather_rows(np.zeros((2, 2), np.float32), np.arange(2))
        assert kernels.available() == "numpy"
    assert len(said) == 1 and binding.BUILD in str(said[0].message)


def test_numpy_can_be_asked_for_without_a_word(monkeypatch):
    monkeypatch.setenv(binding.VARIABLE, "numpy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels.available() == "numpy"


# ---- CUDA


@pytest.mark.skipif(
    not (NVCC and shutil.which("cmake") and COMPILER), reason="nvcc, cmake or a C++ compiler is missing"
)
def test_the_cuda_library_builds_exports_the_interface_and_loads_without_a_driver(tmp_path):
    options = ["-DVIDEOMAR_CUDA=ON", f"-DVIDEOMAR_NVCC={NVCC}", "-DVIDEOMAR_CUDA_ARCHITECTURES=90;999"]
    configured = subprocess.run(
        ["cmake", "-S", str(ROOT), "-B", str(tmp_path / "build"), *options], capture_output=True, text=True
    )
    assert configured.returncode == 0, configured.stdout + configured.stderr
    assert "leaving out sm_999" in configured.stderr
    subprocess.run(["cmake", "--build", str(tmp_path / "build")], check=True, capture_output=True)
    subprocess.run(["cmake", "--install", str(tmp_path / "build"), "--prefix", str(tmp_path / "there")], check=True)
    installed = {path.name: path for path in (tmp_path / "there").rglob("*") if path.is_file()}
    assert set(installed) == {binding.CPU_LIBRARY, binding.CUDA_LIBRARY, "videomar_kernels.h"}
    for name in (binding.CPU_LIBRARY, binding.CUDA_LIBRARY):
        library = binding.load(installed[name])
        if nm := shutil.which("nm"):
            listed = subprocess.run(
                [nm, "-D", "--defined-only", installed[name]], check=True, capture_output=True, text=True
            )
            assert {line.split()[-1] for line in listed.stdout.splitlines()} == FUNCTIONS
    assert re.fullmatch(r"cuda [\d.]+, sm_90", library.vm_build_info().decode())
    # Refused and empty calls return before anything is launched, so they need no GPU.
    assert library.vm_guided_step(None, 0, 1, 0, 4, *[None] * 6) == binding.OK
    assert library.vm_guided_step(None, 0, 1, 1, 4, *[None] * 6) == binding.BAD_ARGUMENT
