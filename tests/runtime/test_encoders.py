"""Formats by suffix: every one decodes elsewhere to the frames that went in, at their rate."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest

from videomar.demo.world import render, sample_scene
from videomar.errors import InputError
from videomar.runtime.encoders import FORMATS
from videomar.runtime.media import stream_video, write_video

CLIP = render(sample_scene(np.random.default_rng(1)), 17)
ERROR = {".mp4": 3.0, ".webm": 3.0, ".gif": 1.5, ".webp": 4.0}  # mean levels of 255


def decoded(file: Path | BytesIO) -> tuple[np.ndarray, list[float]]:
    """Frames and when each is shown, seconds."""
    with av.open(file if isinstance(file, BytesIO) else str(file)) as container:
        frames = list(container.decode(video=0))
    return np.stack([f.to_ndarray(format="rgb24", dst_color_range=2) for f in frames]), [
        float(f.time or 0) for f in frames
    ]


@pytest.mark.parametrize("suffix", [s for s in FORMATS if s != ".webp"])
@pytest.mark.parametrize("size", [(64, 64), (63, 61)], ids=str)
def test_every_format_holds_the_frames_at_their_rate(suffix: str, size: tuple[int, int], tmp_path: Path) -> None:
    clip = CLIP[:, : size[0], : size[1]]
    write_video(tmp_path / f"clip{suffix}", clip, 12)
    frames, times = decoded(tmp_path / f"clip{suffix}")
    assert len(frames) == 17
    assert np.abs(frames[:, : size[0], : size[1]].astype(int) - clip).mean() < ERROR[suffix]
    np.testing.assert_allclose(times, np.arange(17) / 12, atol=0.006)  # a GIF counts hundredths


def test_a_webp_moves_for_ever(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="FFmpeg reads no WebP that moves; Pillow comes with diffusers")
    write_video(tmp_path / "clip.webp", CLIP[:, :63, :61], 12)
    with image.open(tmp_path / "clip.webp") as opened:
        assert (opened.format, opened.n_frames, opened.info["loop"], opened.size) == ("WEBP", 17, 0, (61, 63))
        durations = []
        for index in range(17):
            opened.seek(index)
            opened.load()
            durations.append(opened.info["duration"])
            error = np.abs(np.asarray(opened.convert("RGB")).astype(int) - CLIP[index, :63, :61]).mean()
            assert error < ERROR[".webp"]
    assert abs(sum(durations) - 17 * 1000 / 12) < 90


def test_a_gif_repeats_for_ever(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.gif", CLIP[:3], 12)
    assert b"NETSCAPE2.0\x03\x01\x00\x00" in (tmp_path / "clip.gif").read_bytes()


class Pipe:
    """What can only be written."""

    def __init__(self) -> None:
        self.data, self.sizes = b"", list[int]()

    def write(self, data: bytes) -> int:
        self.data += bytes(data)
        self.sizes.append(len(self.data))
        return len(data)


def test_a_stream_is_playable_as_far_as_it_has_come() -> None:
    pipe = Pipe()
    stream_video(pipe, CLIP, 12)
    frames, times = decoded(BytesIO(pipe.data))
    assert len(frames) == 17 and times == pytest.approx(np.arange(17) / 12)
    assert np.abs(frames.astype(int) - CLIP).mean() < ERROR[".mp4"]
    half = pipe.data[: pipe.data.index(b"moof", len(pipe.data) // 2) - 4]
    assert 0 < len(decoded(BytesIO(half))[0]) < 17


def test_a_pipe_that_closes_is_told_as_such() -> None:
    class Closed:
        def write(self, data: bytes) -> int:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        stream_video(Closed(), CLIP, 12)


def test_a_suffix_that_nobody_knows_names_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.avi, expected \.mp4, \.webm, \.gif, \.webp for a video"):
        write_video(tmp_path / "clip.avi", CLIP, 12)
