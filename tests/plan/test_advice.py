"""Requests, memory and advice: what must hold for every model, size and device."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videomar.config import DEMO, PRESETS, VIDEOMAR_1_4B
from videomar.errors import ConfigError, InputError
from videomar.plan.advice import smallest_change
from videomar.plan.devices import DEVICES, GIB, MIB
from videomar.plan.memory import builds, fits, plan_memory
from videomar.plan.request import Request


def request(**changes: Any) -> Request:
    return Request(VIDEOMAR_1_4B, VIDEOMAR_1_4B.sampling).but(**changes)


def small(**changes: Any) -> Request:
    return Request(DEMO, DEMO.sampling).but(**changes)


requests = st.builds(
    lambda model, k, rows, columns, **rest: Request(PRESETS[model], PRESETS[model].sampling).but(
        frames=1 + 8 * k,
        height=rows * PRESETS[model].tokenizer.spatial_stride,
        width=columns * PRESETS[model].tokenizer.spatial_stride,
        mask_steps=min(8, rows * columns),
        **rest,
    ),
    st.sampled_from(sorted(PRESETS)),
    st.integers(1, 16),
    st.integers(1, 24),
    st.integers(1, 24),
    precision=st.sampled_from(["fp32", "fp16", "int8"]),
    emitter=st.sampled_from(["portable", "native"]),
    guidance_scale=st.sampled_from([1.0, 3.0]),
    kv_window=st.none() | st.integers(1, 8),
    lean=st.booleans(),
)
backends = st.sampled_from(["ort-cpu", "trt"])


@settings(max_examples=12, deadline=None)
@given(requests, backends)
def test_more_of_anything_never_needs_less_memory(r: Request, backend: str) -> None:
    peak = plan_memory(r, backend).peak
    stride = r.config.tokenizer.spatial_stride
    more = [r.but(frames=r.sampling.frames + 8), r.but(height=r.sampling.height + stride)]
    if r.sampling.kv_window:
        more.append(r.but(kv_window=None))
    if r.branches == 1:
        more.append(r.but(guidance_scale=2.0))
    if r.precision == "fp16" and backend == "trt":
        more.append(r.but(precision="fp32"))
    for larger in more:
        # The arena's doubling regions and best fit make single steps uneven by a little.
        assert plan_memory(larger, backend).peak >= 0.98 * peak, larger


@settings(max_examples=12, deadline=None)
@given(requests, backends, st.floats(0.05, 0.99))
def test_every_advice_really_fits_and_is_needed(r: Request, backend: str, share: float) -> None:
    free = int(plan_memory(r, backend).peak * share)

    def enough(other: Request) -> bool:
        return plan_memory(other, backend).peak <= free

    change = smallest_change(r, enough)
    if change is None:
        return
    assert enough(change.request) and not enough(r)
    assert change.options and change.cost
    # Every option is asked for by a field that differs, and nothing else differs.
    differing = {
        f.name for f in dataclasses.fields(Request) if getattr(change.request, f.name) != getattr(r, f.name)
    } - {"sampling"}
    s, t = r.sampling, change.request.sampling
    differing |= {f.name for f in dataclasses.fields(s) if getattr(s, f.name) != getattr(t, f.name)}
    words = " ".join(change.options)
    said = {
        "text_embeddings": "--text-embeddings",
        "guidance_passes": "--guidance-passes",
        "precision": "`videomar",
        "kv_window": "--kv-window",
        "frames": "--frames",
        "height": "--height",
        "width": "--width",
        "guidance_scale": "--guidance-scale",
    }
    assert all(said[name] in words for name in differing)
    assert ("the same result" in change.cost) == (differing <= {"text_embeddings", "guidance_passes"})


def test_what_costs_the_result_nothing_is_proposed_first() -> None:
    r = request()
    with_text, whole = (
        plan_memory(request(lean=False), "trt"),
        plan_memory(request(lean=False, text_embeddings=True), "trt"),
    )
    free = (with_text.peak + whole.peak) // 2
    change = smallest_change(request(lean=False), lambda o: plan_memory(o, "trt").peak <= free)
    assert change is not None and change.options == ("--text-embeddings FILE.npz",)
    passes = plan_memory(r.but(guidance_passes=2), "ort-cpu").peak
    change = smallest_change(r.but(text_embeddings=True), lambda o: plan_memory(o, "ort-cpu").peak <= passes)
    assert change is not None and change.options == ("--guidance-passes 2",) and change.cost == "the same result"


def test_a_window_is_no_smaller_than_it_has_to_be() -> None:
    r = request(frames=97)
    free = plan_memory(r.but(kv_window=5, guidance_passes=2, precision="int8", text_embeddings=True), "trt").peak
    change = smallest_change(
        r.but(guidance_passes=2, precision="int8", text_embeddings=True), lambda o: plan_memory(o, "trt").peak <= free
    )
    assert change is not None and change.options == ("--kv-window 5",)


def test_nothing_is_promised_where_nothing_helps() -> None:
    assert smallest_change(small(), lambda other: False) is None


def test_a_single_exact_change_is_trimmed_of_all_that_is_not_needed() -> None:
    wanted = small(guidance_passes=2)
    change = smallest_change(small(), lambda other: other.sampling == wanted.sampling)
    assert change is not None and change.options == ("--guidance-passes 2",)


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_of_the_table_is_plausible(name: str) -> None:
    d = DEVICES[name]
    assert d.free < d.memory and d.source and d.sm
    assert d.fp32 < d.fp16 < d.int8 <= 2.1 * d.fp16
    assert d.captured <= d.launch and 0 < d.of_peak < 1 and 0 < d.of_bandwidth < 1


def test_the_released_model_fits_where_it_should() -> None:
    need = plan_memory(request(), "trt")
    assert need.build == pytest.approx(3.3 * 1.02 * 2 * 1.5437e9, rel=0.01)  # the text encoder is the largest graph
    assert [fits(need, d) for d in DEVICES.values()] == [False, True, True, True, True]
    assert [builds(need, d) for d in DEVICES.values()] == [False, True, True, True, True]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"frames": 10}, "frames is 10, expected 1 + 8k, such as 9"),
        ({"given": 4}, "conditioning frames is 4, expected 1 + 8k"),
        ({"given": 25}, "frames is 25, expected more than the 25 conditioning frames, such as 33"),
        ({"height": 100}, "height is 100, expected a multiple of 16, such as 96"),
        ({"width": 17}, "width is 17, expected a multiple of 16, such as 16"),
        ({"width": 16 * 4097}, "rotary positions, expected at most 4096; change --width to 65536 or less"),
        ({"frames": 1 + 8 * 5000}, "5001 rotary positions"),
        ({"kv_window": 0}, "K/V window is 0"),
        ({"guidance_passes": 3}, "guidance passes is 3"),
        ({"precision": "fp8"}, "precision is 'fp8', expected one of fp32, fp16, int8"),
        ({"emitter": "magic"}, "emitter is 'magic'"),
        ({"mask_steps": 2000}, "mask steps is 2000, expected 1 to 1440"),
        ({"head_steps": 2000}, "head steps is 2000, expected 1 to 1000"),
    ],
)
def test_what_no_artifacts_could_do_is_refused_in_one_line(changes: dict[str, Any], says: str) -> None:
    with pytest.raises((InputError, ConfigError)) as caught:
        request(**changes)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_parts_add_up_and_the_smallest_moment_is_not_empty() -> None:
    for backend in ("ort-cpu", "trt"):
        memory = plan_memory(small(), backend)
        assert memory.peak == max(sum(m.parts.values()) for m in memory.moments)
        assert min(m.total for m in memory.moments) >= memory.baseline > 50 * MIB
        assert memory.peak < GIB
