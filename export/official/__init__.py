"""A checkpoint directory of ours -> the authors' layout, the inverse of the import (docs/import.md, "The way back").

What was written is read back as the import reads it, and compared bit for bit, before it appears under its name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videomar.config import ModelConfig
from videomar.errors import ArtifactError, UserError
from videomar.export.importing.layout import PLACES, to_theirs
from videomar.export.importing.originals import Originals, read_originals
from videomar.export.importing.reading import read_safetensors
from videomar.export.importing.told import write_told
from videomar.export.importing.words import read_words
from videomar.export.official.files import FILES, write_cosmos, write_qwen, write_videomar
from videomar.model.new_checkpoint import check_free, new_directory
from videomar.model.videomar import PARTS, PartsOfCheckpoint

VIDEOMAR, COSMOS, QWEN = (PLACES[part].path for part in ("transformer", "video_tokenizer", "text_encoder"))


def export_official(
    checkpoint: Path,
    out: Path,
    force: bool = False,
    progress: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> None:
    """Write videomar.pth, cosmos/, qwen/ and videomar.json into the directory `out`.

    force: replace what an earlier call wrote. progress: (what, bytes done, of how many).
    Raises ArtifactError, leaving `out` as it was, for a checkpoint that is damaged or that the layout cannot hold.
    """
    check_free(out, force, FILES)
    source = PartsOfCheckpoint(checkpoint)
    source.check()
    config = source.config
    words, _ = read_words(checkpoint, config.text)
    ours = {part: read_safetensors(checkpoint / f"{part}.safetensors") for part in PARTS}
    theirs = {part: to_theirs(part, tensors) for part, tensors in ours.items()}
    total, done = 2 * sum(t.nbytes for tensors in ours.values() for t in tensors.values()), 0

    def told(what: str) -> Callable[[int], None]:
        def more(count: int) -> None:
            nonlocal done
            done = min(done + count, total)
            progress(what, done, total)

        return more

    with new_directory(out, force, FILES) as directory:
        state = theirs["transformer"] | theirs["diffusion_head"]
        write_videomar(directory / VIDEOMAR, state, config.transformer, told("writing the transformer"))
        write_cosmos(directory / COSMOS, theirs["video_tokenizer"], config.tokenizer, told("writing the tokenizer"))
        write_qwen(directory / QWEN, theirs["text_encoder"], words, config.text, told("writing the text encoder"))
        write_told(config, directory)
        found = _read_back(directory, checkpoint)
        _check_config(found.config, config, checkpoint)
        more = told("reading it back")
        for part, tensors in ours.items():
            for name, tensor in tensors.items():
                if not _same_bits(tensor, found.parts[part][name]):
                    raise ArtifactError(f"{out}: {part} {name} reads back as other numbers; try another disk with -o")
                more(tensor.nbytes)


def _read_back(directory: Path, checkpoint: Path) -> Originals:
    try:
        return read_originals(directory / VIDEOMAR, directory / COSMOS, directory / QWEN, {})
    except UserError as error:
        raise ArtifactError(f"{checkpoint} does not fit into the authors' layout: {error}") from None


def _check_config(got: ModelConfig, expected: ModelConfig, checkpoint: Path) -> None:
    found, given = _flat(got), _flat(expected)
    for name in (name for name in given if found[name] != given[name]):
        raise ArtifactError(
            f"{checkpoint}: {name} is {given[name]!r:.60}, but its other files make it {found[name]!r:.60}, which is "
            "what the authors' layout would say; correct its config.json"
        )


def _flat(config: ModelConfig) -> dict[str, Any]:
    """Every field by its dotted name."""
    whole = dataclasses.asdict(config)
    parts = {f"{part}.{name}": v for part, of in whole.items() if isinstance(of, dict) for name, v in of.items()}
    return {name: value for name, value in whole.items() if not isinstance(value, dict)} | parts


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether both are the same float32 numbers, NaN and the sign of zero included."""
    first, second = (t.detach().to(torch.float32).contiguous().view(torch.int32) for t in (a, b))
    return torch.equal(first, second)
