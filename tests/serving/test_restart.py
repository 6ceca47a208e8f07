"""Servers that are killed at any moment lose nothing; servers that are asked to stop do so in order."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`: pip install 'videomar[serve]'")

KILLS = int(os.environ.get("VIDEOMAR_TEST_KILLS", "2"))  # each costs a start; the benchmark kills more often
PATIENCE = 180.0


def test_clips_that_a_kill_cut_off_end_after_a_restart_with_the_bytes_of_their_seeds(start: Any) -> None:
    server, rng, ids = start(), random.Random(0), {}
    for kill in range(KILLS):
        for seed in range(10 * kill, 10 * kill + 4):
            ids[seed] = server.create(seed)
        time.sleep(rng.uniform(0, 0.4))  # the moment is what is drawn; nothing waits for it
        server.end(signal.SIGKILL)
        server = start()
    for id in ids.values():
        assert server.ended(id)["status"] == "completed"
    for seed, id in ids.items():  # the same, asked for once more and made without a kill
        again = server.create(seed)
        server.ended(again)
        assert server.content(id) == server.content(again)


def test_sigterm_parks_what_its_grace_does_not_suffice_for_ends_its_watchers_and_exits_with_0(start: Any) -> None:
    server = start("--grace", "0", "--in-flight", "1")
    ids = [server.create(seed, frames=257) for seed in range(2)]
    with server.http.stream("GET", f"/v1/videos/{ids[1]}/events") as answer:
        lines = answer.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        told = [json.loads(line[6:])["status"] for line in lines if line.startswith("data: ")]
    assert told[-1] == "gone"
    assert server.process.wait(PATIENCE) == 0
    again = start()
    for id in ids:
        assert again.ended(id)["status"] == "completed"


def test_sigterm_lets_a_clip_in_flight_finish_within_its_grace(start: Any) -> None:
    server = start("--grace", "120", "--in-flight", "1")
    id = server.create(1, frames=65)
    while server.http.get(f"/v1/videos/{id}").json()["status"] == "queued":
        pass
    assert server.end(signal.SIGTERM) == 0
    again = start()
    assert again.http.get(f"/v1/videos/{id}").json()["status"] == "completed"


def test_a_server_in_its_grace_refuses_new_clips_and_keeps_those_it_has_and_a_second_signal_ends_it(start: Any) -> None:
    server = start("--grace", "120", "--in-flight", "1")
    ids = [server.create(seed, frames=257, mask_steps=6, head_steps=20) for seed in range(3)]
    while server.get(ids[0])["status"] == "queued":
        pass
    server.process.send_signal(signal.SIGTERM)
    while (ready := server.http.get("/ready")).status_code == 200:
        pass
    refused = server.http.post("/v1/videos", json={"prompt": "a red circle falls"})
    assert ready.status_code == refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1 and refused.json()["error"]["code"] == "stopping"
    assert server.get(ids[0])["status"] == "in_progress"
    assert server.end(signal.SIGTERM) == 0
    again = start()
    for id in ids:
        assert again.ended(id)["status"] == "completed"


def test_a_second_server_for_the_same_directory_is_refused_in_one_line(
    start: Any, tiny_artifacts: Path, tmp_path: Path
) -> None:
    start()
    command = [sys.executable, "-m", "videomar", "serve", str(tiny_artifacts), "--directory", str(tmp_path / "jobs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 2 and "another server's" in done.stderr and "Traceback" not in done.stderr
