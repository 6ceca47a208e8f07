"""What goes when: clips older than they are kept, then the oldest until the disk suffices, and files of no job."""

from __future__ import annotations

import time
from collections.abc import Callable

from videomar.serving.keeping.place import Place
from videomar.serving.keeping.store import Store


class Housekeeping:
    """Keeps a directory within its time and size. `tidy` as often as wanted."""

    def __init__(
        self,
        store: Store,
        place: Place,
        keep: float | None,
        max_disk: int | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """keep: seconds after its end that a job stays, None for ever; max_disk: bytes of all files."""
        self._store, self._place, self._keep, self._max, self._clock = store, place, keep, max_disk, clock

    def tidy(self) -> list[str]:
        """Remove what has to go; the ids of jobs that went."""
        gone = []
        if self._keep is not None:
            for job in self._store.ended_before(self._clock() - self._keep):
                gone.append(self._remove(job.id))
        if self._max is not None and self._place.used() > self._max:
            for job in self._store.ended_before(self._clock() + 1):
                gone.append(self._remove(job.id))
                if self._place.used() <= self._max:
                    break
        return gone

    def sweep(self) -> None:
        """Remove files that no job has: for a start, before anything is accepted."""
        for id in self._place.ids() - self._store.known():
            self._place.drop(id)

    def full(self) -> bool:
        """Whether no more can be kept, even once everything that has ended goes."""
        if self._max is None or self._place.used() <= self._max:
            return False
        self.tidy()
        return self._place.used() > self._max

    def _remove(self, id: str) -> str:
        self._store.forget(id)
        self._place.drop(id)
        return id
