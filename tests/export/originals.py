"""What users have, with random weights at a small size: VideoMAR's checkpoint, Cosmos tokenizers, Qwen2-VL.

Knows the layouts of others; knows nothing of how they are imported.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLCosmos
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2VLConfig, Qwen2VLForConditionalGeneration


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


naive = load("naive", Path(__file__).parents[1] / "naive.py")
nvidia = load("nvidia_cosmos", Path(__file__).parent / "nvidia_cosmos.py")

SIZES: dict[str, int] = dict(
    depth=2, heads=3, head_dim=16, channels=4, text_width=24, text_tokens=10, head_width=32, head_depth=2
)
SPLIT = (8, 4, 4)
WORDS = ["[UNK]", "a", "red", "ball", "rolls", "away", "You", "describe", "videos", "."]


def official(seed: int, **sizes: int) -> dict[str, torch.Tensor]:
    """A state dict in the authors' layout (tests/naive.py writes it down from the description)."""
    weights = naive.random_weights(np.random.default_rng(seed), **{**SIZES, **sizes})
    return {name: torch.from_numpy(value).float() for name, value in weights.items()}


def write_videomar(path: Path, **others: Any) -> None:
    """As the authors' training script saves: also the optimizer and the command line."""
    command = argparse.Namespace(lr=1e-4, output_dir="runs")
    torch.save({"model": official(1), "model_ema": official(2), "epoch": 3, "args": command, **others}, path)


def write_cosmos(directory: Path, **others: Any) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKLCosmos(
        **{
            "latent_channels": 4, "encoder_block_out_channels": (4, 8, 8, 8),
            "decode_block_out_channels": (4, 8, 8, 12), "attention_resolutions": (8,),
            "resolution": 32, "num_layers": 1, "patch_size": 4, "spatial_compression_ratio": 16,
            "temporal_compression_ratio": 8, **others,
        }
    )  # fmt: skip
    vae.save_pretrained(directory)


LANGUAGE: dict[str, Any] = {
    "vocab_size": 12, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 40, "max_position_embeddings": 64,
}  # fmt: skip


def write_qwen(directory: Path, side: str | None = None, **others: Any) -> None:
    """A Qwen2-VL repository: language model, vision tower, words, and on which side they are padded."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 1]}
    language = {**LANGUAGE, "rms_norm_eps": 1e-6, "rope_parameters": rope, **others}
    config = Qwen2VLConfig(
        text_config=language, image_token_id=10, video_token_id=11, vision_start_token_id=9, vision_end_token_id=9,
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": language["hidden_size"], "num_heads": 2},
    )  # fmt: skip
    Qwen2VLForConditionalGeneration(config).save_pretrained(directory)
    write_words(directory, side)


def write_plain_qwen(directory: Path, model: type = Qwen2ForCausalLM, **others: Any) -> None:
    """A text model of the same names and sizes: the look-alike."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 1e6}
    model(Qwen2Config(**{**LANGUAGE, "rope_parameters": rope, **others})).save_pretrained(directory)
    write_words(directory)


def write_words(directory: Path, side: str | None = None) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    said = {"tokenizer_class": "Qwen2Tokenizer"} | ({"padding_side": side} if side else {})
    (directory / "tokenizer_config.json").write_text(json.dumps(said))


def write_all(directory: Path, side: str | None = None) -> None:
    write_videomar(directory / "videomar.pth")
    write_cosmos(directory / "cosmos")
    write_qwen(directory / "qwen", side)


# ---- NVIDIA's archives


def write_traced(directory: Path, whole: bool = False, **sizes: Any) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    encoder, decoder = nvidia.halves(**sizes)
    space, time = sizes.get("strides", (16, 8))
    pixels = torch.rand(1, 3, 1 + time, 2 * space, space) * 2 - 1
    shutil.rmtree(directory)
    directory.mkdir()
    with torch.no_grad():
        halves = {"encoder": (encoder, pixels), "decoder": (decoder, encoder(pixels)[0])}
        archives = {"autoencoder": (nvidia.Whole(encoder, decoder), pixels)} if whole else halves
        for name, (module, example) in archives.items():
            torch.jit.trace(module, example, check_trace=False).save(directory / f"{name}.jit")
    return encoder, decoder, pixels


class Node(nn.Module):
    """A module of any shape that can be scripted."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def script(named: dict[str, Any], path: Path) -> None:
    """An archive of these tensors and switches; scripted, so the switches stay."""
    root = Node()
    for name, value in named.items():
        at: nn.Module = root
        *folders, last = name.split(".")
        for folder in folders:
            if not hasattr(at, folder):
                setattr(at, folder, Node())
            at = getattr(at, folder)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            at.register_parameter(last, nn.Parameter(value, requires_grad=False))
        elif isinstance(value, torch.Tensor):
            at.register_buffer(last, value)
        else:
            setattr(at, last, value)
    torch.jit.script(root).save(path)


def archive_content(strides: tuple[int, int] = (16, 8), told: bool = False) -> dict[str, Any]:
    """Names and values of `autoencoder.jit`, with the switches of a scripted one where they are told."""
    whole = nvidia.Whole(*nvidia.halves(strides=strides))
    named: dict[str, Any] = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    for name, module in whole.named_modules() if told else ():
        for switch in ("spatial_down", "temporal_down", "spatial_up", "temporal_up"):
            if hasattr(module, switch):
                named[f"{name}.{switch}"] = getattr(module, switch)
    return named
