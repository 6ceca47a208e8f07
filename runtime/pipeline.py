"""Picture + sentence -> video: the public class. Knows nothing of how a backend runs or how files are encoded."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from videomar.artifacts import MANIFEST, read_manifest, require_graphs
from videomar.config import ModelConfig, SamplingConfig, SamplingOptions
from videomar.errors import ArtifactError, InputError
from videomar.onnx_interface import verify_graphs
from videomar.quality import EXACT, at_quality
from videomar.runtime.backends.base import Backend
from videomar.runtime.backends.choose import choose
from videomar.runtime.clip import ClipRun
from videomar.runtime.embedding import PromptEmbedding
from videomar.runtime.media import load_picture, to_pixels, write_video
from videomar.runtime.memory_check import BACKEND, MemoryCheck
from videomar.runtime.prompt import PromptTokenizer
from videomar.runtime.resize import fit
from videomar.runtime.sampler import Progress
from videomar.runtime.timing import Timing
from videomar.schedule import Noise, SeededNoise
from videomar.steps import ClipSteps

if TYPE_CHECKING:
    from typing_extensions import Unpack

Picture = str | Path | np.ndarray
Prompt = str | PromptEmbedding
NO_FRAMES = np.zeros((0, 1, 1, 3), np.uint8)  # to continue: the first frame is made, too


@dataclass(frozen=True)
class Video:
    """A finished clip."""

    frames: np.ndarray  # [frames, height, width, 3] uint8, RGB
    latents: np.ndarray  # [channels, t, h, w] float32, scaled
    timing: Timing
    fps: float  # of the options that made it

    def save(self, path: str | Path, fps: float | None = None) -> None:
        """Write an H.264 mp4 that a browser plays; fps: other than the clip's own."""
        write_video(path, self.frames, self.fps if fps is None else fps)


class Pipeline:
    """Generates video from one artifact directory; use as a context manager or `close` it."""

    def __init__(
        self,
        config: ModelConfig,
        backend: Backend,
        tokenizer: PromptTokenizer,
        why: str = "",
        memory: MemoryCheck | None = None,
    ) -> None:
        """why: this backend, in a sentence. memory: refuses a clip that does not fit; None never does."""
        self.config, self.backend, self.tokenizer, self.why, self._memory = config, backend, tokenizer, why, memory
        self._open = True

    @staticmethod
    def open(
        directory: str | Path,
        threads: int | None = None,
        check_hashes: bool = True,
        backend: str = "auto",
        lean: bool = False,
        memory_check: bool = True,
        whole_prompt: bool = False,
    ) -> Pipeline:
        """Load an artifact directory of `videomar export` or `videomar build` on a backend (choose.py) that runs it.

        lean: load each graph when it is first needed and let the text encoder go once it has been used: less memory,
        for a process that makes one clip. memory_check: refuse clips that need more memory than is free. whole_prompt:
        refuse a prompt that is longer than the model's text tokens, instead of cutting it with the warning PromptCut.
        Raises ArtifactError when a file is missing, altered or of another version, UserError for an impossible backend.
        """
        directory = Path(directory)
        if (directory / "config.json").is_file() and not (directory / MANIFEST).exists():
            raise ArtifactError(
                f"{directory} is a checkpoint, expected the artifacts made of one; run `videomar export "
                f"{shlex.quote(str(directory))} -o ARTIFACTS` and give those"
            )
        manifest = read_manifest(directory)
        require_graphs(directory, manifest)
        verify_graphs(directory, manifest, check_hashes)
        tokenizer = PromptTokenizer(directory / "tokenizer.json", manifest.config.text, whole_prompt)
        chosen, why = choose(directory, manifest, backend, threads, lean)
        check = MemoryCheck(manifest, lean) if memory_check and chosen.name == BACKEND else None
        return Pipeline(manifest.config, chosen, tokenizer, why, check)

    def __call__(
        self,
        image: Picture | None,
        prompt: Prompt,
        *,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        noise: Noise | None = None,
        quality: str = EXACT,
        progress: Progress = lambda step: None,
        **options: Unpack[SamplingOptions],
    ) -> Video:
        """Generate a whole clip; arguments as of `start`. progress: told every step that has run."""
        with self.start(image, prompt, seed=seed, sampling=sampling, noise=noise, quality=quality, **options) as run:
            frames = list(_reporting(run, progress))
            run.timing.finish()
            return Video(np.concatenate(frames), np.stack(run.latents, axis=1), run.timing, run.clip.sampling.fps)

    def stream(
        self,
        image: Picture | None,
        prompt: Prompt,
        *,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        noise: Noise | None = None,
        quality: str = EXACT,
        progress: Progress = lambda step: None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[np.ndarray]:
        """Yield pixel frames [height, width, 3] uint8 as soon as they can be seen, given ones first; see `start`."""
        with self.start(image, prompt, seed=seed, sampling=sampling, noise=noise, quality=quality, **options) as run:
            for frames in _reporting(run, progress):
                yield from frames

    def start(
        self,
        image: Picture | None,
        prompt: Prompt,
        *,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        noise: Noise | None = None,
        quality: str = EXACT,
        others: Sequence[SamplingConfig] = (),
        **options: Unpack[SamplingOptions],
    ) -> ClipRun:
        """A clip that is advanced a step at a time; several may be open and take turns.

        image: a picture file, [height, width, 3] uint8 (image to video), or [1 + 8k, height, width, 3] (video to
        video), made the clip's size as `fit` says; None or no frames: the first is made of the sentence, too, by a
        model that was trained for it. prompt: a sentence, or what `embed` made of one. sampling: every
        option, the model's own defaults if None; quality: a level of videomar.quality, whose dials change some of them;
        `options` change single ones. noise: replaces the one that `seed` gives, so that several backends get identical
        bits. others: options that the clip may change to while it is made.
        Raises InputError or ConfigError for anything that does not fit, before anything is run.
        """
        if not self._open:
            raise InputError("this pipeline is closed, expected an open one; open the directory again")
        given = self._given(image)
        sampling = at_quality(self.config.sampling if sampling is None else sampling, quality).but(**options)
        clip = ClipSteps.of(self.config, sampling, len(given))
        text = prompt.states if isinstance(prompt, PromptEmbedding) else self.tokenizer(prompt)
        if self._memory:
            sampling = self._memory.require(sampling, len(given), text.shape[1], isinstance(prompt, PromptEmbedding))
        pixels = np.zeros((1, 3, 0, sampling.height, sampling.width), np.float32)
        if len(given):
            pixels = to_pixels(fit(given, sampling.height, sampling.width, sampling.fit))
        if sampling != clip.sampling:  # memory allows fewer at once
            clip = ClipSteps.of(self.config, sampling, len(given))
        chance = SeededNoise(seed) if noise is None else noise
        passes = sampling.guidance_passes  # as memory allows
        instead = [ClipSteps.of(self.config, other.but(guidance_passes=passes), len(given)) for other in others]
        return ClipRun(self.backend, clip, pixels, text, chance, Timing(), instead)

    def embed(self, prompt: str) -> PromptEmbedding:
        """A prompt's text states, to be given instead of the prompt to this model anywhere; raises InputError."""
        states = self.backend.encode_text(self.tokenizer(prompt))
        return PromptEmbedding(prompt, states.astype(np.float32), self.config.text)

    def _given(self, image: Picture | None) -> np.ndarray:
        if image is None:
            return NO_FRAMES
        frames = load_picture(image) if isinstance(image, (str, Path)) else np.asarray(image)
        if frames.ndim == 4 and not len(frames):
            return NO_FRAMES
        if frames.dtype != np.uint8 or frames.ndim not in (3, 4) or frames.shape[-1] != 3 or not frames.size:
            raise InputError(
                f"the picture is {frames.dtype} {list(frames.shape)}, expected uint8 [height, width, 3] or "
                "[frames, height, width, 3], RGB"
            )
        return frames if frames.ndim == 4 else frames[None]

    def close(self) -> None:
        """Free the backend; again is harmless."""
        if self._open:
            self._open = False
            self.backend.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _reporting(run: ClipRun, progress: Progress) -> Iterator[np.ndarray]:
    """The frames of a run as they come."""
    for step in run.steps:
        frames = run.advance()
        progress(step)
        if frames is not None:
            yield frames
