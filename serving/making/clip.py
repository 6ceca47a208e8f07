"""One job's clip in the making: the run, its film, the file that grows. Knows nothing of other clips."""

from __future__ import annotations

import json
import time
from typing import BinaryIO

from videomar.config import SamplingConfig
from videomar.runtime.clip import ClipRun
from videomar.runtime.pipeline import Pipeline
from videomar.serving.jobs import Job
from videomar.serving.keeping.place import CLIP, Place
from videomar.serving.live import Progress
from videomar.serving.making.film import Film, finish


class Making:
    """Advance it a step at a time; `close` it at any moment."""

    def __init__(self, pipe: Pipeline, job: Job, place: Place) -> None:
        """Raises InputError for what the pipeline refuses."""
        self.job, self._place = job, place
        self.began = time.monotonic()
        sampling = SamplingConfig(**json.loads(job.sampling))
        self.run: ClipRun = pipe.start(place.given(job.id), job.prompt, seed=job.seed, sampling=sampling)
        self._stream = place.stream(job.id, job.attempts)
        for older in self._stream.parent.glob("stream-*"):
            older.unlink(missing_ok=True)
        self._film = Film(job.width, job.height, job.fps)
        self._file: BinaryIO = open(self._stream, "wb", buffering=0)
        self._frames = 0  # latent frames that can be seen
        self._busy = 0.0  # seconds of its own steps
        self.first_frame: float | None = None

    @property
    def finished(self) -> bool:
        """Whether every step has run."""
        return self.run.finished

    def advance(self) -> float:
        """Run a step and write what can be seen after it; the seconds that took."""
        began = time.monotonic()
        step, frames = self.run.left[0], self.run.advance()
        if frames is not None:
            self._file.write(self._film.add(frames))
            self._frames = step.frame + 1
            if self.first_frame is None and step.frame >= self.run.clip.shape.given:
                self.first_frame = time.monotonic() - self.began
        if self.finished:
            self.run.timing.finish()
            self.run.close()
            finish(self._stream, self._place.file(self.job.id, CLIP))
            self._place.share_clip(self.job.id)
        took = time.monotonic() - began
        self._busy += took
        return took

    def progress(self, clips: int) -> Progress:
        """How far it is, beside so many clips in flight, itself included."""
        done, steps = self.run.done, len(self.run.steps)
        left = self._busy / done * (steps - done) * clips if done else None
        return Progress(done, steps, self._frames, self.run.clip.shape.frames, left)

    def close(self) -> None:
        """Free what it holds; the files stay."""
        self.run.close()
        self._file.close()

    def discard(self) -> None:
        """Free what it holds and remove what it wrote, and nothing of another worker's: the job may start again."""
        self.close()
        self._stream.unlink(missing_ok=True)

    def forget(self) -> None:
        """Free what it holds and remove every file."""
        self.close()
        self._place.drop(self.job.id)
