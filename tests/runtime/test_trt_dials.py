"""The dials on the TensorRT backend, on a fake GPU: loops of several lengths, a branch by itself, parts of a frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from videomar.config import ModelConfig, SamplingConfig
from videomar.errors import InputError
from videomar.graphs import TRANSFORMER_STEP
from videomar.plan.memory import key_values
from videomar.plan.request import Request
from videomar.runtime.backends.ort import OrtBackend
from videomar.runtime.sampler import Sampler
from videomar.runtime.timing import Timing
from videomar.schedule import SeededNoise
from videomar.steps import ClipSteps

MakeRig = Callable[..., Any]
IDS = np.array([[5, 6, 7, 8, 9, 10]], np.int64)  # four of them the system prompt's

# Those that the plain loop knows, and those that it does not.
DIALS: dict[str, dict[str, Any]] = {
    "fewer diffusion steps": {"head_steps_end": 2},
    "deterministic": {"head_solver": "ddim", "head_steps_end": 2},
    "as many loops as mask steps": {"head_steps": 7, "head_steps_end": 1, "head_anneal": "cosine"},
    "guidance in the middle": {"guidance_start": 0.2, "guidance_end": 0.8},
    "parts of a frame": {"refresh_every": 4},
    "parts and what was known longer": {"refresh_every": 4, "known_share": 0.5, "order": "structure"},
    "parts, guidance at the end, fewer diffusion steps": {
        "mask_steps": 6, "refresh_every": 9, "guidance_start": 0.5, "head_steps_end": 1,
    },
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "fewer diffusion steps, one branch after the other": {"head_steps_end": 2, "guidance_passes": 2},
    "guidance at the start, one branch after the other": {"guidance_end": 0.5, "guidance_passes": 2},
    "parts, a window": {"refresh_every": 3, "kv_window": 1, "frames": 41},
    "all": {
        "refresh_every": 9, "guidance_end": 0.8, "guidance_passes": 2, "kv_window": 1, "frames": 41,
        "head_steps_end": 1, "order": "spread",
    },
}  # fmt: skip


@pytest.fixture(params=["portable", "native"])
def artifacts(request: pytest.FixtureRequest) -> Path:
    """Graphs of either emitter."""
    return request.getfixturevalue(request.param)


def sampling_of(config: ModelConfig, **dials: Any) -> SamplingConfig:
    """Of a clip of 4 latent frames of 2 x 3 tokens."""
    return config.sampling.but(**{"frames": 25, "height": 16, "width": 24, "mask_steps": 4, "head_steps": 4, **dials})


def sampler_of(backend: Any, config: ModelConfig, others: Sequence[SamplingConfig] = (), **dials: Any) -> Sampler:
    """A clip that goes on from one picture; others: what it may change to."""
    clip, *instead = (ClipSteps.of(config, each, 1) for each in (sampling_of(config, **dials), *others))
    latents = backend.encode(np.sin(np.arange(3 * 16 * 24)).astype(np.float32).reshape(1, 3, 1, 16, 24))[0]
    return Sampler(backend, clip, backend.encode_text(IDS), latents, SeededNoise(3), Timing(), instead)


def frames_of(backend: Any, config: ModelConfig, **dials: Any) -> np.ndarray:
    """The clip's new latent frames."""
    sampler = sampler_of(backend, config, **dials)
    frames = [frame for _ in sampler.clip.steps if (frame := sampler.advance()) is not None]
    sampler.close()
    return np.stack(frames[1:])


@pytest.mark.parametrize("dials", DIALS.values(), ids=DIALS.keys())
@pytest.mark.parametrize("capture", [True, False], ids=["captured", "enqueued"])
def test_a_clip_with_dials_equals_the_same_graphs_run_one_by_one(
    make_rig: MakeRig, artifacts: Path, dials: dict[str, Any], capture: bool
) -> None:
    rig = make_rig(artifacts)
    backend = rig.open(capture=capture)
    frames = frames_of(backend, rig.onnx.config, **dials)
    assert backend.execution == ("cuda-graphs" if capture else "enqueue")
    backend.close()
    assert np.isfinite(frames).all()
    np.testing.assert_array_equal(frames, frames_of(rig.plain(), rig.onnx.config, **dials))


@pytest.mark.parametrize("dials", (DIALS | OTHERS).values(), ids=(DIALS | OTHERS).keys())
def test_a_clip_with_dials_agrees_with_the_onnx_runtime_backend(
    make_rig: MakeRig, artifacts: Path, dials: dict[str, Any]
) -> None:
    rig = make_rig(artifacts)
    backend = rig.open()
    frames = frames_of(backend, rig.onnx.config, **dials)
    backend.close()
    assert np.isfinite(frames).all()
    expected = frames_of(OrtBackend(artifacts, rig.onnx, threads=1), rig.onnx.config, **dials)
    assert np.abs(frames - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("dials", (DIALS | OTHERS).values(), ids=(DIALS | OTHERS).keys())
def test_with_dials_nothing_is_allocated_after_a_clip_began(
    make_rig: MakeRig, artifacts: Path, dials: dict[str, Any]
) -> None:
    rig = make_rig(artifacts)
    backend = rig.open()
    sampler = sampler_of(backend, rig.onnx.config, **dials)
    sampler.advance()
    called = len(rig.gpu.calls)
    for _ in sampler.clip.steps[1:]:
        sampler.advance()
    assert set(rig.gpu.calls[called:]) <= {
        "cudaMemcpyAsync",
        "cudaMemcpy2DAsync",
        "cudaEventRecord",
        "cudaEventSynchronize",
        "cudaGraphLaunch",
        "cudaStreamSynchronize",
    }
    sampler.close()
    backend.close()


def test_every_length_of_the_diffusion_loop_has_a_graph(make_rig: MakeRig, portable: Path) -> None:
    rig = make_rig(portable)
    backend = rig.open()
    sampler = sampler_of(backend, rig.onnx.config, head_steps=7, head_steps_end=1, head_anneal="cosine")
    sampler.advance()
    graphs = [thing for thing in rig.gpu.things if getattr(thing, "executable", False)]
    loops = sorted({step.head_steps for step in sampler.clip.steps if step.predicted})
    assert len(loops) == 4
    # Modulations and then as many diffusion steps; a pass of the transformer is one piece of work.
    assert sorted(len(graph.ops) for graph in graphs) == sorted([1] * 4 + [1 + steps for steps in loops])
    backend.close()


def test_a_clip_may_change_its_dials_between_frames(make_rig: MakeRig, artifacts: Path) -> None:
    """To ones with other parts, other loops and fewer mask steps; what both need was made before the first frame."""
    rig = make_rig(artifacts)
    backend, config = rig.open(), rig.onnx.config
    made = []
    for each in (backend, rig.plain()):
        other = sampling_of(config, mask_steps=3, head_solver="ddim", refresh_every=3, head_steps_end=1)
        sampler = sampler_of(each, config, others=[other], head_steps_end=2)
        frames = []
        while not sampler.finished:
            if (frame := sampler.advance()) is not None:
                frames.append(frame)
            if len(frames) == 3:
                sampler.clip = sampler.clip.then(3, other)
        sampler.close()
        made.append(np.stack(frames))
    backend.close()
    assert np.isfinite(made[0]).all()
    np.testing.assert_array_equal(*made)


@pytest.mark.parametrize("passes", [1, 2])
def test_without_guidance_a_step_computes_one_branch_alone(make_rig: MakeRig, artifacts: Path, passes: int) -> None:
    rig = make_rig(artifacts)
    backend = rig.open()
    sampler = sampler_of(backend, rig.onnx.config, guidance_end=0.5, guidance_passes=passes)
    steps = sampler.clip.steps
    launched = []
    for _ in steps:
        before = len(rig.gpu.log)
        sampler.advance()
        launched.append(rig.gpu.log[before:].count("launch"))
    assert {step.branches for step in steps if step.predicted} == {1, 2}
    assert launched[1:] == [(passes if s.branches == 2 else 1) + bool(s.predicted) for s in steps[1:]]
    backend.close()


def test_parts_take_a_third_buffer_of_keys_and_values_as_planned(make_rig: MakeRig, portable: Path) -> None:
    rig = make_rig(portable)
    backend, config = rig.open(), rig.onnx.config
    taken, planned = [], []
    for dials in ({}, {"refresh_every": 4}):
        before = sum(block.data.size for block in rig.gpu.blocks.values())
        sampler = sampler_of(backend, config, **dials)
        sampler.advance()
        planned.append(key_values(Request(config, sampler.clip.sampling, precision="fp32"), "trt"))
        taken.append(sum(block.data.size for block in rig.gpu.blocks.values()) - before)
        sampler.close()
    t = config.transformer
    frame = 6 * 2 * t.depth * 2 * t.heads * t.head_dim * 4  # K and V of two branches
    assert taken[1] - taken[0] == planned[1] - planned[0] == 4 * frame
    backend.close()


def test_an_engine_without_parts_refuses_them_before_anything_runs(make_rig: MakeRig, artifacts: Path) -> None:
    rig = make_rig(artifacts)
    rig.build(TRANSFORMER_STEP, ranges={"tokens": (6, 6)})
    backend = rig.open()
    with pytest.raises(
        InputError, match=r"'tokens' of 'tokens' would be \d, it was built for 6; .*run `videomar build"
    ):
        frames_of(backend, rig.onnx.config, refresh_every=4)
    assert "launch" not in rig.gpu.log
    backend.close()
