"""Who is made next: which job enters, and which clip in flight takes the next step. Pure; knows no database or device.

Entering: the client with the fewest clips in flight first, then the oldest job. A job under which a server died steps
back: if it was the cause, the others are made in between; if it was not, deaths in a row fall on several jobs, and none
is given up for them. A job that does not fit the memory now holds back those behind it, so that large clips are never
passed by for ever.
In flight: the clip that has had the least time. A newcomer begins where the one with the least is, so that it neither
waits for nor holds up the others: of N clips each gets an N-th of the time, whatever their lengths.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from videomar.serving.jobs import Job

STEPS_BACK = 10  # places in the queue, for every server that died under a job


def turn_of(job: Job) -> tuple[int, int]:
    """A job's place among its client's: its number, and some more for every time that a server died under it."""
    deaths = max(0, job.attempts - job.parked)
    return job.number + STEPS_BACK * deaths, deaths


def entering(waiting: Sequence[Job], busy: Sequence[Job]) -> list[Job]:
    """The jobs that wait in the order in which they will enter, as far as is known now."""
    share = Counter(job.client for job in busy)
    queues: dict[str, list[Job]] = {}
    for job in sorted(waiting, key=turn_of):
        queues.setdefault(job.client, []).append(job)
    order = []
    while queues:
        client = min(queues, key=lambda c: (share[c], turn_of(queues[c][0])))
        order.append(queues[client].pop(0))
        share[client] += 1
        if not queues[client]:
            del queues[client]
    return order


class Turns:
    """Clips in flight and the time that each has had."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}

    def enter(self, id: str) -> None:
        """A clip begins."""
        self._spent[id] = min(self._spent.values(), default=0.0)

    def leave(self, id: str) -> None:
        """A clip has ended."""
        del self._spent[id]

    def next(self) -> str | None:
        """The clip whose step is next; of equals the one that entered first."""
        return min(self._spent, key=self._spent.__getitem__, default=None)

    def spend(self, id: str, seconds: float) -> None:
        """A clip's step took so long."""
        self._spent[id] += seconds

    def __len__(self) -> int:
        return len(self._spent)
