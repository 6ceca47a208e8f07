"""What happens right now, and waking those who watch: between the thread that makes clips and the event loop.

Nothing is kept for a watcher: one that is slow finds the newest state when it looks again.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Of a clip in flight."""

    step: int  # steps that have run
    steps: int
    frame: int  # latent frames that can be seen
    frames: int
    seconds_left: float | None


class Live:
    """Progress by job; `changed` from any thread, `wait` on the event loop."""

    def __init__(self) -> None:
        self._progress: dict[str, Progress] = {}
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.stopping = False  # the server ends: whoever watches should go

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake watchers on this event loop."""
        self._loop = loop

    def progress(self, id: str) -> Progress | None:
        """How far a clip in flight here is."""
        return self._progress.get(id)

    def put(self, id: str, progress: Progress | None) -> None:
        """A clip in flight has come further, or is none any more; its watchers wake."""
        with self._lock:
            if progress is None:
                self._progress.pop(id, None)
            else:
                self._progress[id] = progress
        self.changed(id)

    def changed(self, id: str | None = None) -> None:
        """Wake the watchers of a job, or all."""
        with self._lock:
            keys = list(self._waiting) if id is None else [id]
            events = [event for key in keys for event in self._waiting.get(key, ())]
        if events and self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(lambda: [event.set() for event in events])

    def stop(self) -> None:
        """The server ends: all watchers wake and see `stopping`."""
        self.stopping = True
        self.changed()

    def watch(self, id: str) -> Watch:
        """A watcher of a job, from before it first looks until it is closed, so that no change goes unseen."""
        return Watch(self, id)

    def _enter(self, id: str, event: asyncio.Event) -> None:
        with self._lock:
            self._waiting[id].add(event)

    def _leave(self, id: str, event: asyncio.Event) -> None:
        with self._lock:
            self._waiting[id].discard(event)
            if not self._waiting[id]:
                del self._waiting[id]


class Watch:
    """One watcher; a context manager."""

    def __init__(self, live: Live, id: str) -> None:
        self._live, self._id, self._event = live, id, asyncio.Event()

    async def wait(self, seconds: float) -> bool:
        """Until something has changed since the last call; False if nothing did in that time."""
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
        except TimeoutError:
            return False
        except asyncio.TimeoutError:
            return False
        self._event.clear()
        return True

    def __enter__(self) -> Watch:
        self._live._enter(self._id, self._event)
        return self

    def __exit__(self, *_: object) -> None:
        self._live._leave(self._id, self._event)
