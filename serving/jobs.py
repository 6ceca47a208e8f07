"""A job: one clip that somebody asked for, and how far it is. Frozen data; knows nothing of where it is kept."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

QUEUED, IN_PROGRESS, COMPLETED, FAILED = "queued", "in_progress", "completed", "failed"
ENDED = (COMPLETED, FAILED)


def new_id() -> str:
    """Of a job: 144 random bits, so that nobody guesses another's."""
    return f"video_{secrets.token_hex(18)}"


@dataclass(frozen=True)
class Job:
    """Everything that is kept of a job besides its files."""

    id: str
    client: str  # who asked: of a key or an address
    prompt: str
    sampling: str  # SamplingConfig as JSON, every option resolved
    seed: int
    fps: float
    frames: int  # pixel frames
    width: int
    height: int
    steps: int
    given: int  # of them, those that it continues
    model: str
    created_at: float  # seconds since 1970, as all times here
    status: str = QUEUED
    step: int = 0  # steps that have run
    remix_of: str | None = None
    started_at: float | None = None
    completed_at: float | None = None
    error_code: str | None = None
    error_message: str | None = None
    worker: str | None = None
    lease_until: float | None = None
    attempts: int = 0  # starts so far
    parked: int = 0  # of them, those that ended in order
    number: int = 0  # in order of acceptance

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in ENDED
