"""A directory of inputs and results, a few files a job, named by its id. Knows nothing of the database.

Every name is made here of an id that this server drew: nothing of a request is ever part of a path.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from videomar.artifacts import atomic_write
from videomar.errors import InputError

GIVEN, CLIP, STREAM = "given.npy", "clip.mp4", "stream.mp4"
_ID = re.compile(r"video_[0-9a-f]{36}")


class Place:
    """Where a server keeps what it was given and what it made."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            (directory / "files").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{directory} cannot be made ({error.strerror}), expected a writable directory; give another "
                "--directory"
            ) from None
        self._lock: BinaryIO | None = None

    @property
    def database(self) -> str:
        """The address of this directory's own SQLite."""
        return f"sqlite:///{self.directory.resolve() / 'jobs.sqlite3'}"

    def lock(self) -> None:
        """Take the directory for this process alone, until it ends; raises InputError if another has it."""
        lock = open(self.directory / "lock", "ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise InputError(
                f"{self.directory} is another server's, expected one of its own; give another --directory or stop it"
            ) from None
        self._lock = lock

    def unlock(self) -> None:
        """Let others have the directory."""
        if self._lock:
            self._lock.close()

    def file(self, id: str, kind: str) -> Path:
        """Where a job's file lies, whether it is there or not."""
        if not _ID.fullmatch(id):
            raise ValueError(f"id is {id!r}, expected one of new_id")
        return self.directory / "files" / f"{id}.{kind}"

    def put_given(self, id: str, frames: np.ndarray) -> None:
        """Keep the pictures that a clip continues: [t, h, w, 3] uint8."""
        data = io.BytesIO()
        np.save(data, frames)
        atomic_write(self.file(id, GIVEN), data.getvalue())

    def given(self, id: str) -> np.ndarray:
        """They, again."""
        frames: np.ndarray = np.load(self.file(id, GIVEN), allow_pickle=False)
        return frames

    def drop(self, id: str) -> None:
        """Remove all files of a job; who reads one of them reads on."""
        for kind in (GIVEN, CLIP, STREAM):
            self.file(id, kind).unlink(missing_ok=True)

    def used(self) -> int:
        """Bytes of all files."""
        return sum(entry.stat().st_size for entry in self._entries())

    def ids(self) -> set[str]:
        """Of all jobs that have files."""
        return {entry.name.split(".")[0] for entry in self._entries() if _ID.fullmatch(entry.name.split(".")[0])}

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        with os.scandir(self.directory / "files") as entries:
            for entry in entries:
                try:
                    entry.stat()
                except FileNotFoundError:  # removed in between
                    continue
                yield entry
