"""A recording -> the frames that a clip continues: by time, from its end or from a moment, upright.

Every frame has a position in frames of the model: seconds times its rate, or, by count, its number. The frame of a
position is the one on show then. Knows nothing of models. Files and moments that cannot be used raise InputError.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import av
import numpy as np

from videomar.errors import InputError
from videomar.runtime.encoders import SCALING, pulled
from videomar.runtime.media import FULL_RANGE, pictures, reading

_SLACK = 0.02  # of a frame of the model: containers round their timestamps, Matroska to a millisecond
_HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics as FFmpeg numbers them
_BT2020 = 9
# Their decoder keeps a colour profile's name with the frame, which PyAV frees twice once anything beside the frame is
# read: the process dies. They have no display matrix.
_UNASKED = ("png", "apng")


@dataclass(frozen=True)
class Excerpt:
    """Frames out of a recording, and where they lie in it."""

    frames: np.ndarray  # [count, height, width, 3] uint8 RGB
    first: float  # the first one's position


@dataclass
class Recording:
    """A video file, or a directory of pictures taken at the model's rate; read anew by every method."""

    path: Path
    fps: float  # the model's frames a second
    resample: bool = True  # by time; False: by count
    notes: list[str] = field(default_factory=list)  # what was done to the frames, in sentences

    def excerpt(self, count: int, start: float | None = None) -> Excerpt:
        """`count` frames, the last ones or those from `start` seconds on.

        Raises InputError for what cannot be read, is too short or changes size on the way.
        """
        kept: deque[_Shown] = deque()
        first = None if start is None else start * self.fps
        for shown in self._shown():
            if start is not None and not self.resample and shown.seconds < start - _SLACK / self.fps:
                continue
            kept.append(shown)
            if start is not None and not self.resample:
                first = kept[0].position
            begin = shown.position - (count - 1) if first is None else first
            while len(kept) > 1 and kept[1].position <= begin + _SLACK:
                kept.popleft()
            if first is not None and shown.position >= first + count - 1 - _SLACK:
                break
        if not kept:
            raise InputError(f"{self.path} holds nothing from {start or 0:g} s on, expected frames; lower --start")
        begin = kept[-1].position - (count - 1) if first is None else first
        if kept[0].position > begin + _SLACK or kept[-1].position < begin + count - 1 - _SLACK:
            have = int(kept[-1].position - (first if first is not None else kept[0].position) + _SLACK) + 1
            rate = f" at {self.fps:g} a second" if self.resample else ""
            where = "" if start is None else f" from {start:g} s on"
            raise InputError(
                f"{self.path} holds {max(have, 0)} frames{rate}{where}, expected at least {count}; give a longer clip "
                "or ask for fewer with --given"
            )
        frames = list(_at(kept, (begin + k for k in range(count))))
        if self.resample and kept[0].by_time:
            self._note(
                f"took {count} frames at {self.fps:g} a second from {begin / self.fps:.2f} s on of {self.path}; "
                "--no-resample takes them by count"
            )
        return Excerpt(np.stack(frames), begin)

    def before(self, first: float) -> Iterator[np.ndarray]:
        """The frames before an excerpt's first one, at whole steps from it: [height, width, 3] uint8 each."""
        begin = first - int(first + _SLACK)
        return _at(self._shown(), (begin + k for k in range(int(first + _SLACK))))

    def every(self) -> Iterator[np.ndarray]:
        """All frames from the first one on, at the model's rate: [height, width, 3] uint8 each."""
        shown = self._shown()
        first = next(shown, None)
        if first is not None:
            yield from _until_over(chain([first], shown))

    def _shown(self) -> Iterator[_Shown]:
        """Every frame with its position, the first one's 0; all of one size."""
        directory = self.path.is_dir()
        shape: tuple[int, ...] | None = None
        for index, (name, seconds, frame) in enumerate(
            ((str(n), i / self.fps, f) for i, (n, f) in enumerate(pictures(self.path)))
            if directory
            else self._decoded()
        ):
            shape = shape or frame.shape
            if frame.shape != shape:
                (h, w), (height, width) = shape[:2], frame.shape[:2]
                raise InputError(
                    f"{name} is {width}x{height}, expected {w}x{h} like the frames before; make them one size"
                )
            yield _Shown(seconds * self.fps if self.resample else index, seconds, frame, not directory)

    def _decoded(self) -> Iterator[tuple[str, float, np.ndarray]]:
        # An open file, not a name: FFmpeg would take "a:b.mp4" for a protocol. Tags' encoding is none of ours.
        with (
            reading(self.path, "a video"),
            self.path.open("rb") as data,
            av.open(data, metadata_errors="ignore") as container,
        ):
            if not container.streams.video:
                raise InputError(f"{self.path} has no video stream, expected a video; check the file")
            stream = container.streams.video[0]
            origin: float | None = None
            for index, (matrix, frame) in enumerate(self._progressive(stream, container.decode(stream))):
                if index == 0:
                    self._warn_of_hdr(stream.codec_context)
                time = frame.time if frame.time is not None else index / float(stream.average_rate or self.fps)
                origin = time if origin is None else origin
                picture = _square(frame, float(stream.sample_aspect_ratio or 1))
                yield f"frame {index} of {self.path}", time - origin, _upright(picture, matrix)

    def _progressive(
        self, stream: av.VideoStream, frames: Iterator[av.VideoFrame]
    ) -> Iterator[tuple[_Matrix | None, av.VideoFrame]]:
        """Frames without the comb of two fields, with the matrix to show them by."""
        matrix, graph = None, None
        for index, frame in enumerate(frames):
            if index == 0:
                matrix = None if stream.codec_context.name in _UNASKED else _display_matrix(frame)
                if frame.interlaced_frame:
                    graph = _deinterlacer(stream)
                    self._note(f"{self.path} is interlaced; its fields were made into frames")
            if graph is None:
                yield matrix, frame
                continue
            graph.push(frame)
            yield from ((matrix, whole) for whole in pulled(graph))
        if graph is not None:
            graph.push(None)
            yield from ((matrix, whole) for whole in pulled(graph))

    def _warn_of_hdr(self, context: av.VideoCodecContext) -> None:
        curve = _HDR.get(context.color_trc or 0)
        if curve or context.color_primaries == _BT2020:
            kind = f"HDR ({curve})" if curve else "of wide colours (BT.2020)"
            self._note(
                f"WARNING: {self.path} is {kind} and the model knows BT.709: its colours will be wrong, mostly dull "
                "and grey; convert it to BT.709 with a tool that maps tones, then give that"
            )

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def load_clip(path: str | Path, frames: int | None = None) -> np.ndarray:
    """The first frames (all if None), by count, of a video file or a directory of pictures: [frames, h, w, 3] uint8.

    Raises InputError for what cannot be read, lacks frames or changes size on the way.
    """
    if frames is not None and frames < 1:
        raise InputError(f"frames is {frames}, expected at least 1; ask for more")
    clip = [shown.frame for shown in islice(Recording(Path(path), 1.0, resample=False)._shown(), frames)]
    if len(clip) < (wanted := frames or 1):
        raise InputError(
            f"{path} holds {len(clip)} frames, expected at least {wanted}; give a longer clip or ask for fewer"
        )
    return np.stack(clip)


@dataclass(frozen=True)
class _Shown:
    position: float
    seconds: float
    frame: np.ndarray
    by_time: bool


_Matrix = tuple[int, ...]


def _at(shown: Iterator[_Shown] | deque[_Shown], positions: Iterator[float]) -> Iterator[np.ndarray]:
    """The frame on show at each of rising positions."""
    source = iter(shown)
    now, after = next(source), next(source, None)
    for position in positions:
        while after is not None and after.position <= position + _SLACK:
            now, after = after, next(source, None)
        yield now.frame


def _until_over(shown: Iterator[_Shown]) -> Iterator[np.ndarray]:
    """The frame on show at 0, 1, 2..., as long as there is one; the last one lasts as long as the one before it."""
    now, position, lasting = next(shown), 0, 0.0
    for after in shown:
        while position < after.position - _SLACK:
            yield now.frame
            position += 1
        now, lasting = after, after.position - now.position
    while position < max(now.position + lasting - _SLACK, 1):
        yield now.frame
        position += 1


def _square(frame: av.VideoFrame, aspect: float) -> np.ndarray:
    """RGB with square pixels: the smaller side grows, so that nothing is lost."""
    width = round(frame.width * max(aspect, 1))
    height = round(frame.height / min(aspect, 1))
    # RGB is full range; saying so makes PyAV before 17 heed the video's own colour matrix.
    return frame.to_ndarray(
        format="rgb24", width=width, height=height, dst_color_range=FULL_RANGE, interpolation=SCALING
    )


def _display_matrix(frame: av.VideoFrame) -> _Matrix | None:
    """The nine numbers beside the video that say how to show it, if there are any."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else struct.unpack("=9i", bytes(data)[:36])


def _upright(picture: np.ndarray, matrix: _Matrix | None) -> np.ndarray:
    """Turned and mirrored as the matrix says: a point (x, y) is shown at (a x + c y, b x + d y); quarter turns only."""
    if matrix is None:
        return picture
    a, b, _, c, d = matrix[:5]
    if abs(a) + abs(d) >= abs(b) + abs(c):
        right, down = a, d
    else:
        picture, right, down = picture.swapaxes(0, 1), c, b
    return np.ascontiguousarray(picture[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1])


def _deinterlacer(stream: av.VideoStream) -> av.filter.Graph:
    graph = av.filter.Graph()
    filters = (graph.add_buffer(template=stream), graph.add("bwdif", "mode=send_frame"), graph.add("buffersink"))
    graph.link_nodes(*filters).configure()
    return graph
