"""The authors' VideoMAR checkpoint -> our config and weights of the transformer and the diffusion head.

The layout is in docs/import.md. Sizes are inferred from the tensors; what tensors do not show (how the rotary
channels are split, how many diffusion steps were trained) is the released model's. Knows nothing of the other parts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from videomar.config import HeadConfig, TransformerConfig
from videomar.errors import ArtifactError, InputError
from videomar.export.importing.layout import BLOCKS, EMA, MODEL, PLACES, UNUSED
from videomar.export.importing.reading import Tensors, count, read_pickle, read_safetensors, shape

HEAD = PLACES["diffusion_head"].theirs
CHOICES = {"ema": (EMA, MODEL), "model": (MODEL,)}


def read_videomar(path: Path, weights: str = "ema") -> tuple[Tensors, str]:
    """The state dict of a `torch.save`d checkpoint (EMA preferred), or a bare one; and a note on which it is.

    Raises ArtifactError for what cannot be read or is no state dict, InputError for an unknown `weights`.
    """
    if weights not in CHOICES:
        raise InputError(f"weights is {weights!r}, expected {' or '.join(CHOICES)}")
    data: Any = read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    if not isinstance(data, dict):
        raise ArtifactError(f"{path} holds {type(data).__name__}, expected a dictionary of tensors; get it again")
    found = [key for key in (EMA, MODEL) if isinstance(data.get(key), dict)]
    if found:
        if not (usable := [key for key in CHOICES[weights] if key in found]):
            raise ArtifactError(f"{path} holds no 'model' but {', '.join(found)}, expected it; leave out --weights")
        state, note = data[usable[0]], f"weights of {path}: {usable[0]!r}"
    else:
        state, note = data, f"weights of {path}: it is a bare state dict"
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ArtifactError(
                f"{path}: {name!r:.60} is {type(value).__name__}, expected a tensor: "
                "the file should hold 'model_ema', 'model' or be a state dict"
            )
    ignored = {name: unused for name in state for unused in UNUSED if unused in name.split(".")}
    for unused in UNUSED:
        if number := list(ignored.values()).count(unused):
            note += f", {number} unused {unused} left out"
    return {name: value for name, value in state.items() if name not in ignored}, note


def infer(
    tensors: Tensors, source: Path, rope_split: tuple[int, int, int] | None = None
) -> tuple[TransformerConfig, HeadConfig, int, int]:
    """Sizes of the transformer and the head, text width and text tokens, from the shapes of the tensors.

    Raises ArtifactError naming a missing or impossible tensor, InputError where `rope_split` has to be told.
    """
    width, channels = shape(tensors, "z_proj.weight", 2, source)
    (head_dim,) = shape(tensors, f"{BLOCKS}0.attn1.q_norm.weight", 1, source)
    hidden, _ = shape(tensors, f"{BLOCKS}0.ff.net.0.proj.weight", 2, source)
    if width % head_dim or hidden % width:
        raise ArtifactError(
            f"{source}: width is {width}, heads have {head_dim} channels and the MLP {hidden}, expected a width that "
            "is a multiple of the first and divides the second; it is of another model"
        )
    if rope_split is None:
        if head_dim % 8:
            raise InputError(
                f"{source}: heads have {head_dim} channels, which do not split 2:1:1 over frame, row and column into "
                "even parts; give --rope-split"
            )
        rope_split = (head_dim // 2, head_dim // 4, head_dim // 4)
    transformer = TransformerConfig(
        width=width,
        depth=count(tensors, BLOCKS, source),
        heads=width // head_dim,
        head_dim=head_dim,
        token_channels=channels,
        mlp_ratio=hidden // width,
        rope_split=rope_split,
    )
    head_width, _ = shape(tensors, f"{HEAD}input_proj.weight", 2, source)
    _, features = shape(tensors, f"{HEAD}time_embed.mlp.0.weight", 2, source)
    head = HeadConfig(head_width, count(tensors, f"{HEAD}res_blocks.", source), features)
    _, text_width = shape(tensors, "context_embed.weight", 2, source)
    _, text_tokens, _ = shape(tensors, "fake_latent", 3, source)
    return transformer, head, text_width, text_tokens
