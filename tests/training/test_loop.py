from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from videomar.errors import InputError
from videomar.model.videomar import VideoMAR
from videomar.training import loop as loop_module
from videomar.training import unfinished_run
from videomar.training.average import Average
from videomar.training.journal import Journal
from videomar.training.loop import Diverged, Trainer, chosen_frame
from videomar.training.loss import TrainingLoss
from videomar.training.ranks import Ranks
from videomar.training.recipe import Recipe, Stage
from videomar.training.source import Clips

SHORT, LONG = Stage(9, 32, 32, steps=4, batch=2), Stage(17, 32, 32, steps=3, batch=2)


class Random:
    """A source of random clips that keeps a state, as the demo world's pool does."""

    def __init__(self, model: VideoMAR, bad_at: int | None = None) -> None:
        self.channels, self.prefix = model.config.transformer.token_channels, model.config.text.system_tokens
        self.entered, self.drawn, self.bad_at = list[Stage](), torch.zeros(()), bad_at

    def enter(self, stage: Stage, rng: np.random.Generator) -> None:
        self.entered.append(stage)
        self.frames = 1 + (stage.frames - 1) // 8

    def _clips(self, count: int, rng: np.random.Generator) -> Clips:
        latents = torch.from_numpy(rng.standard_normal((count, self.frames, 16, self.channels), np.float32))
        return Clips(latents, (4, 4), tuple(tuple(rng.integers(0, 30, self.prefix + 3).tolist()) for _ in range(count)))

    def batch(self, count: int, rng: np.random.Generator) -> Clips:
        self.drawn += 1
        found = self._clips(count, rng)
        found.latents.mul_(1 + self.drawn / 10)  # what was drawn before matters
        if self.drawn == self.bad_at:
            found.latents[0] = torch.nan
        return found

    def held_out(self) -> Clips:
        return self._clips(4, np.random.default_rng(9))

    def state(self) -> dict[str, Tensor]:
        return {"drawn": self.drawn}

    def restore(self, stage: Stage, state: dict[str, Tensor]) -> None:
        self.enter(stage, np.random.default_rng(0))
        self.drawn = state["drawn"].clone()


def trainer(model: VideoMAR, out: Path, recipe: Recipe, bad_at: int | None = None) -> Trainer:
    own = copy.deepcopy(model).train().requires_grad_(True)
    own.video_tokenizer.requires_grad_(False)
    loss = TrainingLoss(own)
    out.mkdir(exist_ok=True)

    def save(place: Path) -> None:
        torch.save(own.state_dict(), place / "model.pt")

    return Trainer(recipe, loss, Random(own, bad_at), out, Ranks(torch.device("cpu")), Journal(out), save)


def test_every_stage_is_entered_once_and_takes_its_steps(
    tiny_model: VideoMAR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "REPORTS", 1)
    run = trainer(tiny_model, tmp_path, Recipe((SHORT, LONG)))
    run.run()
    assert run._source.entered == [SHORT, LONG]  # type: ignore[attr-defined]
    assert run.mark.step == 7
    header, *rows = (tmp_path / "training.csv").read_text().splitlines()
    assert header.startswith("stage,frames,height,width,step,")
    assert [row.split(",")[:5] for row in rows] == [
        ["1", "9", "32", "32", "0"],
        ["1", "9", "32", "32", "4"],
        ["2", "17", "32", "32", "7"],
    ]
    assert not unfinished_run.exists(tmp_path), "nothing is left to go on with"


@pytest.mark.parametrize("after", [4, 6])
def test_a_run_that_stops_anywhere_goes_on_to_the_same_bytes(
    after: int, tiny_model: VideoMAR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "REPORTS", 2)
    recipe = Recipe((SHORT, LONG), seed=3, save_every=0)
    whole = trainer(tiny_model, tmp_path / "whole", recipe)
    whole.run()

    class Stopped(Exception): ...

    broken = trainer(tiny_model, tmp_path / "broken", recipe)
    step = broken._step

    def stops(stage: Stage, rate: float) -> float:
        if broken.mark.step == after:
            raise Stopped
        return step(stage, rate)

    monkeypatch.setattr(broken, "_step", stops)
    with pytest.raises(Stopped):
        broken.run()
    read, mark, place = unfinished_run.load(tmp_path / "broken")
    assert read == recipe and mark.step == after
    again = trainer(tiny_model, tmp_path / "broken", read)
    again.resume(mark, place)
    again.run()
    a, b = (torch.load(tmp_path / name / "model.pt") for name in ("whole", "broken"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], value) for name, value in tiny_model.state_dict().items())
    rows = [(tmp_path / name / "training.csv").read_text().splitlines() for name in ("whole", "broken")]
    without_clock = [[",".join(c for i, c in enumerate(row.split(",")) if i != 5) for row in each] for each in rows]
    assert without_clock[0] == without_clock[1] and len(rows[0]) == 1 + 1 + 2 + 2


def test_a_loss_that_is_no_number_stops_with_the_step_and_keeps_the_last_good_place(
    tiny_model: VideoMAR, tmp_path: Path
) -> None:
    run = trainer(tiny_model, tmp_path, Recipe((SHORT,), save_every=0), bad_at=3)
    with pytest.raises(Diverged, match=r"the loss of step 3 is nan .* keeps the checkpoint of step 2; .*learning_rate"):
        run.run()
    kept = torch.load(tmp_path / "model.pt")
    assert all(value.isfinite().all() for value in kept.values() if value.is_floating_point())
    assert unfinished_run.load(tmp_path)[1].step == 2
    first = trainer(tiny_model, tmp_path / "first", Recipe((SHORT,)), bad_at=1)
    with pytest.raises(Diverged, match="nothing was kept before"):
        first.run()


def test_another_models_place_is_refused(tiny_model: VideoMAR, tmp_path: Path) -> None:
    run = trainer(tiny_model, tmp_path, Recipe((SHORT,), save_every=0), bad_at=3)
    with pytest.raises(Diverged):
        run.run()
    _, mark, place = unfinished_run.load(tmp_path)
    other = trainer(tiny_model, tmp_path, Recipe((SHORT,)))
    other._parameters.reverse()
    with pytest.raises(InputError, match="another model"):
        other.resume(mark, place)


def test_the_first_generated_frame_is_trained_twice_as_often_as_a_later_one() -> None:
    rng = np.random.default_rng(0)
    drawn = np.bincount([chosen_frame(rng, SHORT, 4) for _ in range(8000)], minlength=4) / 8000
    assert drawn == pytest.approx([0, 1 / 2, 1 / 4, 1 / 4], abs=0.02)
    first = Stage(25, 32, 32, steps=1, first_frame=True)
    drawn = np.bincount([chosen_frame(rng, first, 4) for _ in range(8000)], minlength=4) / 8000
    assert drawn == pytest.approx([1 / 5, 2 / 5, 1 / 5, 1 / 5], abs=0.02)


def test_the_average_follows_its_recursion_and_is_shown_only_for_a_while() -> None:
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(5))
    average, value = Average([p]), p.detach().clone()
    for step in range(30):
        with torch.no_grad():
            p.add_(torch.randn(5))
        average.update(step)
        decay = min(0.999, (1 + step) / (10 + step))
        value = decay * value + (1 - decay) * p.detach()
    now = p.detach().clone()
    with average.shown():
        torch.testing.assert_close(p.detach(), value)
    assert torch.equal(p.detach(), now)
