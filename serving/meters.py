"""What is counted for Prometheus. One registry a server; knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from videomar.runtime.probes import resident
from videomar.runtime.system import System

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)


class Meters:
    """The server's figures."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.queue = Gauge("videomar_queue_length", "Jobs that wait.", registry=registry)
        self.in_flight = Gauge("videomar_clips_in_flight", "Clips that are being made here.", registry=registry)
        self.clips = Counter("videomar_clips", "Clips by outcome.", ["outcome"], registry=registry)
        self.first = Histogram(
            "videomar_first_frame_seconds",
            "From a clip's start to its first generated frame.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.whole = Histogram(
            "videomar_clip_seconds", "From a clip's start to its end.", buckets=_SECONDS, registry=registry
        )
        self.waited = Histogram(
            "videomar_queue_seconds",
            "From a job's acceptance to its clip's start.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.stages = Counter(
            "videomar_stage_seconds", "Time of finished clips by stage.", ["stage"], registry=registry
        )
        self.steps = Counter("videomar_steps", "Steps that have run; its rate is steps a second.", registry=registry)
        self.requests = Counter("videomar_requests", "Answers by status.", ["status"], registry=registry)
        Gauge("videomar_memory_bytes", "Resident memory.", registry=registry).set_function(_resident)
        for outcome in ("completed", "failed", "cancelled", "parked"):
            self.clips.labels(outcome)

    def text(self, waiting: Callable[[], int]) -> bytes:
        """All figures in Prometheus' form."""
        self.queue.set(waiting())
        return bytes(generate_latest(self.registry))


def _resident() -> float:
    return float(resident(System()))
