"""Several servers on one database and one directory: a queue for all, and nobody's death loses a clip."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`: pip install 'videomar[serve]'")

from videomar.runtime.pipeline import Pipeline
from videomar.serving.jobs import IN_PROGRESS, QUEUED, Job
from videomar.serving.keeping.store import Store

PATIENCE = 180.0
FRAMES = (129, 17, 65, 129, 17, 65)


def frames_of(seed: int) -> int:
    return FRAMES[seed % len(FRAMES)]


@pytest.fixture(scope="module")
def pipe(tiny_artifacts: Path) -> Iterator[Pipeline]:
    with Pipeline.open(tiny_artifacts, 1) as opened:
        yield opened


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    opened = Store(database)
    yield opened
    opened.close()


def locked(store: Store) -> bool:
    """Whether somebody stands still with SQLite's lock, which nothing but his death takes from him."""
    engine = store._engine
    if engine.dialect.name != "sqlite":
        return False
    with sqlite3.connect(str(engine.url.database), timeout=0) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        finally:
            connection.rollback()
    return False


def stopped_in_the_middle(store: Store, server: Any, ids: dict[int, str]) -> Job:
    """Freeze a server while it makes a clip of which a latent frame can be seen: that clip's job.

    ids: of the jobs by seed; as many again are asked for if the other server was faster with all of them.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if not store.in_state(IN_PROGRESS) and not store.in_state(QUEUED):
            for seed in range(len(ids), len(ids) + len(FRAMES)):
                ids[seed] = server.create(seed, frames_of(seed))
        server.process.send_signal(signal.SIGSTOP)
        for job in store.in_state(IN_PROGRESS):
            if f"-{server.process.pid}-" in str(job.worker) and job.step > 3 and not locked(store):
                return job
        server.process.send_signal(signal.SIGCONT)
        time.sleep(0.02)
    raise AssertionError("it makes nothing")


def test_the_jobs_of_a_killed_server_go_to_another_whose_watchers_notice_nothing(
    start: Callable[..., Any], database: str, store: Store, pipe: Pipeline, alone: Callable[..., bytes]
) -> None:
    options = ("--database", database, "--lease", "1", "--in-flight", "1")
    dies, lives = start(*options), start(*options)
    ids = {seed: (dies, lives)[seed % 2].create(seed, frames) for seed, frames in enumerate(FRAMES)}
    victim = stopped_in_the_middle(store, dies, ids)
    with lives.http.stream("GET", f"/v1/videos/{victim.id}/stream") as answer:
        chunks = answer.iter_raw()
        film = next(chunks)
        dies.end(signal.SIGKILL)
        film += b"".join(chunks)
    assert film == alone(pipe, victim.seed, film=True, frames=victim.frames)
    for seed, id in ids.items():
        assert lives.ended(id)["status"] == "completed"
        assert lives.content(id) == alone(pipe, seed, frames=frames_of(seed))
    ended = store.get(victim.id)
    assert ended is not None and ended.attempts == 2


def test_a_server_that_was_silent_too_long_finds_its_job_made_by_another_and_harms_nothing(
    start: Callable[..., Any], database: str, store: Store, pipe: Pipeline, alone: Callable[..., bytes]
) -> None:
    options = ("--database", database, "--lease", "1", "--in-flight", "1")
    sleeps, works = start(*options), start(*options)
    ids = {seed: works.create(seed, frames) for seed, frames in enumerate(FRAMES)}
    victim = stopped_in_the_middle(store, sleeps, ids)
    for id in ids.values():
        assert works.ended(id)["status"] == "completed"
    sleeps.process.send_signal(signal.SIGCONT)
    after = sleeps.create(100)
    assert sleeps.ended(after)["status"] == "completed"
    assert sleeps.end(signal.SIGTERM) == works.end(signal.SIGTERM) == 0
    ended = store.get(victim.id)
    assert ended is not None and ended.attempts == 2
    again = start(*options)
    for seed, id in ids.items():
        assert again.content(id) == alone(pipe, seed, frames=frames_of(seed))


def test_servers_without_a_common_directory_share_pictures_and_clips_by_an_address(
    start: Callable[..., Any], database: str, tmp_path: Path, pipe: Pipeline, alone: Callable[..., bytes]
) -> None:
    shelf = f"file://{tmp_path}/shelf"
    options = ("--database", database, "--clips", shelf, "--in-flight", "1", "--lease", "1")
    one, two = start(*options, directory="one"), start(*options, directory="two")
    ids = {seed: one.create(seed, frames) for seed, frames in enumerate(FRAMES)}
    for id in ids.values():
        assert two.ended(id)["status"] == "completed"
    one.end(signal.SIGKILL)
    for seed, id in ids.items():
        assert two.content(id) == alone(pipe, seed, frames=frames_of(seed))
    assert {path.name for path in (tmp_path / "shelf").iterdir()} == set(ids.values())
    for id in ids.values():
        assert two.http.delete(f"/v1/videos/{id}").status_code == 200
    assert list((tmp_path / "shelf").iterdir()) == []
