"""What users have (VideoMAR's checkpoint, a Cosmos tokenizer, a Qwen2-VL model) -> one checkpoint directory of ours.

All that can be wrong with the inputs is found before anything is written; the directory appears whole or not at all.
Knows the order of work and what the parts must agree on; the layouts are known to the modules beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from videomar.config import VIDEOMAR_1_4B, ModelConfig, SamplingConfig, TokenizerConfig
from videomar.errors import ArtifactError, InputError
from videomar.export.importing.cosmos import read_cosmos
from videomar.export.importing.cosmos_archives import Strides
from videomar.export.importing.qwen import read_qwen
from videomar.export.importing.reading import Tensors, check_fit
from videomar.export.importing.system_prompt import check_given, note_on
from videomar.export.importing.transformer import HEAD, infer, read_videomar
from videomar.export.importing.words import padding_side, read_words
from videomar.export.importing.writing import write_checkpoint
from videomar.model.new_checkpoint import check_free
from videomar.model.videomar import PARTS, VideoMAR

# What transformers' AutoModel does with a Qwen2-VL repository, in most versions (docs/import.md).
DEFAULT_POSITIONS = "padded"
VAE, LLM = "vae.", "llm."  # where our two wrappers keep diffusers' and transformers' models


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
    weights: str = "ema",
    system_prompt: str | None = None,
    no_system_prompt: bool = False,
    plain_qwen2: bool = False,
    text_positions: str = DEFAULT_POSITIONS,
    rope_split: tuple[int, int, int] | None = None,
    tokenizer_strides: Strides | None = None,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    force: bool = False,
    progress: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> Imported:
    """Write the checkpoint directory `out`; all weights become float32, which holds float16 and bfloat16 exactly.

    transformer: VideoMAR's .pth (or a state dict, or .safetensors); tokenizer: a directory of diffusers or of NVIDIA's
    archives; text: a transformers directory of Qwen2-VL, or of a plain text model with `plain_qwen2`. weights: "ema"
    (preferred) or "model". system_prompt: put in front of every prompt; without one, a model of the released sizes
    needs `no_system_prompt`. text_positions: "padded" or "masked", whether padding on the left counts as positions.
    rope_split: rotary channels for frame, row, column (2:1:1). tokenizer_strides: space and time, for archives that do
    not say them. frames, size (height, width): what is sampled by default, if not the release's. force: replace a
    checkpoint that is there. progress: (what, bytes written, of how many).
    Raises UserError, leaving nothing behind: ArtifactError for files that cannot be used, InputError for options.
    """
    check_free(out, force)
    tensors, note = read_videomar(transformer, weights)
    sizes, head, text_width, text_tokens = infer(tensors, transformer, rope_split)
    known = (sizes, head) == (VIDEOMAR_1_4B.transformer, VIDEOMAR_1_4B.head)
    check_given(system_prompt, released=known and not no_system_prompt)
    cosmos, vae, tokenizer_note = read_cosmos(tokenizer, tokenizer_strides)
    if cosmos.latent_channels != sizes.token_channels:
        raise ArtifactError(
            f"{tokenizer} has {cosmos.latent_channels} latent channels, expected {sizes.token_channels} as in "
            f"{transformer}; give the tokenizer that it was trained with"
        )
    sampling = _sampling(cosmos, frames, size)
    llm = read_qwen(text, text_tokens, plain_qwen2)
    if llm.config.width != text_width:
        raise ArtifactError(
            f"{text} has width {llm.config.width}, expected {text_width} as in {transformer}; "
            "give the language model that it was trained with"
        )
    language = dataclasses.replace(llm.config, system_prompt=system_prompt or "", positions=text_positions)
    words, system_tokens = read_words(text, language)
    side, said_by = padding_side(text)
    language = dataclasses.replace(language, system_tokens=system_tokens, padding_side=side)
    config = ModelConfig(VIDEOMAR_1_4B.name if known else "custom", cosmos, language, sizes, head, sampling)
    with torch.device("meta"):
        model = VideoMAR(config)
    parts: dict[str, Tensors] = {part: {} for part in PARTS}
    for name, tensor in tensors.items():
        part = "diffusion_head" if name.startswith(HEAD) else "transformer"
        parts[part][name.removeprefix(HEAD)] = tensor
    parts["video_tokenizer"] = {VAE + name: tensor for name, tensor in vae.items()}
    parts["text_encoder"] = {LLM + name: tensor for name, tensor in llm.tensors.items()}
    check_fit(model.transformer, parts["transformer"], transformer, str)
    check_fit(model.diffusion_head, parts["diffusion_head"], transformer, lambda name: HEAD + name)
    check_fit(model.video_tokenizer, parts["video_tokenizer"], tokenizer, lambda name: name.removeprefix(VAE))
    check_fit(model.text_encoder, parts["text_encoder"], text, lambda name: llm.place + name.removeprefix(LLM))
    write_checkpoint(out, parts, words, config, force, progress)
    notes = [note, tokenizer_note, f"rotary channels for frame, row, column: {sizes.rope_split} (not in the weights)"]
    notes += [*llm.notes, note_on(system_prompt, system_tokens), f"padding of prompts: on the {side} ({said_by})"]
    if side == "left":
        notes[-1] += f"; positions: {text_positions} (--text-positions)"
    return Imported(config, tuple(notes))


def _sampling(tokenizer: TokenizerConfig, frames: int | None, size: tuple[int, int] | None) -> SamplingConfig:
    released = VIDEOMAR_1_4B.sampling
    height, width = size or (released.height, released.width)
    sampling = dataclasses.replace(released, frames=frames or released.frames, height=height, width=width)
    time, space = tokenizer.temporal_stride, tokenizer.spatial_stride
    if frames is not None and (frames == 1 or (frames - 1) % time):
        raise InputError(f"frames is {frames}, expected 1 + {time}k, such as {1 + time}; change --frames")
    if size is not None and (height % space or width % space):
        raise InputError(f"size is {height}x{width}, expected multiples of {space}; change --size")
    return sampling
