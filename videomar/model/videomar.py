"""The whole model in one module, and the checkpoint directory it lives in. Knows nothing of sampling."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from videomar.artifacts import atomic_write
from videomar.checkpoint import read_config
from videomar.config import ModelConfig
from videomar.errors import ArtifactError
from videomar.model.head import DiffusionHead
from videomar.model.text import TextEncoder
from videomar.model.tokenizer import VideoTokenizer
from videomar.model.transformer import Transformer
from videomar.unfinished import folder

PARTS = ("video_tokenizer", "text_encoder", "transformer", "diffusion_head")


class VideoMAR(nn.Module):
    """Video tokenizer, text encoder, transformer and diffusion head of one config."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        t = config.transformer
        self.video_tokenizer = VideoTokenizer(config.tokenizer)
        self.text_encoder = TextEncoder(config.text)
        self.transformer = Transformer(t, config.text)
        self.diffusion_head = DiffusionHead(config.head, t.token_channels, t.width)

    def randomize(self, seed: int) -> VideoMAR:
        """Fill every weight with seeded random numbers of a size that keeps activations near one; for tests."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, p in self.named_parameters():
                noise = torch.randn(p.shape, generator=generator)
                if p.ndim < 2:  # a norm's gain, or a bias
                    p.copy_(0.1 * noise + float(name.endswith("weight")))
                elif name.endswith(("mask_token", "fake_latent")):
                    p.copy_(noise)
                else:
                    p.copy_(noise / p[0].numel() ** 0.5)
        return self


def save_checkpoint(model: VideoMAR, directory: Path) -> None:
    """Write config.json and one safetensors file a part, each whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    atomic_write(directory / "config.json", model.config.to_json())
    for part in PARTS:
        save_part(getattr(model, part), directory / f"{part}.safetensors")


def save_part(part: nn.Module, file: Path) -> None:
    """Write the weights of one part, whole or not at all."""
    save_tensors(part.state_dict(), file)


def save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """Write tensors by name, whole or not at all."""
    with folder(file) as temporary:
        save_file(tensors, temporary / file.name)
        (temporary / file.name).chmod(temporary.stat().st_mode & 0o666)  # safetensors lets nobody else read
        os.replace(temporary / file.name, file)


def load_checkpoint(directory: Path) -> VideoMAR:
    """Read a checkpoint directory into a model in evaluation mode.

    Raises ArtifactError naming the first missing, unreadable or ill-fitting file or tensor; no code is unpickled.
    """
    parts = PartsOfCheckpoint(directory)
    parts.check()
    with no_init_weights():
        model = VideoMAR(parts.config).eval()
    for part in PARTS:
        setattr(model, part, getattr(parts, part))
    return model


class PartsOfCheckpoint:
    """A checkpoint that looks like VideoMAR; a part is read when it is asked for, and kept until `release`.

    Weights have the given dtype, converted one by one as they are read; buffers, such as rotary frequencies, stay as
    they are made. Raises ArtifactError as `load_checkpoint` does.
    """

    def __init__(self, directory: Path, dtype: torch.dtype = torch.float32) -> None:
        file = directory / "config.json"
        if not file.is_file():
            raise ArtifactError(
                f"no checkpoint at {directory}: config.json is missing; give the directory that holds it"
            )
        self.config = read_config(directory)
        self._directory, self._dtype = directory, dtype

    def __getattr__(self, part: str) -> Any:
        if part not in PARTS:
            raise AttributeError(part)
        module = self._read(part)
        setattr(self, part, module)  # found at once from now on
        return module

    def release(self) -> None:
        """Let go of every part."""
        for part in PARTS:
            self.__dict__.pop(part, None)

    def check(self) -> None:
        """Raise ArtifactError if any part is missing or does not fit, without reading weights or taking memory."""
        for part in PARTS:
            with self._open(part) as file, torch.device("meta"):
                _check_names(self._empty(part), file, self._file(part))

    def _file(self, part: str) -> Path:
        file = self._directory / f"{part}.safetensors"
        if not file.is_file():
            raise ArtifactError(f"checkpoint {self._directory} lacks {file.name}; copy the whole directory again")
        return file

    def _open(self, part: str) -> Any:
        file = self._file(part)
        try:
            return safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{file} cannot be read ({error}); copy it again") from None

    def _empty(self, part: str) -> nn.Module:
        c, t = self.config, self.config.transformer
        with no_init_weights():  # all are about to be replaced; until then their memory stays untouched
            if part == "video_tokenizer":
                return VideoTokenizer(c.tokenizer)
            if part == "text_encoder":
                return TextEncoder(c.text)
            if part == "transformer":
                return Transformer(t, c.text)
            return DiffusionHead(c.head, t.token_channels, t.width)

    def _read(self, part: str) -> nn.Module:
        module = self._empty(part)
        with self._open(part) as file:
            _check_names(module, file, self._file(part))
            tensors = {name: self._tensor(file, name) for name in file.keys()}
        module.load_state_dict(tensors, strict=False, assign=True)  # once: each call walks through all modules
        return module.eval().requires_grad_(False)

    def _tensor(self, file: Any, name: str) -> torch.Tensor:
        tensor: torch.Tensor = file.get_tensor(name)
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor


def _check_names(module: nn.Module, tensors: Any, file: Path) -> None:
    wanted = module.state_dict()
    found = set(tensors.keys())
    for name in sorted(wanted.keys() - found):
        raise ArtifactError(f"{file} lacks the tensor {name!r}, shape {list(wanted[name].shape)}")
    for name in sorted(found - wanted.keys()):
        raise ArtifactError(f"{file} has an unknown tensor {name!r}; config.json may be another model's")
    for name in sorted(found):
        shape = tensors.get_slice(name).get_shape()
        if shape != list(wanted[name].shape):
            raise ArtifactError(f"{file}: {name!r} is {shape}, expected {list(wanted[name].shape)} by config.json")
