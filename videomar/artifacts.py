"""The directory every stage writes and the runtime reads: verification on load, atomic writing.

Knows file names, sizes, hashes and who wrote them. Knows nothing of ONNX, TensorRT, torch, or what a file means.
Reads anywhere, writes on POSIX systems.

What is being written is hidden beside its target, and what a killed writer left is removed (unfinished.py).
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import hashlib
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from videomar.errors import ArtifactError
from videomar.files import regular
from videomar.manifest import CHOICES, FORMAT, FileEntry, Manifest
from videomar.unfinished import another, beside, folder, lock, opened

__all__ = [
    "CHOICES",
    "FORMAT",
    "MANIFEST",
    "FileEntry",
    "Manifest",
    "atomic_write",
    "hash_files",
    "read_manifest",
    "require_graphs",
    "up_to_date",
    "verify",
    "write_directory",
    "write_manifest",
]

MANIFEST = "manifest.json"
_OURS = re.compile(rb'\s*\{\s*"format"\s*:\s*\d')  # how every manifest starts, a truncated one too


def read_manifest(directory: Path) -> Manifest:
    """The manifest of an artifact directory; raises ArtifactError saying what is wrong with it and what mends it."""
    path, mend = directory / MANIFEST, _mend(directory)
    if not directory.is_dir():
        got = "is a file" if directory.exists() else "does not exist"
        raise ArtifactError(f"{directory} {got}, expected an artifact directory; {mend}")
    if not path.exists():
        raise ArtifactError(f"{directory} has no {MANIFEST}, so it is not a (whole) artifact; {mend}")
    with _reading(path, mend):
        data = path.read_bytes()
    try:
        return Manifest.from_json(data)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}; {mend}") from None


def require_graphs(directory: Path, manifest: Manifest) -> None:
    """Raise ArtifactError for a golden pack, which holds nothing that can be run."""
    if manifest.kind == "pack":
        raise ArtifactError(
            f"{directory} is a golden pack, expected graphs or engines; `videomar replay {shlex.quote(str(directory))} "
            "ENGINES` verifies engines with it"
        )


def verify(directory: Path, manifest: Manifest, names: Iterable[str] | None = None, hashes: bool = True) -> None:
    """Compare files (all listed, or `names`) with the manifest; raises ArtifactError at the first deviation.

    Unlisted files are ignored. Without `hashes` only sizes are compared: instant, and blind to altered bytes.
    """
    mend = f"copy it again, or {_mend(directory, manifest)}"
    for name in manifest.files if names is None else names:
        path, entry = directory / name, manifest.files.get(name)
        if entry is None:
            raise ArtifactError(f"{directory / MANIFEST} lists no {name}, expected one; {_mend(directory, manifest)}")
        with _reading(path, mend):
            size = path.stat().st_size
        if size != entry.size:
            raise ArtifactError(f"{path} has {size} bytes, expected {entry.size}; {mend}")
        if hashes and (got := _sha256(path, mend)) != entry.sha256:
            raise ArtifactError(f"{path} was altered: SHA-256 is {got:.12}..., expected {entry.sha256:.12}...; {mend}")


def hash_files(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each file by its name, for `Manifest.inputs`; raises ArtifactError for one that cannot be read."""
    hashes: dict[str, str] = {}
    for path in paths:
        if path.name in hashes:
            raise ValueError(f"two inputs are called {path.name}")
        hashes[path.name] = _sha256(path, "check its path and permissions")
    return hashes


def up_to_date(target: Path, inputs: dict[str, str]) -> bool:
    """Whether `target` was made from exactly these inputs and every file is still as written (sizes and hashes)."""
    try:
        manifest = read_manifest(target)
        verify(target, manifest)
    except ArtifactError:
        return False
    return manifest.inputs == inputs


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Hash every file now in `directory`, write manifest.json last, return the manifest with `files` filled in."""
    files = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file() and p != directory / MANIFEST):
        sha256 = _sha256(path, "write it again")
        files[path.relative_to(directory).as_posix()] = FileEntry(path.stat().st_size, sha256)
    manifest = dataclasses.replace(manifest, files=files)
    atomic_write(directory / MANIFEST, manifest.to_json())
    return manifest


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write one file (text as UTF-8) whole or not at all, durably; raises ArtifactError if the disk refuses."""
    path = path.resolve()
    with _writing(path), beside(path) as temporary:
        with open(temporary, "xb") as file:
            lock(file.fileno())
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


@contextmanager
def write_directory(target: Path, force: bool = False) -> Iterator[Path]:
    """Yield a hidden directory to fill; with a manifest in it, it becomes `target` on clean exit, in one step.

    An artifact or an empty directory is replaced; any other directory only with `force`, and a file never. Whatever
    is raised inside leaves nothing behind and `target` as it was; OSErrors of the disk become ArtifactErrors. What
    a killed writer left is removed by the next one.
    """
    target = target.resolve()
    with _writing(target):
        _check_replaceable(target, force)
        target.parent.mkdir(parents=True, exist_ok=True)
        with folder(target) as temporary:
            yield temporary
            if not (temporary / MANIFEST).is_file():
                raise RuntimeError(f"write_manifest was not called for {target}")
            for path in (p for p in temporary.rglob("*") if p.is_file()):
                with opened(path) as file:
                    os.fsync(file)
            _check_replaceable(target, force)
            _replace_directory(temporary, target)


@contextmanager
def together(target: Path) -> Iterator[Path]:
    """Yield a hidden directory to fill; on clean exit its files replace those of the same names in `target`.

    All or none: when one cannot be moved, those before it go back. Raises ArtifactError if the disk refuses.
    """
    target = target.resolve()
    with _writing(target), folder(target / "files") as temporary:
        yield temporary
        files = sorted(path for path in temporary.iterdir() if path.is_file())
        for path in files:
            with opened(path) as file:
                os.fsync(file)
        kept = temporary / "kept"
        kept.mkdir()
        moved = list[str]()
        try:
            for path in files:
                old = target / path.name
                if old.exists():
                    try:
                        os.link(old, kept / path.name)
                    except OSError:  # a file system without links: the file is gone for a moment
                        os.replace(old, kept / path.name)
                os.replace(path, old)
                moved.append(path.name)
        except OSError:
            for path in files:
                if (kept / path.name).exists():
                    os.replace(kept / path.name, target / path.name)
                elif path.name in moved:
                    (target / path.name).unlink()
            raise


def _mend(directory: Path, manifest: Manifest | None = None) -> str:
    command = "export CHECKPOINT"
    if manifest and manifest.kind == "engine":
        command = "build ONNX_DIR"
    elif manifest and manifest.kind == "pack":
        command = "record DIR"
    elif manifest and manifest.precision == "int8":
        command = "calibrate ONNX_DIR"
    return f"run `videomar {command} -o {shlex.quote(str(directory))}`"


def _sha256(path: Path, mend: str) -> str:
    digest, chunk = hashlib.sha256(), bytearray(1 << 20)
    with _reading(path, mend), open(path, "rb", buffering=0) as file:
        while count := file.readinto(chunk):
            digest.update(memoryview(chunk)[:count])
    return digest.hexdigest()


@contextmanager
def _reading(path: Path, mend: str) -> Iterator[None]:
    try:
        regular(path)
        yield
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing, expected a file; {mend}") from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}), expected a readable file; {mend}") from None


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Turn an OSError of writing `target` into one line; one that names a file elsewhere is let through."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str):
            beside, path = str(target.with_name(f".{target.name}.")), Path(error.filename)
            if not (path.is_relative_to(target) or target.is_relative_to(path) or str(path).startswith(beside)):
                raise
        got = error.strerror or str(error)
        expected, mend = "a place that can be written", "give another one with -o"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            expected, mend = "room for all of it", "free some space, or give a place on another disk with -o"
            with suppress(OSError):
                got += f", {shutil.disk_usage(target.parent).free / 1e6:.1f} MB free"
        raise ArtifactError(f"{target} cannot be written ({got}), expected {expected}; {mend}") from error


def _check_replaceable(target: Path, force: bool) -> None:
    if not target.name or (target.exists() and not target.is_dir()):
        raise ArtifactError(f"{target} is a file or a whole disk, expected a directory; give another one with -o")
    if not target.exists() or not any(target.iterdir()):
        return
    with suppress(FileNotFoundError), open(regular(target / MANIFEST), "rb") as file:
        if _OURS.match(file.read(64)):
            return
    if not force:
        raise ArtifactError(
            f"{target} holds files but no videomar {MANIFEST}, expected an artifact, an empty directory or none; "
            "it was left alone: give another directory with -o, or replace all that is in it with --force"
        )
    for precious in (os.getcwd(), os.path.expanduser("~")):
        if Path(precious).resolve().is_relative_to(target):
            raise ArtifactError(f"{target} contains {precious}, which is never replaced; give another place with -o")


def _replace_directory(source: Path, target: Path) -> None:
    """Rename `source` onto `target`; a full `target` gets the name of `source`."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        with suppress(AttributeError):
            at_cwd, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux: one step, never without a target
            if not ctypes.CDLL(None).renameat2(at_cwd, os.fsencode(source), at_cwd, os.fsencode(target), exchange):
                return
        aside = another(target)  # other systems: two steps; a leftover if we die between them
        os.rename(target, aside)
        os.rename(source, target)
        os.rename(aside, source)
