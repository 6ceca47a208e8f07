"""The child of uploads.py: reads pictures and clips on its standard input, writes frames on its standard output.

A request is a line "BYTES GIVEN" and the bytes; an answer ten digits, so many bytes of JSON, and what that announces.
Knows nothing of who asks.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from videomar.unfinished import scratch

if TYPE_CHECKING:
    import numpy as np

NAME = "input_reference"
GIVEN = 9  # frames of a clip, if nobody says how many
# No playlists: those name other files, which FFmpeg would open.
CLIPS = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi", "enable_drefs": "0"}
MEMORY = 2 << 30  # bytes that the decoders may take besides the frames


def main() -> None:
    """Answer until standard input ends; argument: the most pixels of a picture, or of a clip's frames together."""
    max_pixels = int(sys.argv[1])
    os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(max_pixels)  # read when OpenCV is loaded, heeded before it decodes
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    import videomar.runtime.media  # noqa: F401 - loaded before the first request and outside of the limit

    limit = _taken() + MEMORY + 12 * max_pixels
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with scratch("upload") as place:
        while line := asked.readline():
            size, given = map(int, line.split())
            _answer(answers, asked.read(size), given, place / NAME, max_pixels)


def _taken() -> int:
    """Bytes of address space so far."""
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _answer(answers: BinaryIO, data: bytes, given: int, file: Path, max_pixels: int) -> None:
    import numpy as np

    from videomar.errors import UserError

    body = b""
    try:
        file.write_bytes(data)
        frames, written = decode(file, given, max_pixels), io.BytesIO()
        np.save(written, frames)
        body = written.getvalue()
        head = {"bytes": len(body)}
    except UserError as error:
        head = {"error": str(error).replace(str(file), NAME)}
    except MemoryError:
        head = {"error": f"{NAME} needs too much memory, expected a smaller picture or clip; make it smaller"}
    finally:
        file.unlink(missing_ok=True)
    text = json.dumps(head).encode()
    answers.write(b"%010d" % len(text) + text + body)
    answers.flush()


def decode(file: Path, given: int, max_pixels: int) -> np.ndarray:
    """Frames of a picture or of a clip's beginning: [t, h, w, 3] uint8; raises InputError."""
    import av

    from videomar.errors import InputError
    from videomar.runtime.media import load_picture
    from videomar.runtime.recording import load_clip

    try:
        picture = load_picture(file)
    except InputError as not_a_picture:
        try:
            with file.open("rb") as data, av.open(data, metadata_errors="ignore", options=CLIPS) as container:
                video = container.streams.video[0] if container.streams.video else None
                pixels = video.width * video.height if video and video.frames != 1 else 0
        except av.FFmpegError:
            raise not_a_picture from None
        if not pixels:
            raise not_a_picture from None
        if pixels * (given or GIVEN) > max_pixels:
            raise InputError(
                f"{NAME} has frames of {pixels} pixels, expected at most {max_pixels // (given or GIVEN)}; send a "
                "smaller clip"
            ) from None
        return load_clip(file, given or GIVEN)
    if given > 1:
        raise InputError(f"{NAME} is a picture, expected a clip of at least {given} frames; leave `given` away")
    return picture[None]


if __name__ == "__main__":
    main()
