"""Servers that are killed at any moment lose nothing; servers that are asked to stop do so in order."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

httpx = pytest.importorskip("httpx2", reason="needs the extra `test`")
pytest.importorskip("fastapi", reason="needs the extra `serve`: pip install 'videomar[serve]'")

PROMPT = "a red circle falls"
KILLS = int(os.environ.get("VIDEOMAR_TEST_KILLS", "2"))  # each costs a start; the benchmark kills more often
PATIENCE = 180.0


def reference(seed: int) -> str:
    picture = np.random.default_rng(seed).integers(0, 256, (16, 24, 3), np.uint8)
    return "data:image/png;base64," + base64.b64encode(cv2.imencode(".png", picture)[1].tobytes()).decode()


class Process:
    """`videomar serve` as a person starts it."""

    def __init__(self, artifacts: Path, directory: Path, *options: str) -> None:
        command = [sys.executable, "-m", "videomar", "serve", str(artifacts), "--directory", str(directory)]
        command += ["--port", "0", "--threads", "1", "--max-per-client", "100", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        for line in self.process.stdout:
            if "the page is at" in line:
                self.http = httpx.Client(base_url=line.split()[4].removesuffix("/,"), timeout=PATIENCE)
                return
        raise AssertionError(f"the server ended with {self.process.wait()}")

    def create(self, seed: int, frames: int = 17, **more: Any) -> str:
        body = {"prompt": PROMPT, "input_reference": reference(seed), "seed": seed, "num_frames": frames, **more}
        answer = self.http.post("/v1/videos", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def ended(self, id: str) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while (job := self.http.get(f"/v1/videos/{id}").json())["status"] not in ("completed", "failed"):
            assert time.monotonic() < end, job
            time.sleep(0.02)
        return dict(job)

    def content(self, id: str) -> bytes:
        return bytes(self.http.get(f"/v1/videos/{id}/content").content)

    def end(self, kind: int) -> int:
        self.process.send_signal(kind)
        code = self.process.wait(PATIENCE)
        self.http.close()
        return code


@pytest.fixture
def start(tiny_artifacts: Path, tmp_path: Path) -> Iterator[Any]:
    processes: list[Process] = []

    def started(*options: str) -> Process:
        processes.append(Process(tiny_artifacts, tmp_path / "jobs", *options))
        return processes[-1]

    yield started
    for each in processes:
        if each.process.poll() is None:
            each.end(signal.SIGKILL)


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


def test_a_second_server_for_the_same_directory_is_refused_in_one_line(
    start: Any, tiny_artifacts: Path, tmp_path: Path
) -> None:
    start()
    command = [sys.executable, "-m", "videomar", "serve", str(tiny_artifacts), "--directory", str(tmp_path / "jobs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 2 and "another server's" in done.stderr and "Traceback" not in done.stderr
