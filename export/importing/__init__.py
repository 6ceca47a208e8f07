"""What users have (VideoMAR's checkpoint, a Cosmos tokenizer, a Qwen2-VL model) -> one checkpoint directory of ours.

All that can be wrong with the inputs is found before anything is written; the directory appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from videomar.config import ModelConfig
from videomar.export.importing.originals import Choices, read_originals
from videomar.export.importing.writing import write_checkpoint
from videomar.model.new_checkpoint import check_free

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class Imported:
    """What was made, and what the user should know of how."""

    config: ModelConfig
    notes: tuple[str, ...]


def import_checkpoint(
    transformer: Path,
    tokenizer: Path,
    text: Path,
    out: Path,
    *,
    force: bool = False,
    progress: Callable[[str, int, int], None] = lambda what, done, of: None,
    **choices: Unpack[Choices],
) -> Imported:
    """Write the checkpoint directory `out`; all weights become float32, which holds float16 and bfloat16 exactly.

    transformer, tokenizer, text, choices: as `read_originals` reads them. force: replace a checkpoint that is there.
    progress: (what, bytes written, of how many).
    Raises UserError, leaving nothing behind: ArtifactError for files that cannot be used, InputError for options.
    """
    check_free(out, force)
    found = read_originals(transformer, tokenizer, text, choices)
    write_checkpoint(out, found.parts, found.words, found.config, force, progress)
    return Imported(found.config, found.notes)
