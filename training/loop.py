"""The loop over stages and steps: one for one process and for many. Knows nothing of where clips come from."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from videomar.artifacts import together
from videomar.errors import InputError, UserError
from videomar.progress import Progress
from videomar.training import unfinished_run
from videomar.training.average import Average
from videomar.training.journal import Journal, Row
from videomar.training.loss import TrainingLoss, held_out_losses
from videomar.training.optimizers import Optimizers
from videomar.training.ranks import Ranks
from videomar.training.recipe import Recipe, Stage
from videomar.training.source import Clips, Source
from videomar.training.unfinished_run import Mark

DECIDED_FIRST = 2  # how much more often the first generated frame is trained than each later one: the draw falls there
SMOOTH = 0.99  # of the loss that is shown
REPORT, REPORTS = 100, 20  # steps between two rows of the journal at most, and rows of a stage at least
WARM_UP = {False: 300, True: 100}  # steps, from nothing and from a checkpoint
WARM_UP_SHARE = 0.05


class Diverged(UserError):
    """The loss or its gradient is no number any more."""


class Trainer:
    """One run: what a step changes, and how it is kept and taken up again."""

    def __init__(
        self,
        recipe: Recipe,
        loss: TrainingLoss,
        source: Source,
        out: Path,
        ranks: Ranks,
        journal: Journal,
        save: Callable[[Path], None],
    ) -> None:
        """save: writes the files of the model as it is into a folder."""
        self.recipe, self.loss, self._source, self._out, self._ranks = recipe, loss, source, out, ranks
        self._journal, self._save_model = journal, save
        self._parameters = [p for p in loss.parameters() if p.requires_grad]
        if not self._parameters:
            raise InputError("no parameter is trained, expected at least one; change --layers")
        self._optimizers = Optimizers(loss)
        self._average = Average(self._parameters)
        self.mark = Mark(processes=ranks.count, threads=torch.get_num_threads())
        self._smooth: float | None = None
        self._saved = time.monotonic()
        self._wrapped: nn.Module = loss
        if ranks.count > 1:
            self._wrapped = DistributedDataParallel(loss)

    def run(self) -> None:
        """Train what is left of the recipe. Raises Diverged when the loss is no number, keeping the last good place."""
        try:
            self._run_stages()
        except KeyboardInterrupt as stop:
            if unfinished_run.exists(self._out):
                step = unfinished_run.load(self._out)[1].step
                stop.args = (f"{self._out} keeps step {step}; --resume goes on from there",)
            raise
        self._keep(over=True)

    def _run_stages(self) -> None:
        entered = self.mark.stage_step > 0
        with Progress(1.0) as progress:
            for index in range(self.mark.stage, len(self.recipe.stages)):
                stage = self.recipe.stages[index]
                if not entered:
                    self._source.enter(stage, self._rng(kind=1))
                    self.mark = dataclasses.replace(self.mark, stage=index, stage_step=0, stage_minutes=0.0)
                entered = False
                self._run_stage(index, stage, progress)

    def _run_stage(self, index: int, stage: Stage, progress: Progress) -> None:
        before, weight = sum(self.recipe.weights[:index]), self.recipe.weights[index]
        began = time.monotonic() - 60 * self.mark.stage_minutes
        whole = self.mark.minutes - self.mark.stage_minutes
        if self.mark.step == 0:
            self._report(index, stage, 0.0)  # what all later ones are held against
        while True:
            minutes = self._ranks.agreed((time.monotonic() - began) / 60)
            done = stage.done(self.mark.stage_step, minutes)
            if done >= 1:
                break
            value = self._step(stage, self._rate(index, done))
            self._smooth = value if self._smooth is None else SMOOTH * self._smooth + (1 - SMOOTH) * value
            self.mark = dataclasses.replace(
                self.mark,
                step=self.mark.step + 1,
                stage_step=self.mark.stage_step + 1,
                stage_minutes=minutes,
                minutes=whole + minutes,
            )
            now = stage.done(self.mark.stage_step, minutes)
            if self.mark.stage_step % REPORT == 0 or int(now * REPORTS) > int(done * REPORTS):
                self._report(index, stage, now)
            progress.at(self._doing(index, stage), before + weight * done, 1.0)
            if self._ranks.agreed(time.monotonic() - self._saved) > 60 * self.recipe.save_every:
                self._keep()
        if not self._journal.rows or self._journal.rows[-1].step != self.mark.step:
            self._report(index, stage, 1.0)

    def _doing(self, index: int, stage: Stage) -> str:
        said = f"stage {index + 1} of {len(self.recipe.stages)}, {stage}"
        if not self._journal.rows:
            return said
        row = self._journal.rows[-1]
        return f"{said}, loss {row.loss:.4f}, held out {row.held_out:.4f} at step {row.step}"

    def _rate(self, index: int, done: float) -> float:
        """Rising at first: over so many steps, or over the first twentieth of a run that is shorter."""
        weights = self.recipe.weights
        whole = sum(weights[:index]) + weights[index] * done
        warm = max((self.mark.step + 1) / WARM_UP[self.recipe.start is not None], whole / WARM_UP_SHARE)
        return self.recipe.learning_rate(index, done) * min(1.0, warm)

    def _step(self, stage: Stage, rate: float) -> float:
        rng = self._rng(kind=0)
        torch.manual_seed(int(rng.integers(2**62)))
        clips = self._source.batch(stage.batch, rng).to(self._ranks.device)
        frame = chosen_frame(rng, stage, clips.latents.shape[1])
        total = 0.0
        parts = [clips.part(slice(i, None, stage.accumulate)) for i in range(stage.accumulate)]
        for part in parts:
            with self._together(part is parts[-1]):
                value: Tensor = self._wrapped(part, frame) / len(parts)
                value.backward()
            total += value.item()
        norm = self._optimizers.step(rate)
        if not math.isfinite(total) or not math.isfinite(norm):
            self._diverged(total, norm)
        self._average.update(self.mark.step)
        return total

    def _together(self, last: bool) -> Any:
        """Gradients of several processes meet once a step, in its last part."""
        return nullcontext() if last or self._ranks.count == 1 else self._wrapped.no_sync()  # type: ignore[operator]

    def _rng(self, kind: int) -> np.random.Generator:
        """All that a step draws depends on seed, process and step alone, so that it can be made again."""
        return np.random.default_rng([self.recipe.seed, kind, self._ranks.rank, self.mark.step])

    def _diverged(self, loss: float, norm: float) -> None:
        step = self.mark.step + 1
        kept = "nothing was kept before"
        if unfinished_run.exists(self._out):
            kept = f"{self._out} keeps the checkpoint of step {unfinished_run.load(self._out)[1].step}"
        raise Diverged(
            f"the loss of step {step} is {loss:g} and its gradient's norm {norm:g}, expected numbers; {kept}; train "
            "with a lower learning_rate or a larger batch, from there with --from"
        )

    def _report(self, index: int, stage: Stage, done: float) -> None:
        with self._average.shown():
            clips: Clips = self._source.held_out()
            losses = held_out_losses(self.loss, clips, frames_of(stage, clips.latents.shape[1]))
        held_out = self._ranks.mean(sum(losses.values()) / len(losses))
        last = self._ranks.mean(losses[max(losses)])
        self._journal.add(
            Row(
                stage=index + 1,
                frames=stage.frames,
                height=stage.height,
                width=stage.width,
                step=self.mark.step,
                minutes=self.mark.minutes,
                learning_rate=self._rate(index, done),
                loss=self._smooth if self._smooth is not None else held_out,
                held_out=held_out,
                held_out_last=last,
            )
        )

    def _keep(self, over: bool = False) -> None:
        """The checkpoint, the journal and, unless it is over, all that `resume` needs."""
        sources = [] if over else self._ranks.gathered(self._source.state())
        if self._ranks.first:
            # The checkpoint first: to go on, it is read below what the place holds, whose step may be an earlier one.
            with together(self._out) as place, self._average.shown():
                self._save_model(place)
                self._journal.write(place)
            if over:
                unfinished_run.forget(self._out)
            else:
                tensors = {f"parameter.{i}": p.detach() for i, p in enumerate(self._parameters)}
                tensors |= self._average.state() | self._optimizers.state()
                if self._smooth is not None:
                    tensors["smooth"] = torch.tensor(self._smooth, dtype=torch.float64)
                unfinished_run.save(self._out, self.recipe, self.mark, tensors, sources)
        self._ranks.wait()
        self._saved = time.monotonic()

    def resume(self, mark: Mark, place: Path) -> None:
        """Go on from what `_keep` wrote."""
        tensors = unfinished_run.tensors(place, "tensors")
        try:
            with torch.no_grad():
                for i, p in enumerate(self._parameters):
                    p.copy_(tensors[f"parameter.{i}"])
            self._average.restore(tensors)
            self._optimizers.restore(tensors)
        except (KeyError, RuntimeError) as error:
            raise InputError(f"{place} is another model's ({error!s:.100}); begin anew with --force") from None
        self._smooth = float(tensors["smooth"]) if "smooth" in tensors else None
        stage = self.recipe.stages[mark.stage]
        if mark.processes == self._ranks.count:
            self._source.restore(stage, unfinished_run.tensors(place, f"source-{self._ranks.rank}"))
        else:  # whose clips would these be?
            self._source.enter(stage, self._rng(kind=1))
        self.mark = dataclasses.replace(mark, processes=self._ranks.count, threads=torch.get_num_threads())
        self._journal.resume(mark.step)


def frames_of(stage: Stage, frames: int) -> range:
    """The latent frames that a stage learns to predict."""
    return range(0 if stage.first_frame else 1, frames)


def chosen_frame(rng: np.random.Generator, stage: Stage, frames: int) -> int:
    """Which latent frame a step predicts: the first generated one more often than the others."""
    known = frames_of(stage, frames)
    weights = np.array([DECIDED_FIRST if frame == 1 else 1 for frame in known], float)
    return int(rng.choice(list(known), p=weights / weights.sum()))
