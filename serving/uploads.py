"""A picture or clip that somebody sent -> frames, decoded in a child process that may be killed.

The child (decoding.py) is there before the first upload, so that one costs a few milliseconds. Its memory is limited,
it has a time, and if it dies the next upload gets a new one. Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import sys

import numpy as np

from videomar.errors import InputError

_REFUSED = "the input cannot be used, expected a picture (PNG, JPEG, WebP, BMP, TIFF) or an H.264 clip"


class Decoder:
    """Decodes one upload after the other; on an event loop."""

    def __init__(self, max_pixels: int, seconds: float) -> None:
        self._max_pixels, self._seconds = max_pixels, seconds
        self._child: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        """Have a child ready."""
        if self._child is None or self._child.returncode is not None:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "videomar.serving.decoding",
                str(self._max_pixels),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )

    async def __call__(self, data: bytes, given: int | None) -> np.ndarray:
        """The frames of a picture (one) or the first `given` of a clip: [t, h, w, 3] uint8 RGB.

        given: None for one of a picture, 9 of a clip. Raises InputError for what cannot be decoded within the limits.
        """
        async with self._lock:
            try:
                return await asyncio.wait_for(self._ask(data, given), self._seconds)
            except (TimeoutError, asyncio.TimeoutError):
                await self._kill()
                raise InputError(
                    f"{_REFUSED}; decoding took more than {self._seconds:g} s, send a smaller one"
                ) from None
            except (asyncio.IncompleteReadError, ConnectionError):
                await self._kill()
                raise InputError(f"{_REFUSED}; decoding ended the decoder, send a smaller or sound one") from None
            except asyncio.CancelledError:  # in the middle of an answer
                await self._kill()
                raise

    async def _ask(self, data: bytes, given: int | None) -> np.ndarray:
        await self.start()
        assert self._child and self._child.stdin and self._child.stdout
        self._child.stdin.write(f"{len(data)} {given or 0}\n".encode())
        self._child.stdin.write(data)
        await self._child.stdin.drain()
        answer = json.loads(await self._child.stdout.readexactly(int(await self._child.stdout.readexactly(10))))
        if "error" in answer:
            raise InputError(answer["error"])
        raw = await self._child.stdout.readexactly(answer["bytes"])
        frames: np.ndarray = np.load(io.BytesIO(raw), allow_pickle=False)
        return frames

    async def _kill(self) -> None:
        child, self._child = self._child, None
        if child and child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    async def close(self) -> None:
        """End the child."""
        await self._kill()
