"""What a server is told at its start: places, limits, times. Frozen data; knows nothing of what heeds it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from videomar.errors import InputError
from videomar.files import regular

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What one request and one client may ask for; beyond it they are refused, never cut."""

    upload: int = 32 * MIB  # bytes of a request's body
    pixels: int = 33_177_600  # of an uploaded picture, 7680 x 4320
    frames: int = 257  # pixel frames of a clip
    steps: int = 20_000  # of a clip, all frames together
    head_steps: int = 1000
    size: int = 4096  # pixels, either side of a clip
    prompt: int = 4000  # characters
    queue: int = 100  # jobs that wait
    client: int = 50  # of them and of those in progress, one client's
    decode_seconds: float = 20.0  # to decode an upload
    body_seconds: float = 120.0  # for a request's whole body to arrive
    stalled_seconds: float = 120.0  # that a reader may take nothing of a stream
    attempts: int = 10  # starts of a job whose server dies under it


@dataclass(frozen=True)
class Settings:
    """One server. Raises InputError for an address that would be open to all without a key."""

    directory: Path  # of jobs, inputs and results
    host: str = "127.0.0.1"
    port: int = 8000
    in_flight: int = 2
    keys: tuple[str, ...] = ()
    open_to_all: bool = False
    origins: tuple[str, ...] = ()  # of pages elsewhere that may call
    keep: float | None = 24 * 3600.0  # seconds that a finished clip stays; None: for ever
    max_disk: int | None = None  # bytes of inputs and results
    memory: int | None = None  # bytes that all clips together may take; None: what is free
    grace: float = 30.0  # seconds for clips in flight to finish once the server is told to stop
    lease: float = 15.0  # seconds after which a silent worker's jobs are another's
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.in_flight < 1:
            raise InputError(f"clips in flight is {self.in_flight}, expected at least 1; change --in-flight")
        if self.host not in LOOPBACK and not self.keys and not self.open_to_all:
            raise InputError(
                f"the address is {self.host} and there are no keys, expected a key for all who can reach it; give "
                "--api-key-file, or --no-api-key where everybody may use it"
            )


def read_keys(file: Path) -> tuple[str, ...]:
    """The keys of a file, one a line, lines of # apart; raises InputError for none or a short one."""
    try:
        lines = [line.strip() for line in regular(file).read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read ({error}), expected API keys, one a line; check the path") from None
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise InputError(f"{file} holds no key, expected one a line; write one")
    for key in keys:
        if len(key) < 16 or not key.isascii() or " " in key:
            raise InputError(
                f"{file} holds a key of {len(key)} characters, expected at least 16, ASCII and without spaces; take "
                "one of `openssl rand -hex 24`"
            )
    return keys
