"""One clip in the making, from picture and words to pixels, a step at a time; several may take turns on a backend.

Knows nothing of files, encodings or how a backend runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np

from videomar.config import SamplingConfig
from videomar.errors import InputError
from videomar.runtime.backends.base import Backend, Decoder
from videomar.runtime.media import to_frames
from videomar.runtime.sampler import Sampler
from videomar.runtime.timing import Timing
from videomar.schedule import Noise
from videomar.steps import ClipSteps, Step


class ClipRun:
    """A clip that `advance` takes one step further; `close` it at any moment, or use it as a context manager.

    Nothing is computed or allocated before the first `advance`, which encodes picture and words besides its own step.
    """

    def __init__(
        self,
        backend: Backend,
        clip: ClipSteps,
        pixels: np.ndarray,
        text: np.ndarray,
        noise: Noise,
        timing: Timing,
        others: Sequence[ClipSteps] = (),
    ) -> None:
        """pixels: [1, 3, frames, height, width] float32, maybe none; text: ids [1, P] int64, or the text states.

        others: what `change` may ask for.
        """
        self.clip, self.timing, self._others = clip, timing, others
        self._backend, self._pixels, self._text, self._noise = backend, pixels, text, noise
        self._sampler: Sampler | None = None
        self._decoder: Decoder | None = None
        self._open, self._stack = True, ExitStack()
        self.latents: list[np.ndarray] = []  # of every finished latent frame, [channels, h, w] float32, scaled
        self.given, self.shown = pixels.shape[2], 0  # pixel frames given, and handed out so far

    @property
    def steps(self) -> tuple[Step, ...]:
        """Every step of the clip."""
        return self.clip.steps

    @property
    def done(self) -> int:
        """Steps that have run."""
        return self._sampler.done if self._sampler else 0

    @property
    def left(self) -> tuple[Step, ...]:
        """Steps that have not."""
        return self.steps[self.done :]

    @property
    def finished(self) -> bool:
        """Whether every step has run."""
        return self.done == len(self.steps)

    def advance(self) -> np.ndarray | None:
        """Run the next step; the pixel frames that can be seen after it, [n, height, width, 3] uint8, or None.

        Raises InputError after `close` or the last step, and for numbers that overflowed.
        """
        if not self._open or self.finished:
            raise InputError(f"this clip is {'finished' if self._open else 'closed'}; start another one")
        if self._sampler is None:
            self._sampler = self._begin()
        step = self.steps[self.done]
        latent = self._sampler.advance()
        if latent is None:
            return None
        frames = self._decode(_finite(latent))
        if step.frame >= self.clip.shape.given:
            self.timing.mark_first_frame()
        return frames

    def change(self, sampling: SamplingConfig) -> int:
        """Go on with other dials from the next latent frame that is begun; its number. A frame is never broken.

        Raises InputError for what was not among `others`.
        """
        # How many passes guidance takes was settled by the memory there is when the clip was begun.
        sampling = sampling.but(guidance_passes=self.clip.sampling.guidance_passes)
        if sampling != self.clip.sampling and all(sampling != other.sampling for other in self._others):
            raise InputError("this clip was not begun for these dials, expected some of those that it may change to")
        frame = next((s.frame for s in self.left if s.index == 0 and not s.known), self.clip.shape.frames)
        self.clip = self.clip.then(frame, sampling)
        if self._sampler is not None:
            self._sampler.clip = self.clip
        return frame

    def _begin(self) -> Sampler:
        backend, timing = self._backend, self.timing
        with timing.stage("text"):
            states = self._text if self._text.ndim == 3 else backend.encode_text(self._text)
        latents = np.zeros((self.clip.config.transformer.token_channels, 0, 0, 0), np.float32)
        if self.given:
            with timing.stage("encoder"):
                latents = backend.encode(self._pixels)[0]
        sampler = Sampler(backend, self.clip, states, latents, self._noise, timing, self._others)
        self._stack.callback(sampler.close)
        return sampler

    def try_decoder(self) -> None:
        """Decode a latent frame of zeros, for its time in `timing`; the clip is good for nothing else then."""
        shape, channels = self.clip.shape, self.clip.config.transformer.token_channels
        self._decode(np.zeros((channels, shape.rows, shape.columns), np.float32))

    def _decode(self, latent: np.ndarray) -> np.ndarray:
        with self.timing.stage("decoder"):
            if self._decoder is None:
                self._decoder = self._backend.decoder(self.clip.shape.frames, *latent.shape[1:])
                self._stack.callback(self._decoder.close)
            frames = to_frames(_finite(self._decoder.next(latent)))
        self.latents.append(latent)
        self.shown += len(frames)
        return frames

    def __iter__(self) -> Iterator[np.ndarray]:
        """The pixel frames still to come, as they are ready: each [n, height, width, 3] uint8."""
        while not self.finished:
            frames = self.advance()
            if frames is not None:
                yield frames

    def close(self) -> None:
        """Free everything that the clip holds on the backend; again is harmless."""
        self._open = False
        self._stack.close()

    def __enter__(self) -> ClipRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise InputError(
            "the generated numbers overflowed, expected finite ones; lower --guidance-scale or --temperature, or "
            "export with --precision fp32"
        )
    return values
