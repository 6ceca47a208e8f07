"""Jobs in a database: what may be asked of them, each in one transaction. Knows nothing of files, clips or HTTP.

A job in progress belongs to a worker as long as its lease lasts; whoever claims next takes over what was let go.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa

from videomar.serving.jobs import COMPLETED, ENDED, FAILED, IN_PROGRESS, QUEUED, Job
from videomar.serving.keeping.tables import JOBS, engine

Choose = Callable[[Sequence[Job], Sequence[Job]], Job | None]  # (waiting, in progress) -> the one to make next


class Store:
    """Every accepted job; safe to use from several threads and, by way of the database, from several processes."""

    def __init__(self, url: str, clock: Callable[[], float] = time.time) -> None:
        self._engine, self._clock = engine(url), clock

    def add(self, job: Job) -> Job:
        """Accept a job; from here on it is not lost."""
        values = dataclasses.asdict(job)
        del values["number"]
        with self._engine.begin() as c:
            number = c.execute(JOBS.insert().values(values)).inserted_primary_key
        assert number is not None
        return dataclasses.replace(job, number=int(number[0]))

    def get(self, id: str) -> Job | None:
        """One job, if there is one."""
        rows = self._read(JOBS.select().where(JOBS.c.id == id))
        return rows[0] if rows else None

    def page(self, after: str | None, limit: int, newest_first: bool) -> tuple[list[Job], bool]:
        """At most so many jobs behind the one named, and whether there are more; raises KeyError for an unknown one."""
        query = JOBS.select().order_by(JOBS.c.number.desc() if newest_first else JOBS.c.number).limit(limit + 1)
        if after is not None:
            last = self.get(after)
            if last is None:
                raise KeyError(after)
            query = query.where(JOBS.c.number < last.number if newest_first else JOBS.c.number > last.number)
        rows = self._read(query)
        return rows[:limit], len(rows) > limit

    def in_state(self, *statuses: str) -> list[Job]:
        """All jobs in one of these states, oldest first."""
        return self._read(JOBS.select().where(JOBS.c.status.in_(statuses)).order_by(JOBS.c.number))

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        with self._reading() as c:
            rows = c.execute(sa.select(JOBS.c.status, sa.func.count()).group_by(JOBS.c.status)).all()
        return {status: 0 for status in (QUEUED, IN_PROGRESS, *ENDED)} | {status: count for status, count in rows}

    def unfinished(self, client: str) -> tuple[int, int]:
        """Jobs that wait, and those of one client that wait or are made."""
        with self._reading() as c:
            waiting = c.execute(sa.select(sa.func.count()).where(JOBS.c.status == QUEUED)).scalar_one()
            theirs = sa.select(sa.func.count()).where(JOBS.c.client == client, JOBS.c.status.in_((QUEUED, IN_PROGRESS)))
            return waiting, c.execute(theirs).scalar_one()

    def claim(self, worker: str, lease: float, choose: Choose) -> Job | None:
        """Give a worker the job that `choose` takes among those that wait, for so many seconds; None if it takes none.

        What silent workers left in progress waits again first.
        """
        while True:
            now = self._clock()
            with self._engine.begin() as c:
                self._let_go(c, JOBS.c.lease_until < now)
                jobs = _jobs(c.execute(_UNFINISHED))
                queue = [job for job in jobs if job.status == QUEUED]
                job = choose(queue, [job for job in jobs if job.status == IN_PROGRESS]) if queue else None
                if job is None:
                    return None
                changes: dict[str, Any] = {
                    "status": IN_PROGRESS,
                    "worker": worker,
                    "lease_until": now + lease,
                    "started_at": now,
                    "step": 0,
                    "attempts": job.attempts + 1,
                }
                # On PostgreSQL another may have taken it since it was read: who changes the row first has it.
                still = (JOBS.c.status == QUEUED) & (JOBS.c.attempts == job.attempts)
                won = c.execute(JOBS.update().where(JOBS.c.id == job.id, still).values(changes)).rowcount
            if won:
                return dataclasses.replace(job, **changes)

    def beat(self, worker: str, lease: float, steps: dict[str, int]) -> set[str]:
        """Say how many steps of each of a worker's jobs have run, and that it lives; those that are still its own."""
        until = self._clock() + lease
        with self._engine.begin() as c:
            for id, step in steps.items():
                c.execute(_of(worker, id).values(step=step, lease_until=until))
            mine = sa.select(JOBS.c.id).where(JOBS.c.worker == worker, JOBS.c.status == IN_PROGRESS)
            return set(c.execute(mine).scalars())

    def complete(self, worker: str, id: str) -> bool:
        """The clip is made; False if the job is gone or another's."""
        return self._end(worker, id, status=COMPLETED, step=JOBS.c.steps)

    def fail(self, worker: str, id: str, code: str, message: str) -> bool:
        """The clip cannot be made."""
        return self._end(worker, id, status=FAILED, error_code=code, error_message=message)

    def _end(self, worker: str, id: str, **values: Any) -> bool:
        values |= {"completed_at": self._clock(), "worker": None, "lease_until": None}
        with self._engine.begin() as c:
            return bool(c.execute(_of(worker, id).values(values)).rowcount)

    def release(self, worker: str) -> int:
        """A worker's jobs in progress wait again, and it was no fault of theirs; how many there were."""
        with self._engine.begin() as c:
            return self._let_go(c, JOBS.c.worker == worker, parked=JOBS.c.parked + 1)

    def recover(self) -> int:
        """All jobs in progress wait again: for the start of a server that has the database to itself."""
        with self._engine.begin() as c:
            return self._let_go(c, sa.true())

    def _let_go(self, c: sa.Connection, whose: sa.ColumnElement[bool], **changes: Any) -> int:
        waits = {"status": QUEUED, "worker": None, "lease_until": None, "step": 0, "started_at": None} | changes
        return c.execute(JOBS.update().where(JOBS.c.status == IN_PROGRESS, whose).values(waits)).rowcount

    def forget(self, id: str) -> bool:
        """Remove a job in whatever state; whoever makes it finds out at its next step. False if there is none."""
        with self._engine.begin() as c:
            return bool(c.execute(JOBS.delete().where(JOBS.c.id == id)).rowcount)

    def ended_before(self, time: float) -> list[Job]:
        """Jobs that ended earlier than that, oldest first."""
        ended = JOBS.select().where(JOBS.c.status.in_(ENDED), JOBS.c.completed_at < time)
        return self._read(ended.order_by(JOBS.c.completed_at))

    def known(self) -> set[str]:
        """The ids of all jobs."""
        with self._reading() as c:
            return set(c.execute(sa.select(JOBS.c.id)).scalars())

    def _reading(self) -> sa.Connection:
        return self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")

    def _read(self, query: sa.Select[Any]) -> list[Job]:
        with self._reading() as c:
            return _jobs(c.execute(query))

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


_UNFINISHED = JOBS.select().where(JOBS.c.status.in_((QUEUED, IN_PROGRESS))).order_by(JOBS.c.number)


def _of(worker: str, id: str) -> sa.Update:
    return JOBS.update().where(JOBS.c.id == id, JOBS.c.worker == worker, JOBS.c.status == IN_PROGRESS)


def _jobs(result: sa.CursorResult[Any]) -> list[Job]:
    return [Job(**row) for row in result.mappings()]
