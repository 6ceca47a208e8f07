"""A real server on loopback with the tiny model, whose clips go on step by step as a test lets them; real servers in
processes of their own; real databases."""

from __future__ import annotations

import base64
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
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
import sqlalchemy as sa

from videomar.runtime.pipeline import Pipeline
from videomar.serving.making.film import Film, finish
from videomar.serving.server import Server
from videomar.serving.settings import Limits, Settings
from videomar.serving.site import Site

PROMPT = "a red circle falls"
PATIENCE = 120.0  # seconds, on a machine that is busy with other things


def picture(seed: int) -> np.ndarray:
    """Noise."""
    return np.random.default_rng(seed).integers(0, 256, (16, 24, 3), np.uint8)


def png(seed: int = 0) -> bytes:
    """It, as a file."""
    return cv2.imencode(".png", picture(seed)[..., ::-1])[1].tobytes()


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """(pipeline, seed, picture, film, **options) -> what that pipeline makes by itself, through the same encoder: the
    mp4, or the film that is streamed."""
    place = tmp_path_factory.mktemp("alone")

    def make(pipe: Pipeline, seed: int, image: np.ndarray | None = None, film: bool = False, **options: Any) -> bytes:
        sampling = pipe.config.sampling.but(**options)
        grows, data = Film(sampling.width, sampling.height, sampling.fps), b""
        with pipe.start(picture(seed) if image is None else image, PROMPT, seed=seed, **options) as run:
            for frames in run:
                data += grows.add(frames)
        (place / "film.mp4").write_bytes(data)
        finish(place / "film.mp4", place / "clip.mp4")
        return data if film else (place / "clip.mp4").read_bytes()

    return make


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

    def start(directory: Path | None = None, artifacts: Path = tiny_artifacts, **options: Any) -> Running:
        names = {f.name for f in dataclasses.fields(Limits)}
        limits = Limits(**{"decode_seconds": PATIENCE, **{k: options.pop(k) for k in list(options) if k in names}})
        settings = Settings(directory or tmp_path_factory.mktemp("jobs"), port=0, limits=limits, **options)
        running.append(Running(artifacts, settings))
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
        """An accepted job's id."""
        reference = "data:image/png;base64," + base64.b64encode(png(seed)).decode()
        body = {"prompt": PROMPT, "input_reference": reference, "seed": seed, "num_frames": frames, **more}
        answer = self.http.post("/v1/videos", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def get(self, id: str) -> dict[str, Any]:
        return dict(self.http.get(f"/v1/videos/{id}").json())

    def ended(self, id: str) -> dict[str, Any]:
        """A job once it has ended."""
        return dict(until(lambda: (job := self.get(id))["status"] in ("completed", "failed") and job))

    def content(self, id: str) -> bytes:
        return bytes(self.http.get(f"/v1/videos/{id}/content").content)

    def end(self, kind: int) -> int:
        """Its exit code after a signal."""
        self.process.send_signal(kind)
        code = self.process.wait(PATIENCE)
        self.http.close()
        return code


@pytest.fixture
def start(tiny_artifacts: Path, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """(options) -> a server of the test's directory in a process of its own, killed at the end."""
    processes: list[Process] = []

    def started(*options: str, directory: str = "jobs") -> Process:
        processes.append(Process(tiny_artifacts, tmp_path / directory, *options))
        return processes[-1]

    yield started
    for each in processes:
        if each.process.poll() is None:
            each.end(signal.SIGKILL)


def _postgresql(program: str) -> str | None:
    """Debian keeps the server's programs off the path."""
    newest = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"), key=lambda p: int(p.parts[4]), reverse=True)
    return shutil.which(program) or next(map(str, newest), None)


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """A private PostgreSQL without a port, reached through a socket in its own folder: the address of its database."""
    pytest.importorskip("psycopg", reason="needs the extra `postgres`: pip install 'videomar[postgres]'")
    if _postgresql("initdb") is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    as_root = os.geteuid() == 0  # whom PostgreSQL refuses to serve
    folder = tempfile.mkdtemp(prefix="videomar-pg-")  # short, for a socket's path, and open to the user postgres

    def call(program: str, *arguments: str) -> None:
        command = ["runuser", "-u", "postgres", "--"] if as_root else []
        command += [_postgresql(program) or program, *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0, done.stderr or done.stdout

    if as_root:
        shutil.chown(folder, "postgres")
    call("initdb", "-D", f"{folder}/data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
    options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
    call("pg_ctl", "start", "-w", "-D", f"{folder}/data", "-l", f"{folder}/log", "-o", options)
    yield f"postgresql://postgres@/postgres?host={folder}"
    call("pg_ctl", "stop", "-w", "-m", "immediate", "-D", f"{folder}/data")
    shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an empty database that several servers may share, of either kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/jobs.sqlite3"
        return
    url = request.getfixturevalue("cluster")
    admin = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
    name = f"jobs_{tmp_path.name.lower().replace('-', '_')}"
    with admin.connect() as c:
        c.execute(sa.text(f'CREATE DATABASE "{name}"'))
    yield url.replace("/postgres?", f"/{name}?")
    with admin.connect() as c:
        c.execute(sa.text(f'DROP DATABASE "{name}" WITH (FORCE)'))
    admin.dispose()
