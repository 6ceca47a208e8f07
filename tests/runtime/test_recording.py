"""What a clip continues is the recording's own motion: its time, its end, its shape on the screen."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from videomar.errors import InputError
from videomar.runtime import media
from videomar.runtime.recording import Recording, load_clip

SECONDS, RATE = 2.0, 12.0


def ball(time: float, height: int = 64, width: int = 96) -> np.ndarray:
    """A bright bar whose left edge is 40 pixels a second from column 4."""
    frame = np.full((height, width, 3), 20, np.uint8)
    left = round(4 + 40 * time)
    frame[:, left : left + 6] = 230
    return frame


def seen(frame: np.ndarray) -> float:
    """The time that a frame of `ball` shows."""
    bright = np.flatnonzero(frame[:, :, 1].mean(0) > 125)
    return float((bright[0] - 4) / 40)


def record(
    file: Path,
    times: Sequence[float],
    codec: str = "libx264",
    frames: Sequence[np.ndarray] | None = None,
    **about: object,
) -> Path:
    """A video whose frames lie at these times, in milliseconds."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=60, options={"crf": "10"})
        stream.height, stream.width = (frames[0] if frames is not None else ball(0)).shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for name, value in about.items():
            setattr(stream.codec_context, name, value)
        for index, time in enumerate(times):
            shown = av.VideoFrame.from_ndarray(ball(time) if frames is None else frames[index], format="rgb24")
            picture = shown.reformat(format="yuv420p")
            picture.pts, picture.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return file


def varying(seed: int) -> list[float]:
    """Times of a recording that skips: gaps of 10 to 60 ms."""
    gaps = np.random.default_rng(seed).integers(10, 60, 200) / 1000
    return [t for t in np.cumsum([0, *gaps]) if t < SECONDS]


RECORDINGS = {
    "30": ("mp4", [i / 30 for i in range(60)]),
    "60": ("mp4", [i / 60 for i in range(120)]),
    "29.97": ("mkv", [i * 1001 / 30000 for i in range(60)]),
    "variable": ("mkv", varying(0)),
    "another variable": ("mp4", varying(1)),
    "12": ("mp4", [i / 12 for i in range(24)]),
}


@pytest.mark.parametrize("name", RECORDINGS)
def test_any_recording_of_a_motion_gives_the_same_frames_to_within_one_of_its_own(tmp_path: Path, name: str) -> None:
    suffix, times = RECORDINGS[name]
    recording = Recording(record(tmp_path / f"c.{suffix}", times), RATE)
    gap = max(np.diff([*times, SECONDS])) + 1 / 40  # a source frame, and the pixel that a time is read to
    for start, first in ((None, SECONDS - 9 / RATE), (0.0, 0.0), (0.5, 0.5)):
        got = [seen(frame) for frame in recording.excerpt(9, start).frames]
        assert np.abs(np.array(got) - (first + np.arange(9) / RATE)).max() <= gap + (1 / RATE if start is None else 0)
        assert np.abs(np.diff(got) - 1 / RATE).max() <= gap
    last = seen(recording.excerpt(9).frames[-1])
    assert abs(last - times[-1]) <= 1 / 40, "the end is the recording's last frame"
    assert any("12 a second" in note for note in recording.notes)


def test_by_count_every_frame_is_taken_from_the_end_or_from_a_moment(tmp_path: Path) -> None:
    times = RECORDINGS["30"][1]
    recording = Recording(record(tmp_path / "c.mp4", times), RATE, resample=False)
    for start, expected in ((None, times[-9:]), (0.5, times[15:24])):
        got = [seen(frame) for frame in recording.excerpt(9, start).frames]
        assert np.abs(np.array(got) - expected).max() <= 1 / 40
    assert not recording.notes


@pytest.mark.parametrize("resample", [True, False])
def test_what_comes_before_an_excerpt_joins_it_without_a_jump(tmp_path: Path, resample: bool) -> None:
    recording = Recording(record(tmp_path / "c.mp4", RECORDINGS["60"][1]), RATE, resample)
    step = 1 / RATE if resample else 1 / 60
    for start in (None, 1.0):
        excerpt = recording.excerpt(9, start)
        whole = [seen(frame) for frame in [*recording.before(excerpt.first), *excerpt.frames]]
        assert whole[0] < step and np.abs(np.diff(whole) - step).max() <= 1 / 60 + 1 / 40
        assert len(whole) == pytest.approx((whole[-1] - whole[0]) / step + 1, abs=1)
    assert not list(recording.before(0.0))


def test_too_short_a_recording_is_told_in_the_models_frames(tmp_path: Path) -> None:
    recording = Recording(record(tmp_path / "c.mp4", [i / 30 for i in range(15)]), RATE)
    with pytest.raises(InputError, match="holds 6 frames at 12 a second, expected at least 9"):
        recording.excerpt(9)
    with pytest.raises(InputError, match=r"from 0.25 s on, expected at least 9"):
        recording.excerpt(9, 0.25)
    with pytest.raises(InputError, match=r"5 s on"):
        recording.excerpt(9, 5.0)
    assert len(Recording(recording.path, RATE, resample=False).excerpt(9).frames) == 9


def test_a_directory_of_pictures_is_at_the_models_rate(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (12, 4, 6, 3), np.uint8)
    media.write_pictures(tmp_path / "d", frames)
    recording = Recording(tmp_path / "d", RATE)
    np.testing.assert_array_equal(recording.excerpt(9).frames, frames[-9:])
    np.testing.assert_array_equal(recording.excerpt(9, 1 / RATE).frames, frames[1:10])


def test_pixels_that_are_not_square_become_square(tmp_path: Path) -> None:
    round_frame = np.zeros((64, 96, 3), np.uint8)
    y, x = np.mgrid[:64, :96]
    round_frame[(x - 48) ** 2 * 4 + (y - 32) ** 2 < 400] = 255  # a circle on a screen that doubles the width
    for aspect, size in ((Fraction(2), (64, 192)), (Fraction(1, 2), (128, 96))):
        file = record(tmp_path / f"{aspect.numerator}.mp4", [0.0], frames=[round_frame], sample_aspect_ratio=aspect)
        assert load_clip(file)[0].shape[:2] == size
    bright = load_clip(tmp_path / "2.mp4")[0][..., 1] > 127
    assert np.ptp(np.flatnonzero(bright.any(0))) == pytest.approx(np.ptp(np.flatnonzero(bright.any(1))), abs=2)


ONE = 1 << 16
TURNS = {  # (a, b, c, d) of the matrix -> what is shown
    "as it is": ((1, 0, 0, 1), lambda p: p),
    "a quarter": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "half": ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
    "three quarters": ((0, -1, 1, 0), lambda p: np.rot90(p)),
    "mirrored": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda p: p[::-1]),
    "mirrored and a quarter": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
    "mirrored and three quarters": ((0, -1, -1, 0), lambda p: np.rot90(p, 2).swapaxes(0, 1)),
}


@pytest.mark.parametrize("name", TURNS)
def test_a_display_matrix_turns_and_mirrors(tmp_path: Path, name: str) -> None:
    (a, b, c, d), shown = TURNS[name]
    frame = np.full((32, 48, 3), 255, np.uint8)
    frame[:16, :24], frame[:16, 24:] = (255, 0, 0), (0, 0, 255)
    media.write_video(tmp_path / "c.mp4", [frame], 24)
    data = (tmp_path / "c.mp4").read_bytes()
    plain = struct.pack(">9i", ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30)
    at = data.index(plain, data.index(b"tkhd"))
    matrix = struct.pack(">9i", a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data[:at] + matrix + data[at + 36 :])
    got, expected = load_clip(tmp_path / "turned.mp4")[0], shown(frame)
    assert got.shape == expected.shape and np.abs(got.astype(int) - expected).mean() < 6


def png_with_profile(profile: bytes) -> bytes:
    """A picture with a chunk iCCP before its pixels."""
    whole = cv2.imencode(".png", ball(0.5))[1].tobytes()
    chunk = b"iCCP" + profile
    head = 8 + 25  # signature and IHDR
    return whole[:head] + struct.pack(">I", len(profile)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + whole[head:]


PROFILES = {
    "whole": b"icc\0\0" + zlib.compress(bytes(3000)),
    "cut": b"icc\0\0" + zlib.compress(bytes(3000))[:10],
    "empty": b"",
}


def test_pictures_with_a_colour_profile_do_not_end_the_process(tmp_path: Path) -> None:
    for name, profile in PROFILES.items():
        data = png_with_profile(profile)
        (tmp_path / f"{name}.png").write_bytes(data)
        with av.open(str(tmp_path / f"{name}.mov"), "w") as container:
            stream = container.add_stream("png", rate=12, width=96, height=64, pix_fmt="rgb24")
            for index in range(3):
                packet = av.Packet(data)
                packet.stream, packet.pts, packet.time_base = stream, index, Fraction(1, 12)
                container.mux(packet)
    # What was freed twice is noticed when Python cleans up: only another process may look.
    code = (
        "import sys; from pathlib import Path; from videomar.runtime.recording import load_clip\n"
        "for file in sorted(Path(sys.argv[1]).iterdir()): print(load_clip(file)[0].mean())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(map(float, done.stdout.split())) == pytest.approx([ball(0.5).mean()] * 6)


def test_interlaced_fields_become_frames_without_a_comb(tmp_path: Path) -> None:
    fields = [ball(i / 12.5) for i in range(24)]
    frames = []
    for top, bottom in zip(fields[::2], fields[1::2], strict=True):
        woven = top.copy()
        woven[1::2] = bottom[1::2]
        frames.append(woven)
    file = tmp_path / "c.mkv"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25, options={"flags": "+ildct+ilme", "qscale": "2"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p")
            picture.pts = index
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    with av.open(str(file)) as container:
        if not next(container.decode(video=0)).interlaced_frame:
            pytest.skip("this FFmpeg cannot write interlaced video")

    def comb(frame: np.ndarray) -> float:
        return float(np.abs(frame[1:-1].astype(float) * 2 - frame[:-2] - frame[2:]).mean())

    recording = Recording(file, 25.0)
    got = recording.excerpt(9).frames
    assert len(load_clip(file)) == len(frames)
    assert max(map(comb, got)) < min(map(comb, frames[1:])) / 4
    assert any("interlaced" in note for note in recording.notes)


def test_hdr_is_warned_of_loudly(tmp_path: Path) -> None:
    file = record(tmp_path / "c.mp4", [0.0, 0.1], color_trc=16, color_primaries=9)
    recording = Recording(file, RATE, resample=False)
    recording.excerpt(1)
    assert any("WARNING" in note and "PQ" in note and "BT.709" in note for note in recording.notes)


@pytest.mark.parametrize("load", [media.load_picture, load_clip, lambda path: Recording(path, RATE).excerpt(1)])
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path, load: object) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a pipe, socket or device"):
        load(tmp_path / "pipe")  # type: ignore[operator]
