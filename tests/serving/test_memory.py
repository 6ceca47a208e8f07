"""How many clips fit is planned before they begin, from the plan that the command line shows."""

from __future__ import annotations

import pytest

pytest.importorskip("sqlalchemy", reason="needs the extra `serve`: pip install 'videomar[serve]'")

from videomar.artifacts import Manifest
from videomar.config import DEMO
from videomar.plan.memory import plan_memory
from videomar.plan.request import Request
from videomar.serving.making.memory import Budget, Need


def manifest() -> Manifest:
    return Manifest("onnx", "fp32", "native", 24, DEMO)


def test_one_clip_needs_at_least_what_its_plan_says_while_it_runs() -> None:
    need = Budget(manifest(), "ort-cpu", None).need(DEMO.sampling, 1)
    moments = plan_memory(Request(DEMO, DEMO.sampling, "fp32", "native", lean=False), "ort-cpu").moments
    running = max(m.total for m in moments if not m.name.startswith("loading"))
    assert running <= need.own + need.shared <= 1.05 * running
    assert 0 < need.own < need.shared


def test_a_longer_clip_takes_more_for_itself() -> None:
    budget = Budget(manifest(), "ort-cpu", None)
    assert budget.need(DEMO.sampling.but(frames=65), 1).own > 2 * budget.need(DEMO.sampling, 1).own


def test_clips_fit_as_long_as_the_largest_step_and_all_that_they_hold_do() -> None:
    budget = Budget(manifest(), "ort-cpu", 100)
    assert budget.fits(Need(30, 40), [Need(20, 50)])
    assert not budget.fits(Need(30, 40), [Need(21, 50)])
    assert budget.refuses(Need(60, 40)) is None and "memory" in (budget.refuses(Need(60, 41)) or "")


def test_where_memory_cannot_be_told_nothing_is_refused() -> None:
    budget = Budget(manifest(), "trt", None)
    assert budget.refuses(Need(10**15, 0)) is None and budget.fits(Need(10**15, 0), [Need(1, 1)])
