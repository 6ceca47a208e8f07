"""What a new checkpoint directory holds; its weights in float32, one tensor in memory at a time.

Knows nothing of what the tensors mean.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from videomar.config import ModelConfig
from videomar.export.importing.reading import Tensors
from videomar.model.new_checkpoint import new_directory
from videomar.model.videomar import PARTS

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
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # older readers of transformers insist on it
    end = 0
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
