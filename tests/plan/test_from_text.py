"""Plans of clips without a picture."""

from __future__ import annotations

import dataclasses

import pytest

from videomar.config import DEMO
from videomar.errors import InputError
from videomar.plan.advice import smallest_change
from videomar.plan.devices import device
from videomar.plan.memory import plan_memory
from videomar.plan.report import as_text, make_report
from videomar.plan.request import Request
from videomar.plan.roofline import plan_times

ALONE = Request(dataclasses.replace(DEMO, from_text=True), DEMO.sampling, given=0)
PICTURE = dataclasses.replace(ALONE, given=1)


def test_a_clip_without_a_picture_takes_one_frame_more_of_the_loop_and_no_encoder() -> None:
    orin = device("orin-nx-16")
    alone, picture = plan_times(ALONE, orin), plan_times(PICTURE, orin)
    assert alone.encoder == 0 < picture.encoder
    # Three new frames of 24 mask steps against two; the head costs the same in each.
    assert alone.heads == pytest.approx(1.5 * picture.heads)
    assert alone.transformer > picture.transformer and alone.decoder == picture.decoder
    assert 0 < alone.first < alone.clip


def test_its_memory_is_that_of_the_same_loop_without_the_picture() -> None:
    for backend in ("ort-cpu", "trt"):
        alone, picture = plan_memory(ALONE, backend), plan_memory(PICTURE, backend)
        assert alone.peak < picture.peak < 1.2 * alone.peak
        loops = [memory.moments[-1].parts for memory in (alone, picture)]
        for part in ("K/V of frames", "K/V of text", "clip", "decoder's carried frames"):
            assert loops[0][part] == loops[1][part]
    encoding = [
        any(moment.name == "encoding the picture" for moment in plan_memory(request, "ort-cpu").moments)
        for request in (ALONE, PICTURE)
    ]
    assert encoding == [False, True]


def test_the_shortest_clip_of_a_sentence_is_one_frame() -> None:
    def fits(request: Request) -> bool:
        return request.sampling.frames == 1

    change = smallest_change(ALONE, fits)
    assert change is not None and "--frames 1" in change.options


def test_the_report_says_that_there_is_no_picture() -> None:
    orin = device("orin-nx-16")
    assert ", no picture" in as_text(make_report(ALONE, orin))
    assert "no picture" not in as_text(make_report(PICTURE, orin))
    with pytest.raises(InputError, match="there is no picture, and demo was not trained"):
        Request(DEMO, DEMO.sampling, given=0)
