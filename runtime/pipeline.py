"""Picture + sentence -> video: the public class. Knows nothing of how a backend runs or how files are encoded."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from videomar.artifacts import MANIFEST, read_manifest, require_graphs, verify
from videomar.config import ModelConfig, SamplingConfig
from videomar.errors import ArtifactError, InputError
from videomar.runtime.backends.base import Backend, Decoder
from videomar.runtime.backends.choose import choose
from videomar.runtime.embedding import PromptEmbedding
from videomar.runtime.media import fit, load_picture, to_frames, to_pixels, write_video
from videomar.runtime.memory_check import BACKEND, MemoryCheck
from videomar.runtime.prompt import PromptTokenizer
from videomar.runtime.sampler import Progress, sample_frames
from videomar.runtime.timing import Timing
from videomar.schedule import DiffusionSchedule, Noise, SeededNoise, masked_after_steps

FPS = 24
Prompt = str | PromptEmbedding


@dataclass(frozen=True)
class Video:
    """A finished clip."""

    frames: np.ndarray  # [frames, height, width, 3] uint8, RGB
    latents: np.ndarray  # [channels, t, h, w] float32, scaled
    timing: Timing

    def save(self, path: str | Path, fps: float = FPS) -> None:
        """Write an H.264 mp4 that a browser plays."""
        write_video(path, self.frames, fps)


@dataclass(frozen=True)
class LatentFrame:
    """One finished latent frame: [channels, h, w] float32, scaled, and its index in the clip."""

    index: int
    values: np.ndarray


@dataclass(frozen=True)
class Plan:
    """What a generation will do."""

    frames: int  # pixel frames in all
    generated: int  # of them, new
    latent_frames: int
    steps: int  # mask steps in all
    height: int
    width: int


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

    @staticmethod
    def open(
        directory: str | Path,
        threads: int | None = None,
        check_hashes: bool = True,
        backend: str = "auto",
        lean: bool = False,
        memory_check: bool = True,
    ) -> Pipeline:
        """Load an artifact directory of `videomar export` or `videomar build` on a backend (choose.py) that runs it.

        lean: load each graph when it is first needed and let the text encoder go once it has been used: less memory,
        for a process that makes one clip. memory_check: refuse clips that need more memory than is free.
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
        verify(directory, manifest, hashes=check_hashes)
        tokenizer = PromptTokenizer(directory / "tokenizer.json", manifest.config.text)
        chosen, why = choose(directory, manifest, backend, threads, lean)
        check = MemoryCheck(manifest, lean) if memory_check and chosen.name == BACKEND else None
        return Pipeline(manifest.config, chosen, tokenizer, why, check)

    def __call__(self, image: str | Path | np.ndarray, prompt: Prompt, **knobs: Any) -> Video:
        """Generate a whole clip; knobs as in `latent_frames`."""
        timing = knobs["timing"] = knobs.get("timing") or Timing()
        latents, frames = zip(*self._decoded(image, prompt, knobs), strict=True)
        timing.finish()
        return Video(np.concatenate(frames), np.stack(latents, axis=1), timing)

    def stream(self, image: str | Path | np.ndarray, prompt: Prompt, **knobs: Any) -> Iterator[np.ndarray]:
        """Yield pixel frames [height, width, 3] uint8 as soon as their latent frame is finished; given ones first."""
        for _, frames in self._decoded(image, prompt, knobs):
            yield from frames

    def _decoded(
        self, image: str | Path | np.ndarray, prompt: Prompt, knobs: dict[str, Any]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Every latent frame [channels, h, w] and its pixel frames [frames, height, width, 3] uint8, decoded once."""
        timing = knobs["timing"] = knobs.get("timing") or Timing()
        given, shown = self._given(image), 0
        with ExitStack() as stack:
            decoder: Decoder | None = None
            for frame in stack.enter_context(closing(self.latent_frames(given, prompt, **knobs))):
                with timing.stage("decoder"):
                    if decoder is None:
                        total = self._latent_frames(self.sampling(frames=knobs.get("frames")).frames)
                        decoder = self.backend.decoder(total, *frame.values.shape[1:])
                        stack.callback(decoder.close)
                    frames = to_frames(_finite(decoder.next(frame.values)))
                shown += len(frames)
                if shown > len(given):
                    timing.mark_first_frame()
                yield frame.values, frames

    def latent_frames(
        self,
        image: str | Path | np.ndarray,
        prompt: Prompt,
        *,
        frames: int | None = None,
        mask_steps: int | None = None,
        head_steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        size: tuple[int, int] | None = None,
        kv_window: int | None = None,
        guidance_passes: int | None = None,
        guidance_ramp: bool = True,
        token_clip: float | None = None,
        seed: int = 0,
        noise: Noise | None = None,
        timing: Timing | None = None,
        progress: Progress = lambda frame, step: None,
    ) -> Iterator[LatentFrame]:
        """Yield every latent frame of a clip, given ones first, as soon as it is finished.

        image: a picture file, [height, width, 3] uint8 (image to video), or [1 + 8k, height, width, 3] (video to
        video). prompt: a sentence, or what `embed` made of one. frames: pixel frames in all, 1 + 8k. size: (height,
        width) of the clip; the picture is scaled and cropped to it. kv_window: latent frames that each frame sees
        besides the first and itself, all if None. guidance_passes: 2 takes both branches of guidance through the
        transformer one after the other, with half the K/V each; None takes 2 where only that fits. guidance_ramp: the
        scale grows from 1 as tokens become known (the paper's way). token_clip: bound on the tokens of every frame
        after the first generated one, 0 for none. noise replaces `seed`. What else is None is the model's default.
        Raises InputError for anything that does not fit, before anything is run.
        """
        timing = timing or Timing()
        given = self._given(image)
        sampling = self._checked(
            given,
            size,
            frames=frames,
            mask_steps=mask_steps,
            head_steps=head_steps,
            guidance_scale=guidance_scale,
            temperature=temperature,
        )
        if token_clip is not None:
            sampling = dataclasses.replace(sampling, clip=token_clip or None)
        if kv_window is not None and kv_window < 1:
            raise InputError(f"the K/V window is {kv_window} latent frames, expected at least 1; change --kv-window")
        if guidance_passes not in (None, 1, 2):
            raise InputError(f"guidance passes are {guidance_passes}, expected 1 or 2; change --guidance-passes")
        ids = None if isinstance(prompt, PromptEmbedding) else self.tokenizer(prompt)
        if self._memory:
            text = prompt.states.shape[1] if ids is None else ids.shape[1]
            guidance_passes = self._memory.require(sampling, len(given), text, kv_window, guidance_passes, ids is None)
        noise = SeededNoise(seed) if noise is None else noise
        pixels = to_pixels(fit(given, sampling.height, sampling.width))
        with timing.stage("text"):
            states = prompt.states if isinstance(prompt, PromptEmbedding) else self.backend.encode_text(ids)
        with timing.stage("encoder"):
            latents = self.backend.encode(pixels)[0]
        for i in range(latents.shape[1]):
            yield LatentFrame(i, latents[:, i])
        total = self._latent_frames(sampling.frames)
        generated = sample_frames(
            self.backend,
            self.config,
            states,
            latents,
            total,
            sampling,
            noise,
            timing,
            progress,
            kv_window=kv_window,
            guidance_passes=guidance_passes or 1,
            guidance_ramp=guidance_ramp,
        )
        for i, values in enumerate(generated, start=latents.shape[1]):
            yield LatentFrame(i, _finite(values))

    def embed(self, prompt: str) -> PromptEmbedding:
        """A prompt's text states, to be given instead of the prompt to this model anywhere; raises InputError."""
        states = self.backend.encode_text(self.tokenizer(prompt))
        return PromptEmbedding(prompt, states.astype(np.float32), self.config.text)

    def plan(
        self, image: str | Path | np.ndarray, prompt: Prompt, size: tuple[int, int] | None = None, **knobs: Any
    ) -> Plan:
        """What a generation with these arguments will do; raises InputError for anything that does not fit."""
        given = self._given(image)
        sampling = self._checked(given, size, **knobs)
        if not isinstance(prompt, PromptEmbedding):
            self.tokenizer(prompt)
        latent = self._latent_frames(sampling.frames)
        steps = (latent - self._latent_frames(len(given))) * sampling.mask_steps
        return Plan(sampling.frames, sampling.frames - len(given), latent, steps, sampling.height, sampling.width)

    def _checked(self, given: np.ndarray, size: tuple[int, int] | None, **knobs: Any) -> SamplingConfig:
        height, width = size or (None, None)
        sampling = self.sampling(height=height, width=width, **knobs)
        self._check(given, sampling)
        return sampling

    def sampling(self, **changes: Any) -> SamplingConfig:
        """The model's sampling defaults with every change that is not None; raises ConfigError for bad values."""
        return dataclasses.replace(self.config.sampling, **{k: v for k, v in changes.items() if v is not None})

    def _given(self, image: str | Path | np.ndarray) -> np.ndarray:
        frames = load_picture(image) if isinstance(image, (str, Path)) else np.asarray(image)
        if frames.dtype != np.uint8 or frames.ndim not in (3, 4) or frames.shape[-1] != 3 or not frames.size:
            raise InputError(
                f"the picture is {frames.dtype} {list(frames.shape)}, expected uint8 [height, width, 3] or "
                "[frames, height, width, 3], RGB"
            )
        return frames if frames.ndim == 4 else frames[None]

    def _check(self, given: np.ndarray, sampling: SamplingConfig) -> None:
        tokenizer = self.config.tokenizer
        stride, space = tokenizer.temporal_stride, tokenizer.spatial_stride
        for what, count, mend in (
            ("frames", sampling.frames, "change --frames"),
            ("conditioning frames", len(given), "give another number of conditioning frames"),
        ):
            if (count - 1) % stride:
                near = self._pixel_frames(max(1, self._latent_frames(count)))
                raise InputError(f"{what} is {count}, expected 1 + {stride}k, such as {near}; {mend}")
        if sampling.frames <= len(given):
            raise InputError(
                f"frames is {sampling.frames}, expected more than the {len(given)} conditioning frames, "
                f"such as {len(given) + stride}; change --frames"
            )
        for name, value in (("height", sampling.height), ("width", sampling.width)):
            if value % space:
                near = max(1, round(value / space)) * space
                raise InputError(f"{name} is {value}, expected a multiple of {space}, such as {near}; change --{name}")
        tokens = sampling.height * sampling.width // space**2
        masked_after_steps(tokens, sampling.mask_steps)
        DiffusionSchedule.respaced(self.config.head.train_steps, sampling.head_steps)

    def _latent_frames(self, pixel_frames: int) -> int:
        return 1 + (pixel_frames - 1) // self.config.tokenizer.temporal_stride

    def _pixel_frames(self, latent_frames: int) -> int:
        return 1 + (latent_frames - 1) * self.config.tokenizer.temporal_stride

    def close(self) -> None:
        """Free the backend."""
        self.backend.close()

    def __enter__(self) -> Pipeline:
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
