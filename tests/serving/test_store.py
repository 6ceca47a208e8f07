"""Jobs in the database: nothing is lost, nothing is given twice."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="needs the extra `serve`: pip install 'videomar[serve]'")

from videomar.errors import InputError
from videomar.serving.jobs import COMPLETED, FAILED, IN_PROGRESS, QUEUED, Job, new_id
from videomar.serving.keeping.store import Store
from videomar.serving.making.order import entering


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def job(client: str = "a", seed: int = 5) -> Job:
    return Job(
        id=new_id(),
        client=client,
        prompt="a ball",
        sampling="{}",
        seed=seed,
        fps=24.0,
        frames=9,
        width=16,
        height=16,
        steps=4,
        given=1,
        model="tiny",
        created_at=1.0,
    )


@pytest.fixture
def url(database: str) -> str:
    return database


def claim(store: Store, worker: str) -> Job | None:
    return store.claim(worker, 10.0, lambda waiting, busy: entering(waiting, busy)[0])


def test_an_accepted_job_is_whole_in_another_process_view(url: str) -> None:
    added = Store(url).add(job(seed=2**62))
    assert Store(url).get(added.id) == added


def test_many_threads_get_every_job_once(url: str) -> None:
    store = Store(url)
    added = {store.add(job()).id for _ in range(40)}
    got: list[str] = []

    def work(worker: str) -> None:
        mine = Store(url)
        while taken := claim(mine, worker):
            got.append(taken.id)

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(added)


def test_a_silent_workers_job_goes_to_another_and_its_own_end_no_longer_counts(url: str) -> None:
    clock = Clock()
    store = Store(url, clock)
    added = store.add(job())
    assert claim(store, "dies") is not None and claim(store, "waits") is None
    clock.now += 11
    again = claim(store, "waits")
    assert again is not None and (again.id, again.seed, again.attempts) == (added.id, added.seed, 2)
    assert not store.complete("dies", added.id) and not store.fail("dies", added.id, "x", "y")
    assert store.beat("dies", 10.0, {added.id: 3}) == set()
    assert store.complete("waits", added.id)
    ended = store.get(added.id)
    assert ended is not None and (ended.status, ended.step, ended.worker) == (COMPLETED, 4, None)


def test_a_beat_keeps_a_lease_and_notes_the_step(url: str) -> None:
    clock = Clock()
    store = Store(url, clock)
    added = store.add(job())
    claim(store, "works")
    for step in range(3):
        clock.now += 8
        assert store.beat("works", 10.0, {added.id: step}) == {added.id}
    assert claim(store, "waits") is None
    now = store.get(added.id)
    assert now is not None and (now.step, now.status) == (2, IN_PROGRESS)


def test_a_released_job_waits_again_through_no_fault_of_its_own_and_a_recovered_one_is_suspect(url: str) -> None:
    store = Store(url)
    added = store.add(job())
    for attempts, end in ((1, lambda: store.release("w")), (2, store.recover)):
        claim(store, "w")
        assert end() == 1
        now = store.get(added.id)
        assert now is not None and (now.status, now.worker, now.step) == (QUEUED, None, 0)
        assert (now.attempts, now.parked) == (attempts, 1)


def test_pages_go_on_behind_a_job_whatever_was_deleted(url: str) -> None:
    store = Store(url)
    ids = [store.add(job()).id for _ in range(7)]
    first, more = store.page(None, 3, newest_first=True)
    assert [j.id for j in first] == ids[:3:-1] and more
    store.forget(ids[3])
    second, more = store.page(first[-1].id, 3, newest_first=True)
    assert [j.id for j in second] == [ids[2], ids[1], ids[0]] and not more
    oldest, _ = store.page(None, 2, newest_first=False)
    assert [j.id for j in oldest] == ids[:2]
    with pytest.raises(KeyError):
        store.page(ids[3], 3, newest_first=True)


def test_counts_and_shares_tell_waiting_from_made(url: str) -> None:
    store = Store(url)
    for client in "aab":
        store.add(job(client))
    taken = claim(store, "w")
    assert taken is not None
    assert store.counts() == {QUEUED: 2, IN_PROGRESS: 1, COMPLETED: 0, FAILED: 0}
    assert store.unfinished("a") == (2, 2) and store.unfinished("c") == (2, 0)
    store.fail("w", taken.id, "code", "words")
    assert store.counts()[FAILED] == 1 and store.unfinished(taken.client)[1] == 1


def test_reading_waits_for_no_writer(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.sqlite3"
    store = Store(url)
    added = store.add(job())
    with sqlite3.connect(tmp_path / "jobs.sqlite3") as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert store.get(added.id) == added and store.counts()[QUEUED] == 1
        writer.rollback()


def test_a_database_that_cannot_be_used_is_an_error_of_words_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be used") as failure:
        Store(f"sqlite:///{tmp_path}/no/such/place.sqlite3")
    assert "expected sqlite" in str(failure.value)
    with pytest.raises(InputError) as failure:
        Store("postgresql+nodriver://me:secret@127.0.0.1/x")
    assert "secret" not in str(failure.value)
