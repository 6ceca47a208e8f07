from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videomar.config import DEMO, ModelConfig
from videomar.errors import ConfigError, InputError, UserError
from videomar.training.recipe import CURRICULA, Recipe, Stage, check_stages, read_stages, sampling_of, scaled

RATES = st.floats(1e-6, 1e-1)
TIMED = st.builds(
    Stage,
    frames=st.integers(0, 4).map(lambda k: 1 + 8 * k),
    height=st.integers(1, 8).map(lambda k: 8 * k),
    width=st.integers(1, 8).map(lambda k: 8 * k),
    minutes=st.floats(0.1, 1e4),
    learning_rate=RATES,
    batch=st.just(12),
    accumulate=st.sampled_from([1, 2, 3, 4]),
    first_frame=st.booleans(),
)
CURRICULUM = st.lists(TIMED, min_size=1, max_size=5).map(tuple)
TOML = """
[[stage]]
frames = 9
size = "32x48"
steps = 100
learning_rate = 1e-3

[[stage]]
frames = 17
height = 64
width = 64
minutes = 2.5
batch = 4
accumulate = 2
first_frame = true
"""


@given(CURRICULUM, st.integers(0, 2**31), st.lists(st.text(max_size=9), max_size=3).map(tuple))
def test_a_recipe_comes_back_from_its_text(stages: tuple[Stage, ...], seed: int, layers: tuple[str, ...]) -> None:
    recipe = Recipe(stages, seed=seed, layers=layers, start="there", lora=4, save_every=0.5)
    assert Recipe.from_json(recipe.to_json()) == recipe


@given(CURRICULUM, st.floats(0.1, 1e5))
def test_stages_keep_their_shares_of_another_time(stages: tuple[Stage, ...], minutes: float) -> None:
    found = scaled(stages, minutes, None)
    assert math.isclose(sum(stage.minutes or 0 for stage in found), minutes)
    for was, now in zip(stages, found, strict=True):
        assert math.isclose((now.minutes or 0) * sum(s.minutes or 0 for s in stages), (was.minutes or 0) * minutes)
        assert dataclasses.replace(now, minutes=was.minutes) == was


@given(CURRICULUM, st.data())
def test_the_learning_rate_has_no_jump_between_stages_and_ends_near_zero(
    stages: tuple[Stage, ...], data: st.DataObject
) -> None:
    recipe = Recipe(stages)
    for index, after in enumerate(stages[1:]):
        assert math.isclose(recipe.learning_rate(index, 1.0), after.learning_rate)
    for index, stage in enumerate(stages):
        assert math.isclose(recipe.learning_rate(index, 0.0), stage.learning_rate)
        ends = recipe.learning_rate(index, 0.0), recipe.learning_rate(index, 1.0)
        between = recipe.learning_rate(index, data.draw(st.floats(0, 1)))
        assert min(ends) * (1 - 1e-9) <= between <= max(ends) * (1 + 1e-9)
    assert math.isclose(recipe.learning_rate(len(stages) - 1, 1.0), 0.01 * stages[-1].learning_rate)


def test_a_stage_is_over_with_its_steps_or_its_minutes_whichever_ends_first() -> None:
    both = Stage(9, 32, 32, minutes=2, steps=100)
    assert both.done(50, 0.5) == 0.5 and both.done(10, 1.5) == 0.75 and both.done(100, 0) == both.done(0, 3) == 1
    assert Stage(9, 32, 32, steps=4).done(1, 10**6) == 0.25


def test_stages_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "stages.toml"
    file.write_text(TOML)
    assert read_stages(file) == (
        Stage(9, 32, 48, steps=100, learning_rate=1e-3),
        Stage(17, 64, 64, minutes=2.5, batch=4, accumulate=2, first_frame=True),
    )


def test_every_preset_fits_the_demo_model_and_ends_as_it_generates() -> None:
    names = sorted(file.stem for file in CURRICULA.glob("*.toml"))
    assert names == ["demo", "short-small-to-long-large", "short-to-long", "small-to-large"]
    for name in names:
        stages = read_stages(name)
        check_stages(stages, DEMO)
        assert (stages[-1].frames, stages[-1].height, stages[-1].width) == (17, 64, 64)
        assert math.isclose(sum(Recipe(stages).weights), 1)


WRONG = {
    "not TOML": ("[[stage", "is not TOML"),
    "no stages": ("", "lacks the key 'stage'"),
    "an empty list": ("stage = []", "expected at least one"),
    "another key": ("[[stage]]\nframes = 9\nsize = '32x32'\nsteps = 1\nbatchsize = 2", "unknown key 'batchsize'"),
    "a table beside": (TOML + "[model]\nwidth = 2\n", "unknown key 'model'"),
    "no size": ("[[stage]]\nframes = 9\nsteps = 1", "stage 1 lacks height"),
    "no length": ("[[stage]]\nframes = 9\nsize = '32x32'", "neither minutes nor steps"),
    "a size in words": ("[[stage]]\nframes = 9\nsteps = 1\nsize = 'large'", "expected HEIGHTxWIDTH"),
    "frames in words": ("[[stage]]\nframes = 'nine'\nsteps = 1\nsize = '32x32'", "frames"),
    "no time": ("[[stage]]\nframes = 9\nminutes = 0\nsize = '32x32'", "minutes"),
    "a batch in uneven parts": (
        "[[stage]]\nframes = 9\nsteps = 1\nsize = '32x32'\nbatch = 6\naccumulate = 4",
        "does not divide into 4",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_of_stages_says_what_is_wrong(case: str, tmp_path: Path) -> None:
    text, said = WRONG[case]
    file = tmp_path / "stages.toml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        Recipe(read_stages(file))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_name_that_is_neither_file_nor_preset_lists_the_presets() -> None:
    with pytest.raises(InputError, match="short-to-long"):
        read_stages("shorter-to-longer")


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (Stage(10, 64, 64, steps=1), "such as 9"),
        (Stage(15, 64, 64, steps=1), "such as 17"),
        (Stage(1, 64, 64, steps=1), "nothing is learnt"),
        (Stage(9, 60, 64, steps=1), "height 60, expected a multiple of 8"),
        (Stage(9, 64, 4, steps=1), "width 4"),
    ],
)
def test_a_stage_that_has_no_whole_latents_is_refused(stage: Stage, said: str, tiny_config: ModelConfig) -> None:
    with pytest.raises(ConfigError, match=said):
        check_stages([Stage(9, 64, 64, steps=1), stage], tiny_config)
    check_stages([Stage(1, 64, 64, steps=1, first_frame=True)], tiny_config)


def test_the_checkpoint_generates_what_the_last_stage_trained() -> None:
    sampling = sampling_of((Stage(9, 32, 48, steps=1), Stage(17, 48, 32, steps=1)), DEMO.sampling)
    assert sampling == DEMO.sampling.but(frames=17, height=48, width=32)
