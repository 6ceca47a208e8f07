"""The whole model in one module, and the checkpoint directory it lives in. Knows nothing of sampling."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from videomar.config import ModelConfig
from videomar.errors import ArtifactError
from videomar.model.head import DiffusionHead
from videomar.model.text import TextEncoder
from videomar.model.tokenizer import VideoTokenizer
from videomar.model.transformer import Transformer

PARTS = ("video_tokenizer", "text_encoder", "transformer", "diffusion_head")


class VideoMAR(nn.Module):
    """Video tokenizer, text encoder, transformer and diffusion head of one config."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        t = config.transformer
        self.video_tokenizer = VideoTokenizer(config.tokenizer)
        self.text_encoder = TextEncoder(config.text)
        self.transformer = Transformer(t, config.text.width, config.text.max_tokens)
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
    """Write config.json and one safetensors file a part."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(model.config.to_json())
    for part in PARTS:
        save_file(getattr(model, part).state_dict(), directory / f"{part}.safetensors")


def load_checkpoint(directory: Path) -> VideoMAR:
    """Read a checkpoint directory into a model in evaluation mode.

    Raises ArtifactError naming the first missing, unreadable or ill-fitting file or tensor; no code is unpickled.
    """
    if not (directory / "config.json").is_file():
        raise ArtifactError(f"no checkpoint at {directory}: config.json is missing; give the directory that holds it")
    model = VideoMAR(ModelConfig.from_json((directory / "config.json").read_text())).eval()
    for part in PARTS:
        file = directory / f"{part}.safetensors"
        if not file.is_file():
            raise ArtifactError(f"checkpoint {directory} lacks {file.name}; copy the whole directory again")
        try:
            tensors = load_file(file)
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{file} cannot be read ({error}); copy it again") from None
        _load_exactly(getattr(model, part), tensors, file)
    return model.requires_grad_(False)


def _load_exactly(module: nn.Module, tensors: dict[str, torch.Tensor], file: Path) -> None:
    wanted = module.state_dict()
    for name in sorted(wanted.keys() - tensors.keys()):
        raise ArtifactError(f"{file} lacks the tensor {name!r}, shape {list(wanted[name].shape)}")
    for name in sorted(tensors.keys() - wanted.keys()):
        raise ArtifactError(f"{file} has an unknown tensor {name!r}; config.json may be another model's")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise ArtifactError(
                f"{file}: {name!r} is {list(tensor.shape)}, expected {list(wanted[name].shape)} by config.json"
            )
    module.load_state_dict(tensors)
