"""The server against the pipeline alone: what it adds, what it bears, what it loses (nothing).

    python benchmarks/serve.py ARTIFACTS [--parts overhead light load kills fleet] [--json FILE] [--small] > FILE.md

ARTIFACTS are those of the demo model. Standard output is a section for benchmarks/README.md. Servers are processes of
their own, as `videomar serve` starts them, with one thread unless said otherwise; clips that are compared byte for byte
are made by the pipeline, through the same encoder. --small: a few clips each, to see that it runs; its figures mean
nothing.

Two cores, the machine's only ones, take about six minutes.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import random
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from videomar.demo.world import render, sample_scene
from videomar.parity.environment import processor
from videomar.runtime.pipeline import Pipeline
from videomar.serving.jobs import Job
from videomar.serving.keeping.place import Place
from videomar.serving.keeping.store import Store
from videomar.serving.making.film import Film, finish
from videomar.serving.making.order import entering

Rows = list[dict[str, Any]]
PROMPT = "a red circle falls"
QUICK = {"mask_steps": 4, "head_steps": 8}  # of clips of which there are many
HALF = {"mask_steps": 12}  # of the fleet's
LENGTHS = (9, 17, 33)  # frames
MIB = 2**20


def picture(seed: int) -> np.ndarray:
    """A scene of the demo's world: [64, 64, 3] uint8."""
    return np.asarray(render(sample_scene(np.random.default_rng(seed)), 1)[0])


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    pairs: int = 15
    warm: int = 2
    seconds: float = 1.5
    clients: int = 20
    each: int = 10
    kills: int = 20
    shared: int = 40


SMALL = Sizes(pairs=2, warm=1, seconds=0.2, clients=3, each=2, kills=2, shared=4)


class Server:
    """`videomar serve` in a process of its own."""

    def __init__(self, artifacts: Path, directory: Path, *options: str, threads: int = 1) -> None:
        self.directory = directory
        command = [sys.executable, "-m", "videomar", "serve", str(artifacts), "--directory", str(directory)]
        command += ["--port", "0", "--threads", str(threads), "--max-queue", "1000", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        for line in self.process.stdout:
            if "the page is at" in line:
                self.port = int(line.split()[4].split(":")[2].split("/")[0])
                return
        raise SystemExit("the server has ended at its start")

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)

    def ask(self, method: str, path: str, body: Any = None, key: str | None = None) -> bytes:
        """An answer's body; ends the benchmark where it is none of success."""
        connection = self.connect()
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if answer.status != 200:
            raise SystemExit(f"{method} {path}: {answer.status} {data[:300]!r}")
        return data

    def get(self, path: str, key: str | None = None) -> Any:
        return json.loads(self.ask("GET", path, key=key))

    def memory(self, key: str | None = None) -> float:
        """Resident bytes."""
        lines = self.ask("GET", "/metrics", key=key).decode().splitlines()
        return float(next(line for line in lines if line.startswith("videomar_memory_bytes ")).split()[1])

    def end(self, kind: int = signal.SIGTERM) -> None:
        self.process.send_signal(kind)
        self.process.wait(120)


@contextmanager
def serving(artifacts: Path, *options: str, threads: int = 1) -> Iterator[Server]:
    """A server of a fresh directory."""
    with tempfile.TemporaryDirectory(prefix="videomar-bench-") as place:
        server = Server(artifacts, Path(place), *options, threads=threads)
        try:
            yield server
        finally:
            server.end()


def asked(seed: int, **options: Any) -> dict[str, Any]:
    """The body of a request for a clip."""
    png = cv2.imencode(".png", picture(seed)[..., ::-1])[1].tobytes()
    reference = "data:image/png;base64," + base64.b64encode(png).decode()
    return {"prompt": PROMPT, "input_reference": reference, "seed": seed, **options}


def alone(pipe: Pipeline, seed: int, **options: Any) -> tuple[bytes, float, float]:
    """The pipeline's own mp4; seconds to the first fragment and to the file."""
    began, first = time.perf_counter(), 0.0
    sampling = pipe.config.sampling.but(**options)
    film = Film(sampling.width, sampling.height, sampling.fps)
    with tempfile.TemporaryDirectory() as place:
        stream, clip = Path(place) / "stream.mp4", Path(place) / "clip.mp4"
        with pipe.start(picture(seed), PROMPT, seed=seed, **options) as run, open(stream, "wb", buffering=0) as file:
            while not run.finished:
                if (frames := run.advance()) is not None:
                    file.write(film.add(frames))
                    first = first or time.perf_counter() - began
        finish(stream, clip)
        took = time.perf_counter() - began
        return clip.read_bytes(), first, took


def until(true: Callable[[], bool]) -> None:
    while not true():
        time.sleep(0.02)


def overhead(artifacts: Path, sizes: Sizes) -> Rows:
    """The model's own clip, asked for, watched to its end and fetched, against the pipeline, in turn; medians, ms.

    Aims: 3 % of a clip's time, 15 ms to the first fragment.
    """
    rows = []
    for threads in (1, 2):
        with serving(artifacts, threads=threads) as server, Pipeline.open(artifacts, threads) as pipe:
            times = np.array([pair(server, pipe, seed) for seed in range(sizes.warm + sizes.pairs)])[sizes.warm :]
        first, whole, first_served, whole_served = 1000 * np.median(times, axis=0)
        rows.append(
            {
                "threads": threads,
                "clips": sizes.pairs,
                "first fragment alone": round(first, 1),
                "served": round(first_served, 1),
                "more": round(first_served - first, 1),
                "clip alone": round(whole, 1),
                "clip served": round(whole_served, 1),
                "more, of a clip": f"{100 * (whole_served / whole - 1):.1f} %",
            }
        )
    return rows


def pair(server: Server, pipe: Pipeline, seed: int) -> tuple[float, float, float, float]:
    """Seconds to the first fragment and to the clip, by the pipeline alone and by way of the server."""
    mine, first, whole = alone(pipe, seed)
    body, began = asked(seed), time.perf_counter()
    id = json.loads(server.ask("POST", "/v1/videos", body))["id"]
    connection = server.connect()
    connection.request("GET", f"/v1/videos/{id}/stream")
    answer, data = connection.getresponse(), b""
    while b"mdat" not in data:
        data += answer.read1(1 << 16)
    first_served = time.perf_counter() - began
    answer.read()
    connection.close()
    theirs = server.ask("GET", f"/v1/videos/{id}/content")
    whole_served = time.perf_counter() - began
    if mine != theirs:
        raise SystemExit(f"seed {seed}: the server's clip is not the pipeline's")
    return first, whole, first_served, whole_served


def light(artifacts: Path, sizes: Sizes) -> Rows:
    """Requests a second on the endpoints that make nothing, of an idle server; the client is Python, beside it."""
    rows = []
    with serving(artifacts) as server:
        made = [json.loads(server.ask("POST", "/v1/videos", asked(seed, **QUICK)))["id"] for seed in range(10)]
        until(lambda: server.get(f"/v1/videos/{made[-1]}")["status"] == "completed")
        for path in ("/health", "/v1/models", f"/v1/videos/{made[0]}", "/v1/videos?limit=10", "/metrics",
                     f"/v1/videos/{made[0]}/content"):  # fmt: skip
            row: dict[str, Any] = {"endpoint": path.replace(made[0], "{id}")}
            for connections in (1, 8):
                times: list[float] = []
                end = time.perf_counter() + sizes.seconds
                with ThreadPoolExecutor(connections) as pool:
                    for each in pool.map(lambda _, p=path, e=end: requests(server, p, e), range(connections)):
                        times += each
                row[f"{connections} connection{'s' * (connections > 1)}, a second"] = round(len(times) / sizes.seconds)
                row[f"p99 of {connections}, ms"] = round(1000 * float(np.percentile(times, 99)), 1)
            rows.append(row)
    return rows


def requests(server: Server, path: str, end: float) -> list[float]:
    connection, times = server.connect(), []
    while (began := time.perf_counter()) < end:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        times.append(time.perf_counter() - began)
        if answer.status != 200:
            raise SystemExit(f"{path}: {answer.status}")
    connection.close()
    return times


def options_of(seed: int) -> dict[str, Any]:
    return {"num_frames": LENGTHS[seed % len(LENGTHS)], **QUICK}


_EXPECTED: dict[int, bytes] = {}


def expected(artifacts: Path, seeds: Iterable[int]) -> dict[int, bytes]:
    """What the pipeline makes of `options_of` these seeds, each once, in two processes."""
    new = [seed for seed in seeds if seed not in _EXPECTED]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for part in pool.map(make, [artifacts] * 2, (new[::2], new[1::2])):
            _EXPECTED.update(part)
    return _EXPECTED


def make(artifacts: Path, seeds: list[int]) -> dict[int, bytes]:
    with Pipeline.open(artifacts, 1) as pipe:
        return {seed: alone(pipe, seed, frames=LENGTHS[seed % len(LENGTHS)], **QUICK)[0] for seed in seeds}


def load(artifacts: Path, sizes: Sizes) -> Rows:
    """Many clients at once, each with a key of its own, clips of 9, 17 and 33 frames at 4 mask and 8 head steps.

    Every clip is compared, the order is replayed from the database. Aims: none lost, none mixed up, the order kept,
    memory grows by less than 1 % over the last three quarters.
    """
    count = sizes.clients * sizes.each
    keys = [f"client-{client:03d}-of-the-benchmark" for client in range(sizes.clients)]
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as file:
        file.write("\n".join(keys))
        file.flush()
        with serving(artifacts, "--api-key-file", file.name) as server:
            ids: dict[int, str] = {}

            def client(number: int) -> None:
                for seed in range(number, count, sizes.clients):
                    answer = server.ask("POST", "/v1/videos", asked(seed, **options_of(seed)), keys[number])
                    ids[seed] = json.loads(answer)["id"]

            began = time.perf_counter()
            threads = [threading.Thread(target=client, args=(number,)) for number in range(sizes.clients)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            store = Store(Place(server.directory).database)
            memory: list[tuple[int, float]] = []  # clips completed, resident bytes
            while (done := store.counts()["completed"]) < count and not store.counts()["failed"]:
                memory.append((done, server.memory(keys[0])))
                time.sleep(0.1)
            took = time.perf_counter() - began
            memory.append((done, server.memory(keys[0])))
            jobs = store.in_state("completed")
            data = {seed: server.ask("GET", f"/v1/videos/{id}/content", key=keys[0]) for seed, id in ids.items()}
            store.close()
    early = [size for done, size in memory if count // 4 <= done < count // 4 + max(5, count // 20)] or [memory[0][1]]
    late = [size for done, size in memory if done >= count - max(5, count // 20)]
    made = expected(artifacts, ids)
    right = sum(data[seed] == made[seed] for seed in ids)
    waits = {c: statistics.mean(j.started_at - j.created_at for j in jobs if j.client == c and j.started_at)
             for c in {job.client for job in jobs}}  # fmt: skip
    return [
        {
            "clips": count,
            "accepted": len(ids),
            "completed": len(jobs),
            "equal to the pipeline's": right,
            "begun in the documented order": f"{in_order(jobs)} of {len(jobs)}",
            "a client's mean wait, s": f"{min(waits.values()):.1f} to {max(waits.values()):.1f}",
            f"memory, clips {count // 4} to {count}, MiB": f"{min(early) / MIB:.1f} to {min(late) / MIB:.1f}",
            "growth": f"{100 * (min(late) / min(early) - 1):+.2f} %",
            "clips a second": round(count / took, 2),
        }
    ]


def in_order(jobs: list[Job]) -> int:
    """How many jobs were begun when the documented rule would have begun them, replayed from the database's times."""
    right = 0
    for job in jobs:
        now = job.started_at or 0.0
        waiting = [j for j in jobs if j.created_at <= now <= (j.started_at or 0.0)]
        busy = [j for j in jobs if (j.started_at or 0.0) < now < (j.completed_at or 0.0)]
        right += entering(waiting, busy)[0].id == job.id
    return right


def kills(artifacts: Path, sizes: Sizes) -> Rows:
    """SIGKILL at a random moment within half a second of three more clips of those, and a start, so many times.

    Aim: every accepted clip is made, and is the pipeline's.
    """
    rng, ids = random.Random(0), {}
    with tempfile.TemporaryDirectory(prefix="videomar-bench-") as place:
        server = Server(artifacts, Path(place), "--max-per-client", "1000")
        for kill in range(sizes.kills):
            for seed in range(3 * kill, 3 * kill + 3):
                ids[seed] = json.loads(server.ask("POST", "/v1/videos", asked(seed, **options_of(seed))))["id"]
            time.sleep(rng.uniform(0, 0.5))
            server.end(signal.SIGKILL)
            server = Server(artifacts, Path(place), "--max-per-client", "1000")
        statuses = []
        for id in ids.values():
            until(lambda id=id: server.get(f"/v1/videos/{id}")["status"] in ("completed", "failed"))
            statuses.append(server.get(f"/v1/videos/{id}")["status"])
        made = expected(artifacts, ids)
        right = sum(server.ask("GET", f"/v1/videos/{id}/content") == made[seed] for seed, id in ids.items())
        store = Store(Place(server.directory).database)
        anew = sum(job.attempts > 1 for job in store.in_state("completed"))
        store.close()
        server.end()
    return [
        {
            "kills": sizes.kills,
            "accepted": len(ids),
            "completed": statuses.count("completed"),
            "cut off and begun anew": anew,
            "equal to the pipeline's": right,
        }
    ]


def fleet(artifacts: Path, sizes: Sizes) -> Rows:
    """Server processes of one thread each that share a queue, and the model's own clip at 12 mask steps."""
    rows: Rows = []
    for count in (1, 2):
        with tempfile.TemporaryDirectory(prefix="videomar-bench-") as place:
            shared = ("--database", f"sqlite:///{place}/jobs.sqlite3", "--in-flight", "1", "--max-per-client", "1000")
            servers = [Server(artifacts, Path(place), *shared) for _ in range(count)]
            warm = [json.loads(s.ask("POST", "/v1/videos", asked(0, **HALF)))["id"] for s in servers for _ in range(2)]
            until(lambda w=warm, s=servers: all(s[0].get(f"/v1/videos/{id}")["status"] == "completed" for id in w))
            began = time.perf_counter()
            for seed in range(sizes.shared):
                servers[seed % count].ask("POST", "/v1/videos", asked(seed, **HALF))
            store = Store(f"sqlite:///{place}/jobs.sqlite3")
            total = sizes.shared + len(warm)
            until(lambda s=store, n=total: s.counts()["completed"] == n)
            took = time.perf_counter() - began
            store.close()
            for server in servers:
                server.end()
        rows.append({"servers": count, "clips": sizes.shared, "clips a second": round(sizes.shared / took, 2)})
        rows[-1]["against one"] = f"{rows[-1]['clips a second'] / rows[0]['clips a second']:.2f}x"
    return rows


PARTS: dict[str, Callable[[Path, Sizes], Rows]] = {
    "overhead": overhead,
    "light": light,
    "load": load,
    "kills": kills,
    "fleet": fleet,
}


def table(rows: Rows) -> str:
    """Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(v) for v in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def said(part: Callable[..., Rows]) -> str:
    """What a part did, as its docstring has it."""
    return " ".join((part.__doc__ or "").split())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("artifacts", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    cores, today = len(os.sched_getaffinity(0)), datetime.now(timezone.utc).strftime("%Y-%m-%d")
    print("## The server against the pipeline alone\n")
    print(f"```sh\npython benchmarks/serve.py {shlex.join(sys.argv[1:])}\n```\n")
    print(f"{today}, {cores} core{'s' * (cores > 1)} of {processor()}.", flush=True)
    found: dict[str, Rows] = {}
    for part in args.parts:
        began = time.perf_counter()
        found[part] = PARTS[part](args.artifacts, SMALL if args.small else Sizes())
        print(f"{part} took {time.perf_counter() - began:.0f} s", file=sys.stderr)
        print(f"\n**{part}**: {said(PARTS[part])}\n\n{table(found[part])}", flush=True)
        if args.json:
            args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
