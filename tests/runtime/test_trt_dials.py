"""The dials on the TensorRT backend, on a fake GPU: loops of several lengths, a branch by itself, parts of a frame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from videomar.config import ModelConfig
from videomar.runtime.backends.ort import OrtBackend
from videomar.runtime.sampler import Sampler
from videomar.runtime.timing import Timing
from videomar.schedule import SeededNoise
from videomar.steps import ClipSteps

MakeRig = Callable[..., Any]
IDS = np.array([[5, 6, 7, 8, 9, 10]], np.int64)  # four of them the system prompt's

DIALS: dict[str, dict[str, Any]] = {
    "fewer diffusion steps": {"head_steps_end": 2},
    "as many loops as mask steps": {"head_steps": 7, "head_steps_end": 1, "head_anneal": "cosine"},
}
OTHERS: dict[str, dict[str, Any]] = {
    "fewer diffusion steps, one branch after the other": {"head_steps_end": 2, "guidance_passes": 2},
}  # those that `plain_loop` does not know


@pytest.fixture(params=["portable", "native"])
def artifacts(request: pytest.FixtureRequest) -> Path:
    """Graphs of either emitter."""
    return request.getfixturevalue(request.param)


def sampler_of(backend: Any, config: ModelConfig, **dials: Any) -> Sampler:
    """A clip of 4 latent frames of 2 x 3 tokens that goes on from one picture."""
    options = {"frames": 25, "height": 16, "width": 24, "mask_steps": 4, "head_steps": 4, **dials}
    clip = ClipSteps.of(config, config.sampling.but(**options), 1)
    latents = backend.encode(np.sin(np.arange(3 * 16 * 24)).astype(np.float32).reshape(1, 3, 1, 16, 24))[0]
    return Sampler(backend, clip, backend.encode_text(IDS), latents, SeededNoise(3), Timing())


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
