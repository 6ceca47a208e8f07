"""Everything that one server is made of, put together; what its endpoints get. Knows nothing of HTTP."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from videomar.artifacts import read_manifest
from videomar.config import SamplingConfig
from videomar.runtime.memory_check import BACKEND
from videomar.runtime.pipeline import Pipeline
from videomar.runtime.probes import free_memory, resident
from videomar.runtime.system import System
from videomar.serving.jobs import IN_PROGRESS, QUEUED
from videomar.serving.keeping.housekeeping import Housekeeping
from videomar.serving.keeping.place import Place
from videomar.serving.keeping.store import Store
from videomar.serving.live import Live
from videomar.serving.making.maker import Maker
from videomar.serving.making.memory import Budget
from videomar.serving.making.order import entering
from videomar.serving.meters import Meters
from videomar.serving.settings import Settings
from videomar.serving.uploads import Decoder


@dataclass
class Site:
    """One server, not yet started."""

    settings: Settings
    pipe: Pipeline
    place: Place
    store: Store
    live: Live
    meters: Meters
    budget: Budget
    maker: Maker
    decoder: Decoder
    housekeeping: Housekeeping
    alone: bool  # whether the database is this server's only

    @staticmethod
    def open(
        artifacts: Path,
        settings: Settings,
        threads: int | None = None,
        backend: str = "auto",
        database: str | None = None,
        clips: str | None = None,
    ) -> Site:
        """Load the model, take the directory and let jobs that were cut off wait again.

        database: shared with other servers; None: the directory's own. clips: a URL where servers share pictures and
        finished clips; None: they share the directory.
        Raises UserError for anything that does not fit.
        """
        shelf = None
        if clips is not None:
            from videomar.serving.keeping.shelf import Shelf

            shelf = Shelf(clips)
        place = Place(settings.directory, shelf)
        place.lock(shared=database is not None)
        pipe = Pipeline.open(artifacts, threads, backend=backend, memory_check=False)
        store, live, meters = Store(database or place.database), Live(), Meters()
        housekeeping = Housekeeping(store, place, settings.keep, settings.max_disk)
        if database is None:
            store.recover()
            housekeeping.sweep()
        total = settings.memory
        if total is None and pipe.backend.name == BACKEND:
            free = free_memory(System())
            total = free + resident(System()) if free else None
        budget = Budget(read_manifest(artifacts), pipe.backend.name, total)
        maker = Maker(pipe, store, place, live, meters, budget, settings)
        limits = settings.limits
        decoder = Decoder(limits.pixels, limits.decode_seconds)
        return Site(
            settings, pipe, place, store, live, meters, budget, maker, decoder, housekeeping, alone=database is None
        )

    def position(self, id: str) -> int | None:
        """How many jobs enter before this one, those in flight not counted; None if it does not wait."""
        order = entering(self.store.in_state(QUEUED), self.store.in_state(IN_PROGRESS))
        return next((place for place, job in enumerate(order) if job.id == id), None)

    def close(self) -> None:
        """Free everything, once the maker has stopped."""
        self.maker.join()
        self.store.close()
        self.pipe.close()
        self.place.unlock()


def as_json(sampling: SamplingConfig) -> str:
    """As a job keeps it."""
    return json.dumps(asdict(sampling))
