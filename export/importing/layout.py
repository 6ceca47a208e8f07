"""Where the authors' layout keeps what is ours: one table, read forwards by the import and backwards by the way back.

What config files call things is in the models that are built from it (`NAMES` of model/tokenizer.py and model/text.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from videomar.export.importing.reading import Tensors

EMA, MODEL = "model_ema", "model"  # entries of what the authors' training script saves
SHIFTS = "scale_shift_table"  # [6, width] of each block
UNUSED = (SHIFTS, "index_cond_embed")  # in some blocks or checkpoints, in no computation
BLOCKS = "decoder_blocks."
TOLD = "videomar.json"  # what none of their files holds


@dataclass(frozen=True)
class Place:
    """A part's file or directory where it is written back, and what stands in front of its tensors' names."""

    path: str
    theirs: str
    ours: str


PLACES = {
    "video_tokenizer": Place("cosmos", "", "vae."),  # our two wrappers keep diffusers' and transformers' models so
    "text_encoder": Place("qwen", "model.", "llm."),  # of the repositories; other prefixes are read too (qwen.py)
    "transformer": Place("videomar.pth", "", ""),
    "diffusion_head": Place("videomar.pth", "diffloss.net.", ""),
}


def to_ours(part: str, tensors: Tensors, theirs: str | None = None) -> Tensors:
    """One part's tensors of their file under our names; `theirs`: what stands in front, where the table is not right.

    Names of no part are the transformer's, so that its check finds them.
    """
    place = PLACES[part]
    front = place.theirs if theirs is None else theirs
    others = tuple(p.theirs for n, p in PLACES.items() if n != part and p.path == place.path and p.theirs)
    mine = (name for name in tensors if name.startswith(front) and not name.startswith(others))
    return {place.ours + name.removeprefix(front): tensors[name] for name in mine}


def to_theirs(part: str, tensors: Tensors) -> Tensors:
    """The inverse of `to_ours`."""
    return {their_name(part, name): tensor for name, tensor in tensors.items()}


def their_name(part: str, name: str, theirs: str | None = None) -> str:
    """What they call one of our tensors."""
    place = PLACES[part]
    return (place.theirs if theirs is None else theirs) + name.removeprefix(place.ours)
