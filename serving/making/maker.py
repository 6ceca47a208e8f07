"""The thread that makes clips: takes jobs from the store, gives every clip in flight its turn, tells how far it is.

Everything that touches the backend happens in this one thread. Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Sequence

from videomar.errors import UserError
from videomar.runtime.pipeline import Pipeline
from videomar.serving.jobs import Job
from videomar.serving.keeping.place import Place
from videomar.serving.keeping.store import Store
from videomar.serving.live import Live
from videomar.serving.making.clip import Making
from videomar.serving.making.memory import Budget
from videomar.serving.making.order import Turns, entering
from videomar.serving.meters import Meters
from videomar.serving.settings import Settings

log = logging.getLogger("videomar.serving")
POLL = 0.25  # seconds between looks into a queue that others fill, too
PAUSE = 1.0  # seconds after a turn that has failed
TROUBLES = 30  # turns in a row, with a pause after each
BEAT = 0.25  # seconds between notes of progress in the database


class Maker:
    """Start it once; `wake` it when something has been accepted, `stop` it at the end."""

    def __init__(
        self,
        pipe: Pipeline,
        store: Store,
        place: Place,
        live: Live,
        meters: Meters,
        budget: Budget,
        settings: Settings,
    ) -> None:
        self._pipe, self._store, self._place, self._live, self._meters = pipe, store, place, live, meters
        self._budget, self._settings = budget, settings
        self.worker = f"{socket.gethostname()[:40]}-{os.getpid()}-{uuid.uuid4().hex[:16]}"
        self._making: dict[str, Making] = {}
        self._turns = Turns()
        self._wake, self._stop, self._done = threading.Event(), threading.Event(), threading.Event()
        self.troubles = 0  # turns that have failed in a row, for reasons outside of clips
        self._deadline = float("inf")
        self._cancelled: set[str] = set()
        self._noted = self._looked = 0.0
        self._thread = threading.Thread(target=self._work, name="maker", daemon=True)
        self._heart = threading.Thread(target=self._beat, name="heart", daemon=True)
        self.seconds_a_step: float | None = None  # smoothed, of all clips

    def start(self) -> None:
        """Begin to take jobs."""
        self._thread.start()
        self._heart.start()

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def cancel(self, id: str) -> None:
        """Stop making a clip before its next step, and remove its files."""
        self._cancelled.add(id)
        self.wake()

    @property
    def alive(self) -> bool:
        """Whether it works; not once a database or a disk has failed it for long."""
        return self._thread.is_alive() and self.troubles < TROUBLES

    @property
    def busy(self) -> tuple[Job, ...]:
        """The jobs in flight here."""
        return tuple(making.job for making in list(self._making.values()))

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stop.is_set()

    def stop(self, grace: float) -> None:
        """Take nothing more; finish what is in flight within so many seconds, let the rest wait for another start."""
        self._deadline = time.monotonic() + grace
        self._stop.set()
        self.wake()

    def join(self) -> None:
        """Wait until it has stopped."""
        if self._thread.ident is not None:
            self._thread.join()
            self._heart.join()

    def _work(self) -> None:
        while not self._stop.is_set() or (self._making and time.monotonic() < self._deadline):
            look = self._wake.is_set() or time.monotonic() - self._looked >= POLL
            self._wake.clear()
            try:
                self._drop_cancelled()
                if look and not self._stop.is_set():
                    self._enter()
                if self._turns.next() is None:
                    self._wake.wait(POLL)
                else:
                    self._turn()
                self.troubles = 0
            except Exception:  # the database or the disk; what it is about may pass, and clips in flight are unharmed
                self.troubles += 1
                log.exception("a turn of making clips has failed, for the %d. time running", self.troubles)
                self._stop.wait(PAUSE)
        try:
            self._park()
        finally:
            self._done.set()
            self._live.stop()

    def _enter(self) -> None:
        while len(self._making) < self._settings.in_flight:
            job = self._store.claim(self.worker, self._settings.lease, self._choose)
            if job is None:
                self._looked = time.monotonic()
                return
            crashes = job.attempts - job.parked - 1
            if crashes >= self._settings.limits.attempts:
                self._fail(job, "crashed", f"the server died {crashes} times while it made this clip")
                continue
            try:
                self._making[job.id] = Making(self._pipe, job, self._place)
            except (UserError, OSError, ValueError) as error:
                self._fail(job, "invalid_input", str(error))
                continue
            self._turns.enter(job.id)
            self._meters.waited.observe(max(0.0, time.time() - job.created_at))
            self._show(self._making[job.id])
            self._live.changed()

    def _choose(self, waiting: Sequence[Job], busy: Sequence[Job]) -> Job | None:
        job = entering(waiting, busy)[0]
        flying = [self._budget.of(each) for each in self.busy]
        return job if self._budget.fits(self._budget.of(job), flying) else None

    def _turn(self) -> None:
        id = self._turns.next()
        assert id is not None
        making = self._making[id]
        try:
            took = making.advance()
        except Exception as error:
            if id not in self._beat_once({id: making.run.done}):  # deleted under its feet, or another's by now
                self._leave(id)
                self._gone(making)
                return
            known = isinstance(error, UserError)
            if not known:
                log.exception("making %s has failed", id)
            self._leave(id)
            making.discard()
            message = str(error) if known else "the clip could not be made; the server's log says why"
            self._fail(making.job, "invalid_input" if known else "server_error", message)
            return
        self._turns.spend(id, took)
        self._meters.steps.inc()
        self.seconds_a_step = took if self.seconds_a_step is None else 0.9 * self.seconds_a_step + 0.1 * took
        if making.finished:
            self._finish(making)
        else:
            self._show(making)
            self._note()

    def _show(self, making: Making) -> None:
        self._meters.in_flight.set(len(self._making))
        self._live.put(making.job.id, making.progress(len(self._making)))

    def _finish(self, making: Making) -> None:
        id = making.job.id
        making.close()
        self._leave(id)
        if not self._store.complete(self.worker, id):
            self._gone(making)
            return
        self._meters.clips.labels("completed").inc()
        self._meters.whole.observe(time.monotonic() - making.began)
        self._meters.first.observe(making.first_frame or 0.0)
        for stage, seconds in making.run.timing.seconds.items():
            self._meters.stages.labels(stage).inc(seconds)
        self._ended(id)

    def _fail(self, job: Job, code: str, message: str) -> None:
        self._store.fail(self.worker, job.id, code, message)
        self._meters.clips.labels("failed").inc()
        self._ended(job.id)

    def _leave(self, id: str) -> None:
        del self._making[id]
        self._turns.leave(id)
        self._meters.in_flight.set(len(self._making))
        self.wake()  # there is room

    def _ended(self, id: str) -> None:
        self._live.put(id, None)
        self._live.changed()

    def _note(self) -> None:
        """Write progress down now and then, and find out which jobs were taken away."""
        if time.monotonic() - self._noted < BEAT:
            return
        self._noted = time.monotonic()
        steps = self._steps()
        self._cancelled |= steps.keys() - self._beat_once(steps)

    def _steps(self) -> dict[str, int]:
        return {id: making.run.done for id, making in list(self._making.items())}

    def _beat_once(self, steps: dict[str, int]) -> set[str]:
        return self._store.beat(self.worker, self._settings.lease, steps)

    def _drop_cancelled(self) -> None:
        while self._cancelled:
            making = self._making.get(self._cancelled.pop())
            if making:
                self._leave(making.job.id)
                self._gone(making)

    def _gone(self, making: Making) -> None:
        """The job was deleted, or is another worker's since this one was silent for too long."""
        if self._store.get(making.job.id) is None:
            making.forget()
        else:
            making.discard()
        self._meters.clips.labels("cancelled").inc()
        self._ended(making.job.id)

    def _park(self) -> None:
        for id, making in list(self._making.items()):
            self._leave(id)
            making.discard()
            self._meters.clips.labels("parked").inc()
        self._store.release(self.worker)

    def _beat(self) -> None:
        """Keep the leases while a step takes long."""
        while not self._done.wait(self._settings.lease / 3):
            if steps := self._steps():
                try:
                    self._beat_once(steps)
                except Exception:
                    log.exception("the leases could not be renewed")
