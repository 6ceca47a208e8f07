"""What backends offer to comparisons alone: reading z, putting another in its place, running one graph.

On ONNX Runtime against the graphs run by themselves; on TensorRT, behind the fake GPU, against the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from videomar.artifacts import read_manifest
from videomar.cli import main
from videomar.graphs import (
    DIFFUSION_HEAD,
    GRAPHS,
    HEAD_CONDITION,
    HEAD_STEP,
    TEXT_KEY_VALUES,
    TRANSFORMER_STEP,
    layer_names,
)
from videomar.parity.comparing.ladder import climb
from videomar.parity.comparing.verdict import judge
from videomar.parity.packs.pack import Pack
from videomar.parity.packs.replay import replay_graphs
from videomar.parity.subject import Subject
from videomar.runtime.backends.base import ClipPlan
from videomar.runtime.backends.ort import OrtBackend
from videomar.runtime.backends.ort_session import open_session
from videomar.runtime.backends.plain import PlainBackend, in_place
from videomar.schedule import DiffusionSchedule, half_tables

GRID, TOKENS, COUNTS, STEPS = (2, 3), 6, (1, 2, 3), 4
IDS = np.array([[5, 6, 7, 8, 9, 10]], np.int64)
SCHEDULE = DiffusionSchedule.respaced(20, STEPS)
PLAN = ClipPlan(TOKENS, 3, 2, COUNTS, {(len(SCHEDULE.timesteps), "ancestral"): SCHEDULE})
MakeRig = Callable[..., Any]


@pytest.fixture(params=["tiny_artifacts", "tiny_native", "tiny_fixed", "tiny_half"])
def artifacts(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


def open_ort(directory: Path) -> OrtBackend:
    return OrtBackend(directory, read_manifest(directory), 1)


def graph(directory: Path, name: str) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """A graph alone."""
    session = open_session(directory / f"{name}.onnx")
    return lambda feeds: dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))


def step_inputs(frame: int, step: int, config: Any) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng([frame, step])
    tokens = rng.standard_normal((TOKENS, 16)).astype(np.float32)
    tables = half_tables(frame, *GRID, config.transformer.rope_split, config.transformer.rope_theta)
    return tokens, rng.random(TOKENS) < 0.5, rng.permutation(TOKENS)[: COUNTS[step]], *tables


def noise(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    draws = rng.standard_normal((STEPS, count, 16)).astype(np.float32)
    return rng.standard_normal((count, 16)).astype(np.float32), draws


def two_frames(backend: Any) -> Any:
    """A clip with one kept frame, and the last step of the next just made."""
    clip = backend.begin(backend.encode_text(IDS), PLAN)
    for frame in range(2):
        for step in range(len(COUNTS)):
            clip.step(*step_inputs(frame, step, backend.config))
        if frame == 0:
            clip.keep()
    return clip


def z_alone(directory: Path, backend: Any) -> tuple[np.ndarray, np.dtype]:
    """The same z from the graphs run one by one, finished K/V as inputs."""
    manifest = read_manifest(directory)
    dtype = np.dtype(np.float16 if manifest.activations == "fp16" else np.float32)
    states = graph(directory, "text_encoder")({"ids": IDS})["states"]
    text = graph(directory, TEXT_KEY_VALUES)({"states": states})
    t, run = manifest.config.transformer, graph(directory, TRANSFORMER_STEP)
    past = {name: np.zeros((2, t.heads, 0, t.head_dim), dtype) for name in layer_names("past", t.depth)}
    for frame in range(2):
        tokens, masked, predict, cos, sin = step_inputs(frame, len(COUNTS) - 1, manifest.config)
        feeds = {"tokens": tokens, "masked": masked, "predict": predict, **text, **past}
        feeds |= {"rope_cos": cos.astype(dtype), "rope_sin": sin.astype(dtype)}
        if manifest.emitter == "native":
            feeds = in_place(feeds, manifest.cache_tokens)
        made = run(feeds)
        past = {n.replace("present", "past"): v[:, :, :TOKENS] for n, v in made.items() if n != "z"}
    return made["z"], dtype


def test_z_is_what_the_graph_says_of_the_predicted_positions_in_float32(artifacts: Path) -> None:
    backend = open_ort(artifacts)
    expected, dtype = z_alone(artifacts, backend)
    z = two_frames(backend).z()
    assert z.dtype == np.float32 and z.shape == (2, COUNTS[-1], backend.config.transformer.width)
    np.testing.assert_allclose(z, expected, rtol=0, atol=2e-2 if dtype == np.float16 else 1e-4)


def test_reading_z_changes_nothing_and_is_the_callers_own(artifacts: Path) -> None:
    clip, start = two_frames(open_ort(artifacts)), noise(COUNTS[-1])
    before = clip.sample(2.0, *start).copy()
    z = clip.z()
    z[...] = 7
    np.testing.assert_array_equal(clip.sample(2.0, *start), before)
    assert np.abs(clip.z() - 7).max() > 1


def test_a_forced_z_is_what_the_head_is_given(artifacts: Path) -> None:
    backend = open_ort(artifacts)
    clip, (initial, draws) = two_frames(backend), noise(COUNTS[-1])
    own = clip.sample(2.0, initial, draws).copy()
    z = clip.z()
    clip.force(z)
    np.testing.assert_array_equal(clip.sample(2.0, initial, draws), own)
    other = np.random.default_rng(9).standard_normal(z.shape).astype(np.float32)
    clip.force(other)
    forced = clip.sample(2.0, initial, draws).copy()
    dtype = backend.specs[TRANSFORMER_STEP].outputs[0].dtype
    feeds = {"z": other.astype(dtype), "timesteps": SCHEDULE.timesteps, "coefficients": SCHEDULE.coefficients}
    feeds |= {"guidance": np.array([2], np.float32), "initial": initial, "draws": draws}
    np.testing.assert_allclose(forced, graph(artifacts, DIFFUSION_HEAD)(feeds)["sampled"], rtol=1e-5, atol=1e-5)
    assert np.abs(forced - own).max() > 1e-5
    clip.step(*step_inputs(1, len(COUNTS) - 1, backend.config))
    np.testing.assert_array_equal(clip.z(), z)  # a forced z is gone with the next step


def test_one_graph_equals_the_file_run_by_itself_also_those_that_the_loop_does_not_use(artifacts: Path) -> None:
    backend = open_ort(artifacts)
    dtype = backend.specs[TRANSFORMER_STEP].outputs[0].dtype
    z = np.random.default_rng(0).standard_normal((2, 3, backend.config.transformer.width)).astype(dtype)
    feeds = {"z": z, "timesteps": SCHEDULE.timesteps}
    assert backend.has_graph(HEAD_CONDITION) and not backend.has_graph("dreamer")
    got, expected = backend.run_graph(HEAD_CONDITION, feeds), graph(artifacts, HEAD_CONDITION)(feeds)
    assert got.keys() == expected.keys() and all(np.array_equal(got[n], expected[n]) for n in got)


def test_a_loop_over_single_graphs_equals_the_backends_own(artifacts: Path) -> None:
    backend = open_ort(artifacts)
    plain = PlainBackend(read_manifest(artifacts), backend.run_graph)
    half = backend.specs[TRANSFORMER_STEP].outputs[0].dtype == "float16"
    clips = [two_frames(backend), two_frames(plain)]
    np.testing.assert_allclose(clips[0].z(), clips[1].z(), rtol=0, atol=1e-2 if half else 1e-5)
    z = clips[0].z()
    sampled = []
    for clip in clips:
        clip.force(z)
        sampled.append(clip.sample(2.0, *noise(COUNTS[-1])).copy())
        clip.close()
    np.testing.assert_allclose(*sampled, rtol=0, atol=1e-2 if half else 1e-5)


# ---- TensorRT on the fake GPU


@pytest.fixture(params=["portable", "native"])
def engines(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("capture", [True, False], ids=["captured", "enqueued"])
def test_tensorrt_tells_z_and_takes_another(make_rig: MakeRig, engines: Path, capture: bool) -> None:
    rig = make_rig(engines)
    with_graphs, plain = rig.open(capture=capture), rig.plain()
    clip, other = two_frames(with_graphs), plain.begin(plain.encode_text(IDS), PLAN)
    for frame in range(2):
        for step in range(len(COUNTS)):
            other.step(*step_inputs(frame, step, with_graphs.config))
        if frame == 0:
            other.keep()
    z = clip.z()
    assert z.dtype == np.float32
    np.testing.assert_array_equal(z, other.z[:, : COUNTS[-1]].astype(np.float32))
    forced = np.random.default_rng(9).standard_normal(z.shape).astype(np.float32)
    clip.force(forced)
    np.testing.assert_array_equal(clip.z(), forced)
    other.z = np.concatenate([forced, *[forced[:, :1]] * (other.rows - forced.shape[1])], 1).astype(other.z.dtype)
    initial, draws = noise(COUNTS[-1])
    np.testing.assert_array_equal(clip.sample(2.0, initial, draws), other.sample(2.0, initial, draws))
    clip.close(), with_graphs.close()


def test_tensorrt_runs_any_single_graph(make_rig: MakeRig, engines: Path) -> None:
    rig = make_rig(engines)
    backend, manifest = rig.open(), rig.manifest
    assert backend.has_graph(HEAD_STEP) and not backend.has_graph(DIFFUSION_HEAD)
    sides = [
        PlainBackend(manifest, backend.run_graph),
        PlainBackend(manifest, lambda name, feeds: graph(engines, name)(feeds)),
    ]
    clips = [two_frames(side) for side in sides]
    np.testing.assert_allclose(clips[0].z(), clips[1].z(), rtol=0, atol=1e-5)
    sampled = [clip.sample(2.0, *noise(COUNTS[-1])) for clip in clips]
    np.testing.assert_allclose(*sampled, rtol=0, atol=1e-5)
    backend.close()


def test_a_golden_pack_is_replayed_on_tensorrt(make_rig: MakeRig, engines: Path, tmp_path: Path) -> None:
    """Graph by graph and the whole clip, as on a device; what the engines do not have is not judged."""
    cv2.imwrite(str(tmp_path / "start.png"), np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8))
    options = ["--image", str(tmp_path / "start.png"), "--prompt", "a red circle falls", "--backend", "ort-cpu"]
    assert main(["record", str(engines), "-o", str(tmp_path / "pack"), *options]) == 0
    pack = Pack.read(tmp_path / "pack")
    rig = make_rig(engines)
    backend, reference = rig.open(), pack.subject()
    side = Subject(tmp_path, rig.manifest.config, "fp32", backend, reference.tokenizer, rig.manifest, "a fake GPU")
    found = {finding.gate.rung: finding for finding in replay_graphs(pack, side)}
    assert set(found) == set(GRAPHS)
    assert [name for name, finding in found.items() if finding.passed is None] == [DIFFUSION_HEAD]
    assert not any(finding.passed is False for finding in found.values())
    ladder = climb(reference, {"engines": side}, [pack.case()], pack.sampling)
    assert judge(ladder, "engines", ("fp32", "fp32"), list(found.values())).first_miss is None
    assert ladder.climbs["engines"].rungs["z"].by_step.keys() >= {(0, 0), (1, 3), (2, 2)}
    backend.close()
