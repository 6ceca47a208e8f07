"""Pictures and videos: files -> uint8 RGB frames -> pixels of the model, and back. NumPy, OpenCV and PyAV only.

Knows nothing of models, latents, prompts or where results should lie; every output is whole or absent.
Files and options that cannot be used raise InputError; arrays of a wrong shape or type are our bug: ValueError.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from videomar.errors import InputError
from videomar.runtime.encoders import FORMATS, STREAM, Encoder, Format, Writable
from videomar.unfinished import folder

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

FULL_RANGE = 2  # of colours, as FFmpeg numbers it


def load_picture(path: str | Path) -> np.ndarray:
    """A picture file as [height, width, 3] uint8 RGB, upright as its EXIF orientation says.

    Grey becomes RGB, 16-bit and float pictures 8-bit; what is transparent is laid over white, as on a page.
    Raises InputError for a file that is missing or that OpenCV cannot decode.
    """
    with reading(path, "a picture"):
        data = Path(path).read_bytes()
    return decode_picture(data, str(path))


def decode_picture(data: bytes, name: str) -> np.ndarray:
    """The bytes of a picture file as `load_picture` gives them; `name` is what an error calls them."""
    picture = _decode(np.frombuffer(data, np.uint8))
    if picture is None:
        raise InputError(f"{name} is not a picture OpenCV can read, expected PNG, JPEG, WebP, BMP or TIFF; convert it")
    picture = picture.reshape(*picture.shape[:2], -1)
    if picture.dtype != np.uint8 or _has_alpha(picture):
        full = np.iinfo(picture.dtype).max if picture.dtype.kind in "iu" else 1
        unit = np.clip(picture.astype(np.float32) / full, 0, 1)
        if _has_alpha(picture):
            unit = unit[..., :-1] * unit[..., -1:] + (1 - unit[..., -1:])
        picture = (unit * 255 + 0.5).astype(np.uint8)
    if picture.shape[2] == 1:
        return np.repeat(picture, 3, axis=2)
    return np.ascontiguousarray(picture[..., ::-1])  # OpenCV's order is BGR


def to_pixels(frames: np.ndarray) -> np.ndarray:
    """Frames (or one picture) as the tokenizer wants them: [t, h, w, 3] uint8 -> [1, 3, t, h, w] float32 in [-1, 1]."""
    _check(frames, 3, 4)
    pixels = np.moveaxis(frames.reshape(-1, *frames.shape[-3:]), -1, 0)[None].astype(np.float32, order="C")
    pixels /= 127.5
    pixels -= 1
    return pixels


def to_frames(pixels: np.ndarray) -> np.ndarray:
    """Pixels as frames, clipped and rounded half up: [1, 3, t, h, w] float -> [t, h, w, 3] uint8; undoes to_pixels."""
    if pixels.ndim != 5 or pixels.shape[:2] != (1, 3):
        raise ValueError(f"pixels are {list(pixels.shape)}, expected [1, 3, frames, height, width]")
    if np.isnan(pixels).any():
        raise ValueError("pixels hold NaN, expected numbers about -1 to 1; the decoder overflowed")
    levels = np.clip((pixels[0].astype(np.float32) + 1) * np.float32(127.5), 0, 255)
    return np.ascontiguousarray(np.moveaxis((levels + np.float32(0.5)).astype(np.uint8), 0, -1))


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float | Fraction) -> None:
    """Write [h, w, 3] uint8 RGB frames, as they come, as H.264 .mp4, VP9 .webm, or a .gif or .webp that moves.

    A browser plays the first two while they load; there odd sizes grow by one row or column that repeats the edge,
    since 4:2:0 chroma needs even ones. An earlier file is replaced when the last frame is in; whatever fails, also in
    `frames`, leaves it alone and nothing behind.
    Raises InputError for a target that cannot be written, ValueError for no frames or frames of different sizes.
    """
    _check_video_target(path)
    _check_fps(fps)
    with whole(path) as temporary:
        _encode_all(path, str(temporary), frames, fps, FORMATS[Path(path).suffix.lower()])


def stream_video(target: Writable, frames: Iterable[np.ndarray], fps: float | Fraction) -> None:
    """Write frames as `write_video` does, as a fragmented mp4, to what only has a `write`, such as a pipe."""
    _check_fps(fps)
    _encode_all("standard output", target, frames, fps, STREAM)


def _encode_all(
    name: str | Path, target: str | Writable, frames: Iterable[np.ndarray], fps: float | Fraction, how: Format
) -> None:
    with _writing(name):
        encoder = Encoder(target, fps, how)
    try:
        for frame in _alike(frames):
            with _writing(name):
                encoder.add(frame)
        with _writing(name):
            encoder.finish()
    finally:
        encoder.close()


def _check_fps(fps: float | Fraction) -> None:
    if not 0.1 <= fps <= 1000:
        raise InputError(f"fps is {fps}, expected 0.1 to 1000; 24 is usual")


def write_pictures(directory: str | Path, frames: Iterable[np.ndarray]) -> None:
    """Write [h, w, 3] uint8 RGB frames, as they come, as frame_0000.png, frame_0001.png, ... into a new directory.

    The directory appears when the last frame is in; whatever fails, also in `frames`, leaves nothing behind.
    Raises InputError for a directory that holds something or cannot be written, ValueError for no frames.
    """
    _check_new_directory(directory)
    with whole(directory) as temporary:
        with _writing(directory):
            temporary.mkdir()
        for index, frame in enumerate(_alike(frames)):
            with _writing(directory):
                (temporary / f"frame_{index:04d}.png").write_bytes(_encode(".png", frame))


def check_clip_target(path: str | Path) -> None:
    """Raise InputError now for a clip that `write_video` or, without a suffix, `write_pictures` could not write."""
    (_check_video_target if Path(path).suffix else _check_new_directory)(path)
    _check_place(path)


def check_picture_target(path: str | Path) -> None:
    """Raise InputError now for a picture that `write_picture` could not write after the work."""
    check_target(path, PICTURE_SUFFIXES, "for a picture")
    _check_place(path)


def _check_video_target(path: str | Path) -> None:
    check_target(path, tuple(FORMATS), "for a video (or a directory, for numbered .png pictures)")


def _check_new_directory(path: str | Path) -> None:
    target = Path(path)
    with _writing(path):
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            what = "holds files already" if target.is_dir() else "is a file"
            raise InputError(f"{path} {what}, expected a new or empty directory; empty it or name another")


def _check_place(path: str | Path) -> None:
    with _writing(path), folder(Path(os.path.realpath(path))):
        pass


def write_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write a [h, w, 3] uint8 RGB picture, whole or not at all, in the format its suffix names.

    Raises InputError for an unknown suffix or a target that cannot be written.
    """
    _check(picture, 3)
    check_target(path, PICTURE_SUFFIXES, "for a picture")
    with whole(path) as temporary, _writing(path):
        temporary.write_bytes(_encode(Path(path).suffix, picture))


def contact_sheet(frames: np.ndarray, columns: int, scale: int = 1, gap: int = 2) -> np.ndarray:
    """Frames in rows on white, to look at: [t, h, w, 3] uint8 -> [height, width, 3] uint8.

    `scale` enlarges each pixel to a square of that many; `gap` is in pixels of the result and lies between frames.
    """
    _check(frames, 4)
    columns = min(columns, len(frames))
    around = ((0, -len(frames) % columns), (0, gap), (0, gap), (0, 0))
    cells = np.pad(frames.repeat(scale, axis=1).repeat(scale, axis=2), around, constant_values=255)
    _, h, w, _ = cells.shape
    sheet: np.ndarray = cells.reshape(-1, columns, h, w, 3).swapaxes(1, 2).reshape(-1, columns * w, 3)
    return sheet[: len(sheet) - gap, : columns * w - gap]


def _decode(data: np.ndarray) -> np.ndarray | None:
    how = cv2.IMREAD_COLOR | cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
    try:
        with _hushed():
            raw: np.ndarray | None = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
            upright: np.ndarray | None = cv2.imdecode(data, how)
    except cv2.error:  # an empty file, or a picture of more pixels than OpenCV allows
        return None
    # Only `upright` follows EXIF, but OpenCV 4 drops alpha from it and cannot read some float pictures that way.
    return raw if upright is None or (raw is not None and _has_alpha(raw) > _has_alpha(upright)) else upright


_HUSHING = threading.Lock()


@contextmanager
def _hushed() -> Iterator[None]:
    """Send what libpng, libjpeg and OpenCV write to standard error themselves nowhere: an exception says it."""
    with _HUSHING, ExitStack() as stack:
        with suppress(OSError):  # there may be no standard error
            shown, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
            stack.callback(os.close, shown)
            stack.callback(os.dup2, shown, 2)
            os.dup2(nowhere, 2)
            os.close(nowhere)
        yield


def _has_alpha(picture: np.ndarray) -> bool:
    return picture.ndim == 3 and picture.shape[2] in (2, 4)


def _encode(suffix: str, picture: np.ndarray) -> bytes:
    return cv2.imencode(suffix, np.ascontiguousarray(picture[..., ::-1]))[1].tobytes()


def pictures(directory: Path) -> Iterator[tuple[Path, np.ndarray]]:
    """The pictures of a directory by name, numbers as numbers (2.png before 10.png); other files are passed over."""
    with reading(directory, "a directory of pictures"):
        files = [f for f in directory.iterdir() if f.suffix.lower() in PICTURE_SUFFIXES and not f.name.startswith(".")]
    for file in sorted(sorted(files), key=_by_number):
        yield file, load_picture(file)


def _by_number(file: Path) -> list[str | int]:
    # Text and digits take turns in the split, so like is compared with like.
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"(\d+)", file.name))]


def _check(frames: np.ndarray, *ranks: int) -> None:
    if frames.dtype != np.uint8 or frames.ndim not in ranks or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(f"got {frames.dtype} {list(frames.shape)}, expected uint8 [..., height, width, 3], not empty")


def _alike(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    shape = None
    for frame in frames:
        _check(frame, 3)
        shape = shape or frame.shape
        if frame.shape != shape:
            raise ValueError(f"a frame is {list(frame.shape)}, expected {list(shape)} like the first")
        yield frame
    if shape is None:
        raise ValueError("there are no frames, expected at least one")


def check_target(path: str | Path, suffixes: tuple[str, ...], purpose: str) -> None:
    """Raise InputError for a file name that says nothing of the format, or names a directory."""
    suffix = Path(path).suffix
    if suffix.lower() not in suffixes:
        got = f"ends in {suffix}" if suffix else "has no suffix"
        raise InputError(f"{path} {got}, expected {', '.join(suffixes)} {purpose}; rename the output")
    if Path(path).is_dir():
        raise InputError(f"{path} is a directory, expected a file name {purpose}; name another output")


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write a file or directory to: moved to `path` if the block ends well, else removed."""
    target = Path(os.path.realpath(path))  # through links, so that what they point to is replaced and not the link
    with ExitStack() as stack:
        with _writing(path):
            holder = stack.enter_context(folder(target))  # on the same file system, so that a move is atomic
        yield holder / target.name
        with _writing(path):
            os.replace(holder / target.name, target)


@contextmanager
def _telling(path: str | Path, verb: str, wanted: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # whoever reads has seen enough
        raise
    except (OSError, av.FFmpegError) as error:
        raise InputError(f"{path} cannot be {verb} ({error.strerror}), expected {wanted}") from None


@contextmanager
def reading(path: str | Path, wanted: str) -> Iterator[None]:
    """Tell what the system or FFmpeg says of a path as InputError; refuse what waits for a writer, such as a pipe."""
    with _telling(path, "read", f"{wanted}; check the path"):
        kind = os.stat(path).st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise InputError(f"{path} is a pipe, socket or device, expected {wanted}; copy it to a file and give that")
        yield


def _writing(path: str | Path) -> AbstractContextManager[None]:
    return _telling(path, "written", "a writable directory with room; make it or name another output")
