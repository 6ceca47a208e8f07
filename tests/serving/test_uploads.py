"""What somebody sends is decoded within limits, elsewhere, and never leads to another file."""

from __future__ import annotations

import asyncio
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy", reason="needs the extra `serve`: pip install 'videomar[serve]'")

import cv2
import numpy as np

from videomar.errors import InputError
from videomar.runtime.media import load_picture, write_video
from videomar.runtime.recording import load_clip
from videomar.serving.uploads import Decoder

PIXELS = 2_000_000


def decoded(*uploads: bytes, given: int | None = None, seconds: float = 120.0) -> list[Any]:
    """What one decoder says to each: frames or an error."""

    async def ask() -> list[Any]:
        decoder, answers = Decoder(PIXELS, seconds), []
        for data in uploads:
            try:
                answers.append(await decoder(data, given))
            except InputError as error:
                answers.append(error)
        await decoder.close()
        return answers

    return asyncio.run(ask())


def bomb(width: int, height: int) -> bytes:
    """A small PNG that says it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (17, 32, 48, 3), np.uint8)


def test_a_picture_and_a_clip_are_what_the_command_line_would_read(clip: np.ndarray, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), clip[0])
    write_video(tmp_path / "b.mp4", clip, 24)
    picture, first = decoded((tmp_path / "a.png").read_bytes(), (tmp_path / "b.mp4").read_bytes())
    assert np.array_equal(picture, load_picture(tmp_path / "a.png")[None])
    assert np.array_equal(first, load_clip(tmp_path / "b.mp4", 9))


def test_bombs_rubbish_and_files_that_name_others_are_refused_in_words_and_the_decoder_lives(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    cv2.imwrite(str(secret), np.zeros((8, 8, 3), np.uint8))
    playlists = [
        f"#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n".encode(),
        f"ffconcat version 1.0\nfile {secret}\n".encode(),
        f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{secret}"/></svg>'.encode(),
    ]
    bad = [bomb(50_000, 50_000), bomb(2000, 1001), b"", b"\0" * 100_000, b"GIF89a" + b"\xff" * 50, *playlists]
    good = secret.read_bytes()
    answers = decoded(*bad, good)
    for answer in answers[:-1]:
        assert isinstance(answer, InputError) and "input_reference" in str(answer) and "/" not in str(answer)
    assert answers[-1].shape == (1, 8, 8, 3)


def test_a_clip_of_frames_that_are_too_large_together_is_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "b.mp4", np.zeros((9, 480, 640, 3), np.uint8), 24)  # nine of them are 2.8 million pixels
    (answer,) = decoded((tmp_path / "b.mp4").read_bytes())
    assert isinstance(answer, InputError) and "expected at most" in str(answer)


def test_what_takes_too_long_ends_the_decoder_and_the_next_upload_gets_a_new_one() -> None:
    async def ask() -> Any:
        decoder = Decoder(PIXELS, 0.0)
        with pytest.raises(InputError, match="took more than"):
            await decoder(b"x" * 1000, None)
        decoder._seconds = 120.0
        frames = await decoder(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes(), None)
        await decoder.close()
        return frames

    assert asyncio.run(ask()).shape == (1, 8, 8, 3)


def test_a_decoder_that_dies_is_told_in_words_and_replaced() -> None:
    async def ask() -> Any:
        decoder = Decoder(PIXELS, 120.0)
        await decoder.start()
        assert decoder._child
        decoder._child.kill()
        with pytest.raises(InputError, match="ended the decoder"):
            await decoder(b"x" * 1_000_000, None)
        frames = await decoder(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes(), None)
        await decoder.close()
        return frames

    assert asyncio.run(ask()).shape == (1, 8, 8, 3)


def test_a_picture_cannot_give_several_frames() -> None:
    tiny = cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes()
    (answer,) = decoded(tiny, given=9)
    assert isinstance(answer, InputError) and "is a picture" in str(answer)
