"""Frames -> a fragmented mp4 that grows, and the finished mp4 of it. Knows nothing of jobs or of who watches.

Every call gives whole fragments at once (a muxer of its own each: FFmpeg's keeps the last packet of a fragment until
the next one comes). The same frames give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from av.video.frame import PictureType

from videomar.runtime.encoders import to_picture
from videomar.runtime.media import whole

_X264 = {"crf": "18", "tune": "zerolatency", "preset": "medium", "x264-params": "mbtree=0:threads=1:scenecut=0"}
_FLAGS = "empty_moov+default_base_moof+frag_discont+frag_keyframe+skip_trailer"


class Film:
    """An encoder; `add` what is new, the bytes to append to the file come back."""

    def __init__(self, width: int, height: int, fps: float) -> None:
        self._rate = Fraction(fps).limit_denominator(1001)
        # The encoder's own container is never written: it is what PyAV needs to describe a stream to other muxers.
        self._container = av.open(io.BytesIO(), "w", format="mp4")
        self._stream = stream = self._container.add_stream("libx264", rate=self._rate, options=dict(_X264))
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        context = self._encoder = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = context.color_range = 1  # BT.709, limited
        context.gop_size = 10_000  # a key frame only where a fragment begins
        context.time_base = 1 / self._rate
        self._container.start_encoding()
        self._fragments = self.frames = 0  # written so far

    @property
    def codec(self) -> str:
        """As `video/mp4; codecs=` names it: profile, constraints and level of the encoder itself."""
        data = bytes(self._encoder.extradata or b"")
        at = data.index(b"\0\0\1\x67") + 4
        return f"avc1.{data[at : at + 3].hex()}"

    def add(self, frames: np.ndarray) -> bytes:
        """Bytes of one fragment: [n, height, width, 3] uint8, n at least 1; before the first, those of the header."""
        self._fragments += 1
        target = io.BytesIO()
        options = {"movflags": _FLAGS, "avoid_negative_ts": "disabled", "fragment_index": str(self._fragments)}
        with av.open(target, "w", format="mp4", options=options) as muxer:
            stream = muxer.add_stream_from_template(self._stream, opaque=True)
            for index, frame in enumerate(frames):
                picture = to_picture(frame)
                picture.pts, picture.time_base = self.frames, self._encoder.time_base
                picture.pict_type = PictureType.NONE if index else PictureType.I
                for packet in self._encoder.encode(picture):
                    packet.stream = stream
                    muxer.mux(packet)
                self.frames += 1
        data = target.getvalue()
        return (
            data if self._fragments == 1 else b"".join(box for name, box in boxes(data) if name in (b"moof", b"mdat"))
        )


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """An mp4's outermost boxes: name, whole box."""
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], data[at : at + size]
        at += size


@lru_cache(maxsize=256)
def content_type(width: int, height: int, fps: float) -> str:
    """Of a stream, before it begins."""
    return f'video/mp4; codecs="{Film(width, height, fps).codec}"'


def finish(stream: Path, clip: Path) -> None:
    """A grown file's packets as an mp4 with its index in front, whole or not at all; nothing is encoded again."""
    with whole(clip) as temporary:
        with (
            av.open(str(stream)) as source,
            av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as target,
        ):
            video = source.streams.video[0]
            copied = target.add_stream_from_template(video)
            for packet in source.demux(video):
                if packet.dts is not None:
                    packet.stream = copied
                    target.mux(packet)
