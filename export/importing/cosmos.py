"""NVIDIA's Cosmos video tokenizer -> our config and weights: a diffusers directory, or the archives NVIDIA publishes.

Knows nothing of the other parts, and leaves the archives to cosmos_archives.py.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLCosmos
from torch import Tensor

from videomar.bounds import PATCHES
from videomar.config import TokenizerConfig
from videomar.errors import ArtifactError, InputError
from videomar.export.importing.cosmos_archives import Strides, find_archives, read_archives
from videomar.export.importing.reading import Tensors, read_json, read_shards
from videomar.model.tokenizer import NAMES, VideoTokenizer

CLASS = "AutoencoderKLCosmos"


def read_cosmos(directory: Path, strides: Strides | None = None) -> tuple[TokenizerConfig, Tensors, str]:
    """Config, weights under diffusers' names, and a note on where they are from; raises ArtifactError or InputError.

    strides: of space and time, for archives that do not say them (traced ones do not); the released ones by default.
    """
    if not directory.is_dir():
        raise ArtifactError(f"{directory} is no directory, expected the Cosmos tokenizer's; check the path")
    config_file = directory / "config.json"
    if config_file.is_file() and "_class_name" in (data := read_json(config_file)):
        config, tensors, note = _read_diffusers(directory, data, strides)
    elif archives := find_archives(directory):
        config, tensors, note = read_archives(archives, strides)
    else:
        mend = "give its vae/ directory" if (directory / "vae" / "config.json").is_file() else "check the path"
        raise ArtifactError(
            f"{directory} is no Cosmos tokenizer, expected a diffusers directory (config.json of {CLASS}, safetensors) "
            f"or encoder.jit and decoder.jit; {mend}"
        )
    _check_strides(config, directory)
    return config, tensors, note


def _read_diffusers(
    directory: Path, data: dict[str, Any], strides: Strides | None
) -> tuple[TokenizerConfig, Tensors, str]:
    source = directory / "config.json"
    if data["_class_name"] != CLASS:
        raise ArtifactError(f"{source} is of {data['_class_name']!r:.60}, expected {CLASS}; give such a directory")
    defaults = {name: p.default for name, p in inspect.signature(AutoencoderKLCosmos.__init__).parameters.items()}

    def bad(name: str, expected: str) -> ArtifactError:
        return ArtifactError(f"{source}: {name} is {data.get(name)!r:.60}, expected {expected}; get it again")

    def number(name: str) -> int:
        value, least = data.get(name, defaults[name]), int(name != "num_layers")  # a level may be its sampler alone
        if type(value) is not int or value < least:
            raise bad(name, f"a whole number of at least {least}")
        return value

    def numbers(name: str) -> tuple[int, ...]:
        value = data.get(name, defaults[name])
        if not isinstance(value, (list, tuple)) or not all(type(v) is int and v > 0 for v in value):
            raise bad(name, "positive whole numbers")
        return tuple(value)

    def patches(name: str) -> str:
        value = data.get(name, defaults[name])
        if value not in PATCHES:
            raise bad(name, " or ".join(PATCHES))
        return str(value)

    for name in ("in_channels", "out_channels"):
        if number(name) != 3:
            raise bad(name, "3 (colour)")
    readers: dict[str, Callable[[str], Any]] = {"int": number, "str": patches, "tuple[int, ...]": numbers}
    types = {field.name: str(field.type) for field in dataclasses.fields(TokenizerConfig)}
    config = TokenizerConfig(**{ours: readers[types[ours]](theirs) for ours, theirs in NAMES.items()})
    told = (config.spatial_stride, config.temporal_stride)
    if strides not in (None, told):
        raise InputError(f"{source} says strides {told}, got {strides}; leave out --tokenizer-strides")
    tensors = read_shards(directory, "diffusion_pytorch_model")
    return config, tensors, f"tokenizer {directory}: diffusers; VideoMAR does not use its latents_mean and latents_std"


def _check_strides(config: TokenizerConfig, source: Path) -> None:
    space, time = config.spatial_stride, config.temporal_stride
    if not _strides_are_right(config):
        raise ArtifactError(
            f"{source}: {len(config.encoder_channels) - 1} levels behind patches of {config.patch_size} do not make "
            f"strides {space} in space and {time} in time; give --tokenizer-strides, or another tokenizer"
        )


@lru_cache(maxsize=8)
def _strides_are_right(config: TokenizerConfig) -> bool:
    """What the strides really are depends on the number of levels too: send shapes through, without numbers."""
    space, time = config.spatial_stride, config.temporal_stride
    try:
        with torch.device("meta"):
            tokenizer = VideoTokenizer(config).to("meta")  # its constants are copied from real ones
            latents: Tensor = tokenizer.encode(torch.empty(1, 3, 1 + time, 2 * space, space))
            pixels: Tensor = tokenizer.decode(latents)
        return latents.shape[2:] == (2, 2, 1) and pixels.shape[2:] == (1 + time, 2 * space, space)
    except Exception:  # whatever layers that do not fit each other come to
        return False
