"""What is asked: one generation of one model in one form, checked. Knows nothing of devices, memory or time."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

from videomar.config import ModelConfig, SamplingConfig
from videomar.errors import InputError
from videomar.steps import ClipSteps

PRECISIONS = ("fp32", "fp16", "int8")
EMITTERS = ("portable", "native")


@dataclass(frozen=True)
class Request:
    """A generation; raises InputError for one that no artifacts of this model could do."""

    config: ModelConfig
    sampling: SamplingConfig
    precision: str = "fp16"
    emitter: str = "portable"
    cache_tokens: int | None = None  # of artifacts with a K/V cache of fixed length
    given: int = 1  # conditioning frames, pixels; 0: of the sentence alone
    text: int | None = None  # tokens of the prompt; None: the longest
    text_embeddings: bool = False  # precomputed, so that no text encoder is loaded
    lean: bool = True  # graphs are loaded when they are needed, and the text encoder goes after use

    def __post_init__(self) -> None:
        _choice("precision", self.precision, PRECISIONS)
        _choice("emitter", self.emitter, EMITTERS)
        _ = self.clip

    def but(self, **changes: object) -> Request:
        """The same with other fields, those of the sampling included."""
        knobs = {f.name for f in dataclasses.fields(SamplingConfig)}
        sampling = dataclasses.replace(self.sampling, **{k: v for k, v in changes.items() if k in knobs})  # type: ignore[arg-type]
        rest = {k: v for k, v in changes.items() if k not in knobs}
        return dataclasses.replace(self, sampling=sampling, **rest)  # type: ignore[arg-type]

    @cached_property
    def clip(self) -> ClipSteps:
        """The clip's sizes and steps."""
        return ClipSteps.of(self.config, self.sampling, self.given)

    @property
    def rows(self) -> int:
        """Latent rows."""
        return self.clip.shape.rows

    @property
    def columns(self) -> int:
        """Latent columns."""
        return self.clip.shape.columns

    @property
    def tokens(self) -> int:
        """Of one latent frame."""
        return self.clip.shape.tokens

    @property
    def frames(self) -> int:
        """Latent frames in all."""
        return self.clip.shape.frames

    @property
    def branches(self) -> int:
        """2 with guidance, 1 without."""
        return self.sampling.branches

    @property
    def branches_at_once(self) -> int:
        """Of one call of the transformer."""
        return self.branches // self.sampling.passes

    @property
    def seen(self) -> int:
        """Most finished frames that a frame sees, and K/V are kept of."""
        return self.clip.seen

    @property
    def text_tokens(self) -> int:
        """Of the prompt."""
        return self.config.text.max_tokens if self.text is None else self.text

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens predicted at each mask step."""
        return self.clip.counts


def _choice(name: str, got: str, expected: tuple[str, ...]) -> None:
    if got not in expected:
        raise InputError(f"{name} is {got!r}, expected one of {', '.join(expected)}; change --{name}")
