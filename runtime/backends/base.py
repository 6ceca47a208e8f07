"""What a backend is: it runs the contract's graphs on one device and keeps K/V there. It never decides what to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np

from videomar.config import ANCESTRAL
from videomar.schedule import DiffusionSchedule
from videomar.steps import ClipSteps, Diffusion, Step


@dataclass(frozen=True)
class ClipPlan:
    """What a backend has to know of a clip's steps before the first, so that it allocates once."""

    tokens: int  # of one latent frame
    frames: int  # latent frames, given ones included
    branches: int  # 2 with guidance, 1 without
    counts: tuple[int, ...]  # tokens predicted at each mask step
    schedules: Mapping[Diffusion, DiffusionSchedule]  # of the diffusion loops
    window: int | None = None  # finished frames that are seen besides the first; None: all
    passes: int = 1  # 2: the branches go through the transformer one after the other, with half the K/V each
    steps: tuple[Step, ...] = ()  # as they will come: what to allocate for; a backend does what it is told
    instead: tuple[Step, ...] = ()  # steps that may come instead of some of these

    @staticmethod
    def of(clip: ClipSteps, others: Sequence[ClipSteps] = ()) -> ClipPlan:
        """The plan of a clip's steps, and of those that it may get instead."""
        return ClipPlan(
            tokens=clip.shape.tokens,
            frames=clip.shape.frames,
            branches=clip.sampling.branches,
            counts=tuple(chain(clip.counts, *(other.counts for other in others))),
            schedules=dict(chain(clip.schedules.items(), *(other.schedules.items() for other in others))),
            window=clip.sampling.kv_window,
            passes=clip.sampling.passes,
            steps=clip.steps,
            instead=tuple(chain.from_iterable(other.steps for other in others)),
        )

    @property
    def every(self) -> tuple[Step, ...]:
        """All steps that may come."""
        return self.steps + self.instead

    @property
    def parts(self) -> tuple[int, ...]:
        """Every number of positions that a pass computes, the whole frame first."""
        return tuple(sorted({self.tokens, *(s.computed for s in self.every)}, reverse=True))

    @property
    def loops(self) -> tuple[tuple[int, int], ...]:
        """Every diffusion loop: tokens, steps."""
        made = {(s.predicted, s.head_steps) for s in self.every if s.predicted}
        return tuple(sorted(made)) or tuple((n, steps) for n in sorted(set(self.counts)) for steps in self.steps_a_loop)

    @property
    def steps_a_loop(self) -> tuple[int, ...]:
        """Every number of diffusion steps that a loop takes."""
        return tuple(sorted({steps for steps, _ in self.schedules}))

    @property
    def alone(self) -> bool:
        """Whether some passes compute the first branch of two."""
        return any(s.branches < self.branches for s in self.every)

    @property
    def seen(self) -> int:
        """Most finished frames that a frame sees, so that K/V are kept of."""
        return self.frames - 1 if self.window is None else min(self.frames - 1, 1 + self.window)

    def slot(self, frame: int) -> int:
        """Where a frame's K/V lie among those of `seen` + 1 frames: in a ring, after the first frame's own place."""
        return frame if frame == 0 or self.window is None else 1 + (frame - 1) % max(1, self.seen)

    def drops(self, finished: int) -> bool:
        """Whether the oldest frame after the first is no longer seen once this many are finished."""
        return self.seen < finished < self.frames


class Clip(Protocol):
    """Device state of one generation: text K/V, K/V of finished frames, buffers. Use as a context manager."""

    def step(
        self,
        tokens: np.ndarray,
        masked: np.ndarray,
        predict: np.ndarray,
        cos: np.ndarray,
        sin: np.ndarray,
        first: int = 0,
        branches: int | None = None,
    ) -> None:
        """One transformer pass over the current frame, or over P of its S positions from number `first` on.

        tokens [P, C] float32, masked [P] bool, predict [N] int64 (of these P), RoPE tables [P, D/2] float32. The other
        positions' K/V are those of the passes before. branches: 1 leaves the second branch as it is; None: all. The
        outputs at `predict` stay on the device for `sample`, the frame's K/V for `keep`.
        """

    def sample(self, guidance: float, initial: np.ndarray, draws: np.ndarray, solver: str = ANCESTRAL) -> np.ndarray:
        """Run the diffusion head on the last step's outputs: [N, C] float32; valid until the next call.

        initial [N, C] float32; draws [head steps, N, C] float32, already scaled, zero at the last step. Their number
        and the solver say which of the plan's schedules.
        """

    def z(self) -> np.ndarray:
        """The last step's outputs, [branches, N, width] float32 on the host; for comparisons, the loop never asks."""

    def force(self, z: np.ndarray) -> None:
        """Put other outputs [branches, N, width] in the place of the last step's; for comparisons."""

    def keep(self) -> None:
        """The frame of the last step is finished: its K/V stay for the frames that follow."""

    def close(self) -> None:
        """Free the clip's device memory."""


class Decoder(Protocol):
    """Device state of one clip's decoding, a latent frame at a time."""

    def next(self, latent: np.ndarray) -> np.ndarray:
        """Scaled latent frame [C, h, w] float32 -> its pixels [1, 3, frames, height, width] float32 in [-1, 1].

        One pixel frame of the first latent frame, `temporal_stride` of every other; valid until the next call.
        """

    def close(self) -> None:
        """Free the decoder's memory."""


class Backend(Protocol):
    """The graphs of one artifact directory, loaded on one device."""

    name: str

    def encode_text(self, ids: np.ndarray) -> np.ndarray:
        """ids [1, P] int64 -> text states [1, L, width]."""

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels [1, 3, frames, height, width] float32 -> scaled latents [1, C, t, h, w] float32."""

    def decoder(self, frames: int, h: int, w: int) -> Decoder:
        """Allocate for decoding a clip of so many latent frames of h x w."""

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Scaled latents [1, C, t, h, w] float32 -> pixels [1, 3, frames, height, width] float32 in [-1, 1]."""
        decoder = self.decoder(*latents.shape[2:])
        try:
            return np.concatenate([decoder.next(latent).copy() for latent in np.moveaxis(latents[0], 1, 0)], axis=2)
        finally:
            decoder.close()

    def begin(self, states: np.ndarray, plan: ClipPlan) -> Clip:
        """Allocate for a clip and compute its text K/V."""

    def close(self) -> None:
        """Free everything."""


def predicted_sizes(counts: Sequence[int]) -> list[int]:
    """Every number of predicted tokens that a clip asks for; 1 is the pass that only stores K/V."""
    return sorted({1, *counts})
