"""A new checkpoint directory, whole or not at all, and the weights in it: float32, one tensor in memory at a time.

Knows nothing of what the tensors mean.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from videomar.config import ModelConfig
from videomar.errors import ArtifactError
from videomar.export.importing.reading import Tensors
from videomar.model.videomar import PARTS
from videomar.unfinished import another, folder, opened

FILES = {"config.json", "tokenizer.json", *(f"{part}.safetensors" for part in PARTS)}
SYNC = 256 << 20  # bytes until the disk has to have them: so the rate of what is written is the disk's from the start


def write_checkpoint(
    out: Path, parts: dict[str, Tensors], words: bytes, config: ModelConfig, force: bool, progress: Callable[..., None]
) -> None:
    """Write the directory and empty `parts`; progress: (what, bytes done, of how many).

    Raises ArtifactError, leaving `out` as it was.
    """
    total, done = sum(4 * t.numel() for tensors in parts.values() for t in tensors.values()), 0
    with new_directory(out, force) as directory:
        for part in PARTS:
            for written in save_float32(parts.pop(part), directory / f"{part}.safetensors"):
                done += written
                progress(f"writing {part}", done, total)
        (directory / "tokenizer.json").write_bytes(words)
        (directory / "config.json").write_text(config.to_json())


def save_float32(tensors: Tensors, file: Path) -> Iterator[int]:
    """Write a safetensors file of the same numbers as float32; yields the bytes of every tensor that is written.

    safetensors' own writer wants all of them in memory, in float32: 6 GB for the released text encoder.
    """
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin aligned
    unsynced = 0
    with open(file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            size = out.write(tensor.detach().to(torch.float32).contiguous().numpy().astype("<f4", copy=False).data)
            unsynced += size
            if unsynced >= SYNC:
                out.flush()
                os.fsync(out.fileno())
                unsynced = 0
            yield size


def check_free(out: Path, force: bool) -> None:
    """Raise ArtifactError where `out` is something that is not to be replaced."""
    if out.exists() and not out.is_dir():
        raise ArtifactError(f"{out} is a file, expected a directory to write; give another one with -o")
    held = {path.name for path in out.iterdir()} if out.exists() else set()
    if held and not force:
        raise ArtifactError(f"{out} is not empty, expected none or an empty one; give another with -o, or --force")
    if held - FILES:
        raise ArtifactError(
            f"{out} holds {min(held - FILES)}, which is no file of a checkpoint, so it is not replaced; "
            "give another directory with -o"
        )


@contextmanager
def new_directory(out: Path, force: bool) -> Iterator[Path]:
    """Yield a hidden directory beside `out` to fill; it becomes `out` on clean exit, or goes."""
    out = out.resolve()
    aside = another(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with folder(out) as temporary:
            yield temporary
            for path in temporary.iterdir():
                with opened(path) as file:
                    os.fsync(file)
            check_free(out, force)
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
