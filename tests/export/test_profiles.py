"""Shapes that engines are built for, from sizes to optimization profiles."""

from __future__ import annotations

import numpy as np
import pytest

from videomar.config import DEMO as CONFIG
from videomar.errors import InputError
from videomar.export.profiles import ENGINES, Sizes, axis_ranges, profiles
from videomar.graphs import HEAD_STEP, TRANSFORMER_STEP, contract
from videomar.schedule import masked_after_steps


def test_profiles_span_what_the_backend_binds() -> None:
    sizes = Sizes.of(CONFIG, frames=25, height=64, width=48, mask_steps=5)
    ranges = axis_ranges(CONFIG, sizes, prefix=3, cache_tokens=None)
    tokens, frames = 8 * 6, 4
    left = masked_after_steps(tokens, 5)
    most = int(max(-np.diff([tokens, *left])))
    assert ranges["tokens"] == (2, tokens, tokens)  # an eighth of the smallest frame's 4 x 3
    # Of 0 to 3 finished frames, and of the rest of a frame of which a pass computes an eighth.
    assert ranges["past"] == (0, 2 * tokens, 3 * tokens + tokens - 6)
    assert ranges["total"] == (12, 3 * tokens, 4 * tokens)
    assert ranges["predicted"] == (1, most, most)
    assert ranges["prompt"] == (4, 3 + 8, 3 + 16)
    assert ranges["clip"] == (1, frames, frames) and ranges["frames"] == (1, 1, 25)
    assert ranges["height"] == (32, 64, 64) and ranges["branches"] == (1, 2, 2)
    assert ranges["h"] == (4, 8, 8) and ranges["2w"] == (6, 12, 12)


def test_static_fixes_the_picture_size_alone() -> None:
    ranges = axis_ranges(CONFIG, Sizes.of(CONFIG, static=True), 0, None)
    fixed = {axis for axis, (low, _, high) in ranges.items() if low == high}
    assert fixed == {"height", "width", "h", "w", "2h", "2w"}


def test_every_axis_of_the_contract_has_a_range() -> None:
    for emitter, cache in (("portable", None), ("native", 999)):
        specs = contract(CONFIG, "fp16", emitter == "native", cache)
        ranges = axis_ranges(CONFIG, Sizes.of(CONFIG), 0, cache)
        axes = {a for name in ENGINES for t in specs[name].inputs for a in t.axes if isinstance(a, str)}
        assert axes <= set(ranges)
        assert all(low <= tuned <= high for low, tuned, high in ranges.values())


def test_two_passes_halve_the_transformers_branches_and_not_the_heads() -> None:
    sizes = Sizes.of(CONFIG, passes=2)
    made = profiles(contract(CONFIG, "fp16", False), axis_ranges(CONFIG, sizes, 0, None), sizes.passes)
    assert [shape[0] for shape in made[TRANSFORMER_STEP]["past_key_0"]] == [1, 1, 1]
    assert [shape[0] for shape in made[HEAD_STEP]["modulation_0"]] == [1, 2, 2]


def test_a_window_bounds_the_keys_and_values() -> None:
    ranges = axis_ranges(CONFIG, Sizes.of(CONFIG, frames=81, window=2), 0, cache_tokens=4 * 64)
    assert ranges["past"] == (0, 3 * 64, 4 * 64 - 8) and ranges["total"] == (16, 4 * 64, 4 * 64)
    assert ranges["clip"][2] == 11
    with pytest.raises(InputError, match=r"needs K/V of 256 tokens, these artifacts hold 255; lower .*--kv-window"):
        axis_ranges(CONFIG, Sizes.of(CONFIG, frames=81, window=2), 0, cache_tokens=255)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"frames": 16}, r"frames is 16, expected 1 \+ 8k"),
        ({"frames": 1}, "frames is 1, expected"),
        ({"height": 60}, "height is 60, expected a multiple of 8, such as 64"),
        ({"max_text": 17}, "text tokens are 17, the model takes at most 16"),
        ({"branches": 1, "passes": 2}, "guidance passes are 2 of 1 branch"),
        ({"mask_steps": 65}, "mask steps is 65, expected 1 to 64"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        axis_ranges(CONFIG, Sizes.of(CONFIG, **sizes), 0, None)
