"""Videos of a folder, cut into windows of so many frames and kept on disk as whatever is made of each.

A cache is for one length, size, rate and maker; an interrupted one is gone on with, and what has changed since, or is
not what was written, is made again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from videomar.artifacts import atomic_write
from videomar.console import log
from videomar.errors import InputError
from videomar.progress import Progress
from videomar.runtime.recording import Recording
from videomar.runtime.resize import fit
from videomar.training.recipe import Stage
from videomar.unfinished import folder

HELD_OUT = 0.1  # share of clips
MOST_WINDOWS = 64  # of one clip
REMEMBER = 10  # seconds between two writes of the manifest: what it does not name is made again


@dataclass(frozen=True)
class Windows:
    """What makes one cache."""

    clips: Path
    cache: Path
    fps: float
    fit: str  # how pictures of another shape become the stage's
    kind: str  # of what is made: names the cache with length, size and rate
    make: Callable[[np.ndarray], np.ndarray]  # [frames, h, w, 3] uint8 -> an array

    def fill(self, names: list[str], stage: Stage) -> None:
        """Make what is missing."""
        place = self._place(stage)
        place.mkdir(parents=True, exist_ok=True)
        manifest = place / "manifest.json"
        known, short, written = _known(manifest), 0, time.monotonic()
        try:
            with Progress(len(names)) as progress:
                for name in names:
                    stat = (self.clips / name).stat()
                    file, source = place / _file(name), [stat.st_size, stat.st_mtime_ns]
                    if known.get(name, [])[:2] != source or not file.is_file() or _sha256(file) != known[name][2]:
                        self._write(file, name, stage)
                        known[name] = [*source, _sha256(file)]
                    short += not len(np.load(file, mmap_mode="r"))
                    progress.step(f"reading clips as {stage}")
                    if time.monotonic() - written > REMEMBER:
                        _remember(manifest, known)
                        written = time.monotonic()
        finally:
            _remember(manifest, known)
        if short:
            log.warning(f"{short} of {len(names)} clips are shorter than {stage.frames} frames and left out")

    def read(self, names: list[str], stage: Stage) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Windows by clip, mapped from disk: of those to train on, and of those held out.

        Raises InputError when fewer than two clips are long enough.
        """
        files = {name: self._place(stage) / _file(name) for name in names}
        arrays = {name: np.load(file, mmap_mode="r") for name, file in files.items()}
        arrays = {name: array for name, array in arrays.items() if len(array)}
        if len(arrays) < 2:
            raise InputError(
                f"{len(arrays)} clips of {self.clips} hold {stage.frames} frames at {self.fps:g} a second, expected at "
                "least 2; give longer clips or stages of fewer frames"
            )
        kept = held_out(list(arrays))
        return {n: a for n, a in arrays.items() if n not in kept}, {n: a for n, a in arrays.items() if n in kept}

    def _place(self, stage: Stage) -> Path:
        return self.cache / f"{stage.frames}x{stage.height}x{stage.width}-{self.fps:g}-{self.fit}-{self.kind}"

    def _write(self, file: Path, name: str, stage: Stage) -> None:
        found = [self.make(window) for window in self._windows(name, stage)]
        with folder(file) as temporary:
            np.save(temporary / "windows.npy", np.stack(found) if found else np.zeros(0, np.float32))
            (temporary / "windows.npy").replace(file)

    def _windows(self, name: str, stage: Stage) -> Iterator[np.ndarray]:
        """Back to back, at the model's rate; a rest that is too short is left out."""
        every = Recording(self.clips / name, self.fps).every()
        frames = (fit(frame, stage.height, stage.width, self.fit) for frame in every)
        for _ in range(MOST_WINDOWS):
            window = list(islice(frames, stage.frames))
            if len(window) < stage.frames:
                return
            yield np.stack(window)


def held_out(names: list[str], share: float = HELD_OUT) -> set[str]:
    """Which clips training never sees: those of the lowest hashes of names, so that adding clips moves hardly any.

    At least one, and never all.
    """

    def low(name: str) -> float:
        return int(hashlib.sha256(name.encode()).hexdigest()[:12], 16) / 16**12

    first, *rest = sorted(names, key=low)
    return {first, *(name for name in rest[:-1] if low(name) < share)}


def _known(manifest: Path) -> dict[str, list[object]]:
    """Clip -> its size, its time and the hash of what was made of it; nothing where the file says nothing."""
    try:
        found = json.loads(manifest.read_text())
    except (OSError, ValueError):
        return {}
    rows = found.items() if isinstance(found, dict) else ()
    return {name: row for name, row in rows if isinstance(row, list) and len(row) == 3}


def _remember(manifest: Path, known: dict[str, list[object]]) -> None:
    atomic_write(manifest, json.dumps(known, indent=1, sort_keys=True) + "\n")


def _file(name: str) -> str:
    return f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.npy"


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
