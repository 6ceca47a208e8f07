"""A K/V window and guidance in two passes: the reference's numbers, whatever holds the K/V."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from videomar.artifacts import read_manifest
from videomar.model.generate import generate
from videomar.model.videomar import VideoMAR
from videomar.runtime.backends.base import ClipPlan
from videomar.runtime.backends.ort import OrtBackend
from videomar.runtime.backends.ort_memory import DeviceMemory, HostMemory
from videomar.runtime.sampler import sample_frames
from videomar.schedule import SeededNoise
from videomar.steps import ClipSteps

IDS = np.arange(1, 9)[None]  # the tiny model's system prompt and four words
FRAMES = 6  # latent ones
LATENT_TOLERANCE = 2e-4


def plan(frames: int, window: int | None) -> ClipPlan:
    return ClipPlan(6, frames, 2, (6,), {}, window)


@given(st.integers(1, 12), st.none() | st.integers(1, 12))
def test_the_ring_always_holds_the_first_frame_and_the_latest(frames: int, window: int | None) -> None:
    p = plan(frames, window)
    ring: dict[int, int] = {}  # slot -> frame
    for frame in range(frames):
        ring[p.slot(frame)] = frame
        seen = {f for f in range(frame) if f == 0 or window is None or f >= frame - window}
        assert set(ring.values()) == seen | {frame}, "a frame that is seen was written over, or one that is not is left"
        assert set(ring) == set(range(len(ring))) and len(ring) <= p.seen + 1
        if frame + 1 < frames:
            assert p.drops(frame + 1) == (window is not None and frame + 1 - window > 1)


@pytest.fixture(scope="module")
def start(tiny_model: VideoMAR) -> np.ndarray:
    generator = torch.Generator().manual_seed(3)
    size = tiny_model.config.sampling
    return (torch.rand(1, 3, 1, size.height, size.width, generator=generator) * 2 - 1).numpy()


def sample(backend: OrtBackend, start: np.ndarray, guidance: float, window: int | None, passes: int) -> np.ndarray:
    stride, asked = backend.config.tokenizer.temporal_stride, backend.config.sampling
    sampling = asked.but(
        frames=1 + stride * (FRAMES - 1), guidance_scale=guidance, kv_window=window, guidance_passes=passes
    )
    clip = ClipSteps.of(backend.config, sampling, given=1)
    frames = sample_frames(backend, clip, backend.encode_text(IDS), backend.encode(start)[0], SeededNoise(1))
    return np.stack(list(frames)[1:], axis=1)


def expected(model: VideoMAR, start: np.ndarray, guidance: float, window: int | None) -> np.ndarray:
    stride = model.config.tokenizer.temporal_stride
    sampling = model.config.sampling.but(guidance_scale=guidance, frames=1 + stride * (FRAMES - 1), kv_window=window)
    prefix = len(model.config.text.system_prompt.split())
    latents, _ = generate(model, torch.from_numpy(start), torch.from_numpy(IDS), prefix, sampling, SeededNoise(1))
    return latents[0, :, 1:].numpy()


@pytest.mark.parametrize("memory", [HostMemory, lambda: DeviceMemory("cpu")], ids=["numpy", "by address"])
@pytest.mark.parametrize("artifacts", ["portable", "tiny_native", "native"])
@pytest.mark.parametrize(("window", "guidance", "passes"), [(1, 3.0, 2), (2, 3.0, 1), (None, 3.0, 2), (1, 1.0, 2)])
def test_every_cache_sees_what_the_reference_sees(
    request: pytest.FixtureRequest, tiny_model: VideoMAR, start: np.ndarray, memory: object, artifacts: str,
    window: int | None, guidance: float, passes: int,
) -> None:  # fmt: skip
    directory: Path = request.getfixturevalue(artifacts)
    backend = OrtBackend(directory, read_manifest(directory), 1, memory=memory())  # type: ignore[operator]
    got, want = sample(backend, start, guidance, window, passes), expected(tiny_model, start, guidance, window)
    assert np.abs(got - want).max() <= LATENT_TOLERANCE


def test_a_window_changes_the_clip(tiny_model: VideoMAR, start: np.ndarray) -> None:
    whole, cut = (expected(tiny_model, start, 3.0, window) for window in (None, 1))
    assert np.array_equal(whole[:, :1], cut[:, :1]), "the first generated frame sees the given one either way"
    assert np.abs(whole[:, 3:] - cut[:, 3:]).max() > 100 * LATENT_TOLERANCE
