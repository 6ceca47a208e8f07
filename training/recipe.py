"""What one training run does, as data: stages from a TOML file or a preset, and all that `--resume` has to know.

Knows nothing of PyTorch, of clips or of how a step is made.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videomar.config import ModelConfig, SamplingConfig
from videomar.errors import ConfigError, InputError
from videomar.fields import FieldError, Fields, parse
from videomar.files import regular

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LAST = 0.01  # of the last stage's learning rate is left at its end
CURRICULA = Path(__file__).with_name("curricula")
MOST_STEPS = 10**9


@dataclass(frozen=True)
class Stage:
    """Clips of one length and size, for so long."""

    frames: int  # pixel frames, 1 + 8k
    height: int
    width: int
    minutes: float | None = None  # by the clock,
    steps: int | None = None  # or counted; with both, whichever ends first
    learning_rate: float = 1.5e-3
    batch: int = 16  # clips a step and process
    accumulate: int = 1  # parts that a step's clips go through one after the other
    first_frame: bool = False  # learns the first latent frame too, from the sentence alone

    def __post_init__(self) -> None:
        if self.minutes is None and self.steps is None:
            raise ConfigError("a stage has neither minutes nor steps, expected one of them; add it")
        if self.batch % self.accumulate:
            raise ConfigError(
                f"a stage's batch of {self.batch} does not divide into {self.accumulate} parts; change accumulate"
            )

    def done(self, steps: int, minutes: float) -> float:
        """The share of this stage after so many of its steps and minutes: 0 to 1."""
        by_steps = steps / self.steps if self.steps else 0.0
        by_clock = minutes / self.minutes if self.minutes else 0.0
        return min(1.0, max(by_steps, by_clock))

    def __str__(self) -> str:
        return f"{self.frames} frame{'s' * (self.frames > 1)} of {self.height}x{self.width}"


@dataclass(frozen=True)
class Recipe:
    """One run, from its first step to its last."""

    stages: tuple[Stage, ...]
    seed: int = 0
    preset: str = "demo"  # the model's sizes, where there is no checkpoint to start from
    start: str | None = None  # a checkpoint directory
    clips: str | None = None  # a folder of videos; None: the demo world
    captions: str | None = None
    cache: str | None = None  # where their latents are kept
    layers: tuple[str, ...] = ()  # patterns of the parameters that are trained; none: all but what is kept by default
    lora: int | None = None  # rank of low-rank updates instead of whole matrices
    save_every: float = 10.0  # minutes

    def __post_init__(self) -> None:
        if not self.stages:
            raise ConfigError("a curriculum has no stages, expected at least one [[stage]]")
        if (self.clips is None) != (self.captions is None):
            raise InputError("--clips and --captions go together: a folder of videos and what happens in each; add one")
        if self.lora and self.start is None:
            raise InputError("--lora changes a checkpoint a little, expected one; add --from")

    @property
    def weights(self) -> list[float]:
        """What each stage counts in the whole: its minutes or its steps where all have them, else the same."""
        for name in ("minutes", "steps"):
            lengths = [getattr(stage, name) for stage in self.stages]
            if None not in lengths:
                return [length / sum(lengths) for length in lengths]
        return [1 / len(self.stages)] * len(self.stages)

    def learning_rate(self, index: int, done: float) -> float:
        """Of stage `index` with a share `done` behind it: along a cosine to the next one's, at the end to nearly 0."""
        first = self.stages[index].learning_rate
        last = self.stages[index + 1].learning_rate if index + 1 < len(self.stages) else LAST * first
        return last + (first - last) * (1 + math.cos(math.pi * done)) / 2

    def to_json(self) -> str:
        """As text; `from_json` reads it back to an equal object."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str | bytes) -> Recipe:
        """Read what `to_json` wrote; raises FieldError or ConfigError for what cannot be one."""
        data = parse(text)
        known = {f.name for f in dataclasses.fields(Recipe)}
        if not isinstance(data, dict) or set(data) != known:
            raise FieldError("not a training run's recipe")
        stages = _stages(Fields(data).rows("stages"))
        return Recipe(**{**data, "stages": stages, "layers": tuple(data["layers"])})


def read_stages(curriculum: str | Path) -> tuple[Stage, ...]:
    """The stages of a TOML file, or of a preset by its name.

    Raises InputError for a file that cannot be read and ConfigError for what it says.
    """
    presets = {file.stem: file for file in sorted(CURRICULA.glob("*.toml"))}
    file = presets.get(str(curriculum), Path(curriculum))
    try:
        data = tomllib.loads(regular(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{file} cannot be read ({error.strerror}), expected a TOML file of stages or one of {', '.join(presets)}"
        ) from None
    except ValueError as error:  # TOML's own errors and bytes that are no UTF-8
        raise InputError(f"{file} is not TOML ({error}), expected [[stage]] tables; see docs/training.md") from None
    try:
        if unknown := sorted(set(data) - {"stage"}):
            raise FieldError(f"has the unknown key {unknown[0]!r}; there is: stage")
        return _stages(Fields(data).rows("stage"))
    except (FieldError, ConfigError) as error:
        raise ConfigError(f"{file}: {error}") from None


def _stages(rows: Sequence[Fields]) -> tuple[Stage, ...]:
    return tuple(_stage(row, i) for i, row in enumerate(rows))


def _stage(row: Fields, index: int) -> Stage:
    known = {f.name for f in dataclasses.fields(Stage)} | {"size"}
    if unknown := sorted(set(row) - known):
        raise FieldError(f"stage {index + 1} has the unknown key {unknown[0]!r}; there are: {', '.join(sorted(known))}")
    of: dict[str, Any] = {}
    if "size" in row:
        of["height"], of["width"] = _size(row.text("size"), index)
    for name in ("frames", "height", "width", "steps", "batch", "accumulate"):
        if name in row and row.plain(name) is not None:
            of[name] = row.whole(name, 1, MOST_STEPS)
    for name in ("minutes", "learning_rate"):
        if name in row and row.plain(name) is not None:
            of[name] = row.number(name, 1e-9, 1e9)
    if "first_frame" in row:
        of["first_frame"] = row.flag("first_frame")
    if missing := [name for name in ("frames", "height", "width") if name not in of]:
        raise FieldError(f'stage {index + 1} lacks {missing[0]}; give frames and size, such as size = "64x64"')
    return Stage(**of)


def _size(text: str, index: int) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not height.isdecimal() or not width.isdecimal():
        raise FieldError(f"stage {index + 1} has size {text!r:.40}, expected HEIGHTxWIDTH, such as 64x64")
    return int(height), int(width)


def scaled(stages: tuple[Stage, ...], minutes: float | None, steps: int | None) -> tuple[Stage, ...]:
    """The same stages, so long that they take so many minutes or steps in all, each its share."""
    weights = Recipe(stages).weights
    if minutes is None and steps is None:
        return stages
    return tuple(
        dataclasses.replace(
            stage,
            minutes=None if minutes is None else minutes * weight,
            steps=None if steps is None else max(1, round(steps * weight)),
        )
        for stage, weight in zip(stages, weights, strict=True)
    )


def check_stages(stages: Sequence[Stage], config: ModelConfig) -> None:
    """Raise ConfigError for a length or size that the model's tokenizer has no whole latents for."""
    t = config.tokenizer
    for number, stage in enumerate(stages, 1):
        if (stage.frames - 1) % t.temporal_stride:
            near = 1 + max(1, round((stage.frames - 1) / t.temporal_stride)) * t.temporal_stride
            raise ConfigError(
                f"stage {number} has {stage.frames} frames, expected 1 + a multiple of {t.temporal_stride}, such as "
                f"{near}; change frames"
            )
        if stage.frames == 1 and not stage.first_frame:
            raise ConfigError(
                f"stage {number} has 1 frame, which is given, so nothing is learnt; add frames or first_frame = true"
            )
        for name in ("height", "width"):
            if getattr(stage, name) % t.spatial_stride:
                raise ConfigError(
                    f"stage {number} has {name} {getattr(stage, name)}, expected a multiple of {t.spatial_stride}; "
                    "change size"
                )


def sampling_of(stages: Sequence[Stage], sampling: SamplingConfig) -> SamplingConfig:
    """What the trained checkpoint generates by default: clips of the last stage."""
    last = stages[-1]
    return sampling.but(frames=last.frames, height=last.height, width=last.width)
