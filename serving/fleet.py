"""The fleet: the application of `videomar serve` as a Ray Serve deployment, every replica a server of one queue.

Ray starts, watches, replaces and counts replicas and carries requests to any of them. It keeps nothing: jobs are in the
database, clips in the directory, both shared. A replica's `__del__` is Ray's word to end in order.
"""

from __future__ import annotations

import math
import os
import shlex
import signal
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingContext

from videomar.artifacts import read_manifest
from videomar.errors import InputError
from videomar.options import parser
from videomar.serving.api.app import make_app
from videomar.serving.command import Given, given_of
from videomar.serving.jobs import IN_PROGRESS, QUEUED
from videomar.serving.keeping.place import Place
from videomar.serving.keeping.store import Store
from videomar.serving.site import Site

NAME = "videomar"
DRAIN = 15.0  # seconds beyond the grace in which a replica has to be gone
WANTED = "wanted"  # the figure by which replicas say how many of them there should be
TRIES = 3  # to start Ray on this machine
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it would tell its makers
    "RAY_worker_niceness": "0",  # replicas are what the machine is there for; Ray would put them behind everything
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # five seconds do not suffice on a machine that is busy
}


def application(given: Given, least: int, most: int, gpus: float = 0.0) -> serve.Application:
    """The deployment; between `least` and `most` replicas, as many as the jobs that wait keep busy.

    gpus: of each replica; without one, a replica takes as many cores as it has threads.
    """
    settings = given.settings
    shared = replace(
        given,
        artifacts=given.artifacts.resolve(),
        settings=replace(settings, directory=settings.directory.resolve()),
        database=_database(given),
    )

    def app() -> FastAPI:
        site = shared.open()
        application = make_app(site)
        application.state.site = site
        return application

    class Replica:
        """What Ray asks a server."""

        app: FastAPI  # Ray's wrapper has it

        @property
        def _site(self) -> Site:
            return self.app.state.site  # type: ignore[no-any-return]

        def check_health(self) -> None:
            """Raise once it works no more; Ray starts another one then."""
            if not self._site.maker.alive:
                raise RuntimeError("the maker of clips has stopped")

        def record_autoscaling_stats(self) -> dict[str, float]:
            """How many replicas the jobs keep busy."""
            counts = self._site.store.counts()
            return {WANTED: math.ceil((counts[QUEUED] + counts[IN_PROGRESS]) / settings.in_flight)}

    options: dict[str, Any] = {"num_replicas": least}
    if least < most:
        options = {
            "autoscaling_config": {
                "min_replicas": least,
                "max_replicas": most,
                "policy": {"policy_function": busy_replicas},
                "upscale_delay_s": 5.0,
                "downscale_delay_s": 120.0,
            }
        }
    deployment = serve.deployment(
        name=NAME,
        max_ongoing_requests=1000,  # streams and events of those who watch, not clips
        health_check_period_s=5.0,
        graceful_shutdown_timeout_s=settings.grace + DRAIN,
        graceful_shutdown_wait_loop_s=1.0,
        ray_actor_options={"num_gpus": gpus, "num_cpus": 0 if gpus else given.threads or 1},
        **options,
    )
    return deployment(serve.ingress(app)(Replica)).bind()


def _database(given: Given) -> str:
    return given.database or Place(given.settings.directory).database


def busy_replicas(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """As many replicas as any of them says that the queue keeps busy; Ray holds it within its bounds."""
    said = (context.aggregated_metrics or {}).get(WANTED, {}).values()
    return math.ceil(max(said, default=context.target_num_replicas)), {}


def app(args: Mapping[str, str]) -> serve.Application:
    """For a Serve config: `import_path: videomar.serving.fleet:app`, `args: {serve: OPTIONS OF videomar serve}`."""
    commands: Mapping[str, Any] = defaultdict(lambda: lambda _: 0)
    parsed = parser(commands).parse_args(["serve", *shlex.split(args["serve"])])
    return application(given_of(parsed), *(parsed.fleet or (1, 1)), gpus=parsed.replica_gpus)


def _init(address: str) -> None:
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    ray.init(address, log_to_driver=False, configure_logging=False, **own)


def join() -> None:
    """Be part of the cluster that RAY_ADDRESS names, or start Ray on this machine; raises InputError.

    Ray gives its own processes 15 seconds, which a busy machine exceeds while it still reads their files; those are in
    memory at the next try.
    """
    # Without a name Ray would look for whatever `ray start` has left behind on this machine, dead or alive.
    address = os.environ.get("RAY_ADDRESS", "local")
    tries = TRIES if address == "local" else 1
    for left in reversed(range(tries)):
        try:
            _init(address)
            return
        except Exception as error:  # Ray has no kind of its own for this
            ray.shutdown()
            if not left:
                raise InputError(
                    f"Ray did not start ({error}), expected it to at one of {tries} tries; its logs, in "
                    "/tmp/ray/session_latest/logs, say why"
                ) from None


def run(given: Given, least: int, most: int, gpus: float) -> int:
    """Serve until a signal, on the cluster that RAY_ADDRESS names or on this machine alone."""
    settings, over = given.settings, threading.Event()
    read_manifest(given.artifacts)  # what cannot be is told here, in one line, and not by a replica
    Store(_database(given)).close()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    join()
    try:
        try:
            serve.start(http_options={"host": settings.host, "port": settings.port})
            serve.run(application(given, least, most, gpus), name=NAME, route_prefix="/")
        except (RuntimeError, TimeoutError, RayError) as error:
            raise InputError(
                f"Ray Serve did not start {least} replicas ({error}), expected them to run; Ray's logs, in "
                "/tmp/ray/session_latest/logs/serve, say why"
            ) from None
        shown = f"http://[{settings.host}]" if ":" in settings.host else f"http://{settings.host}"
        print(f"the page is at {shown}:{settings.port}/, the API at {shown}:{settings.port}/v1", flush=True)
        for kind in (signal.SIGINT, signal.SIGTERM):
            signal.signal(kind, lambda *_: over.set())
        over.wait()
    finally:
        serve.shutdown()
        ray.shutdown()
    return 0
