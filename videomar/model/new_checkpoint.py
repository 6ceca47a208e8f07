"""The directory of a new checkpoint, whole or not at all. Knows nothing of what is in its files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from videomar.errors import ArtifactError
from videomar.model.videomar import PARTS
from videomar.unfinished import another, folder, opened

FILES = {"config.json", "tokenizer.json", *(f"{part}.safetensors" for part in PARTS)}


def check_free(out: Path, force: bool, files: Collection[str] = FILES) -> None:
    """Raise ArtifactError where `out` is something that is not to be replaced; files: what may be there, by path."""
    if out.exists() and not out.is_dir():
        raise ArtifactError(f"{out} is a file, expected a directory to write; give another one with -o")
    if out.exists() and any(out.iterdir()) and not force:
        raise ArtifactError(f"{out} is not empty, expected none or an empty one; give another with -o, or --force")
    folders = {str(Path(file).parent) for file in files}
    held = {path.relative_to(out).as_posix() for path in out.rglob("*")} - folders if out.exists() else set()
    if unknown := held - set(files):
        raise ArtifactError(
            f"{out} holds {min(unknown)}, which is no file of a checkpoint, so it is not replaced; "
            "give another directory with -o"
        )


@contextmanager
def new_directory(out: Path, force: bool, files: Collection[str] = FILES) -> Iterator[Path]:
    """Yield a hidden directory beside `out` to fill; it becomes `out` on clean exit, or goes."""
    out = out.resolve()
    aside = another(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with folder(out) as temporary:
            yield temporary
            for path in temporary.rglob("*"):
                with opened(path) as file:
                    os.fsync(file)
            check_free(out, force, files)
            if out.exists():
                os.rename(out, aside)
            os.rename(temporary, out)
    except OSError as error:
        raise ArtifactError(
            f"{out} cannot be written ({error.strerror or error}), expected a place with room for all of it; give "
            "another with -o"
        ) from error
    finally:
        if aside.exists() and not out.exists():  # the second rename failed
            os.rename(aside, out)
        shutil.rmtree(aside, ignore_errors=True)
