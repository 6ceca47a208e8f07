"""Decoding a latent frame at a time on the fake GPU: the graph's numbers, buffers that change places, nothing taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from videomar.errors import DeviceError, InputError
from videomar.graphs import TOKENIZER_DECODER

MakeRig = Callable[..., Any]


def latents_of(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, 16, frames, 2, 3)).astype(np.float32)


@pytest.mark.parametrize("kind", ["old", "new", "rtx"])
@pytest.mark.parametrize("frames", [1, 2, 4])
def test_frames_equal_the_graph_run_frame_by_frame(make_rig: MakeRig, portable: Path, frames: int, kind: str) -> None:
    rig = make_rig(portable, kind)
    backend, latents = rig.open(), latents_of(frames)
    decoder = backend.decoder(frames, 2, 3)
    pixels = [decoder.next(latents[0, :, i]).copy() for i in range(frames)]
    decoder.close()
    backend.close()
    assert [p.shape for p in pixels] == [(1, 3, 8 if i else 1, 16, 24) for i in range(frames)]
    np.testing.assert_array_equal(np.concatenate(pixels, axis=2), rig.plain().decode(latents))


def test_half_precision_frames_equal_the_graph_run_frame_by_frame(make_rig: MakeRig, half: Path) -> None:
    rig = make_rig(half)
    backend, latents = rig.open(), latents_of(3)
    got = backend.decode(latents)
    backend.close()
    np.testing.assert_array_equal(got, rig.plain().decode(latents))


def test_a_frame_is_one_upload_one_pass_one_download_and_takes_nothing(make_rig: MakeRig, portable: Path) -> None:
    rig = make_rig(portable)
    backend, latents = rig.open(), latents_of(4)
    decoder = backend.decoder(4, 2, 3)
    for i in range(4):
        before, called = len(rig.gpu.log), len(rig.gpu.calls)
        decoder.next(latents[0, :, i])
        assert rig.gpu.log[before:] == ["upload", "event", "pass", "download", "sync"], i
        assert set(rig.gpu.calls[called:]) == {
            "cudaMemcpyAsync",
            "cudaEventRecord",
            "set_tensor_address",
            "execute_async_v3",
            "cudaStreamSynchronize",
        }
    backend.close()


def test_what_is_carried_changes_places_between_two_buffers(make_rig: MakeRig, portable: Path) -> None:
    rig = make_rig(portable)
    backend, latents = rig.open(), latents_of(4)
    spec, decoder = backend.specs[TOKENIZER_DECODER], backend.decoder(4, 2, 3)
    bound: list[dict[str, int]] = []
    for i in range(4):
        decoder.next(latents[0, :, i])
        bound.append(dict(decoder._context._context._addresses))
    for past, present in zip(spec.inputs[2:], spec.outputs[1:], strict=True):
        one, other = bound[0][past.name], bound[0][present.name]
        assert one != other
        assert [b[past.name] for b in bound] == [one, other, one, other]
        assert [b[present.name] for b in bound] == [other, one, other, one]
    fixed = [{n: b[n] for n in ("latents", "done", "pixels")} for b in bound]
    assert all(each == fixed[0] for each in fixed)
    backend.close()


def test_decoders_at_once_do_not_disturb_each_other(make_rig: MakeRig, portable: Path) -> None:
    rig = make_rig(portable)
    backend, clips = rig.open(), [latents_of(3, seed) for seed in (1, 2)]
    decoders = [backend.decoder(3, 2, 3) for _ in clips]
    got = [[d.next(clip[0, :, i]).copy() for d, clip in zip(decoders, clips, strict=True)] for i in range(3)]
    backend.close()  # closes them, too
    for clip, pixels in zip(clips, zip(*got, strict=True), strict=True):
        np.testing.assert_array_equal(np.concatenate(pixels, axis=2), rig.plain().decode(clip))


def test_a_clip_beyond_what_was_built_is_refused_before_anything_is_taken(make_rig: MakeRig, portable: Path) -> None:
    rig = make_rig(portable)
    backend = rig.open()
    before = rig.gpu.calls.count("cudaMalloc")
    with pytest.raises(InputError, match=r"tokenizer_decoder.engine: 'clip' .* would be 5, .*--frames"):
        backend.decoder(5, 2, 3)
    with pytest.raises(InputError, match=r"tokenizer_decoder.engine: 'h' of 'latents' would be 3, .*--height and"):
        backend.decoder(4, 3, 3)
    assert rig.gpu.calls.count("cudaMalloc") == before
    backend.close()


def test_too_little_memory_is_said_before_it_is_asked_for(make_rig: MakeRig, portable: Path) -> None:
    rig = make_rig(portable)
    backend = rig.open()
    rig.gpu.free = 5_000
    before = rig.gpu.calls.count("cudaMalloc")
    with pytest.raises(DeviceError, match=r"decoding 4 latent frames of 2 x 3 needs .*; ask for fewer frames"):
        backend.decoder(4, 2, 3)
    assert rig.gpu.calls.count("cudaMalloc") == before
    backend.close()
