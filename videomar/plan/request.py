"""What is asked: one generation of one model in one form, checked. Knows nothing of devices, memory or time."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

from videomar.config import ModelConfig, SamplingConfig
from videomar.errors import InputError
from videomar.schedule import DiffusionSchedule, masked_after_steps

PRECISIONS = ("fp32", "fp16", "int8")
EMITTERS = ("portable", "native")
LARGEST_POSITION = 4096  # rotary positions count exactly to here in FP16 and FP32; nothing larger was ever trained


@dataclass(frozen=True)
class Request:
    """A generation; raises InputError for one that no artifacts of this model could do."""

    config: ModelConfig
    sampling: SamplingConfig
    precision: str = "fp16"
    emitter: str = "portable"
    cache_tokens: int | None = None  # of artifacts with a K/V cache of fixed length
    given: int = 1  # conditioning frames, pixels
    text: int | None = None  # tokens of the prompt; None: the longest
    kv_window: int | None = None  # finished latent frames that are seen besides the first; None: all
    guidance_passes: int = 1  # 2: the branches one after the other
    text_embeddings: bool = False  # precomputed, so that no text encoder is loaded
    lean: bool = True  # graphs are loaded when they are needed, and the text encoder goes after use

    def __post_init__(self) -> None:
        _choice("precision", self.precision, PRECISIONS)
        _choice("emitter", self.emitter, EMITTERS)
        c, s = self.config.tokenizer, self.sampling
        for what, count, option in (("frames", s.frames, "--frames"), ("given", self.given, "--given")):
            if count < 1 or (count - 1) % c.temporal_stride:
                near = 1 + max(1, round((count - 1) / c.temporal_stride)) * c.temporal_stride
                raise InputError(
                    f"{what} is {count}, expected 1 + {c.temporal_stride}k, such as {near}; change {option}"
                )
        if s.frames <= self.given:
            raise InputError(
                f"frames is {s.frames}, expected more than the {self.given} given, such as "
                f"{self.given + c.temporal_stride}; change --frames"
            )
        for name, value in (("height", s.height), ("width", s.width)):
            if value % c.spatial_stride:
                near = max(1, round(value / c.spatial_stride)) * c.spatial_stride
                raise InputError(
                    f"{name} is {value}, expected a multiple of {c.spatial_stride}, such as {near}; change --{name}"
                )
        for name, positions, stride in (
            ("frames", self.frames, c.temporal_stride),
            ("height", self.rows, c.spatial_stride),
            ("width", self.columns, c.spatial_stride),
        ):
            if positions > LARGEST_POSITION:
                raise InputError(
                    f"{name} is {getattr(s, name)}, which is {positions} rotary positions, expected at most "
                    f"{LARGEST_POSITION}; change --{name} to {LARGEST_POSITION * stride} or less"
                )
        if self.kv_window is not None and self.kv_window < 1:
            raise InputError(f"K/V window is {self.kv_window}, expected at least 1 latent frame; change --kv-window")
        if self.guidance_passes not in (1, 2):
            raise InputError(f"guidance passes is {self.guidance_passes}, expected 1 or 2; change --guidance-passes")
        _ = self.counts
        DiffusionSchedule.respaced(self.config.head.train_steps, s.head_steps, s.max_beta)

    def but(self, **changes: object) -> Request:
        """The same with other fields, those of the sampling included."""
        knobs = {f.name for f in dataclasses.fields(SamplingConfig)}
        sampling = dataclasses.replace(self.sampling, **{k: v for k, v in changes.items() if k in knobs})  # type: ignore[arg-type]
        rest = {k: v for k, v in changes.items() if k not in knobs}
        return dataclasses.replace(self, sampling=sampling, **rest)  # type: ignore[arg-type]

    @property
    def rows(self) -> int:
        """Latent rows."""
        return self.sampling.height // self.config.tokenizer.spatial_stride

    @property
    def columns(self) -> int:
        """Latent columns."""
        return self.sampling.width // self.config.tokenizer.spatial_stride

    @property
    def tokens(self) -> int:
        """Of one latent frame."""
        return self.rows * self.columns

    @property
    def frames(self) -> int:
        """Latent frames in all."""
        return 1 + (self.sampling.frames - 1) // self.config.tokenizer.temporal_stride

    @property
    def known(self) -> int:
        """Latent frames of the conditioning pixels."""
        return 1 + (self.given - 1) // self.config.tokenizer.temporal_stride

    @property
    def branches(self) -> int:
        """2 with guidance, 1 without."""
        return 1 if self.sampling.guidance_scale == 1 else 2

    @property
    def branches_at_once(self) -> int:
        """Of one call of the transformer."""
        return 1 if self.guidance_passes == 2 else self.branches

    @property
    def seen(self) -> int:
        """Most finished frames that a frame sees, and K/V are kept of."""
        return self.frames - 1 if self.kv_window is None else min(self.frames - 1, 1 + self.kv_window)

    @property
    def text_tokens(self) -> int:
        """Of the prompt."""
        return self.config.text.max_tokens if self.text is None else self.text

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Tokens predicted at each mask step."""
        left = masked_after_steps(self.tokens, self.sampling.mask_steps)
        return tuple(a - b for a, b in zip([self.tokens, *left[:-1]], left, strict=True))


def _choice(name: str, got: str, expected: tuple[str, ...]) -> None:
    if got not in expected:
        raise InputError(f"{name} is {got!r}, expected one of {', '.join(expected)}; change --{name}")
