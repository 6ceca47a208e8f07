"""What a clip does, as data, before any of it is done: its sizes, and every step with its numbers.

Read by whoever runs, times, shows or compares a clip. Knows nothing of devices, noise values or pixels: a position is a
place in a frame's random order, which the noise draws when the frame begins.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property

from videomar.config import ANCESTRAL, DDIM, DIALS, ModelConfig, SamplingConfig
from videomar.errors import InputError
from videomar.schedule import (
    DiffusionSchedule,
    guidance_at,
    head_steps_at,
    masked_after_halves,
    masked_after_steps,
    temperature_at,
)

Diffusion = tuple[int, str]  # diffusion steps and the solver that takes them
PARTS = 8  # a part of a frame is a multiple of an eighth: engines have shapes, and one for each is too many
LARGEST_POSITION = 4096  # rotary positions count exactly to here in FP16 and FP32; nothing larger was ever trained
MOST_TOKENS, MOST_STEPS = 131_072, 300_000  # of a latent frame, of a clip


@dataclass(frozen=True)
class ClipShape:
    """A clip's sizes in latents."""

    frames: int  # latent frames in all
    given: int  # of them, those of the conditioning pixels; 0: the first is generated too
    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        """Of one latent frame."""
        return self.rows * self.columns

    @property
    def generated(self) -> int:
        """Latent frames that are new."""
        return self.frames - self.given


@dataclass(frozen=True)
class Step:
    """One pass of the transformer over a latent frame and, if it predicts, the diffusion head after it."""

    frame: int  # latent frame
    index: int  # within its frame
    known: int  # positions of the frame that are known before
    predicted: int  # positions predicted now, those at `slots` of the frame's order; 0: the pass only makes K/V
    guidance: float
    temperature: float  # factor on what is drawn in the diffusion: at its steps, or with ddim where it starts
    token_clip: float | None  # bound on what is sampled
    finishes: bool  # the frame is complete afterwards
    head_steps: int = 0  # diffusion steps of what is predicted
    solver: str = ANCESTRAL  # that takes them
    branches: int = 2  # of guidance that are computed
    first: int = 0  # of the frame's order, the first position that is computed
    computed: int = 0  # positions computed; the others' K/V stay from the pass before

    @property
    def diffusion(self) -> Diffusion:
        """Which of the clip's schedules its tokens are drawn with."""
        return self.head_steps, self.solver

    @property
    def drawn(self) -> tuple[float, float]:
        """Factors on where the diffusion starts and on what is drawn at its steps."""
        return (self.temperature, 0.0) if self.solver == DDIM else (1.0, self.temperature)

    @property
    def part(self) -> slice:
        """Of the frame's order: which positions are computed."""
        return slice(self.first, self.first + self.computed)

    @property
    def keeps(self) -> bool:
        """Whether the pass is there for the frame's K/V, which stay for the frames after it."""
        return not self.predicted

    @property
    def slots(self) -> slice:
        """Of the frame's order: which positions are predicted."""
        return slice(self.known, self.known + self.predicted)


def clip_shape(config: ModelConfig, sampling: SamplingConfig, given: int) -> ClipShape:
    """Sizes of a clip that continues `given` pixel frames, or begins with none.

    Raises InputError for no frames where the model was not trained for that, frame counts that are not 1 + stride * k,
    nothing to generate, a picture that is no multiple of the tokenizer's stride, more positions than rotary angles tell
    apart, or work without end.
    """
    time, space = config.tokenizer.temporal_stride, config.tokenizer.spatial_stride
    if given == 0 and not config.from_text:
        raise InputError(
            f"there is no picture, and {config.name} was not trained to make a clip's first frame from the sentence "
            "alone, expected a picture or clip to continue; give one, or a checkpoint whose config.json has from_text"
        )
    asked = [("frames", sampling.frames, "--frames"), ("conditioning frames", given, "--given")]
    for what, count, option in asked if given else asked[:1]:
        if count < 1 or (count - 1) % time:
            near = 1 + max(0, count - 1) // time * time
            raise InputError(f"{what} is {count}, expected 1 + {time}k, such as {near}; change {option}")
    if sampling.frames <= given:
        raise InputError(
            f"frames is {sampling.frames}, expected more than the {given} conditioning frames, such as {given + time}; "
            "change --frames"
        )
    for name, value in (("height", sampling.height), ("width", sampling.width)):
        if value % space:
            near = max(1, round(value / space)) * space
            raise InputError(f"{name} is {value}, expected a multiple of {space}, such as {near}; change --{name}")
    shape = ClipShape(
        1 + (sampling.frames - 1) // time, -(-given // time), sampling.height // space, sampling.width // space
    )
    for name, positions, stride in (
        ("frames", shape.frames, time),
        ("height", shape.rows, space),
        ("width", shape.columns, space),
    ):
        if positions > LARGEST_POSITION:
            raise InputError(
                f"{name} is {getattr(sampling, name)}, which is {positions} rotary positions, expected at most "
                f"{LARGEST_POSITION}; change --{name} to {LARGEST_POSITION * stride} or less"
            )
    for count, most, what, options in (
        (shape.tokens, MOST_TOKENS, "tokens a frame", "--height or --width"),
        (shape.generated * (sampling.mask_steps + 1), MOST_STEPS, "steps", "--frames or --mask-steps"),
    ):
        if count > most:
            raise InputError(f"the clip has {count} {what}, expected at most {most}; lower {options}")
    return shape


@dataclass(frozen=True)
class ClipSteps:
    """A clip before it is made: what was asked for, its sizes and its steps. Raises InputError for what cannot be."""

    config: ModelConfig
    sampling: SamplingConfig
    shape: ClipShape
    later: tuple[tuple[int, SamplingConfig], ...] = ()  # latent frame -> options from there on, in order

    def __post_init__(self) -> None:
        _ = self.steps, self.schedules

    @staticmethod
    def of(config: ModelConfig, sampling: SamplingConfig, given: int) -> ClipSteps:
        """The clip that continues `given` pixel frames; 0: the sentence alone."""
        return ClipSteps(config, sampling, clip_shape(config, sampling, given))

    def then(self, frame: int, sampling: SamplingConfig) -> ClipSteps:
        """The clip with other dials from a latent frame on; raises InputError where more than steps would change."""
        steps = {"mask_steps", "head_steps", *DIALS}
        same = {f.name for f in fields(SamplingConfig)} - steps
        if changed := sorted(name for name in same if getattr(sampling, name) != getattr(self.sampling, name)):
            raise InputError(f"{changed[0]} cannot change inside a clip, expected other dials alone")
        return replace(self, later=(*(each for each in self.later if each[0] < frame), (frame, sampling)))

    def at(self, frame: int) -> SamplingConfig:
        """The options of a latent frame."""
        return next((sampling for begin, sampling in reversed(self.later) if begin <= frame), self.sampling)

    @cached_property
    def schedules(self) -> dict[Diffusion, DiffusionSchedule]:
        """The numbers of the diffusion steps, by how many of them there are and who takes them."""
        made = dict.fromkeys((s.head_steps, s.solver) for s in self.steps if s.predicted)
        train, beta = self.config.head.train_steps, self.sampling.max_beta
        table = {ANCESTRAL: DiffusionSchedule.respaced, DDIM: DiffusionSchedule.ddim}
        return {(count, solver): table[solver](train, count, beta) for count, solver in made}

    def ordered(self, frame: int) -> bool:
        """Whether a new frame's tokens are computed in its random order, so that parts of it lie together."""
        return self.at(frame).refresh_every > 1

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Every step in order (model.md, "The sampling loop").

        A given frame takes one pass that keeps its K/V. A new one takes the mask steps and, unless it is the last, one
        more pass over its finished tokens that keeps theirs.
        """
        tokens = self.shape.tokens
        steps = [self._step(frame, 0, tokens, 0) for frame in range(self.shape.given)]
        for frame in range(self.shape.given, self.shape.frames):
            left = self._left(self.at(frame))
            for index, (before, still) in enumerate(zip([tokens, *left], left, strict=False)):
                step = self._step(frame, index, tokens - before, before - still)
                steps.append(self._partial(step, steps[-1]) if index else step)
            if frame + 1 < self.shape.frames:
                steps.append(self._step(frame, len(left), tokens, 0))
        return tuple(steps)

    def _left(self, sampling: SamplingConfig) -> list[int]:
        """Positions that are masked after each mask step."""
        tokens = self.shape.tokens
        if sampling.detail_steps is None:
            return masked_after_steps(tokens, sampling.mask_steps)
        return masked_after_halves(tokens, sampling.mask_steps, sampling.detail_steps)

    def _step(self, frame: int, index: int, known: int, predicted: int) -> Step:
        """A step that computes the whole frame."""
        sampling, tokens = self.at(frame), self.shape.tokens
        new, still = frame - self.shape.given, tokens - known - predicted
        guided = not predicted or sampling.guided(index)
        scale = guidance_at(sampling.guidance_scale, still, tokens, sampling.guidance_ramp)
        return Step(
            frame=frame,
            index=index,
            known=known,
            predicted=predicted,
            guidance=scale if guided else 1.0,
            temperature=temperature_at(max(0, new), sampling.temperature),
            token_clip=sampling.token_clip if new > 0 else None,
            finishes=not still and (predicted > 0 or new < 0),
            head_steps=self._head_steps(sampling, index) if predicted else 0,
            solver=sampling.head_solver,
            branches=sampling.branches if guided else 1,
            computed=tokens,
        )

    @staticmethod
    def _head_steps(s: SamplingConfig, index: int) -> int:
        return head_steps_at(index, s.mask_steps, s.head_steps, s.head_steps_end, s.head_anneal)

    def _partial(self, step: Step, before: Step) -> Step:
        """The step with as little of the frame as may be computed: what was predicted last and is predicted now.

        Whole when its turn has come, and where a branch comes back that knows nothing of what was predicted meanwhile.
        """
        sampling, tokens = self.at(step.frame), self.shape.tokens
        if step.index % sampling.refresh_every == 0 or step.branches > before.branches:
            return step
        unit = -(-tokens // PARTS)
        first = before.known - round(sampling.known_share * before.known)
        computed = min(tokens, -(-(step.slots.stop - first) // unit) * unit)
        first = max(0, step.slots.stop - computed)  # what is left of the part goes to those known longer
        return replace(step, first=first, computed=min(tokens - first, computed))

    @property
    def seen(self) -> int:
        """Most finished frames that a frame sees, so that K/V are kept of."""
        finished, window = self.shape.frames - 1, self.sampling.kv_window
        return finished if window is None else min(finished, 1 + window)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many positions are predicted at each mask step of a frame."""
        return tuple(s.predicted for s in self.steps if s.frame == self.shape.given and s.predicted)
