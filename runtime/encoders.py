"""Frames -> the bytes of one clip, a format each. Knows nothing of where files lie or how they replace older ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, BinaryIO, Protocol

import av
import numpy as np

_BT709, _LIMITED = 1, 1  # colour matrix and range, as FFmpeg numbers them
SCALING = 4 | 0x40000 | 0x2000  # bicubic, accurate rounding (else every colour is a level too dark), full chroma


class Writable(Protocol):
    """All that an encoder needs of a file; one that can seek gets an index, too."""

    def write(self, data: bytes, /) -> object: ...


@dataclass(frozen=True)
class Format:
    """How one kind of file is made."""

    container: str  # FFmpeg's name
    codec: str
    options: Mapping[str, str]  # of the codec
    picture: Callable[[np.ndarray], av.VideoFrame]
    container_options: Mapping[str, str] = field(default_factory=dict)
    palette: bool = False  # 256 colours, chosen for every frame anew
    tagged: bool = True  # with BT.709's numbers: untagged, every player would guess the colours its own way


def to_picture(frame: np.ndarray) -> av.VideoFrame:
    """A frame as video encoders take it: [h, w, 3] uint8 RGB -> yuv420p of even size, BT.709, limited range."""
    even = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
    rgb = av.VideoFrame.from_ndarray(even, format="rgb24")
    return rgb.reformat(format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED, interpolation=SCALING)


def _rgb(frame: np.ndarray) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")


def _bgra(frame: np.ndarray) -> av.VideoFrame:
    opaque = np.full((*frame.shape[:2], 1), 255, np.uint8)
    return av.VideoFrame.from_ndarray(np.concatenate([frame[..., ::-1], opaque], axis=2), format="bgra")


# x264's macroblock tree reads memory that it never wrote, at least for small pictures: with it the same frames gave
# another file each time.
_X264 = {"crf": "18", "x264-params": "mbtree=0"}
_VP9 = {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "4"}
_WEBP = {"quality": "85", "compression_level": "4"}
FORMATS = {  # by suffix
    ".mp4": Format("mp4", "libx264", _X264, to_picture, {"movflags": "+faststart"}),
    ".webm": Format("webm", "libvpx-vp9", _VP9, to_picture),
    ".gif": Format("gif", "gif", {}, _rgb, palette=True, tagged=False),
    ".webp": Format("webp", "libwebp_anim", _WEBP, _bgra, {"loop": "0"}, tagged=False),
}
# An mp4 for what cannot seek: the header first, then a fragment a frame. Pictures that wait for later ones would need
# a list of edits at the end.
STREAM = Format(
    "mp4", "libx264", _X264 | {"bf": "0"}, to_picture, {"movflags": "+frag_every_frame+empty_moov+default_base_moof"}
)


class Encoder:
    """Writes frames as they come, [h, w, 3] uint8 RGB of one size, to a file's name or to what has a `write`.

    Raises av.FFmpegError or OSError where that cannot be written.
    """

    def __init__(self, target: str | BinaryIO | Writable, fps: float | Fraction, how: Format) -> None:
        self._how, self._rate = how, Fraction(fps).limit_denominator(1001)
        self._file = av.open(target, "w", format=how.container, options=dict(how.container_options))
        self._stream: Any = None
        self._palette: av.filter.Graph | None = None
        self._frames = 0

    def add(self, frame: np.ndarray) -> None:
        """One more frame."""
        picture = self._how.picture(frame)
        picture.pts, picture.time_base = self._frames, 1 / self._rate
        self._frames += 1
        if not self._how.palette:
            return self._encode(picture)
        if self._palette is None:
            self._palette = _palette(picture)
        self._palette.push(picture)
        for painted in pulled(self._palette):
            self._encode(painted)

    def finish(self) -> None:
        """Write the end."""
        if self._palette is not None:
            self._palette.push(None)
            for painted in pulled(self._palette):
                self._encode(painted)
        if self._stream is not None:
            self._file.mux(self._stream.encode(None))
        self._file.close()

    def close(self) -> None:
        """Let go of the file, finished or not."""
        with suppress(Exception):  # after a failure closing fails too; the first error is the one to tell
            self._file.close()

    def _encode(self, picture: av.VideoFrame) -> None:
        if self._stream is None:
            self._stream = self._file.add_stream(self._how.codec, rate=self._rate, options=dict(self._how.options))
            self._stream.height, self._stream.width = picture.height, picture.width
            self._stream.pix_fmt = picture.format.name
            if self._how.tagged:
                context = self._stream.codec_context
                context.color_primaries = context.color_trc = context.colorspace = _BT709
                context.color_range = _LIMITED
        self._file.mux(self._stream.encode(picture))


def _palette(like: av.VideoFrame) -> av.filter.Graph:
    """Gives each picture the 256 colours that suit it best."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=like.width, height=like.height, format=like.format, time_base=like.time_base)
    split, paint, sink = graph.add("split"), graph.add("paletteuse", "new=1"), graph.add("buffersink")
    colours = graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
    source.link_to(split)
    split.link_to(paint, 0, 0)
    split.link_to(colours, 1, 0)
    colours.link_to(paint, 0, 1)
    paint.link_to(sink)
    graph.configure()
    return graph


def pulled(graph: av.filter.Graph) -> Iterator[av.VideoFrame]:
    """The pictures that a graph has ready."""
    while True:
        try:
            frame = graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return
        if isinstance(frame, av.VideoFrame):  # a graph of pictures gives nothing else
            yield frame
