"""The fleet on Ray Serve, really run: two replicas, one killed in the middle of a clip."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="needs the extra `fleet`: pip install 'videomar[fleet]'")

import ray

from videomar.errors import InputError
from videomar.runtime.pipeline import Pipeline
from videomar.serving.fleet import TRIES, WANTED, busy_replicas, join
from videomar.serving.jobs import IN_PROGRESS
from videomar.serving.keeping.store import Store

PATIENCE = 600.0  # seconds; Ray alone takes minutes to start on a busy machine


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return str(listening.getsockname()[1])


def until(true: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (value := true()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)
    return value


@pytest.fixture
def fleet(start: Callable[..., Any], database: str) -> Any:
    """Two replicas, each with a clip in flight."""
    options = ("--fleet", "2", "--lease", "2", "--in-flight", "1", "--database", database)
    return start(*options, "--port", free_port())


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    opened = Store(database)
    yield opened
    opened.close()


def test_a_killed_replicas_clip_is_made_by_another_and_every_clip_is_the_pipelines(
    fleet: Any, store: Store, tiny_artifacts: Path, alone: Callable[..., bytes]
) -> None:
    lengths = {seed: (129, 257)[seed % 2] for seed in range(8)}
    ids = {seed: fleet.create(seed, frames) for seed, frames in lengths.items()}
    workers: set[str] = set()

    def both_work() -> Any:
        jobs = store.in_state(IN_PROGRESS)
        workers.update(str(job.worker) for job in jobs)
        return len(workers) == 2 and [job for job in jobs if job.step > 3]

    victim = until(both_work)[0]
    os.kill(int(str(victim.worker).rsplit("-", 2)[1]), signal.SIGKILL)
    with Pipeline.open(tiny_artifacts, 1) as pipe:
        for seed, id in ids.items():
            assert until(lambda id=id: (job := store.get(id)) and job.ended and job).error_message is None
            assert fleet.content(id) == alone(pipe, seed, frames=lengths[seed])
    again = store.get(victim.id)
    assert again is not None and again.attempts == 2
    assert fleet.http.get("/").text.startswith("<!doctype html>")
    with fleet.http.stream("GET", f"/v1/videos/{ids[0]}/events") as answer:
        assert 'data: {"status": "completed"' in "".join(answer.iter_lines())
    assert fleet.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(("said", "replicas"), [({"a": 0.0, "b": 0.0}, 0), ({"a": 2.0, "b": 2.6}, 3), ({}, 2)])
def test_replicas_are_as_many_as_the_queue_keeps_busy(said: dict[str, float], replicas: int) -> None:
    context = SimpleNamespace(aggregated_metrics={WANTED: said}, target_num_replicas=2)
    assert busy_replicas(context)[0] == replicas  # type: ignore[arg-type]


@pytest.mark.parametrize(("address", "failing", "tries"), [(None, 2, 3), (None, 9, TRIES), ("127.0.0.1:6379", 9, 1)])
def test_ray_is_started_again_where_it_was_too_slow_and_a_cluster_that_is_not_there_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, address: str | None, failing: int, tries: int
) -> None:
    tried, ended = [], []

    def init(named: str, **options: object) -> None:
        tried.append(named)
        if len(tried) <= failing:
            raise Exception("the current node timed out during startup")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(0))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    if failing < tries:
        join()
    else:
        with pytest.raises(InputError, match=r"timed out during startup.*session_latest"):
            join()
    assert tried == [address or "local"] * tries and len(ended) == min(failing, tries)
