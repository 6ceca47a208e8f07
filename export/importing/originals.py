"""The parts in the layouts of others -> one config, and weights under our names: all that can be wrong is found here.

Knows what the parts must agree on; the layouts are known to the modules beside it. Writes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import torch

from videomar.config import VIDEOMAR_1_4B, ModelConfig, SamplingConfig, TokenizerConfig
from videomar.errors import ArtifactError, InputError
from videomar.export.importing.cosmos import read_cosmos
from videomar.export.importing.cosmos_archives import Strides
from videomar.export.importing.layout import TOLD, their_name, to_ours
from videomar.export.importing.qwen import read_qwen
from videomar.export.importing.reading import Tensors, check_fit
from videomar.export.importing.system_prompt import check_given, note_on
from videomar.export.importing.told import read_told
from videomar.export.importing.transformer import infer, read_videomar
from videomar.export.importing.words import padding_side, read_words
from videomar.model.videomar import VideoMAR

# What transformers' AutoModel does with a Qwen2-VL repository, in most versions (docs/import.md).
DEFAULT_POSITIONS = "padded"


class Choices(TypedDict, total=False):
    """What a user may say of an import; each comes before `videomar.json`, and that before the released model's value.

    weights: "ema" (preferred) or "model". system_prompt: put in front of every prompt; without one, a model of the
    released sizes needs `no_system_prompt`. plain_qwen2: take a plain text model too. text_positions: "padded" or
    "masked", whether padding on the left counts as positions. rope_split: rotary channels for frame, row, column
    (2:1:1). tokenizer_strides: space and time, for archives that do not say them. frames, size (height, width): what
    is sampled by default.
    """

    weights: str
    system_prompt: str | None
    no_system_prompt: bool
    plain_qwen2: bool
    text_positions: str | None
    rope_split: tuple[int, int, int] | None
    tokenizer_strides: Strides | None
    frames: int | None
    size: tuple[int, int] | None


@dataclass(frozen=True)
class Originals:
    """What was read: weights by part, the words' file, and what the user should know of how."""

    config: ModelConfig
    parts: dict[str, Tensors]
    words: bytes
    notes: tuple[str, ...]


def read_originals(transformer: Path, tokenizer: Path, text: Path, choices: Choices) -> Originals:
    """Read all three; weights stay on the disk until they are used.

    transformer: VideoMAR's .pth (or a state dict, or .safetensors), with or without `videomar.json` beside it;
    tokenizer: a directory of diffusers or of NVIDIA's archives; text: a transformers directory of Qwen2-VL.
    Raises ArtifactError for files that cannot be used, InputError for choices.
    """
    told = read_told(transformer.parent)
    tensors, note = read_videomar(transformer, choices.get("weights", "ema"))
    split = choices.get("rope_split") or told.of("transformer").get("rope_split")
    sizes, head, text_width, text_tokens = infer(tensors, transformer, split)
    sizes = dataclasses.replace(sizes, **told.of("transformer") | {"rope_split": sizes.rope_split})
    head = dataclasses.replace(head, **told.of("head"))
    known = (sizes, head) == (VIDEOMAR_1_4B.transformer, VIDEOMAR_1_4B.head)
    prompt, silent = choices.get("system_prompt"), choices.get("no_system_prompt", False)
    if prompt is None and not silent:
        prompt = told.of("text").get("system_prompt")
    check_given(prompt, released=known and not silent)
    cosmos, vae, tokenizer_note = read_cosmos(tokenizer, choices.get("tokenizer_strides"))
    cosmos = dataclasses.replace(cosmos, **told.of("tokenizer"))
    if cosmos.latent_channels != sizes.token_channels:
        raise ArtifactError(
            f"{tokenizer} has {cosmos.latent_channels} latent channels, expected {sizes.token_channels} as in "
            f"{transformer}; give the tokenizer that it was trained with"
        )
    sampling = _sampling(cosmos, told.of("sampling"), choices.get("frames"), choices.get("size"))
    llm = read_qwen(text, text_tokens, choices.get("plain_qwen2", False))
    if llm.config.width != text_width:
        raise ArtifactError(
            f"{text} has width {llm.config.width}, expected {text_width} as in {transformer}; "
            "give the language model that it was trained with"
        )
    positions = choices.get("text_positions") or told.of("text").get("positions", DEFAULT_POSITIONS)
    said = told.of("text") | {"system_prompt": prompt or "", "positions": positions}
    language = dataclasses.replace(llm.config, **said)
    words, system_tokens = read_words(text, language)
    side, said_by = padding_side(text)
    language = dataclasses.replace(language, system_tokens=system_tokens, padding_side=side)
    config = ModelConfig(VIDEOMAR_1_4B.name if known else "custom", cosmos, language, sizes, head, sampling)
    config = dataclasses.replace(config, **told.whole)
    parts = {
        "video_tokenizer": to_ours("video_tokenizer", vae),
        "text_encoder": to_ours("text_encoder", llm.tensors, llm.place),
        "transformer": to_ours("transformer", tensors),
        "diffusion_head": to_ours("diffusion_head", tensors),
    }
    with torch.device("meta"):
        model = VideoMAR(config)
    for part in ("transformer", "diffusion_head"):
        check_fit(getattr(model, part), parts[part], transformer, partial(their_name, part))
    check_fit(model.video_tokenizer, parts["video_tokenizer"], tokenizer, partial(their_name, "video_tokenizer"))
    their_text = partial(their_name, "text_encoder", theirs=llm.place)
    check_fit(model.text_encoder, parts["text_encoder"], text, their_text)
    notes = [note, tokenizer_note, *llm.notes]
    if told.fields:
        notes.append(f"{transformer.parent / TOLD}: what the other files do not hold, such as how it is sampled")
    else:
        notes.insert(2, f"rotary channels for frame, row, column: {sizes.rope_split} (not in the weights)")
    if prompt or not told.fields:
        notes.append(note_on(prompt, system_tokens))
    notes.append(f"padding of prompts: on the {side} ({said_by})")
    if side == "left":
        notes[-1] += f"; positions: {positions} (--text-positions)"
    return Originals(config, parts, words, tuple(notes))


def _sampling(
    tokenizer: TokenizerConfig, told: Mapping[str, Any], frames: int | None, size: tuple[int, int] | None
) -> SamplingConfig:
    known = dataclasses.replace(VIDEOMAR_1_4B.sampling, **told)
    height, width = size or (known.height, known.width)
    sampling = dataclasses.replace(known, frames=frames or known.frames, height=height, width=width)
    time, space = tokenizer.temporal_stride, tokenizer.spatial_stride
    if frames is not None and (frames == 1 or (frames - 1) % time):
        raise InputError(f"frames is {frames}, expected 1 + {time}k, such as {1 + time}; change --frames")
    if size is not None and (height % space or width % space):
        raise InputError(f"size is {height}x{width}, expected multiples of {space}; change --size")
    return sampling
