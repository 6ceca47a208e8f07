"""The fields of a request: strings and numbers alike, every limit, every mistake named."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`: pip install 'videomar[serve]'")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from videomar.config import DEMO
from videomar.quality import at_quality
from videomar.serving.api.asked import Asked, read
from videomar.serving.api.errors import ApiError
from videomar.serving.settings import Limits


def asked(**fields: Any) -> Asked:
    return read({"prompt": "a ball", **fields}, DEMO, Limits())


def test_nothing_but_a_prompt_is_the_models_own_clip_with_some_seed() -> None:
    one, two = asked(), asked()
    assert one.sampling == DEMO.sampling and (one.given, one.extend) == (None, None)
    assert one.seed != two.seed and 0 <= one.seed < 2**31


def test_a_forms_strings_and_jsons_values_are_the_same() -> None:
    values = {"num_frames": 25, "mask_steps": 4, "guidance_scale": 1.5, "temperature": 0.8, "guidance_ramp": False}
    texts = {name: str(value).lower() for name, value in values.items()}
    assert asked(**values, seed=1) == asked(**texts, seed="1")
    sampling = asked(**values).sampling
    assert (sampling.frames, sampling.mask_steps, sampling.guidance_ramp) == (25, 4, False)


def test_a_level_comes_first_and_single_dials_change_it() -> None:
    fast = asked(quality="fast").sampling
    assert fast.dials and fast == at_quality(DEMO.sampling, "fast")
    changed = asked(quality="fast", refresh_every="1", order="spread").sampling
    assert changed == fast.but(refresh_every=1, order="spread")


def test_a_size_is_width_by_height() -> None:
    sampling = asked(size="128x64").sampling
    assert (sampling.width, sampling.height) == (128, 64)


@pytest.mark.parametrize(
    ("seconds", "fps", "frames"), [("4", 24, 97), ("0.1", 24, 9), ("1", 8, 9), ("2", 8.5, 17), (1, 24, 25)]
)
def test_seconds_become_the_nearest_length_that_there_is(seconds: Any, fps: float, frames: int) -> None:
    assert asked(seconds=seconds, fps=fps).sampling.frames == frames


MISTAKES = [
    ("prompt", {"prompt": ""}),
    ("prompt", {"prompt": 5}),
    ("prompt", {"prompt": "x" * 4001}),
    ("prompt", {"prompt": "\ud800"}),
    ("num_frames", {"num_frames": "many"}),
    ("num_frames", {"num_frames": 10**30}),
    ("num_frames", {"num_frames": 17.5}),
    ("num_frames", {"num_frames": True}),
    ("num_frames", {"num_frames": [17]}),
    ("num_frames", {"num_frames": -1}),
    ("seconds", {"seconds": "10000"}),
    ("seconds", {"seconds": "nan"}),
    ("seconds", {"seconds": "4", "num_frames": 17}),
    ("fps", {"fps": 0}),
    (None, {"fit": "zebra"}),
    ("fps", {"fps": float("inf")}),
    ("size", {"size": "64"}),
    ("size", {"size": "64x"}),
    ("size", {"size": "axb"}),
    ("size", {"size": "100000x64"}),
    ("seed", {"seed": -1}),
    ("seed", {"seed": 2**63}),
    ("guidance_scale", {"guidance_scale": "9" * 50}),
    ("guidance_ramp", {"guidance_ramp": "perhaps"}),
    ("model", {"model": "sora-2"}),
    ("frame", {"frame": 17}),
    ("head_steps", {"head_steps": 5000}),
    ("guidance_end", {"guidance_end": 2}),
    (None, {"quality": "best"}),
    (None, {"known_share": 0.5}),
    (None, {"kv_window": 0.5, "max_beta": 1}),
]


@pytest.mark.parametrize(("param", "fields"), MISTAKES)
def test_a_mistake_is_the_clients_and_named(param: str | None, fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as failure:
        asked(**fields)
    assert 400 <= failure.value.status < 500
    assert param is None or failure.value.param == param
    assert len(failure.value.message) < 600


def test_a_field_that_is_nearly_one_is_told_which() -> None:
    with pytest.raises(ApiError, match="did you mean mask_steps"):
        asked(mask_step=4)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)
JSON = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(st.text(max_size=5), PLAIN, max_size=3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(["num_frames", "size", "seconds", "fps", "seed", "temperature", "given"]), JSON))
def test_whatever_is_sent_is_understood_or_refused(fields: dict[str, Any]) -> None:
    try:
        assert isinstance(asked(**fields), Asked)
    except ApiError as error:
        assert 400 <= error.status < 500
