"""A fixed sequence of work on a stream, run again and again: as one CUDA graph where that can be had, else enqueued.

Knows nothing of what the work is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from videomar.runtime.backends.cuda import CaptureRefused, Cuda


class Replay:
    """`enqueue` puts the work on the stream, with the same addresses and shapes every time."""

    def __init__(
        self, cuda: Cuda, stream: Any, enqueue: Callable[[], None], capturable: Callable[[], bool] = lambda: True
    ) -> None:
        self._cuda, self._stream, self._enqueue, self._capturable = cuda, stream, enqueue, capturable
        self._graph: Any = None

    def capture(self) -> None:
        """From now on `run` launches a graph; `enqueue` must have run once. Raises CaptureRefused."""
        if not self._capturable():
            raise CaptureRefused("TensorRT says so")
        self._graph = self._cuda.capture(self._stream, self._enqueue)

    def run(self) -> None:
        if self._graph is None:
            self._enqueue()
        else:
            self._cuda.launch(self._graph, self._stream)

    def close(self) -> None:
        """Let go of the graph; `run` enqueues again."""
        if self._graph is not None:
            self._cuda.destroy_graph(self._graph)
            self._graph = None
