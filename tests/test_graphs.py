"""The contract's own arithmetic, by hand."""

from __future__ import annotations

import pytest

from videomar.config import DEMO, VIDEOMAR_1_4B, HeadConfig
from videomar.errors import InputError
from videomar.graphs import (
    HEAD_CONDITION,
    HEAD_STEP,
    MODULATION_BYTES,
    contract,
    modulation_names,
    require_engine_width,
    steps_ahead,
)


def test_modulations_of_a_step_are_three_a_block_and_two_at_the_end() -> None:
    assert modulation_names(DEMO.head) == [f"modulation_{i}" for i in range(11)]
    specs = contract(DEMO, "fp16", in_place=False)
    made, taken = specs[HEAD_CONDITION].outputs, [t for t in specs[HEAD_STEP].inputs if "modulation" in t.name]
    assert [t.axes[1:] for t in made] == [t.axes for t in taken] == [("branches", "predicted", 256)] * 11
    assert {t.dtype for t in (*made, *taken)} == {"float16"} and {t.axes[0] for t in made} == {"steps"}


def test_as_many_steps_are_modulated_ahead_as_fit() -> None:
    head, rows = VIDEOMAR_1_4B.head, 2 * 36  # both branches of the most tokens that a mask step predicts
    assert MODULATION_BYTES == 67_108_864
    # 11 x 72 x 1024 numbers a step: 1.62 MB in FP16, of which 41 fit, so three lots; 3.24 MB in FP32, 20 fit.
    assert steps_ahead(head, rows, 100, 2) == 34 and steps_ahead(head, rows, 100, 4) == 20
    assert steps_ahead(head, rows, 30, 2) == 30 and steps_ahead(head, 10**6, 100, 4) == 1


def test_a_head_whose_steps_no_engine_could_be_given_is_refused() -> None:
    for config in (DEMO, VIDEOMAR_1_4B):
        require_engine_width(config.head)
    with pytest.raises(InputError, match="width is 100, TensorRT needs a multiple of 128"):
        require_engine_width(HeadConfig(width=100))
