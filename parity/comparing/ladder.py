"""The ladder: one loop with several backends in lockstep, then every candidate on its own, rung by rung.

Memory is bounded: numbers of every call, and the frames of one case a candidate. Knows nothing of gates or output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from videomar.config import SamplingConfig
from videomar.demo.measure import Score, score
from videomar.errors import InputError
from videomar.parity.cases import Case
from videomar.parity.comparing.figures import Series, Spot
from videomar.parity.lockstep import PARTS, Call, Lockstep
from videomar.parity.measures import compare_arrays, decibels, frame_psnr, frame_ssim
from videomar.parity.subject import Subject
from videomar.runtime.pipeline import Pipeline, Video
from videomar.steps import ClipSteps
from videomar.tolerances import BRANCHED, FORCED

Tokens = tuple[int, int, np.ndarray, np.ndarray]
Progress = Callable[[str], None]  # told after every mask step what is being done


@dataclass
class Free:
    """A candidate's own clips against the reference's: same noise, its own tokens."""

    drift: Series = field(default_factory=Series)  # relative L2 of the tokens of a step
    frames: dict[int, Series] = field(default_factory=dict)  # pixel frame -> psnr, ssim
    clips: Series = field(default_factory=Series)  # psnr and ssim of the generated frames before a branch
    branched: dict[str, Spot] = field(default_factory=dict)  # case -> where its trajectory left the reference's
    failed: dict[str, str] = field(default_factory=dict)  # case -> why there is no clip


@dataclass
class Climb:
    """All figures of one candidate."""

    rungs: dict[str, Series] = field(default_factory=lambda: {rung: Series() for rung in FORCED})
    parts: Series | None = None  # the head in parts, where a side holds it and does not run it; None: nothing to hold
    free: Free = field(default_factory=Free)
    scores: list[Score] = field(default_factory=list)
    shown: Shown | None = None


@dataclass(frozen=True)
class Shown:
    """The clip to look at: the case where the candidate is farthest from the reference."""

    case: str
    prompt: str
    psnr: float  # dB, of the generated frames
    reference: np.ndarray  # [frames, height, width, 3] uint8
    candidate: np.ndarray


@dataclass
class Ladder:
    """Everything that was measured: candidates by label, and the reference's own task scores."""

    climbs: dict[str, Climb]
    scores: list[Score] = field(default_factory=list)


def climb(
    reference: Subject,
    others: Mapping[str, Subject],
    cases: Sequence[Case],
    sampling: SamplingConfig,
    progress: Progress = lambda doing: None,
) -> Ladder:
    """Run every case in lockstep and then on every candidate alone, all with the reference's config and `sampling`.

    Raises UserError for what a side cannot run. A candidate whose own clip overflows fails there and is no error.
    """
    ladder = Ladder({label: Climb() for label in others})
    parts = {label: other.backend.run_graph for label, other in others.items() if other.unrun_parts}
    for label, other in others.items():
        ladder.climbs[label].parts = Series() if other.unrun_parts is not None else None
    for case in cases:
        ids = reference.tokenizer(case.prompt)
        for other in others.values():
            if not np.array_equal(other.tokenizer(case.prompt), ids):
                raise InputError(
                    f"{other.directory} reads {case.prompt!r} as other ids than {reference.directory}; compare what "
                    "was made from one checkpoint"
                )

        def listen(call: Call, case: Case = case) -> None:
            for label, got in call.others.items():
                spot = Spot(case.name, call.frame, call.step)
                mine = ladder.climbs[label]
                series = mine.parts if call.kind == PARTS else mine.rungs[call.kind]
                assert series is not None
                series.add(compare_arrays(got, call.reference), spot)

        backends = {label: other.backend for label, other in others.items()}
        lockstep = Lockstep(reference.backend, backends, listen, parts)
        truth = Pipeline(reference.config, lockstep, reference.tokenizer)(
            case.given,
            case.prompt,
            sampling=sampling,
            noise=case.noise,
            progress=lambda step: progress("in lockstep"),
        )
        given = 1 if case.given.ndim == 3 else len(case.given)
        if case.scene is not None:
            ladder.scores.append(score(truth.frames, case.scene, given))
        for label, other in others.items():
            own = Pipeline(reference.config, other.backend, other.tokenizer)
            mine = ladder.climbs[label]
            try:
                video = own(
                    case.given,
                    case.prompt,
                    sampling=sampling,
                    noise=case.noise,
                    progress=lambda step, label=label: progress(f"{label} on its own"),
                )
            except InputError as error:  # the reference took the same input: it is the numbers that overflowed
                mine.free.failed[case.name] = str(error)
                continue
            if case.scene is not None:
                mine.scores.append(score(video.frames, case.scene, given))
            _compare_clips(mine, case, truth, video, ClipSteps.of(reference.config, sampling, given), given)
    return ladder


def _compare_clips(mine: Climb, case: Case, truth: Video, video: Video, clip: ClipSteps, given: int) -> None:
    """Drift by frame and step, where it branches, and the pixels of all frames but those given."""
    free, stride, known = mine.free, clip.config.tokenizer.temporal_stride, clip.shape.given
    wrong = False  # from the first step on, when nothing was fed back that could have grown: that is no branch
    for frame, step, own, theirs in _by_step(case, truth.latents, video.latents, clip):
        drift, spot = compare_arrays(own, theirs)["relative_l2"], Spot(case.name, frame, step)
        free.drift.add({"relative_l2": drift}, spot)
        if drift is None or drift > BRANCHED:
            wrong |= (frame, step) == (known, 0)
            free.branched.setdefault(case.name, spot)
    if wrong:
        del free.branched[case.name]
    for index in range(given, len(truth.frames)):
        a, b = video.frames[index], truth.frames[index]
        values = {"psnr": frame_psnr(a, b), "ssim": frame_ssim(a, b)}
        free.frames.setdefault(index, Series()).add(values, Spot(case.name, 1 + (index - 1) // stride))
    # Pixel frames of a latent frame come from it and those before.
    branch = free.branched.get(case.name)
    upto = len(truth.frames) if branch is None else 1 + (branch.frame - 1) * stride
    whole = _psnr(video.frames[given:], truth.frames[given:])
    if upto > given:
        ssim = np.mean([frame_ssim(video.frames[i], truth.frames[i]) for i in range(given, upto)])
        clip = {"psnr": _psnr(video.frames[given:upto], truth.frames[given:upto]), "ssim": float(ssim)}
        free.clips.add(clip, Spot(case.name))
    if mine.shown is None or whole < mine.shown.psnr:
        mine.shown = Shown(case.name, case.prompt, whole, truth.frames, video.frames)


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    value = decibels(255.0, float(np.mean((a.astype(np.float32) - b) ** 2)))
    assert value is not None
    return value


def _by_step(case: Case, truth: np.ndarray, mine: np.ndarray, clip: ClipSteps) -> Iterator[Tokens]:
    """(frame, step, own tokens, the reference's) of every mask step: a token once predicted never changes, so the
    finished latents [channels, t, h, w] and the order hold the whole trajectory."""
    for step in clip.steps:
        if step.predicted:
            at = case.noise.order(step.frame, clip.shape.tokens)[step.slots]
            a, b = (x[:, step.frame].reshape(len(x), -1)[:, at] for x in (mine, truth))
            yield step.frame, step.index, a, b
