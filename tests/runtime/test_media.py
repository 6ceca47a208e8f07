"""Pictures and videos survive the way in and out, and what fails leaves one clear line and no half-written file."""

from __future__ import annotations

import resource
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videomar.errors import InputError
from videomar.runtime import media
from videomar.runtime.recording import load_clip

FPS = 24


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def flat(*colors: tuple[int, int, int], height: int = 32, width: int = 48) -> np.ndarray:
    return np.stack([np.full((height, width, 3), color, np.uint8) for color in colors])


def png(pixels: np.ndarray, color_type: int) -> bytes:
    """A PNG by the specification, so that nothing under test writes what it reads."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, color_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(pixels.dtype.newbyteorder(">")).tobytes() for row in pixels)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def oriented_jpeg(picture: np.ndarray, orientation: int) -> bytes:
    """A JPEG whose EXIF block holds one entry: the orientation."""
    jpeg = cv2.imencode(".jpg", picture[..., ::-1])[1].tobytes()
    exif = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def boxes(file: Path) -> list[tuple[str, int]]:
    """Name and size of the top-level boxes of an mp4."""
    data, at, found = file.read_bytes(), 0, []
    while at < len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        found.append((name.decode(), size))
        at += size
    assert at == len(data)
    return found


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert "\n" not in message and "expected" in message and ";" in message
    return message


# Pictures in


def test_rgb_pictures_come_back_exactly(tmp_path: Path) -> None:
    picture = noise(5, 7)
    (tmp_path / "p.png").write_bytes(png(picture, 2))
    loaded = media.load_picture(str(tmp_path / "p.png"))
    assert loaded.dtype == np.uint8 and loaded.flags.c_contiguous
    np.testing.assert_array_equal(loaded, picture)


def test_grey_and_alpha_pictures_become_rgb(tmp_path: Path) -> None:
    grey = noise(4, 6)[..., :1]
    (tmp_path / "grey.png").write_bytes(png(grey, 0))
    np.testing.assert_array_equal(media.load_picture(tmp_path / "grey.png"), grey.repeat(3, axis=2))

    color, alpha = noise(4, 6), noise(4, 6, seed=1)[..., :1]
    (tmp_path / "alpha.png").write_bytes(png(np.concatenate([color, alpha], 2), 6))
    over_white = color.astype(float) * (alpha / 255) + 255 * (1 - alpha / 255)
    assert np.abs(media.load_picture(tmp_path / "alpha.png") - over_white).max() <= 0.51

    (tmp_path / "both.png").write_bytes(png(np.array([[[0, 0], [0, 255], [100, 255]]], np.uint8), 4))
    assert media.load_picture(tmp_path / "both.png").tolist() == [[[255] * 3, [0] * 3, [100] * 3]]


def test_16_bit_pictures_become_8_bit(tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.uint16).reshape(16, 16, 1) * 257
    (tmp_path / "deep.png").write_bytes(png(values, 0))
    np.testing.assert_array_equal(media.load_picture(tmp_path / "deep.png")[..., 1], np.arange(256).reshape(16, 16))
    (tmp_path / "deep_alpha.png").write_bytes(png(np.array([[[65535, 0, 0, 65535], [9, 9, 9, 0]]], np.uint16), 6))
    assert media.load_picture(tmp_path / "deep_alpha.png").tolist() == [[[255, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_pictures_stand_upright_as_exif_says(tmp_path: Path, orientation: int, turns: int) -> None:
    picture = flat((255, 255, 255))[0]
    picture[:16, :16] = (255, 0, 0)
    (tmp_path / "p.jpg").write_bytes(oriented_jpeg(picture, orientation))
    loaded, upright = media.load_picture(tmp_path / "p.jpg"), np.rot90(picture, turns)
    assert loaded.shape == upright.shape
    assert np.abs(loaded.astype(int) - upright).mean() < 4


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".bmp", ".tiff", ".PNG"])
def test_written_pictures_load_again(tmp_path: Path, suffix: str) -> None:
    picture = flat((200, 40, 90))[0]
    media.write_picture(tmp_path / f"p{suffix}", picture)
    assert np.abs(media.load_picture(tmp_path / f"p{suffix}").astype(int) - picture).max() <= 3
    assert [f.name for f in tmp_path.iterdir()] == [f"p{suffix}"]


@pytest.mark.parametrize("content", [b"", b"hello", png(noise(64, 64), 2)[:3000], b"GIF89a"])
def test_what_is_no_picture_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.png").write_bytes(content)
    with pytest.raises(InputError, match="is not a picture") as error:
        media.load_picture(tmp_path / "p.png")
    assert str(tmp_path / "p.png") in one_line(error)


def test_missing_files_and_directories_are_told_in_one_line(tmp_path: Path) -> None:
    for load in (media.load_picture, load_clip):
        with pytest.raises(InputError, match="No such file") as error:
            load(tmp_path / "nowhere.png")
        one_line(error)
    with pytest.raises(InputError, match="Is a directory") as error:
        media.load_picture(tmp_path)
    one_line(error)


# Clips in


def test_a_directory_is_read_by_number_and_other_files_are_passed_over(tmp_path: Path) -> None:
    frames = noise(12, 4, 6)
    for index in (10, 2, 0, 1, 11, 3, 5, 4, 9, 8, 7, 6):
        (tmp_path / f"f{index}.png").write_bytes(png(frames[index], 2))
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_text("no picture")
    np.testing.assert_array_equal(load_clip(tmp_path), frames)
    np.testing.assert_array_equal(load_clip(tmp_path, frames=3), frames[:3])


def test_a_clip_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds 0 frames") as error:
        load_clip(tmp_path)
    one_line(error)
    media.write_video(tmp_path / "c.mp4", noise(3, 16, 16), FPS)
    media.write_pictures(tmp_path / "c", noise(3, 16, 16))
    for source in ("c", "c.mp4"):
        assert len(load_clip(tmp_path / source, frames=3)) == 3
        with pytest.raises(InputError, match="holds 3 frames, expected at least 4") as error:
            load_clip(tmp_path / source, frames=4)
        one_line(error)
    with pytest.raises(InputError, match="frames is 0"):
        load_clip(tmp_path / "c.mp4", frames=0)


def test_pictures_of_different_sizes_are_no_clip(tmp_path: Path) -> None:
    media.write_picture(tmp_path / "a.png", noise(4, 6))
    media.write_picture(tmp_path / "b.png", noise(4, 8))
    with pytest.raises(InputError, match=r"b\.png is 8x4, expected 6x4") as error:
        load_clip(tmp_path)
    one_line(error)


def test_files_without_video_are_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video at all")
    with pytest.raises(InputError, match="cannot be read") as error:
        load_clip(tmp_path / "text.mp4")
    one_line(error)

    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(InputError, match="no video stream") as error:
        load_clip(tmp_path / "sound.wav")
    one_line(error)


def test_a_truncated_video_is_told_in_one_line(tmp_path: Path) -> None:
    media.write_video(tmp_path / "c.mp4", noise(4, 32, 32), FPS)
    whole = (tmp_path / "c.mp4").read_bytes()
    (tmp_path / "c.mp4").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(InputError) as error:
        load_clip(tmp_path / "c.mp4", frames=4)
    one_line(error)


def test_a_colon_in_a_file_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    media.write_video("take:1.mp4", noise(2, 16, 16), FPS)
    assert len(load_clip("take:1.mp4")) == 2


def test_a_video_turned_by_its_metadata_stands_upright(tmp_path: Path) -> None:
    frame = flat((255, 255, 255))[0]
    frame[:16, :24] = (255, 0, 0)
    media.write_video(tmp_path / "c.mp4", [frame], FPS)
    data = (tmp_path / "c.mp4").read_bytes()
    one = 1 << 16
    plain, clockwise = (one, 0, 0, 0, one, 0, 0, 0, 1 << 30), (0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    at = data.index(struct.pack(">9i", *plain), data.index(b"tkhd"))
    (tmp_path / "turned.mp4").write_bytes(data[:at] + struct.pack(">9i", *clockwise) + data[at + 36 :])
    turned = load_clip(tmp_path / "turned.mp4")[0]
    assert turned.shape == (48, 32, 3)
    assert np.abs(turned.astype(int) - np.rot90(frame, -1)).mean() < 4


# Frames and pixels


def test_to_frames_undoes_to_pixels_for_every_value() -> None:
    frames = np.arange(256, dtype=np.uint8).reshape(2, 8, 16, 1).repeat(3, axis=3)
    frames[..., 1] += 85
    frames[..., 2] += 170
    pixels = media.to_pixels(frames)
    assert pixels.shape == (1, 3, 2, 8, 16) and pixels.dtype == np.float32 and pixels.flags.c_contiguous
    assert pixels.min() == -1 and pixels.max() == 1
    assert pixels[0, 2, 1, 3, 5] == pytest.approx(frames[1, 3, 5, 2] / 127.5 - 1, abs=1e-6)
    np.testing.assert_array_equal(media.to_frames(pixels), frames)
    np.testing.assert_array_equal(media.to_pixels(frames[0]), pixels[:, :, :1])


@given(st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=24))
def test_pixels_are_clipped_and_rounded_half_up(values: list[float]) -> None:
    pixels = np.array(values[: len(values) // 3 * 3], np.float32).reshape(1, 3, 1, 1, -1)
    frames = media.to_frames(pixels)
    exact = np.clip((pixels.astype(np.float64) + 1) * 127.5, 0, 255)[0].transpose(1, 2, 3, 0)
    assert frames.shape == exact.shape and frames.dtype == np.uint8
    assert (np.abs(frames - exact) <= 0.5 + 1e-4).all()


def test_half_a_level_rounds_up_and_half_precision_pixels_are_taken() -> None:
    assert media.to_frames(np.zeros((1, 3, 1, 1, 1), np.float16)).tolist() == [[[[128] * 3]]]  # 127.5
    assert media.to_frames(np.full((1, 3, 1, 1, 1), np.inf, np.float32)).max() == 255


def test_arrays_of_another_kind_are_our_bug_and_not_the_users() -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        media.to_pixels(np.zeros((1, 4, 4, 3), np.float32))
    with pytest.raises(ValueError, match="NaN"):
        media.to_frames(np.full((1, 3, 1, 2, 2), np.nan, np.float32))
    with pytest.raises(ValueError, match="pixels are"):
        media.to_frames(np.zeros((3, 1, 2, 2), np.float32))


# Videos and pictures out


@pytest.mark.parametrize(("height", "width", "fps"), [(32, 48, 24), (17, 31, 29.97), (1, 1, 12.5)])
def test_videos_are_h264_that_a_browser_plays_while_it_loads(
    tmp_path: Path, height: int, width: int, fps: float
) -> None:
    frames = noise(7, height, width)
    media.write_video(tmp_path / "v.mp4", iter(frames), fps)
    with av.open(str(tmp_path / "v.mp4")) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, stream.frames) == ("h264", "yuv420p", 7)
        assert (context.height, context.width) == (height + height % 2, width + width % 2)
        assert float(stream.average_rate or 0) == pytest.approx(fps)
        assert (context.color_primaries, context.color_trc, context.colorspace, context.color_range) == (1, 1, 1, 1)
        times = [frame.time for frame in container.decode(video=0)]
    np.testing.assert_allclose(times, np.arange(7) / fps, atol=1e-4)
    names = [name for name, _ in boxes(tmp_path / "v.mp4")]
    assert names.index("moov") < names.index("mdat")
    assert [f.name for f in tmp_path.iterdir()] == ["v.mp4"]


def test_colors_come_back_right(tmp_path: Path) -> None:
    levels = (0, 64, 128, 200, 255)
    frames = flat(*[(r, g, b) for r in levels for g in levels for b in levels], height=16, width=16)
    media.write_video(tmp_path / "v.mp4", frames, FPS)
    difference = load_clip(tmp_path / "v.mp4").astype(int) - frames
    assert np.abs(difference).mean() < 0.6 and np.abs(difference).max() <= 4
    assert np.abs(difference.mean((0, 1, 2))).max() < 0.2  # no channel drifts: a clip can go round many times


def test_the_stored_colors_are_bt709_in_limited_range(tmp_path: Path) -> None:
    media.write_video(tmp_path / "v.mp4", flat((255, 0, 0), (255, 255, 255), (0, 0, 0)), FPS)
    with av.open(str(tmp_path / "v.mp4")) as container:
        stored = [[np.frombuffer(p, np.uint8)[0] for p in f.planes] for f in container.decode(video=0)]
    assert np.abs(np.array(stored, int) - [[63, 102, 240], [235, 128, 128], [16, 128, 128]]).max() <= 1


def test_odd_frames_are_padded_with_their_edge(tmp_path: Path) -> None:
    media.write_video(tmp_path / "v.mp4", flat((20, 180, 60), height=15, width=21), FPS)
    loaded = load_clip(tmp_path / "v.mp4")
    assert loaded.shape == (1, 16, 22, 3)
    assert np.abs(loaded.astype(int) - (20, 180, 60)).max() <= 4


class Broken(Exception):
    pass


def breaking(error: BaseException, after: int = 3) -> Iterator[np.ndarray]:
    yield from noise(after, 16, 16)
    raise error


@pytest.mark.parametrize("after", [0, 1, 3, 60])
@pytest.mark.parametrize("error", [Broken(), OSError("the engine's, not the file's"), KeyboardInterrupt()])
def test_failing_frames_leave_nothing_behind_and_the_error_is_theirs(
    tmp_path: Path, error: BaseException, after: int
) -> None:
    for write in (
        lambda f: media.write_video(tmp_path / "v.mp4", f, FPS),
        lambda f: media.write_pictures(tmp_path / "v", f),
    ):
        with pytest.raises(type(error)) as caught:
            write(breaking(error, after))
        assert caught.value is error
        assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_earlier_video_alone(tmp_path: Path) -> None:
    media.write_video(tmp_path / "v.mp4", noise(2, 16, 16), FPS)
    before = (tmp_path / "v.mp4").read_bytes()
    with pytest.raises(Broken):
        media.write_video(tmp_path / "v.mp4", breaking(Broken()), FPS)
    assert (tmp_path / "v.mp4").read_bytes() == before
    media.write_video(tmp_path / "v.mp4", noise(3, 16, 16), FPS)
    assert len(load_clip(tmp_path / "v.mp4")) == 3


@pytest.mark.parametrize("share", [0, 0.001, 0.03, 0.5, 0.99])
def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(tmp_path: Path, share: float) -> None:
    frames = noise(12, 64, 64)
    media.write_video(tmp_path / "v.mp4", frames, FPS)
    room = int((tmp_path / "v.mp4").stat().st_size * share)
    (tmp_path / "v.mp4").unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))  # Python ignores the signal, so writing fails: EFBIG
    try:
        with pytest.raises(InputError, match=r"v\.mp4 cannot be written") as error:
            media.write_video(tmp_path / "v.mp4", frames, FPS)
        if room < 10_000:
            with pytest.raises(InputError, match="cannot be written"):
                media.write_pictures(tmp_path / "v", frames)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    one_line(error)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_told_before_any_frame_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for parent in (tmp_path / "missing", tmp_path / "file"):
        for write in (
            lambda: media.write_video(parent / "v.mp4", breaking(Broken(), 0), FPS),  # noqa: B023
            lambda: media.write_pictures(parent / "v", breaking(Broken(), 0)),  # noqa: B023
            lambda: media.write_picture(parent / "v.png", noise(2, 2)),  # noqa: B023
        ):
            with pytest.raises(InputError, match="cannot be written") as error:
                write()
            one_line(error)
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_a_move_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(source))

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(InputError, match=r"v\.mp4 cannot be written \(Permission denied\)"):
        media.write_video(tmp_path / "v.mp4", noise(2, 16, 16), FPS)
    assert list(tmp_path.iterdir()) == []


def test_outputs_follow_links_and_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "real" / "v.mp4")
    media.write_video(tmp_path / "link.mp4", noise(2, 16, 16), FPS)
    assert (tmp_path / "link.mp4").is_symlink() and (tmp_path / "real" / "v.mp4").is_file()
    media.write_pictures(tmp_path / "pictures", noise(2, 4, 4))
    (tmp_path / "usual").mkdir()
    (tmp_path / "usual" / "file").write_text("")
    assert (tmp_path / "real" / "v.mp4").stat().st_mode == (tmp_path / "usual" / "file").stat().st_mode
    assert (tmp_path / "pictures").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("name", ["v.avi", "v"])
def test_unknown_suffixes_name_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"\.mp4.*\.png") as error:
        media.write_video(tmp_path / name, breaking(Broken(), 0), FPS)
    one_line(error)
    with pytest.raises(InputError, match=r"\.png, \.jpg") as error:
        media.write_picture(tmp_path / name, noise(2, 2))
    one_line(error)


@pytest.mark.parametrize("fps", [0, -24, float("nan"), float("inf"), 1e9])
def test_a_senseless_frame_rate_is_refused(tmp_path: Path, fps: float) -> None:
    with pytest.raises(InputError, match="fps is") as error:
        media.write_video(tmp_path / "v.mp4", noise(1, 2, 2), fps)
    one_line(error)


def test_no_frames_and_frames_of_different_sizes_write_nothing(tmp_path: Path) -> None:
    for frames in ([], [noise(4, 4), noise(4, 6)], [noise(4, 4)[..., 0]]):
        with pytest.raises(ValueError, match="expected"):
            media.write_video(tmp_path / "v.mp4", frames, FPS)
        with pytest.raises(ValueError, match="expected"):
            media.write_pictures(tmp_path / "v", frames)
    assert list(tmp_path.iterdir()) == []


def test_pictures_are_numbered_and_exact(tmp_path: Path) -> None:
    frames = noise(3, 4, 6)
    (tmp_path / "out").mkdir()  # an empty directory is as good as none
    media.write_pictures(tmp_path / "out", iter(frames))
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [f"frame_000{i}.png" for i in range(3)]
    np.testing.assert_array_equal(load_clip(tmp_path / "out"), frames)
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_pictures_never_mix_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "frame_0000.png").write_text("mine")
    with pytest.raises(InputError, match="holds files") as error:
        media.write_pictures(tmp_path / "out", noise(2, 4, 4))
    one_line(error)
    with pytest.raises(InputError, match="is a file"):
        media.write_pictures(tmp_path / "out" / "frame_0000.png", noise(2, 4, 4))
    assert (tmp_path / "out" / "frame_0000.png").read_text() == "mine"
    with pytest.raises(InputError, match="is a directory") as error:
        (tmp_path / "d.mp4").mkdir()
        media.write_video(tmp_path / "d.mp4", noise(2, 4, 4), FPS)
    one_line(error)


@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 3), st.integers(0, 3))
def test_every_frame_is_on_the_contact_sheet(count: int, columns: int, scale: int, gap: int) -> None:
    frames = noise(count, 3, 4)
    sheet = media.contact_sheet(frames, columns, scale, gap)
    rows, across = -(-count // columns), min(columns, count)
    assert sheet.shape == (rows * (3 * scale + gap) - gap, across * (4 * scale + gap) - gap, 3)
    for index, frame in enumerate(frames):
        top, left = index // across * (3 * scale + gap), index % across * (4 * scale + gap)
        np.testing.assert_array_equal(sheet[top : top + 3 * scale : scale, left : left + 4 * scale : scale], frame)


def test_the_same_frames_give_the_same_file_whatever_lay_in_memory_before(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    frames = [np.roll(np.stack([ramp, ramp[::-1], ramp.T], axis=-1), shift, axis=1) for shift in range(17)]

    def written(index: int) -> bytes:
        def littered() -> Iterator[np.ndarray]:
            for frame in frames:
                litter = [rng.integers(0, 256, rng.integers(1000, 200_000), np.uint8) for _ in range(30)]
                del litter
                yield frame

        media.write_video(tmp_path / f"{index}.mp4", littered(), 24)
        return (tmp_path / f"{index}.mp4").read_bytes()

    assert len({written(index) for index in range(4)}) == 1
