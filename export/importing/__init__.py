"""What users have (VideoMAR's checkpoint, a Cosmos tokenizer, a Qwen2 model) -> one checkpoint directory of ours.

All that can be wrong with the inputs is found before anything is written; the directory appears whole or not at all.
Knows the order of work and what the parts must agree on; the layouts are known to the modules beside it.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from videomar.config import VIDEOMAR_1_4B, ModelConfig
from videomar.errors import ArtifactError
from videomar.export.importing.cosmos import read_cosmos
from videomar.export.importing.cosmos_archives import Strides
from videomar.export.importing.qwen import read_qwen
from videomar.export.importing.reading import Tensors, as_float32, check_fit
from videomar.export.importing.transformer import HEAD, infer, read_videomar
from videomar.model.videomar import PARTS, VideoMAR

VAE, LLM = "vae.", "llm."  # where our two wrappers keep diffusers' and transformers' models
FILES = {"config.json", "tokenizer.json", *(f"{part}.safetensors" for part in PARTS)}


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
    system_prompt: str = "",
    rope_split: tuple[int, int, int] | None = None,
    tokenizer_strides: Strides | None = None,
    force: bool = False,
) -> Imported:
    """Write the checkpoint directory `out`; all weights become float32, which holds float16 and bfloat16 exactly.

    transformer: VideoMAR's .pth (or a state dict, or .safetensors); tokenizer: a directory of diffusers or of NVIDIA's
    archives; text: a transformers directory. weights: "ema" (preferred) or "model". system_prompt: put in front of
    every prompt. rope_split: rotary channels for frame, row, column (2:1:1). tokenizer_strides: space and time, for
    archives that do not say them. force: replace a checkpoint that is there.
    Raises UserError, leaving nothing behind: ArtifactError for files that cannot be used, InputError for options.
    """
    _check_free(out, force)
    tensors, note = read_videomar(transformer, weights)
    sizes, head, text_width, text_tokens = infer(tensors, transformer, rope_split)
    cosmos, vae, tokenizer_note = read_cosmos(tokenizer, tokenizer_strides)
    if cosmos.latent_channels != sizes.token_channels:
        raise ArtifactError(
            f"{tokenizer} has {cosmos.latent_channels} latent channels, expected {sizes.token_channels} as in "
            f"{transformer}; give the tokenizer that it was trained with"
        )
    language, llm, words = read_qwen(text, text_tokens, system_prompt)
    if language.width != text_width:
        raise ArtifactError(
            f"{text} has width {language.width}, expected {text_width} as in {transformer}; "
            "give the language model that it was trained with"
        )
    known = (sizes, head) == (VIDEOMAR_1_4B.transformer, VIDEOMAR_1_4B.head)
    config = ModelConfig(
        VIDEOMAR_1_4B.name if known else "custom", cosmos, language, sizes, head, VIDEOMAR_1_4B.sampling
    )
    with torch.device("meta"):
        model = VideoMAR(config)
    parts: dict[str, Tensors] = {part: {} for part in PARTS}
    for name, tensor in tensors.items():
        part = "diffusion_head" if name.startswith(HEAD) else "transformer"
        parts[part][name.removeprefix(HEAD)] = tensor
    parts["video_tokenizer"] = {VAE + name: tensor for name, tensor in vae.items()}
    parts["text_encoder"] = {LLM + name: tensor for name, tensor in llm.items()}
    check_fit(model.transformer, parts["transformer"], transformer, str)
    check_fit(model.diffusion_head, parts["diffusion_head"], transformer, lambda name: HEAD + name)
    check_fit(model.video_tokenizer, parts["video_tokenizer"], tokenizer, lambda name: name.removeprefix(VAE))
    check_fit(model.text_encoder, parts["text_encoder"], text, lambda name: name.removeprefix(LLM))
    with _new_directory(out, force) as directory:
        for part in PARTS:
            save_file(as_float32(parts.pop(part)), directory / f"{part}.safetensors")
        (directory / "tokenizer.json").write_bytes(words)
        (directory / "config.json").write_text(config.to_json())
    notes = [note, tokenizer_note, f"rotary channels for frame, row, column: {sizes.rope_split} (not in the weights)"]
    if not system_prompt:
        notes.append("no system prompt: VideoMAR was trained with one; give its words with --system-prompt")
    return Imported(config, tuple(notes))


def _check_free(out: Path, force: bool) -> None:
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
def _new_directory(out: Path, force: bool) -> Iterator[Path]:
    """Yield a hidden directory beside `out` to fill; it becomes `out` on clean exit, or goes."""
    out = out.resolve()
    temporary, aside = (out.with_name(f".{out.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp") for _ in range(2))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in temporary.iterdir():
            with open(path, "rb") as file:
                os.fsync(file)
        _check_free(out, force)
        if out.exists():
            os.rename(out, aside)
        os.rename(temporary, out)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ArtifactError(
            f"{out} cannot be written ({reason}), expected a place with room for all of it; give another with -o"
        ) from error
    finally:
        if aside.exists() and not out.exists():  # the second rename failed
            os.rename(aside, out)
        for path in (temporary, aside):
            shutil.rmtree(path, ignore_errors=True)
