"""Bytes of a training step against PyTorch: tensors saved by a real forward pass, and weights of its modules."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from videomar.config import DEMO, VIDEOMAR_1_4B, ModelConfig
from videomar.errors import InputError
from videomar.model.videomar import PARTS, VideoMAR
from videomar.plan.training import Sizes, activations, parameters, training_memory
from videomar.training.diffusion import DiffusionLoss

torch.set_num_threads(1)
WIDE = dataclasses.replace(
    DEMO,
    transformer=dataclasses.replace(DEMO.transformer, width=256, heads=8, head_dim=32, rope_split=(16, 8, 8), depth=3),
    head=dataclasses.replace(DEMO.head, width=128, depth=1),
    text=dataclasses.replace(DEMO.text, depth=1, mlp_width=512),
)


def saved_bytes(sizes: Sizes) -> int:
    """What autograd keeps of one forward pass besides weights; the loss of training, written down again."""
    model = VideoMAR(sizes.config)
    model.requires_grad_(True)
    held = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    batch, frames, grid, t = sizes.clips, sizes.latent_frames, sizes.tokens, sizes.config.transformer
    x, tables = torch.randn(batch, frames * grid, t.token_channels), torch.randn(2, frames * grid, t.head_dim)
    masked = torch.zeros(x.shape[:2], dtype=torch.bool)
    masked[:, -grid:] = True
    frame = torch.arange(frames).repeat_interleave(grid)
    if sizes.recompute:
        for block in model.transformer.decoder_blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    half = sizes.activation_bytes == 2
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16, half):
        states = model.text_encoder(torch.randint(9, (batch, sizes.text_tokens)))
        context = model.transformer.text_context(states, torch.zeros(batch, dtype=torch.bool)).float()
        text = model.transformer.text_key_values(context)
        of_text = torch.ones(batch, sizes.text_tokens, dtype=torch.bool)
        mask = frame[:, None] >= frame
        z, _ = model.transformer(x, masked, *tables, text, of_text, mask=mask)
        wanted, condition = (v[masked].repeat(2, 1) for v in (x, z))
        DiffusionLoss(sizes.config.head.train_steps)(model.diffusion_head, wanted, condition)
    found = sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in held)
    return found - (2 * sum(p.numel() for n, p in model.named_parameters() if is_copied(n, p)) if half else 0)


def is_copied(name: str, parameter: torch.nn.Parameter) -> bool:
    """Whether autocast makes a bfloat16 copy that is kept: weights of linears."""
    return parameter.ndim == 2 and not name.startswith("video_tokenizer") and "embed_tokens" not in name


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # its slower way is all that PyTorch warns of
@pytest.mark.parametrize(
    ("config", "options"),
    [
        (DEMO, {}),
        (DEMO, {"frames": 9, "height": 96, "batch": 1, "text": 5}),
        (DEMO, {"activation_bytes": 2, "batch": 8}),
        (WIDE, {"frames": 25}),
        (WIDE, {"batch": 8, "accumulate": 4}),
        (WIDE, {"activation_bytes": 2, "text": 16, "batch": 6}),
        (DEMO, {"recompute": True}),
    ],
)
def test_activations_are_what_autograd_keeps(config: ModelConfig, options: dict[str, Any]) -> None:
    sizes = Sizes(**{"config": config, "frames": 17, "height": 64, "width": 64, "batch": 4, "text": 8, **options})
    assert activations(sizes) == pytest.approx(saved_bytes(sizes), rel=0.15)


@pytest.mark.parametrize("config", [DEMO, VIDEOMAR_1_4B], ids=lambda config: config.name)
def test_weights_are_those_of_pytorchs_modules(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = VideoMAR(config)
    assert parameters(config) == {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in PARTS}


RELEASED = Sizes(VIDEOMAR_1_4B, 25, 480, 768, batch=4, activation_bytes=2)


def peak(sizes: Sizes) -> int:
    return max(moment.total for moment in training_memory(sizes))


def test_what_saves_memory_saves_it() -> None:
    """At the released sizes: each of the options that exist to save memory, and what it saves."""
    whole = training_memory(RELEASED)[0]
    recomputed = training_memory(dataclasses.replace(RELEASED, recompute=True))[0]
    assert recomputed.parts["activations"] < whole.parts["activations"] / 8
    parts = training_memory(dataclasses.replace(RELEASED, accumulate=4))[0]
    assert parts.parts["activations"] < whole.parts["activations"] / 2
    assert parts.parts["gradients"] == 4 * sum(parameters(VIDEOMAR_1_4B)[p] for p in RELEASED.trained)
    frozen = dataclasses.replace(RELEASED, trained=("transformer", "diffusion_head"))
    assert peak(frozen) < peak(RELEASED)
    thin = dataclasses.replace(frozen, lora=16, recompute=True)
    assert peak(thin) < peak(dataclasses.replace(frozen, recompute=True))


def test_low_rank_updates_have_the_counted_sides() -> None:
    with torch.device("meta"):
        model = VideoMAR(DEMO)
    matrices = [
        module.weight
        for name, module in model.transformer.decoder_blocks.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    expected = 4 * 3 * sum(sum(matrix.shape) for matrix in matrices)
    step = training_memory(Sizes(DEMO, 17, 64, 64, batch=4, lora=3))[2].parts
    assert step["gradients"] == step["averaged weights"] == step["optimizer"] == expected


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"frames": 16}, r"frames is 16, expected 1 \+ 8k; change --frames"),
        ({"width": 70}, "width is 70, expected a multiple of 8"),
        ({"accumulate": 3}, "a batch of 4 does not go in 3 equal parts"),
        ({"trained": ("video_tokenizer",)}, "video_tokenizer is not trained beside others"),
    ],
)
def test_sizes_without_whole_latents_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Sizes(**{"config": DEMO, "frames": 17, "height": 64, "width": 64, "batch": 4, **wrong})
