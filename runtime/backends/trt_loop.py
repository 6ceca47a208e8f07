"""The diffusion loops of a clip: how large each is, where every step of one finds its tensors, and its order of work.

A loop is a number of diffusion steps of one solver over a number of branches. Knows nothing of masks, of K/V, or of
who owns the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from videomar.config import ModelConfig
from videomar.graphs import modulation_names, steps_ahead
from videomar.runtime.backends.base import ClipPlan
from videomar.runtime.backends.trt_engines import Context
from videomar.runtime.backends.trt_memory import Fields, aligned, size_of
from videomar.steps import Diffusion

Key = tuple[Diffusion, int]  # of a loop: its steps and who takes them, its branches


class LoopShape:
    """One loop's sizes; addresses are looked up in the mapping that each method is given."""

    def __init__(self, config: ModelConfig, dtype: np.dtype, plan: ClipPlan, key: Key) -> None:
        (self.steps, solver), self.branches = key
        self._head, self._schedule = config.head, plan.schedules[self.steps, solver]
        rows = max(plan.counts)
        # One row a diffusion step, each at an address that TensorRT takes.
        self.draw_pitch = aligned(size_of((rows, config.transformer.token_channels), np.float32))
        self._coefficient_pitch = aligned(size_of((6,), np.float32))
        # Modulations are computed for this many steps at once. The last lot ends with the last step, so that all are
        # of one size: what it computes again is not used.
        heads = self.branches * rows
        self.ahead = steps_ahead(config.head, heads, self.steps, dtype.itemsize)
        self._lots = [min(at, self.steps - self.ahead) for at in range(0, self.steps, self.ahead)]
        self._pitch = size_of((heads, config.head.width), dtype)  # a multiple of what TensorRT asks for
        self._timestep_pitch = aligned(size_of((self.ahead,), np.float32))
        self._timesteps, self._coefficients = (
            f"{n} {solver} {self.steps} {self.branches}" for n in ("timesteps", "numbers")
        )

    @property
    def modulations(self) -> int:
        """Bytes of each of the modulations of a lot."""
        return self.ahead * self._pitch

    @property
    def result(self) -> str:
        """The buffer that holds x after the last step."""
        return f"x {(self.steps - 1) % 2}"

    @property
    def fields(self) -> Fields:
        """What goes up once."""
        return {
            self._timesteps: ((len(self._lots), self._timestep_pitch // 4), np.float32),
            self._coefficients: ((self.steps, self._coefficient_pitch // 4), np.float32),
        }

    def fill(self, into: Mapping[str, np.ndarray]) -> None:
        """Write the arrays of `fields`."""
        for lot, start in enumerate(self._lots):
            into[self._timesteps][lot, : self.ahead] = self._schedule.timesteps[start : start + self.ahead]
        into[self._coefficients][:, :6] = self._schedule.coefficients

    def at_lots(self, at: Mapping[str, int]) -> Iterator[tuple[dict[str, int], list[dict[str, int]]]]:
        """Of every lot in turn: addresses of what computes its modulations, and of each of its diffusion steps."""
        done = 0
        for lot, start in enumerate(self._lots):
            steps = range(done, start + self.ahead)
            done = steps.stop
            timesteps = at[self._timesteps] + lot * self._timestep_pitch
            yield {"timesteps": timesteps}, [self._at_step(at, step, step - start) for step in steps]

    def _at_step(self, at: Mapping[str, int], step: int, row: int) -> dict[str, int]:
        """Its row of each table, and x from one buffer to the other."""
        names = zip(modulation_names(self._head), modulation_names(self._head, "modulations"), strict=True)
        return {
            **{name: at[made] + row * self._pitch for name, made in names},
            "x": at[f"x {(step + 1) % 2}"] if step else at["initial"],
            "next": at[f"x {step % 2}"],
            "step_coefficients": at[self._coefficients] + step * self._coefficient_pitch,
            "draw": at["draws"] + step * self.draw_pitch,
        }


def loop_shapes(config: ModelConfig, dtype: np.dtype, plan: ClipPlan) -> dict[Key, LoopShape]:
    """Every loop that the clip's steps may take."""
    taken = {(s.diffusion, s.branches) for s in plan.every if s.predicted}
    keys = taken or {(diffusion, plan.branches) for diffusion in plan.schedules}
    return {key: LoopShape(config, dtype, plan, key) for key in sorted(keys)}


class Loop:
    """The two contexts of one loop: modulations of as many diffusion steps as have room, then those steps."""

    def __init__(self, shape: LoopShape, condition: Context, diffuse: Context, at: Mapping[str, int]) -> None:
        self.contexts = condition, diffuse
        self._lots = list(shape.at_lots(at))

    def enqueue(self) -> None:
        """Put all of it on the stream; every step has addresses of its own."""
        condition, diffuse = self.contexts
        for lot, steps in self._lots:
            condition.bind(lot)
            condition.enqueue()
            for step in steps:
                diffuse.bind(step)
                diffuse.enqueue()
