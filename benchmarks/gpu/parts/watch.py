"""A backend that passes every call on and writes down how long it took. Knows nothing of what is behind it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from videomar.runtime.backends.base import Backend, Clip, ClipPlan, Decoder


@dataclass(frozen=True)
class Call:
    """One call of a clip: "step", "store" (a pass that only stores K/V), "sample" or "keep"."""

    kind: str
    finished: int  # frames before this one
    seconds: float


Listener = Callable[[Call], None]


class Watched(Backend):
    """`listen` is told of every call."""

    def __init__(self, inner: Backend, listen: Listener) -> None:
        self._inner, self._listen = inner, listen
        self.name, self.config = inner.name, inner.config  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def encode_text(self, ids: np.ndarray) -> np.ndarray:
        return self._inner.encode_text(ids)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        return self._inner.encode(pixels)

    def decoder(self, frames: int, h: int, w: int) -> Decoder:
        return self._inner.decoder(frames, h, w)

    def begin(self, states: np.ndarray, plan: ClipPlan) -> Clip:
        return _WatchedClip(self._inner.begin(states, plan), self._listen)

    def close(self) -> None:
        self._inner.close()


class _WatchedClip:
    def __init__(self, inner: Clip, listen: Listener) -> None:
        self._inner, self._listen, self._finished = inner, listen, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _timed(self, kind: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = call()
        self._listen(Call(kind, self._finished, time.perf_counter() - began))
        return result

    def step(self, *args: Any, **more: Any) -> None:
        masked = args[1] if len(args) > 1 else more["masked"]
        self._timed("step" if masked.any() else "store", lambda: self._inner.step(*args, **more))

    def sample(self, *args: Any, **more: Any) -> np.ndarray:
        return self._timed("sample", lambda: self._inner.sample(*args, **more))

    def keep(self) -> None:
        self._timed("keep", self._inner.keep)
        self._finished += 1
