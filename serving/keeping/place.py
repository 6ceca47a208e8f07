"""A directory of inputs and results, a folder a job, named by its id. Knows nothing of the database.

Every name is made here of an id that this server drew: nothing of a request is ever part of a path.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from videomar.artifacts import atomic_write
from videomar.errors import InputError

if TYPE_CHECKING:
    from videomar.serving.keeping.shelf import Shelf

GIVEN, CLIP = "given.npy", "clip.mp4"
_ID = re.compile(r"video_[0-9a-f]{36}")


class Place:
    """Where a server keeps what it was given and what it made; a shelf: where it finds what others keep, too."""

    def __init__(self, directory: Path, shelf: Shelf | None = None) -> None:
        self.directory, self._shelf = directory, shelf
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

    def lock(self, shared: bool = False) -> None:
        """Take the directory until this process ends, for it alone or beside others that share it.

        Raises InputError if another has it otherwise.
        """
        lock = open(self.directory / "lock", "a+b")
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise InputError(
                f"{self.directory} is another server's, expected one of its own; give another --directory, stop it, or "
                "have both share one --database"
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
        return self.directory / "files" / id / kind

    def stream(self, id: str, attempt: int) -> Path:
        """The film that grows, of one of a job's starts: a worker that has lost a job writes beside its successor."""
        return self.file(id, f"stream-{attempt}.mp4")

    def put_given(self, id: str, frames: np.ndarray) -> None:
        """Keep the pictures that a clip continues: [t, h, w, 3] uint8."""
        self.file(id, GIVEN).parent.mkdir(exist_ok=True)
        data = io.BytesIO()
        np.save(data, frames)
        atomic_write(self.file(id, GIVEN), data.getvalue())
        self._share(id, GIVEN)

    def given(self, id: str) -> np.ndarray:
        """They, again."""
        frames: np.ndarray = np.load(self._found(id, GIVEN), allow_pickle=False)
        return frames

    def share_clip(self, id: str) -> None:
        """A clip is finished: let others have it."""
        self._share(id, CLIP)

    def clip(self, id: str) -> Path:
        """A finished clip, brought here if it was made elsewhere; no file is there if nobody has it."""
        return self._found(id, CLIP)

    def _share(self, id: str, kind: str) -> None:
        if self._shelf:
            self._shelf.put(id, self.file(id, kind))

    def _found(self, id: str, kind: str) -> Path:
        file = self.file(id, kind)
        if self._shelf and not file.exists():
            self._shelf.get(id, file)
        return file

    def drop(self, id: str) -> None:
        """Remove all files of a job; who reads one of them reads on."""
        shutil.rmtree(self.file(id, GIVEN).parent, ignore_errors=True)
        if self._shelf:
            self._shelf.drop(id)

    def used(self) -> int:
        """Bytes of all files."""
        return sum(_size(file) for id in self.ids() for file in _entries(self.directory / "files" / id))

    def ids(self) -> set[str]:
        """Of all jobs that have files."""
        return {entry.name for entry in _entries(self.directory / "files") if _ID.fullmatch(entry.name)}


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:  # removed in between
        return []


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        return 0
