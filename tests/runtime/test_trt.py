"""The TensorRT backend on a fake GPU: right numbers, and only what CUDA allows, when it allows it.

The real backend runs whole clips; behind it the fake computes every pass with ONNX Runtime on the memory that the
backend bound. Its numbers are compared bit for bit with the same graphs run one after another (`plain_loop`), and with
the ONNX Runtime backend. Proves no speed, and nothing about real engines.
"""

from __future__ import annotations

import ast
import dataclasses
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from videomar import graphs
from videomar.artifacts import read_manifest
from videomar.config import SamplingConfig
from videomar.errors import ArtifactError, DeviceError, InputError, UserError
from videomar.graphs import HEAD_STEP, TRANSFORMER_STEP, layer_names
from videomar.runtime.backends import cuda
from videomar.runtime.backends.base import ClipPlan
from videomar.runtime.backends.ort import OrtBackend
from videomar.runtime.clip import ClipRun
from videomar.runtime.sampler import sample_frames
from videomar.runtime.timing import Timing
from videomar.schedule import DiffusionSchedule, SeededNoise
from videomar.steps import ClipShape, ClipSteps

MakeRig = Callable[..., Any]
IDS = np.array([[5, 6, 7, 8, 9, 10]], np.int64)  # four of them the system prompt's
SCHEDULE = DiffusionSchedule.respaced(1000, 4)
PLAN = ClipPlan(6, 3, 2, (1, 2, 3), {(len(SCHEDULE.timesteps), "ancestral"): SCHEDULE})


@pytest.fixture(params=["portable", "native"])
def artifacts(request: pytest.FixtureRequest) -> Path:
    """Graphs of either emitter."""
    return request.getfixturevalue(request.param)


def clip_of(
    backend: Any, config: Any, frames: int = 3, given: int = 1, guidance: float = 3.0, window: int | None = None,
    passes: int = 1, **knobs: Any,
) -> Any:  # fmt: skip
    """Latent frames of a whole clip, text encoder to decoder: ([new frames, channels, h, w], pixels)."""
    sampling = SamplingConfig(
        height=16,
        width=24,
        guidance_scale=guidance,
        kv_window=window,
        guidance_passes=passes,
        **{"mask_steps": 3, "head_steps": 4, **knobs},
    )
    pixels = (
        np.sin(np.arange(3 * (8 * given - 7) * 16 * 24)).astype(np.float32).reshape(1, 3, -1, 16, 24) if given else None
    )
    states = backend.encode_text(IDS)
    latents = np.zeros((16, 0, 2, 3), np.float32) if pixels is None else backend.encode(pixels)[0]
    clip = ClipSteps(config, sampling, ClipShape(frames, latents.shape[1], *latents.shape[2:]))
    made = np.stack(list(sample_frames(backend, clip, states, latents, SeededNoise(3))))
    return made[latents.shape[1] :], backend.decode(np.moveaxis(made, 0, 1)[None])


def steps_of(backend: Any) -> Any:
    """An open clip of 3 latent frames, for tests that go step by step."""
    return backend.begin(backend.encode_text(IDS), PLAN)


# ---- numbers


@pytest.mark.parametrize(
    "clip",
    [
        {"frames": 4},
        {"guidance": 1.0},
        {"frames": 4, "given": 2},
        {"frames": 4, "given": 3, "mask_steps": 2, "head_steps": 5},
        {"frames": 2, "mask_steps": 1, "head_steps": 1},
        {"given": 0},
        {"given": 0, "frames": 1},
    ],
    ids=["image", "no guidance", "video", "longer video", "one step", "sentence alone", "picture of a sentence"],
)
@pytest.mark.parametrize("capture", [True, False], ids=["captured", "enqueued"])
def test_whole_clips_equal_the_same_graphs_run_one_by_one(
    make_rig: MakeRig, artifacts: Path, clip: dict[str, Any], capture: bool
) -> None:
    rig = make_rig(artifacts)
    if clip.get("mask_steps") == 1:
        rig.build(ranges={"predicted": (1, 6)})
    backend = rig.open(capture=capture)
    latents, pixels = clip_of(backend, rig.onnx.config, **clip)
    expected = clip_of(rig.plain(), rig.onnx.config, **clip)
    assert backend.execution == ("cuda-graphs" if capture else "enqueue")
    backend.close()
    assert np.isfinite(latents).all()
    np.testing.assert_array_equal(latents, expected[0])
    np.testing.assert_array_equal(pixels, expected[1])


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"window": 1},
        {"window": 2, "frames": 7},
        {"passes": 2},
        {"window": 1, "passes": 2, "given": 2},
        {"window": 1, "given": 0, "refresh_every": 2},
    ],
    ids=["plain", "window of one", "window of two", "two passes", "both", "sentence alone, in parts"],
)
def test_whole_clips_agree_with_the_onnx_runtime_backend(
    make_rig: MakeRig, artifacts: Path, knobs: dict[str, Any]
) -> None:
    """To rounding: its head is one Scan, it computes as many rows as are asked for, and orders K/V otherwise."""
    rig = make_rig(artifacts)
    knobs = {"frames": 5 if "window" in knobs else 4, **knobs}
    rig.build(
        ranges={"clip": (1, knobs["frames"])}
    )  # K/V of so many frames would not fit these engines; the window does
    backend, other = rig.open(), OrtBackend(artifacts, rig.onnx, threads=1)
    latents, _ = clip_of(backend, rig.onnx.config, **knobs)
    expected, _ = clip_of(other, rig.onnx.config, **knobs)
    backend.close()
    assert np.abs(latents - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("ahead", [1, 2, 3])
@pytest.mark.parametrize("capture", [True, False], ids=["captured", "enqueued"])
def test_modulations_may_be_computed_for_a_few_diffusion_steps_at_once(
    make_rig: MakeRig, artifacts: Path, monkeypatch: pytest.MonkeyPatch, ahead: int, capture: bool
) -> None:
    """Four steps in lots of three: the last lot computes two steps again, which are not taken twice."""
    rig = make_rig(artifacts)
    monkeypatch.setattr(graphs, "MODULATION_BYTES", ahead * 8 * 2 * 3 * 128 * 4)
    backend = rig.open(capture=capture)
    latents, _ = clip_of(backend, rig.onnx.config)
    backend.close()
    expected, _ = clip_of(rig.plain(), rig.onnx.config)
    assert np.abs(latents - expected).max() <= 1e-5 * np.abs(expected).max()


def test_an_engine_of_one_branch_takes_guidance_in_two_passes_by_itself(make_rig: MakeRig, artifacts: Path) -> None:
    rig = make_rig(artifacts)
    rig.build(TRANSFORMER_STEP, ranges={"branches": (1, 1)})
    backend, other = rig.open(), OrtBackend(artifacts, rig.onnx, threads=1)
    latents, _ = clip_of(backend, rig.onnx.config, frames=4)
    expected, _ = clip_of(other, rig.onnx.config, frames=4)
    backend.close()
    assert np.abs(latents - expected).max() <= 1e-4 * np.abs(expected).max()


def test_half_precision_clips_equal_the_same_graphs_run_one_by_one(make_rig: MakeRig, half: Path) -> None:
    rig = make_rig(half)
    backend = rig.open()
    latents, _ = clip_of(backend, rig.onnx.config, frames=4)
    backend.close()
    assert np.isfinite(latents).all()
    np.testing.assert_array_equal(latents, clip_of(rig.plain(), rig.onnx.config, frames=4)[0])


def test_clips_that_take_turns_are_what_each_is_alone_and_share_the_engines(make_rig: MakeRig, artifacts: Path) -> None:
    rig = make_rig(artifacts)
    backend, config = rig.open(), rig.onnx.config
    pixels = np.sin(np.arange(3 * 16 * 24)).astype(np.float32).reshape(1, 3, 1, 16, 24)

    def start(seed: int, **options: Any) -> ClipRun:
        clip = ClipSteps.of(config, config.sampling.but(**options), given=1)
        return ClipRun(backend, clip, pixels, IDS, SeededNoise(seed), Timing())

    asked = [{"seed": 1}, {"seed": 2, "guidance_scale": 1.0}, {"seed": 3, "frames": 9}]
    alone = []
    for options in asked:
        with start(**options) as run:
            alone.append(np.concatenate(list(run)))
    runs = [start(**options) for options in asked]
    made: list[list[np.ndarray]] = [[] for _ in runs]
    engines = rig.gpu.leaked()["engine"]
    while any(not run.finished for run in runs):
        for run, frames in zip(runs, made, strict=True):
            if not run.finished and (new := run.advance()) is not None:
                frames.append(new)
    assert rig.gpu.leaked()["engine"] == engines
    for run, frames, expected in zip(runs, made, alone, strict=True):
        run.close()
        np.testing.assert_array_equal(np.concatenate(frames), expected)
    backend.close()


def test_a_lean_backend_makes_the_same_clip_and_keeps_no_text_encoder(make_rig: MakeRig, artifacts: Path) -> None:
    rig = make_rig(artifacts)
    backend = rig.open(lean=True)
    assert rig.gpu.leaked().get("engine", 0) == 0, "nothing is loaded before it is needed"
    states = backend.encode_text(IDS)
    assert rig.gpu.leaked().get("engine", 0) == 0, "the text encoder went when it was done"
    latents, pixels = clip_of(backend, rig.onnx.config)
    assert rig.gpu.leaked()["engine"] == 6
    backend.close()
    plain = rig.plain()
    np.testing.assert_array_equal(states, plain.encode_text(IDS))
    for got, expected in zip((latents, pixels), clip_of(plain, rig.onnx.config), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_several_clips_of_one_backend_are_independent(make_rig: MakeRig, artifacts: Path) -> None:
    rig = make_rig(artifacts)
    backend = rig.open()
    first = clip_of(backend, rig.onnx.config, frames=3)
    clip_of(backend, rig.onnx.config, frames=4, given=2, guidance=1.0)
    again = clip_of(backend, rig.onnx.config, frames=3)
    backend.close()
    np.testing.assert_array_equal(first[0], again[0])


@pytest.mark.parametrize("kind", ["old", "rtx"])
def test_other_versions_are_driven_through_their_own_calls(make_rig: MakeRig, portable: Path, kind: str) -> None:
    rig = make_rig(portable, kind)
    backend = rig.open()
    latents, _ = clip_of(backend, rig.onnx.config)
    assert backend.execution == "cuda-graphs"
    backend.close()
    np.testing.assert_array_equal(latents, clip_of(rig.plain(), rig.onnx.config)[0])


def test_with_several_profiles_each_context_takes_one_that_fits(make_rig: MakeRig, artifacts: Path) -> None:
    rig = make_rig(artifacts)
    rig.build(TRANSFORMER_STEP, profiles=[{"past": (0, 0), "total": (6, 6)}, {"past": (6, 18), "total": (12, 24)}])
    backend = rig.open()
    latents, _ = clip_of(backend, rig.onnx.config)
    backend.close()
    np.testing.assert_array_equal(latents, clip_of(rig.plain(), rig.onnx.config)[0])


# ---- what happens when


def frame_by_frame(make_rig: MakeRig, artifacts: Path) -> Any:
    """Yields (rig, backend, clip, plain clip, step) where `step` does one mask step in both."""
    rig = make_rig(artifacts)
    backend = rig.open()
    clip, plain = steps_of(backend), steps_of(rig.plain())
    random = np.random.default_rng(0)

    def step(count: int, sample: bool = True) -> tuple[np.ndarray, np.ndarray]:
        inputs = (
            random.standard_normal((6, 16)).astype(np.float32),
            random.random(6) < 0.5,
            random.permutation(6)[:count],
            *(random.standard_normal((6, 8)).astype(np.float32) for _ in range(2)),
        )
        noise = [random.standard_normal(s).astype(np.float32) for s in ((count, 16), (4, count, 16))]
        results = []
        for each in (clip, plain):
            each.step(*inputs)
            results.append(each.sample(2.5, *noise) if sample else np.zeros(0))
        return results[0], results[1]

    return rig, backend, clip, plain, step


def test_a_frame_only_uploads_launches_and_reads_sampled_tokens_back(make_rig: MakeRig, artifacts: Path) -> None:
    rig, backend, clip, _, step = frame_by_frame(make_rig, artifacts)
    for frame in range(3):
        before, called = len(rig.gpu.log), len(rig.gpu.calls)
        for count in (1, 2, 3):
            step(count)
        step(1, sample=False)
        clip.keep()
        mask_step = ["upload", "event", "launch", "upload", "event", "launch", "download", "sync"]
        # No allocation, no copy on the device, no wait but the one for the sampled tokens.
        assert rig.gpu.log[before:] == [*mask_step * 3, "upload", "event", "launch"], frame
        assert set(rig.gpu.calls[called:]) == {
            "cudaMemcpyAsync",
            "cudaEventRecord",
            "cudaGraphLaunch",
            "cudaStreamSynchronize",
        }
    backend.close()


def test_one_graph_per_number_of_finished_frames_and_one_for_the_head(make_rig: MakeRig, artifacts: Path) -> None:
    rig, backend, _, _, step = frame_by_frame(make_rig, artifacts)
    step(2)
    graphs = [thing for thing in rig.gpu.things if getattr(thing, "executable", False)]
    # A pass of a transformer graph is one enqueue; the head's are its condition and 4 diffusion steps.
    assert sorted(len(g.ops) for g in graphs) == [1, 1, 1, 5]
    assert Counter(rig.gpu.log)["instantiate"] == 4
    backend.close()


def test_everything_is_captured_before_the_first_frame_and_after_a_plain_pass(
    make_rig: MakeRig, artifacts: Path
) -> None:
    rig = make_rig(artifacts)
    backend = rig.open()
    clip = steps_of(backend)
    calls = rig.gpu.calls
    begins = [i for i, name in enumerate(calls) if name == "cudaStreamBeginCapture"]
    warm = [i for i, name in enumerate(calls) if name == "execute_async_v3" and i < begins[0]]
    # Text encoder and text K/V; 3 transformer contexts; the head's modulations and its 4 diffusion steps.
    assert len(warm) == 2 + 3 + 1 + 4
    assert len(begins) == 4
    clip.close()
    backend.close()


def test_finished_keys_and_values_lie_where_the_next_frame_reads_them(make_rig: MakeRig, artifacts: Path) -> None:
    rig, backend, clip, plain, step = frame_by_frame(make_rig, artifacts)
    t = rig.onnx.config.transformer
    for finished in range(1, 3):
        step(3)
        step(1, sample=False)
        for each in (clip, plain):
            each.keep()
        backend._cuda.synchronize(backend._stream)  # nobody else waits here
        bound = clip._caches[0].bindings(finished, 6, clip._buffers.at)
        length = backend._cache_tokens or finished * 6
        for name, expected in zip(layer_names("past", t.depth), plain.kept[-1], strict=True):
            raw = rig.gpu.read(bound[name], 2 * t.heads * length * t.head_dim * 4, name, must=False)
            got = raw.view(np.float32).reshape(2, t.heads, length, t.head_dim)[:, :, : finished * 6]
            np.testing.assert_array_equal(got, expected)
    got, expected = step(2)
    np.testing.assert_array_equal(got, expected)
    backend.close()


def test_given_frames_wait_at_most_for_an_upload(make_rig: MakeRig, portable: Path) -> None:
    """Many frames in a row without a sample: pinned memory is not overwritten before it was copied."""
    rig, backend, clip, plain, step = frame_by_frame(make_rig, portable)
    before = len(rig.gpu.log)
    for _ in range(2):
        step(1, sample=False)
        clip.keep(), plain.keep()
    step(1, sample=False)
    assert Counter(rig.gpu.log[before:])["sync"] == 0
    assert Counter(rig.gpu.log[before:])["wait"] == 1
    got, expected = step(3)
    np.testing.assert_array_equal(got, expected)
    backend.close()


def test_the_uploads_come_from_pinned_memory_and_the_result_survives_the_next_call(
    make_rig: MakeRig, portable: Path
) -> None:
    rig, backend, _, _, step = frame_by_frame(make_rig, portable)
    before = len(rig.gpu.log)
    first, expected = step(2)
    step(2)
    backend.close()
    np.testing.assert_array_equal(first, expected)
    assert not [line for line in rig.gpu.log[before:] if line.startswith("blocking")]


def test_teardown_goes_graphs_contexts_memory_engines_stream(make_rig: MakeRig, artifacts: Path) -> None:
    rig = make_rig(artifacts)
    backend = rig.open()
    clip = steps_of(backend)
    before = len(rig.gpu.log)
    backend.close()
    order = [line for line in rig.gpu.log[before:] if line not in ("sync", "destroy event")]
    squeezed = [line for i, line in enumerate(order) if i == 0 or order[i - 1] != line]
    of_clip = ["destroy graph", "destroy context", "free"]
    assert squeezed == [*of_clip, "destroy context", "free", "destroy engine", "destroy stream"]
    done = len(rig.gpu.calls)
    clip.close()
    backend.close()
    assert len(rig.gpu.calls) == done


# ---- capture that cannot be had


@pytest.mark.parametrize("who", ["cuda", "cuda, at the last graph", "tensorrt", "tensorrt says so"])
def test_without_capture_the_clip_is_enqueued_with_equal_results_and_says_so(
    make_rig: MakeRig, artifacts: Path, who: str, caplog: pytest.LogCaptureFixture
) -> None:
    rig = make_rig(artifacts, "rtx" if who == "tensorrt says so" else "new")
    if who.startswith("cuda"):
        least = 1 if who == "cuda" else 4
        ends = "cudaStreamEndCapture"
        rig.gpu.fail = lambda index, name: 900 * (name == ends and rig.gpu.calls.count(ends) >= least)
    rig.gpu.can_capture = who.startswith("cuda")
    backend = rig.open()
    with caplog.at_level(logging.INFO):
        latents, _ = clip_of(backend, rig.onnx.config)
    assert backend.execution == "enqueue"
    (line,) = caplog.messages
    assert "plain enqueue" in line
    backend.close()
    np.testing.assert_array_equal(latents, clip_of(rig.plain(), rig.onnx.config)[0])
    assert "launch" not in rig.gpu.log


def test_with_capture_it_says_so(make_rig: MakeRig, portable: Path, caplog: pytest.LogCaptureFixture) -> None:
    rig = make_rig(portable)
    backend = rig.open()
    with caplog.at_level(logging.INFO):
        clip_of(backend, rig.onnx.config)
    assert caplog.messages == ["TensorRT runs 3 CUDA graphs for the transformer and 1 for the head"]
    backend.close()


# ---- failures


def small_clip(rig: Any) -> tuple[np.ndarray, str]:
    """Open, generate one frame of two, decode, close; whatever is raised, all is closed."""
    backend = rig.open()
    try:
        latents, _ = clip_of(backend, rig.onnx.config, frames=2, mask_steps=2, head_steps=2)
        return latents, backend.execution
    finally:
        backend.close()


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
def test_any_call_may_fail_and_the_user_gets_one_line_and_nothing_is_leaked(
    make_rig: MakeRig, artifacts: Path, sticky: bool
) -> None:
    """Every call of a clip in turn: CUDA's return an error code, TensorRT's say no."""
    rig = make_rig(artifacts)
    expected, _ = small_clip(rig)
    names = list(rig.gpu.calls)
    outcomes: Counter[str] = Counter()
    for at, name in enumerate(names):
        rig.gpu.forget()
        rig.gpu.fail = lambda index, _, at=at: 719 * (index >= at if sticky else index == at)
        try:
            latents, execution = small_clip(rig)
        except UserError as error:
            outcomes["error"] += 1
            assert len(str(error).splitlines()) == 1
            assert isinstance(error, DeviceError) or name == "deserialize_cuda_engine", name
            if name.startswith("cuda") and "Capture" not in name and not sticky:  # sticky: it may be one that cleans up
                assert name in str(error) and "719" in str(error)
        else:
            # What fails while releasing, or only while capturing, costs no result.
            outcomes[execution] += 1
            assert execution == "enqueue" or any(word in name for word in ("Free", "Destroy", "Synchronize")), name
            np.testing.assert_array_equal(latents, expected)
        assert rig.gpu.leaked() == {}, (at, name)
        assert rig.gpu.faults == [], (at, name)
    assert outcomes["error"] > len(names) / 3
    assert sticky or outcomes["enqueue"] > 0


def test_running_out_of_memory_names_the_code_and_what_helps(make_rig: MakeRig, portable: Path) -> None:
    rig = make_rig(portable)
    backend = rig.open()
    rig.gpu.fail = lambda index, name: 2 if name == "cudaMalloc" else 0
    with pytest.raises(DeviceError, match=r"cudaMalloc returned error 2 .*; close what else uses the GPU"):
        steps_of(backend)
    backend.close()


def test_a_failure_in_the_middle_of_a_clip_frees_the_clip_and_the_next_one_runs(
    make_rig: MakeRig, artifacts: Path
) -> None:
    rig = make_rig(artifacts)
    backend = rig.open()
    idle = rig.gpu.leaked()
    launches = Counter[str]()

    def third_launch(index: int, name: str) -> int:
        launches[name] += 1
        return 700 * (name == "cudaGraphLaunch" and launches[name] == 3)

    rig.gpu.fail = third_launch
    with pytest.raises(DeviceError, match="cudaGraphLaunch returned error 700"):
        clip_of(backend, rig.onnx.config)
    assert rig.gpu.leaked() == idle
    latents, _ = clip_of(backend, rig.onnx.config)
    backend.close()
    np.testing.assert_array_equal(latents, clip_of(rig.plain(), rig.onnx.config)[0])


# ---- refusals


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda rig: rig.build(HEAD_STEP, version="10.3.0"),
            r"made by 10.3.0.*run `videomar build A -o B`",
        ),
        (
            lambda rig: rig.build(HEAD_STEP, gpu="Orin"),
            r"step.engine is not an engine for TensorRT 10.16.0 on",
        ),
        (lambda rig: cut(rig, 100), r"head_step.engine is not an engine .*or it is truncated \(.*ends too early\)"),
        (lambda rig: cut(rig, 0), r"head_step.engine is empty; run `videomar build"),
        (lambda rig: (rig.engines / "head_step.engine").unlink(), r"head_step.engine is missing, expected an engine"),
        (lambda rig: swap(rig), r"head_step.engine was built from another export: its input .* is .*, expected"),
    ],
    ids=["version", "gpu", "truncated", "empty", "missing", "another graph"],
)
def test_an_engine_that_does_not_fit_is_refused_with_the_command_that_rebuilds(
    make_rig: MakeRig, portable: Path, spoil: Callable[[Any], None], message: str
) -> None:
    rig = make_rig(portable)
    spoil(rig)
    with pytest.raises(ArtifactError, match=message) as caught:
        rig.open()
    assert len(str(caught.value).splitlines()) == 1


def cut(rig: Any, size: int) -> None:
    file = rig.engines / f"{HEAD_STEP}.engine"
    file.write_bytes(file.read_bytes()[:size])


def swap(rig: Any) -> None:
    (rig.engines / f"{HEAD_STEP}.engine").write_bytes((rig.engines / f"{TRANSFORMER_STEP}.engine").read_bytes())


@pytest.mark.parametrize(
    ("ranges", "clip", "message"),
    [
        (
            {"past": (0, 6), "total": (6, 12)},
            {"frames": 4},
            r"transformer_step.engine: '(past|total)' .*--frames",
        ),
        ({"predicted": (1, 1)}, {}, r"'predicted' of 'predict' would be 3, it was built for 1; .*--mask-steps"),
        ({"branches": (2, 2)}, {"guidance": 1.0}, r"'branches' .* would be 1, it was built for 2; .*--branches"),
        ({"text": (1, 1)}, {}, r"'text' .* would be 2, it was built for 1; .*--max-text.*run `videomar build A -o B`"),
        ({"frames": (1, 1)}, {"given": 2}, r"tokenizer_encoder.engine: 'frames' .* would be 9, .*--frames"),
    ],
    ids=["frames", "mask steps", "guidance", "text", "given frames"],
)
def test_a_clip_beyond_what_was_built_is_refused_before_anything_runs(
    make_rig: MakeRig, artifacts: Path, ranges: Any, clip: Any, message: str
) -> None:
    rig = make_rig(artifacts)
    rig.build(ranges=ranges)
    backend = rig.open()
    with pytest.raises(InputError, match=message):
        clip_of(backend, rig.onnx.config, **clip)
    assert "launch" not in rig.gpu.log
    backend.close()


def test_a_clip_longer_than_the_fixed_cache_is_refused(make_rig: MakeRig, native: Path) -> None:
    rig = make_rig(native)
    backend = rig.open()
    with pytest.raises(InputError, match=r"needs K/V of 66 tokens, these engines hold 64; .*--cache-tokens 66"):
        clip_of(backend, rig.onnx.config, frames=11)
    backend.close()


def test_too_little_memory_is_said_before_it_is_asked_for(make_rig: MakeRig, artifacts: Path) -> None:
    rig = make_rig(artifacts)
    rig.gpu.free = 500
    with pytest.raises(DeviceError, match=r"loading the engines needs .* of GPU memory, 0.00 GiB is free; "):
        rig.open()
    rig.gpu.free = 10_000
    backend = rig.open()
    states = np.zeros((1, 2, 16), np.float32)
    rig.gpu.free = 5_000
    before = rig.gpu.calls.count("cudaMalloc")
    with pytest.raises(DeviceError, match=r"a clip of 3 latent frames of 6 tokens needs .*; ask for fewer frames"):
        backend.begin(states, PLAN)
    assert rig.gpu.calls.count("cudaMalloc") == before
    backend.close()


def test_on_a_board_memory_that_the_kernel_gives_back_counts(
    make_rig: MakeRig, portable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig(portable)
    rig.gpu.free, rig.gpu.integrated = 500, True
    rig.open().close()
    monkeypatch.setattr(cuda, "available_host_memory", lambda: 0)
    with pytest.raises(DeviceError, match="loading the engines"):
        rig.open()


def test_without_cuda_python_it_says_what_to_install(
    make_rig: MakeRig, portable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig(portable)
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DeviceError, match=r"cuda-python is not installed.*pip install cuda-python"):
        rig.open()


def test_importing_the_backend_loads_neither_tensorrt_nor_cuda_nor_torch() -> None:
    code = "import sys, videomar.runtime.backends.trt; print([m.partition('.')[0] for m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"tensorrt", "tensorrt_rtx", "cuda", "torch", "onnx", "onnxruntime"} & set(ast.literal_eval(loaded))


def test_graphs_are_not_engines(make_rig: MakeRig, portable: Path) -> None:
    rig = make_rig(portable)
    rig.manifest = read_manifest(portable)
    with pytest.raises(ArtifactError, match="holds ONNX graphs, TensorRT needs engines made of them; run `videomar"):
        rig.open()


def test_a_native_cache_without_a_length_is_refused(make_rig: MakeRig, native: Path) -> None:
    rig = make_rig(native)
    rig.manifest = dataclasses.replace(rig.manifest, extra={"cache_tokens": None})
    with pytest.raises(ArtifactError, match="--emitter native --cache-tokens N"):
        rig.open()


def test_the_fingerprint_is_checked_before_anything_is_loaded(make_rig: MakeRig, portable: Path) -> None:
    rig = make_rig(portable)

    def refuse(manifest: Any, machine: Any) -> None:
        assert machine.tensorrt == "10.16.0"
        raise ArtifactError("built elsewhere; run `that`")

    with pytest.raises(ArtifactError, match=rf"{rig.engines}: built elsewhere; run `that`"):
        rig.open(check=refuse)
    assert rig.gpu.calls == []
