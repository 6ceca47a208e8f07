"""The tokens of one clip, a step at a time (model.md, "The sampling loop"), on any backend.

What a step does stands in the step list (videomar/steps.py). Knows nothing of devices, files, pixels or words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import numpy as np

from videomar.orders import arrange
from videomar.runtime.backends.base import Backend, Clip, ClipPlan
from videomar.runtime.timing import Timing
from videomar.schedule import Noise, half_tables
from videomar.steps import ClipSteps, Step

Progress = Callable[[Step], None]  # told what has just been done


class Sampler:
    """State of one clip: its current frame's tokens, and on the backend K/V and buffers, taken at the first step."""

    def __init__(
        self,
        backend: Backend,
        clip: ClipSteps,
        states: np.ndarray,
        given: np.ndarray,
        noise: Noise,
        timing: Timing,
        others: Sequence[ClipSteps] = (),
    ) -> None:
        """states: of `Backend.encode_text`; given: [channels, t, h, w] float32, scaled latents to continue.

        others: what `clip`, which may be replaced between two frames, may become.
        """
        self.clip, self.done, self._others = clip, 0, others  # done: steps that have run
        self._backend, self._states, self._given, self._noise, self._timing = backend, states, given, noise, timing
        self._device: Clip | None = None
        self._x: np.ndarray = np.zeros((0, 0), np.float32)  # the frame's tokens, [S, C]
        self._masked: np.ndarray = np.zeros(0, bool)
        self._order: np.ndarray = np.zeros(0, np.int64)
        self._layout: np.ndarray = np.zeros(0, np.int64)  # in which order the frame's positions are computed

    @property
    def finished(self) -> bool:
        """Whether every step has run."""
        return self.done == len(self.clip.steps)

    def advance(self) -> np.ndarray | None:
        """Run the next step; the latent frame that it finishes, [channels, h, w] float32, or None."""
        if self._device is None:
            with self._timing.stage("text"):
                self._device = self._backend.begin(self._states, ClipPlan.of(self.clip, self._others))
        step = self.clip.steps[self.done]
        if step.index == 0:
            self._enter(step)
        self._run(step, self._device)
        self.done += 1
        if not step.finishes:
            return None
        return np.ascontiguousarray(self._x.T).reshape(-1, self.clip.shape.rows, self.clip.shape.columns)

    def _enter(self, step: Step) -> None:
        """Begin a frame: all its positions are masked, or none if it is given."""
        shape, t = self.clip.shape, self.clip.config.transformer
        self._tables = half_tables(step.frame, shape.rows, shape.columns, t.rope_split, t.rope_theta)
        self._masked, self._layout = np.full(shape.tokens, step.known == 0), np.arange(shape.tokens)
        if step.known:
            self._x = self._given[:, step.frame].reshape(-1, shape.tokens).T
        else:
            self._x = np.zeros((shape.tokens, len(self._given)), np.float32)
            random = self._noise.order(step.frame, shape.tokens)
            self._order = arrange(random, self.clip.at(step.frame).order, shape.columns)
            self._layout = self._order if self.clip.ordered(step.frame) else self._layout

    def _run(self, step: Step, device: Clip) -> None:
        predict, rows = self._order[step.slots], self._layout[step.part]
        at = np.zeros(1, np.int64)  # any row: nobody reads it
        if step.predicted:
            at = np.arange(step.known, step.slots.stop) - step.first if self.clip.ordered(step.frame) else predict
        cos, sin = self._tables
        with self._timing.stage("transformer"):
            device.step(self._x[rows], self._masked[rows], at, cos[rows], sin[rows], step.first, step.branches)
            if step.keeps:
                device.keep()
        if not step.predicted:
            return
        key, shape = (step.frame, step.index), (step.predicted, len(self._given))
        start, each = map(np.float32, step.drawn)
        initial = self._noise.initial(*key, shape) * start
        draws = self._noise.steps(*key, (step.head_steps, *shape)) * each
        draws[-1] = 0  # nothing is added after the last diffusion step
        with self._timing.stage("head"):
            sampled = device.sample(step.guidance, initial, draws, step.solver)
        if step.token_clip is not None:
            sampled = np.clip(sampled, -step.token_clip, step.token_clip)
        self._x[predict], self._masked[predict] = sampled, False

    def close(self) -> None:
        """Free what the backend holds for the clip; again is harmless."""
        if self._device is not None:
            self._device.close()
            self._device = None


def sample_frames(
    backend: Backend,
    clip: ClipSteps,
    states: np.ndarray,
    given: np.ndarray,
    noise: Noise,
    timing: Timing | None = None,
    progress: Progress = lambda step: None,
) -> Iterator[np.ndarray]:
    """Yield every latent frame of a clip, given ones first, each [channels, h, w] float32; arguments as of Sampler."""
    with closing(Sampler(backend, clip, states, given, noise, timing or Timing())) as sampler:
        for step in clip.steps:
            frame = sampler.advance()
            progress(step)
            if frame is not None:
                yield frame
