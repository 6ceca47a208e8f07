from __future__ import annotations

import pytest

from videomar.config import DEMO, VIDEOMAR_1_4B, SamplingConfig
from videomar.errors import InputError
from videomar.plan.devices import device
from videomar.plan.request import Request
from videomar.plan.roofline import plan_times
from videomar.quality import LEVELS, at_quality
from videomar.steps import ClipSteps


def test_exact_changes_nothing() -> None:
    own = DEMO.sampling.but(mask_steps=5, order="spread")
    assert at_quality(own, "exact") is own or at_quality(own, "exact") == own


@pytest.mark.parametrize("own", [DEMO.sampling, VIDEOMAR_1_4B.sampling, DEMO.sampling.but(mask_steps=1, head_steps=1)])
def test_every_level_is_a_schedule_of_any_model_and_does_less_than_the_one_before(own: SamplingConfig) -> None:
    config = VIDEOMAR_1_4B if own is VIDEOMAR_1_4B.sampling else DEMO
    work = []
    for level in LEVELS:
        steps = ClipSteps.of(config, at_quality(own, level), 1).steps
        work.append((sum(s.computed * s.branches for s in steps), sum(s.head_steps * s.predicted for s in steps)))
    assert work == sorted(work, reverse=True)
    if own.mask_steps > 1:
        assert len(set(work)) == len(LEVELS)


@pytest.mark.parametrize("name", ["orin-nano-8", "thor-128"])
def test_the_planner_follows_the_levels(name: str) -> None:
    times = [
        plan_times(Request(VIDEOMAR_1_4B, at_quality(VIDEOMAR_1_4B.sampling, level)), device(name)).clip
        for level in LEVELS
    ]
    assert times == sorted(times, reverse=True) and times[0] > 2 * times[2] > 3 * times[3]


def test_an_unknown_level_names_the_near_one_and_all_others() -> None:
    with pytest.raises(InputError, match=r"quality is 'fats', did you mean fast\? expected one of exact"):
        at_quality(DEMO.sampling, "fats")
