"""The ladder on a fake model: every rung can be missed, and the first one that is missed is the one that is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from videomar.config import ModelConfig, SamplingConfig
from videomar.demo.measure import Score
from videomar.errors import InputError
from videomar.parity.cases import Case, make_cases, of_demo_world, synthetic_picture
from videomar.parity.comparing.figures import Series, Spot, Stat
from videomar.parity.comparing.ladder import Climb, Ladder, climb
from videomar.parity.comparing.verdict import Verdict, judge, task_lost
from videomar.parity.lockstep import Call, Lockstep
from videomar.parity.packs.recorded import RecordedWords
from videomar.parity.subject import Subject, require_comparable
from videomar.runtime.pipeline import Pipeline
from videomar.schedule import SeededNoise, masked_after_steps
from videomar.tolerances import BRANCHED, FORCED, GATES, RUNGS, Gate, coarser, graph_tolerances

MakeSide = Callable[..., Subject]
STEPS = 3


def case(name: str = "case", seed: int = 1) -> Case:
    return Case(name, synthetic_picture(seed, 16, 24), "a red circle falls", SeededNoise(seed))


def sampling(frames: int = 25) -> SamplingConfig:
    return SamplingConfig(frames=frames, height=16, width=24, mask_steps=STEPS, head_steps=4)


def compared(fake_side: MakeSide, precision: str = "fp32", cases: int = 1, **spoil: Any) -> tuple[Verdict, Ladder]:
    candidate = fake_side("candidate", precision, **spoil)
    chosen = [case(f"case {i}", i) for i in range(cases)]
    ladder = climb(fake_side(), {"candidate": candidate}, chosen, sampling())
    return judge(ladder, "candidate", ("fp32", precision)), ladder


def noisy(share: float) -> Callable[[np.ndarray], np.ndarray]:
    """Add noise of a share of the array's own norm."""

    def spoil(value: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(value.size)
        noise = rng.standard_normal(value.shape)
        return (value + share * np.linalg.norm(value) / np.linalg.norm(noise) * noise).astype(np.float32)

    return spoil


# ---- what is missed


def test_the_same_model_passes_with_no_difference_at_all(fake_side: MakeSide) -> None:
    verdict, ladder = compared(fake_side, cases=2)
    assert verdict.first_miss is None
    mine = ladder.climbs["candidate"]
    for rung in FORCED:
        assert mine.rungs[rung].stats["max_abs"].worst == 0
    assert mine.free.drift.stats["relative_l2"].worst == 0
    assert not mine.free.branched and not mine.free.failed
    assert "is still the model" in verdict.sentence("A B")


@pytest.mark.parametrize("precision", GATES)
@pytest.mark.parametrize(
    ("stage", "share", "rung"),
    [
        ("text", 0.02, "text"),
        ("encoded", 0.02, "encoded"),
        ("z", 0.12, "z"),
        ("head", 0.05, "head"),
        ("decoded", 0.02, "decoded"),
        ("past", 1.0, "z"),
    ],
)
def test_a_fault_is_named_by_the_first_rung_it_shows_on(
    fake_side: MakeSide, precision: str, stage: str, share: float, rung: str
) -> None:
    verdict, _ = compared(fake_side, precision, **{stage: noisy(share)})
    miss = verdict.first_miss
    assert miss is not None and miss.gate.rung == rung and miss.got is not None
    sentence = verdict.sentence("A B")
    assert f"misses rung {rung}" in sentence and "videomar bisect A B" in sentence and "\n" not in sentence


def test_tokens_may_be_the_first_to_miss(fake_side: MakeSide) -> None:
    # A longer z points the same way, which is all that FP16's gate of z asks.
    verdict, _ = compared(fake_side, "fp16", z=lambda z: 1.05 * z)
    assert verdict.first_miss is not None and verdict.first_miss.gate.rung == "sampled"


def test_only_a_clip_of_its_own_shows_what_is_left_over_from_the_clip_before(fake_side: MakeSide) -> None:
    spoil = noisy(0.06)
    verdict, ladder = compared(fake_side, "fp16", clip_spoil=lambda n, x: spoil(x) if n == 1 else x)
    assert verdict.first_miss is not None and verdict.first_miss.gate.rung == "clip"
    assert not ladder.climbs["candidate"].free.branched


def test_a_fault_in_one_late_step_is_named_with_its_frame_and_step(fake_side: MakeSide) -> None:
    calls = []

    def late(tokens: np.ndarray) -> np.ndarray:
        calls.append(1)
        return tokens + 1 if (len(calls) - 1) // 2 == STEPS + 1 else tokens  # two calls a step in lockstep

    verdict, _ = compared(fake_side, head=late)
    miss = verdict.first_miss
    assert miss is not None and miss.where is not None
    assert (miss.gate.rung, miss.where.frame, miss.where.step) == ("head", 2, 1)
    assert "at case 0, latent frame 2, mask step 1" in verdict.sentence("A B")


def test_k_v_of_another_frame_show_from_the_frame_that_reads_them(fake_side: MakeSide) -> None:
    _, ladder = compared(fake_side, past=lambda past: np.append(past[:-1], 0.0) if len(past) == 3 else past)
    errors = {at: s["relative_l2"].worst for at, s in ladder.climbs["candidate"].rungs["z"].by_step.items()}
    assert all((error > 1e-3) == (frame >= 2) for (frame, _), error in errors.items() if error is not None)
    assert any(frame >= 2 for frame, _ in errors)


@pytest.mark.parametrize(
    ("stage", "rung"), [("text", "text"), ("encoded", "encoded"), ("z", "z"), ("head", "head"), ("decoded", "decoded")]
)
@pytest.mark.parametrize("precision", GATES)
def test_a_nan_is_missed_at_its_rung_in_every_precision(
    fake_side: MakeSide, stage: str, rung: str, precision: str
) -> None:
    def spoil(value: np.ndarray) -> np.ndarray:
        value = value.copy()
        value.flat[-1] = np.nan
        return value

    verdict, _ = compared(fake_side, precision, **{stage: spoil})
    assert verdict.first_miss is not None and verdict.first_miss.gate.rung == rung
    assert "is not finite" in verdict.sentence("A B")


def test_a_candidate_that_overflows_on_its_own_misses_the_clip_and_is_no_error(fake_side: MakeSide) -> None:
    verdict, ladder = compared(fake_side, "fp16", clip_spoil=lambda n, x: x * np.inf if n == 1 else x)
    free = ladder.climbs["candidate"].free
    assert "case 0" in free.failed
    assert verdict.first_miss is not None and verdict.first_miss.gate.rung == "clip"
    assert "overflowed" in verdict.first_miss.note


def test_a_reference_that_overflows_is_an_error(fake_side: MakeSide) -> None:
    reference = fake_side(head=lambda x: x * np.inf)
    with pytest.raises(InputError, match="overflowed"):
        climb(reference, {"candidate": fake_side("candidate")}, [case()], sampling())


def test_several_candidates_are_judged_apart(fake_side: MakeSide) -> None:
    others = {"good": fake_side("good", "fp16"), "bad": fake_side("bad", "fp16", head=noisy(0.1))}
    ladder = climb(fake_side(), others, [case()], sampling())
    assert judge(ladder, "good", ("fp32", "fp16")).first_miss is None
    assert judge(ladder, "bad", ("fp32", "fp16")).first_miss is not None


# ---- drift and branches


def test_drift_is_what_two_separate_runs_of_the_loop_give(fake_side: MakeSide) -> None:
    """Recomputed from both clips' finished latents and the order, step by step."""
    spoil, one = noisy(0.01), case()
    _, ladder = compared_one(fake_side, one, head=spoil)
    clips = [
        Pipeline(side.config, side.backend, side.tokenizer)(
            one.given, one.prompt, noise=one.noise, sampling=sampling()
        ).latents
        for side in (fake_side(), fake_side("candidate", head=spoil))
    ]
    left = [6, *masked_after_steps(6, STEPS)]
    series = ladder.climbs["candidate"].free.drift.by_step
    assert set(series) == {(frame, step) for frame in (1, 2, 3) for step in range(STEPS)}
    for (frame, step), stats in series.items():
        a, b = (clip[:, frame].reshape(16, 6) for clip in clips)
        at = one.noise.order(frame, 6)[6 - left[step] : 6 - left[step + 1]]
        expected = np.linalg.norm(b[:, at] - a[:, at]) / np.linalg.norm(a[:, at])
        assert stats["relative_l2"].worst == pytest.approx(expected, rel=1e-5)


def compared_one(fake_side: MakeSide, one: Case, **spoil: Any) -> tuple[Verdict, Ladder]:
    ladder = climb(fake_side(), {"candidate": fake_side("candidate", "fp32", **spoil)}, [one], sampling())
    return judge(ladder, "candidate", ("fp32", "fp32")), ladder


def test_after_a_branch_pixels_are_not_judged(fake_side: MakeSide) -> None:
    calls: dict[int, int] = {}

    def from_the_second_frame_on(clip: int, tokens: np.ndarray) -> np.ndarray:
        calls[clip] = calls.get(clip, 0) + 1
        return tokens + 2 if clip == 1 and calls[clip] > STEPS else tokens

    verdict, ladder = compared(fake_side, "fp16", clip_spoil=from_the_second_frame_on)
    free = ladder.climbs["candidate"].free
    assert free.branched == {"case 0": Spot("case 0", 2, 0)}
    worst = free.drift.stats["relative_l2"].worst
    assert worst is not None and worst > BRANCHED
    assert verdict.first_miss is None  # the first generated latent frame is equal
    by_frame = {i: s.stats["psnr"].worst for i, s in free.frames.items()}
    assert all(value == 200 for i, value in by_frame.items() if i <= 8)
    assert all(value is not None and value < 45 for i, value in by_frame.items() if i > 8)


def test_a_clip_that_branches_in_its_first_frame_is_not_judged_by_its_pixels_and_says_so(fake_side: MakeSide) -> None:
    calls: dict[int, int] = {}

    def after_the_first_step(clip: int, tokens: np.ndarray) -> np.ndarray:
        calls[clip] = calls.get(clip, 0) + 1
        return tokens + 2 if clip == 1 and calls[clip] > 1 else tokens

    verdict, _ = compared(fake_side, "fp16", clip_spoil=after_the_first_step)
    (clip,) = [finding for finding in verdict.findings if finding.gate.rung == "clip"]
    assert clip.passed is None and "branched" in clip.note


def test_a_clip_that_is_another_from_its_first_step_on_has_not_branched_but_is_wrong(fake_side: MakeSide) -> None:
    verdict, ladder = compared(fake_side, "fp16", clip_spoil=lambda n, x: x + 2 if n == 1 else x)
    assert verdict.first_miss is not None and verdict.first_miss.gate.rung == "clip"
    assert not ladder.climbs["candidate"].free.branched


# ---- lockstep


def test_everybody_is_fed_what_the_reference_made(fake_side: MakeSide) -> None:
    """A candidate that always says something else does not move the reference's clip, and its own errors stay put."""
    seen: list[Call] = []
    wrong = fake_side("wrong", head=lambda x: x + 5)
    right = fake_side()
    lockstep = Lockstep(right.backend, {"wrong": wrong.backend}, seen.append)
    knobs: dict[str, Any] = {"frames": 17, "mask_steps": STEPS, "head_steps": 4, "noise": SeededNoise(1)}
    mixed = Pipeline(right.config, lockstep, right.tokenizer)(case().given, "x", **knobs)
    alone = Pipeline(right.config, fake_side().backend, right.tokenizer)(case().given, "x", **knobs)
    np.testing.assert_array_equal(mixed.latents, alone.latents)
    kinds = [call.kind for call in seen]
    assert kinds.count("sampled") == kinds.count("head") == 2 * STEPS
    assert kinds.count("z") == 1 + 2 * STEPS + 1  # a given frame, two new ones, one stored between them
    assert [(c.frame, c.step) for c in seen if c.kind == "z"] == [
        (0, 0), *((1, s) for s in range(STEPS + 1)), *((2, s) for s in range(STEPS)),
    ]  # fmt: skip
    assert all(np.allclose(c.others["wrong"] - c.reference, 5) for c in seen if c.kind in ("head", "sampled"))


def test_a_clip_that_cannot_begin_closes_those_that_did(fake_side: MakeSide) -> None:
    closed = []
    good, bad = fake_side().backend, fake_side().backend
    begin = good.begin

    def watched(states: Any, plan: Any) -> Any:
        clip: Any = begin(states, plan)
        clip.close = lambda: closed.append(1)
        return clip

    good.begin = watched  # type: ignore[method-assign]
    bad.begin = lambda states, plan: (_ for _ in ()).throw(InputError("no room"))  # type: ignore[method-assign]
    with pytest.raises(InputError, match="no room"):
        Lockstep(good, {"bad": bad}, lambda call: None).begin(np.zeros((1, 2, 16), np.float32), plan=None)  # type: ignore[arg-type]
    assert closed == [1]


# ---- figures, gates, cases


def test_a_stat_keeps_the_worst_where_it_was_and_the_mean() -> None:
    stat = Stat("relative_l2")
    for i, value in enumerate([0.1, 0.4, 0.1]):
        stat.add(value, Spot("a", i))
    assert (stat.worst, stat.where, stat.mean) == (0.4, Spot("a", 1), pytest.approx(0.2))
    stat.add(None, Spot("a", 9))
    assert stat.worst is None and stat.mean is None and stat.where == Spot("a", 9)
    stat.add(0.9, Spot("a", 10))
    assert stat.worst is None


def test_the_figures_hold_no_arrays(fake_side: MakeSide) -> None:
    _, ladder = compared(fake_side)

    def walk(value: Any) -> None:
        assert not isinstance(value, np.ndarray)
        if isinstance(value, dict):
            [walk(v) for v in value.values()]
        elif isinstance(value, (list, tuple)):
            [walk(v) for v in value]
        elif dataclasses.is_dataclass(value):
            walk(vars(value))

    mine = ladder.climbs["candidate"]
    walk(mine.rungs), walk(mine.free)


def test_the_coarser_precision_decides_in_either_order() -> None:
    assert coarser("fp16", "fp32") == coarser("fp32", "fp16") == "fp16"
    assert coarser("int8", "fp16") == "int8" and coarser("fp32") == "fp32"
    with pytest.raises(InputError, match="'bf16', expected one of fp32, fp16, int8"):
        coarser("fp32", "bf16")


def test_gates_are_what_the_project_promises() -> None:
    def limit(precision: str, rung: str, measure: str) -> float:
        (gate,) = [g for g in GATES[precision] if (g.rung, g.measure) == (rung, measure)]
        return gate.limit

    assert limit("fp16", "z", "cosine") == 0.9999 and limit("int8", "z", "cosine") == 0.997
    assert limit("fp16", "sampled", "relative_l2") == 0.01 and limit("fp16", "clip", "psnr") == 45
    assert limit("fp16", "task", "followed_lost") == limit("fp16", "task", "centroid_lost") == 0.5
    assert limit("int8", "task", "followed_lost") == limit("int8", "task", "centroid_lost") == 1.0
    for gates in GATES.values():
        assert [RUNGS.index(g.rung) for g in gates] == sorted(RUNGS.index(g.rung) for g in gates)


def test_a_gate_lets_nothing_pass_that_is_no_number() -> None:
    assert not Gate("z", "cosine", 0.9, at_least=True).passes(None)
    assert Gate("z", "cosine", 0.9, at_least=True).passes(0.9) and not Gate("z", "cosine", 0.9, True).passes(0.89)
    assert Gate("z", "relative_l2", 0.1).passes(0.1) and not Gate("z", "relative_l2", 0.1).passes(0.11)


def test_every_graph_has_a_tolerance_in_every_precision_and_coarser_ones_are_wider() -> None:
    tables = [graph_tolerances(precision) for precision in GATES]
    assert len({frozenset(table) for table in tables}) == 1
    for graph in tables[0]:
        values = [table[graph] for table in tables]
        assert values == sorted(values) and values[0] > 0


def scores(followed: list[bool], errors: list[float]) -> list[Score]:
    return [
        Score("a red circle falls", "falls", "falls" if f else "grows", f, e, 30.0)
        for f, e in zip(followed, errors, strict=True)
    ]


def test_the_task_is_lost_in_points_of_a_hundred() -> None:
    lost = task_lost(scores([True] * 4, [0.01] * 4), scores([True, True, True, False], [0.01, 0.01, 0.01, 0.05]))
    assert lost == {"followed_lost": pytest.approx(25), "centroid_lost": pytest.approx(1)}


@pytest.mark.parametrize(
    ("theirs", "passed"),
    [
        (scores([True, True], [0.01, 0.01]), True),
        (scores([True, True], [0.0, 0.0]), True),  # better is no loss
        (scores([True, False], [0.01, 0.01]), False),
        (scores([True, True], [0.01, 0.03]), False),
        (scores([True], [0.01]), False),  # a clip is missing
    ],
)
def test_the_task_is_the_last_rung(theirs: list[Score], passed: bool) -> None:
    climbed = Climb(scores=theirs)
    for rung in FORCED:
        climbed.rungs[rung] = Series()
        climbed.rungs[rung].add({"cosine": 1.0, "relative_l2": 0.0}, Spot("a"))
    climbed.free.clips.add({"psnr": 90.0}, Spot("a"))
    verdict = judge(Ladder({"b": climbed}, scores([True, True], [0.01, 0.01])), "b", ("fp32", "fp16"))
    assert (verdict.first_miss is None) == passed
    if verdict.first_miss:
        assert verdict.first_miss.gate.rung == "task"


def test_a_clip_of_the_demo_world_is_scored_on_both_sides(fake_side: MakeSide, tiny_config: ModelConfig) -> None:
    cases = make_cases(tiny_config, [], [], 2, 0, 9, 64, 64)
    ladder = climb(fake_side(), {"b": fake_side("b")}, cases, dataclasses.replace(sampling(9), height=64, width=64))
    assert len(ladder.scores) == len(ladder.climbs["b"].scores) == 2


def test_demo_cases_are_held_out_seeded_and_each_another(tiny_config: ModelConfig) -> None:
    a, b = (make_cases(tiny_config, [], [], 13, seed, 17, 64, 64) for seed in (0, 0))
    assert [c.prompt for c in a] == [c.prompt for c in b] and len({c.prompt.split(" ", 3)[3] for c in a}) == 13
    assert all(np.array_equal(x.given, y.given) for x, y in zip(a, b, strict=True))
    other = make_cases(tiny_config, [], [], 1, 1, 17, 64, 64)[0]
    assert not np.array_equal(other.given, a[0].given)
    assert not np.array_equal(a[0].noise.initial(1, 0, (2, 2)), a[1].noise.initial(1, 0, (2, 2)))


def test_a_model_of_another_world_needs_words(tiny_config: ModelConfig) -> None:
    other = dataclasses.replace(tiny_config, text=dataclasses.replace(tiny_config.text, vocab_size=151936))
    assert of_demo_world(tiny_config, 64, 64) and not of_demo_world(other, 64, 64)
    assert not of_demo_world(tiny_config, 16, 24)
    with pytest.raises(InputError, match="give --prompt"):
        make_cases(other, [], [], 2, 0, 17, 64, 64)
    made = make_cases(other, [], ["one", "two"], 3, 0, 17, 16, 24)
    assert [c.prompt for c in made] == ["one", "two", "one"] and all(c.scene is None for c in made)
    assert made[0].given.shape == (16, 24, 3) and not np.array_equal(made[0].given, made[2].given)


def test_pictures_and_prompts_pair_up_or_are_refused(tiny_config: ModelConfig, tmp_path: Path) -> None:
    import cv2

    for name in "ab":
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((8, 8, 3), np.uint8))
    images = [tmp_path / "a.png", tmp_path / "b.png"]
    assert [c.prompt for c in make_cases(tiny_config, images, ["x"], 9, 0, 17, 16, 24)] == ["x", "x"]
    assert [c.prompt for c in make_cases(tiny_config, images, ["x", "y"], 9, 0, 17, 16, 24)] == ["x", "y"]
    for prompts in ([], ["x", "y", "z"]):
        with pytest.raises(InputError, match=f"2 pictures and {len(prompts)} prompts"):
            make_cases(tiny_config, images, prompts, 9, 0, 17, 16, 24)


# ---- what cannot be compared


@pytest.mark.parametrize(("part", "key", "value"), [("transformer", "depth", 3), ("text", "max_tokens", 9)])
def test_other_models_are_refused_by_the_first_thing_that_differs(
    fake_side: MakeSide, tiny_config: ModelConfig, part: str, key: str, value: int
) -> None:
    changed = dataclasses.replace(getattr(tiny_config, part), **{key: value})
    other = dataclasses.replace(fake_side("other"), config=dataclasses.replace(tiny_config, **{part: changed}))
    with pytest.raises(InputError, match=rf"other is another model than reference: {part}\.{key} is {value}"):
        require_comparable([fake_side(), other])


def test_other_words_are_refused(fake_side: MakeSide) -> None:
    words: Any = RecordedWords(np.array([[1, 2]]))
    other = dataclasses.replace(fake_side("other"), tokenizer=words)
    with pytest.raises(InputError, match="reads 'a red circle falls' as other ids than reference"):
        climb(fake_side(), {"other": other}, [case()], sampling())
