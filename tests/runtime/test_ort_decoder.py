"""Decoding a latent frame at a time in ONNX Runtime: PyTorch's whole decode, in memory that is taken once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from videomar.artifacts import read_manifest
from videomar.graphs import TOKENIZER_DECODER
from videomar.model.videomar import VideoMAR
from videomar.runtime.backends.ort import OrtBackend
from videomar.runtime.backends.ort_memory import Buffer, DeviceMemory, HostMemory


def open_backend(directory: Path, memory: Any = None) -> OrtBackend:
    return OrtBackend(directory, read_manifest(directory), 1, memory=memory)


def latents_of(frames: int, h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, 16, frames, h, w)).astype(np.float32)


def streamed(backend: OrtBackend, latents: np.ndarray) -> list[np.ndarray]:
    decoder = backend.decoder(*latents.shape[2:])
    pixels = [decoder.next(latents[0, :, i]).copy() for i in range(latents.shape[2])]
    decoder.close()
    return pixels


@pytest.mark.parametrize("memory", [HostMemory, lambda: DeviceMemory("cpu")], ids=["host", "by address"])
def test_frames_are_those_of_pytorchs_whole_decode(tiny_artifacts: Path, tiny_model: VideoMAR, memory: Any) -> None:
    backend = open_backend(tiny_artifacts, memory())
    for frames, h, w in ((4, 2, 3), (1, 1, 1), (3, 3, 1)):
        latents = latents_of(frames, h, w)
        with torch.inference_mode():
            whole = tiny_model.video_tokenizer.decode(torch.from_numpy(latents)).clamp(-1, 1).numpy()
        pixels = streamed(backend, latents)
        assert [p.shape[2] for p in pixels] == [1, *[8] * (frames - 1)]
        np.testing.assert_allclose(np.concatenate(pixels, axis=2), whole, rtol=0, atol=2e-5)
        np.testing.assert_array_equal(backend.decode(latents), np.concatenate(pixels, axis=2))


def test_half_precision_stays_near_pytorch(tiny_half: Path, tiny_model: VideoMAR) -> None:
    latents = latents_of(6, 2, 3)
    with torch.inference_mode():
        whole = tiny_model.video_tokenizer.decode(torch.from_numpy(latents)).clamp(-1, 1).numpy()
    got = open_backend(tiny_half).decode(latents)
    assert np.abs(got - whole).max() <= 0.02 and np.linalg.norm(got - whole) <= 5e-3 * np.linalg.norm(whole)


def test_decoders_at_once_do_not_disturb_each_other(tiny_artifacts: Path) -> None:
    backend = open_backend(tiny_artifacts)
    clips = [latents_of(3, 2, 3, seed=1), latents_of(4, 2, 3, seed=2), latents_of(3, 1, 2, seed=3)]
    expected = [streamed(backend, clip) for clip in clips]
    decoders = [backend.decoder(*clip.shape[2:]) for clip in clips]
    for i in range(3):
        for clip, decoder, alone in zip(clips, decoders, expected, strict=True):
            np.testing.assert_array_equal(decoder.next(clip[0, :, i]), alone[i])


class Watched(HostMemory):
    """Counts what is taken, and notes where every name is bound."""

    def __init__(self) -> None:
        self.taken, self.bound = 0, dict[str, list[int]]()

    def zeros(self, shape: Any, dtype: Any) -> Buffer:
        self.taken += 1
        return super().zeros(shape, dtype)

    def bind_input(self, binding: ort.IOBinding, name: str, buffer: Buffer) -> None:
        self.bound.setdefault(name, []).append(buffer.value.data_ptr())
        super().bind_input(binding, name, buffer)

    def bind_output(self, binding: ort.IOBinding, name: str, buffer: Buffer) -> None:
        self.bound.setdefault(name, []).append(buffer.value.data_ptr())
        super().bind_output(binding, name, buffer)


def test_what_is_carried_changes_places_between_two_buffers_and_nothing_is_taken_in_a_clip(
    tiny_artifacts: Path,
) -> None:
    memory = Watched()
    backend = open_backend(tiny_artifacts, memory)
    spec, latents = backend.specs[TOKENIZER_DECODER], latents_of(5, 2, 3)
    decoder = backend.decoder(5, 2, 3)
    assert memory.taken == len(spec.inputs) + len(spec.outputs)
    for i in range(5):
        decoder.next(latents[0, :, i])
    assert memory.taken == len(spec.inputs) + len(spec.outputs)
    for past, present in zip(spec.inputs[2:], spec.outputs[1:], strict=True):
        one, other = memory.bound[past.name][0], memory.bound[present.name][0]
        assert one != other
        assert memory.bound[past.name] == [one, other, one, other, one]
        assert memory.bound[present.name] == [other, one, other, one, other]


def test_memory_is_the_same_for_any_frame_and_goes_with_the_decoder(
    tiny_artifacts: Path, held: Callable[[], int]
) -> None:
    backend = open_backend(tiny_artifacts)
    latent = latents_of(1, 2, 3)[0, :, 0]
    backend.decoder(20, 2, 3).close()
    before = held()
    decoder = backend.decoder(20, 2, 3)
    for _ in range(5):
        decoder.next(latent)
    early = held() - before
    for _ in range(15):
        decoder.next(latent)
    late = held() - before
    decoder.close()
    del decoder
    left = held() - before
    assert early > 8 * 2 * 4 * 16 * 24 and abs(late - early) < 4096 and left < early / 8
