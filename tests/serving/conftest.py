"""A real server on loopback with the tiny model, whose clips go on step by step as a test lets them."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`: pip install 'videomar[serve]'")

import dataclasses

import httpx2 as httpx

from videomar.runtime.pipeline import Pipeline
from videomar.serving.server import Server
from videomar.serving.settings import Limits, Settings
from videomar.serving.site import Site

PROMPT = "a red circle falls"
PATIENCE = 120.0  # seconds, on a machine that is busy with other things


def png(seed: int = 0, height: int = 16, width: int = 24) -> bytes:
    """A picture of noise."""
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode(".png", picture[..., ::-1])[1].tobytes()


def until(true: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """What it gives once that is true."""
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)
    return value


class Gate:
    """Lets steps through: all, or as many as a test says."""

    def __init__(self) -> None:
        self._steps = threading.Semaphore(0)
        self._open = threading.Event()
        self._open.set()

    def shut(self) -> None:
        self._open.clear()

    def let(self, steps: int) -> None:
        self._steps.release(steps)

    def open(self) -> None:
        self._open.set()
        self._steps.release(1000)
        while self._steps.acquire(blocking=False):
            pass

    def wait(self) -> None:
        while not self._open.is_set():
            if self._steps.acquire(timeout=0.02):
                return


class GatedPipeline:
    """A pipeline whose clips ask a gate before each step."""

    def __init__(self, pipe: Pipeline, gate: Gate) -> None:
        self._pipe, self._gate = pipe, gate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)

    def start(self, *args: Any, **options: Any) -> Any:
        run, gate = self._pipe.start(*args, **options), self._gate
        advance = run.advance

        def gated() -> Any:
            gate.wait()
            return advance()

        run.advance = gated  # type: ignore[method-assign]
        return run


class Running:
    """A server in a thread of this process."""

    def __init__(self, artifacts: Path, settings: Settings) -> None:
        self.gate = Gate()
        self.site = Site.open(artifacts, settings, threads=1)
        self.site.pipe = self.site.maker._pipe = GatedPipeline(self.site.pipe, self.gate)  # type: ignore[assignment]
        self._socket = socket.create_server((settings.host, 0))
        self.server = Server(self.site)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=lambda: self.server.run(sockets=[self._socket]))
        self._thread.start()
        until(lambda: self.server.started)
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE)

    def create(self, seed: int = 0, prompt: str = PROMPT, **fields: Any) -> str:
        """An accepted job's id."""
        answer = self.http.post(
            "/v1/videos",
            data={"prompt": prompt, "seed": str(seed)} | {name: str(value) for name, value in fields.items()},
            files={"input_reference": ("start.png", io.BytesIO(png(seed)), "image/png")},
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def get(self, id: str) -> dict[str, Any]:
        return dict(self.http.get(f"/v1/videos/{id}").json())

    def ended(self, id: str) -> dict[str, Any]:
        """A job once it has ended."""
        return dict(until(lambda: (job := self.get(id))["status"] in ("completed", "failed") and job))

    def stop(self) -> None:
        self.gate.open()
        self.site.maker.stop(0)
        self.server.should_exit = True
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self.http.close()


@pytest.fixture(scope="module")
def serve(tiny_artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Running]]:
    """(limits and settings) -> a server, stopped when the module's tests are over."""
    running = []

    def start(directory: Path | None = None, **options: Any) -> Running:
        names = {f.name for f in dataclasses.fields(Limits)}
        limits = Limits(**{k: options.pop(k) for k in list(options) if k in names})
        settings = Settings(directory or tmp_path_factory.mktemp("jobs"), port=0, limits=limits, **options)
        running.append(Running(tiny_artifacts, settings))
        return running[-1]

    yield start
    for each in running:
        each.stop()


@pytest.fixture(scope="module")
def server(serve: Callable[..., Running]) -> Running:
    """One with the usual settings, for all tests of a module."""
    return serve(client=1000, queue=1000)


@pytest.fixture(autouse=True)
def every_gate_is_open_again(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        request.getfixturevalue("server").gate.open()
