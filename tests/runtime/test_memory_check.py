"""A clip that does not fit is refused before anything runs, in the plan's words; free memory is faked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from videomar.artifacts import Manifest
from videomar.config import DEMO, VIDEOMAR_1_4B, ModelConfig
from videomar.errors import DeviceError
from videomar.plan.memory import plan_memory
from videomar.plan.request import Request
from videomar.runtime.memory_check import MemoryCheck
from videomar.runtime.probes import free_memory, resident
from videomar.runtime.system import System

GIB = 1 << 30


class Machine(System):
    """Files as given, everything else absent."""

    def __init__(self, files: dict[str, str]) -> None:
        self.files_ = files

    def read(self, path: str) -> str | None:
        return self.files_.get(path)


def machine(available: int, here: int = 0, **files: str) -> Machine:
    """Bytes that /proc/meminfo says are available, and that this process holds."""
    info = f"MemTotal: {64 * GIB >> 10} kB\nMemAvailable: {available >> 10} kB\n"
    return Machine({"/proc/meminfo": info, "/proc/self/status": f"VmRSS:\t{here >> 10} kB\n", **files})


def require(config: ModelConfig, system: System, lean: bool = True, **changes: Any) -> None:
    manifest = Manifest("onnx", "fp32", "portable", 18, config)
    sampling = dataclasses.replace(config.sampling, **changes)
    MemoryCheck(manifest, lean, system).require(sampling.but(guidance_passes=1), 1, 4, False)


def need(config: ModelConfig, **changes: Any) -> int:
    sampling = dataclasses.replace(config.sampling, **changes)
    return plan_memory(Request(config, sampling, "fp32", text=4), "ort-cpu").peak


def test_a_clip_is_let_through_when_it_just_fits_and_refused_when_it_just_does_not() -> None:
    peak = need(DEMO)
    require(DEMO, machine(peak + (1 << 20)))
    with pytest.raises(DeviceError):
        require(DEMO, machine(peak - (1 << 20)))


def test_two_passes_are_taken_where_only_they_fit_and_never_against_what_was_asked() -> None:
    large = dataclasses.replace(DEMO.sampling, height=256, width=256)
    config = dataclasses.replace(DEMO, transformer=VIDEOMAR_1_4B.transformer, sampling=large)
    request = Request(config, config.sampling, "fp32", text=4)
    one, two = (plan_memory(request.but(guidance_passes=passes), "ort-cpu").peak for passes in (1, 2))
    assert two < one
    between = MemoryCheck(Manifest("onnx", "fp32", "portable", 18, config), True, machine((one + two) // 2))
    plenty = dataclasses.replace(between, system=machine(2 * one))
    assert between.require(large, 1, 4, False) == large.but(guidance_passes=2)
    assert plenty.require(large, 1, 4, False) == large
    assert plenty.require(large.but(guidance_passes=2), 1, 4, False) == large.but(guidance_passes=2)
    with pytest.raises(DeviceError, match="--guidance-passes 2"):
        between.require(large.but(guidance_passes=1), 1, 4, False)


def test_what_the_process_holds_already_is_part_of_what_it_needs() -> None:
    peak = need(DEMO)
    require(DEMO, machine(peak // 2, here=peak // 2 + (1 << 20)))


def test_the_refusal_says_needs_has_and_the_smallest_change_in_one_line() -> None:
    with pytest.raises(DeviceError) as caught:
        require(VIDEOMAR_1_4B, machine(12 * GIB))
    said = str(caught.value)
    assert "needs" in said and "12.00 GiB can be had" in said and "\n" not in said
    assert "the smallest change that fits: " in said and "--no-memory-check" in said


def test_where_nothing_helps_it_says_so() -> None:
    with pytest.raises(DeviceError, match="no option makes it small enough"):
        require(VIDEOMAR_1_4B, machine(GIB // 100))


def test_a_machine_that_does_not_tell_refuses_nothing() -> None:
    require(VIDEOMAR_1_4B, Machine({}))


def test_a_containers_limit_counts_and_pages_of_read_files_do_not() -> None:
    group = "/sys/fs/cgroup/memory"
    v2 = {f"{group}.max": f"{4 * GIB}\n", f"{group}.current": f"{3 * GIB}\n"}
    assert free_memory(machine(32 * GIB, **v2)) == 1 * GIB
    v2[f"{group}.stat"] = f"anon 5\ninactive_file {GIB // 2}\n"
    assert free_memory(machine(32 * GIB, **v2)) == GIB + GIB // 2
    assert free_memory(machine(GIB // 4, **v2)) == GIB // 4
    assert free_memory(machine(GIB, **{f"{group}.max": "max\n", f"{group}.current": "1\n"})) == GIB
    v1 = {f"{group}/memory.limit_in_bytes": f"{2 * GIB}", f"{group}/memory.usage_in_bytes": f"{GIB}"}
    assert free_memory(machine(32 * GIB, **v1)) == GIB


def test_this_process_is_in_memory_here() -> None:
    if Path("/proc/self/status").exists():
        assert 10 << 20 < resident(System()) < 64 * GIB
        assert free_memory(System()) > 0


def test_a_pipeline_refuses_before_anything_runs_and_can_be_told_not_to(tiny_config: ModelConfig) -> None:
    import numpy as np

    from videomar.runtime.pipeline import Pipeline

    class Nothing:
        """A backend whose every call is a failure of the test."""

        name = "ort-cpu"

        def __getattr__(self, what: str) -> Any:
            raise AssertionError(f"{what} was called")

    class Words:
        def __call__(self, prompt: str) -> np.ndarray:
            return np.zeros((1, 4), np.int64)

    check = MemoryCheck(Manifest("onnx", "fp32", "portable", 18, tiny_config), True, machine(1 << 20))
    picture = np.zeros((64, 64, 3), np.uint8)
    refusing = Pipeline(tiny_config, Nothing(), Words(), memory=check)  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="this clip needs"):
        refusing.start(picture, "a red circle falls")
    trusting = Pipeline(tiny_config, Nothing(), Words())  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="encode_text was called"):
        trusting.start(picture, "a red circle falls").advance()
