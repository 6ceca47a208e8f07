from __future__ import annotations

import logging

import pytest
import torch

from videomar.config import DEMO, VIDEOMAR_1_4B
from videomar.plan.training import Sizes, training_memory
from videomar.training.memory import needed, say_memory
from videomar.training.recipe import Recipe, Stage

SHORT, LONG = Stage(9, 64, 64, steps=1, batch=4), Stage(17, 64, 64, steps=1, batch=8, accumulate=2)
PARTS, CPU = ("transformer", "diffusion_head"), torch.device("cpu")


def test_the_largest_stage_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("videomar.training.memory.products", lambda _: torch.float32)
    stage, size = needed(Recipe((LONG, SHORT)), DEMO, PARTS, CPU, False)
    planned = training_memory(Sizes(DEMO, 17, 64, 64, 8, accumulate=2, trained=PARTS))
    assert (stage, size) == (LONG, max(moment.total for moment in planned))
    assert needed(Recipe((LONG,)), DEMO, PARTS, CPU, True)[1] < size


def test_what_will_not_fit_on_the_gpu_is_warned_of_with_what_to_change(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("videomar.training.memory.products", lambda _: torch.bfloat16)
    recipe = Recipe((Stage(25, 480, 768, steps=1, batch=8),))
    for free, warned in ((2**34, True), (2**44, False)):
        caplog.clear()
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, free))
        with caplog.at_level(logging.INFO, "videomar.command"):
            say_memory(recipe, VIDEOMAR_1_4B, PARTS, torch.device("cuda", 0), False)
        assert "memory planned" in caplog.text
        assert ("--recompute" in caplog.text) is warned
