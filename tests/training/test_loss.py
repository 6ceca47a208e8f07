from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from videomar.model.videomar import VideoMAR
from videomar.training import loss as loss_module
from videomar.training.loss import TrainingLoss, held_out_losses, mask_tokens
from videomar.training.source import Clips

GRID = (4, 4)


@pytest.fixture
def model(tiny_model: VideoMAR) -> VideoMAR:
    return copy.deepcopy(tiny_model).train().requires_grad_(True)


def clips(model: VideoMAR, count: int, frames: int = 3, seed: int = 0) -> Clips:
    rng = np.random.default_rng(seed)
    channels = model.config.transformer.token_channels
    latents = torch.from_numpy(rng.standard_normal((count, frames, GRID[0] * GRID[1], channels), np.float32))
    prefix = model.config.text.system_tokens
    lengths = rng.integers(1, 8, count)
    prompts = tuple(tuple(rng.integers(0, 30, prefix + n).tolist()) for n in lengths)
    return Clips(latents, GRID, prompts)


@pytest.fixture(autouse=True, params=["float32", "bfloat16"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both types that products are made in, whichever this processor has."""
    enabled = request.param == "bfloat16"
    monkeypatch.setattr(loss_module, "autocast", lambda device: torch.autocast(device, torch.bfloat16, enabled=enabled))
    return str(request.param)


def without_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token masked, no sentence dropped, and noise that depends on the token alone."""
    monkeypatch.setattr(loss_module, "mask_tokens", lambda rows, n, device="cpu": torch.ones(rows, n, dtype=torch.bool))
    monkeypatch.setattr(loss_module, "DROP_TEXT", 0.0)

    class Plain:
        def __init__(self, _: int) -> None: ...

        def __call__(self, head: Any, tokens: Tensor, condition: Tensor) -> Tensor:
            noise, _ = head(tokens.cos(), (tokens.sum(1).abs() * 7) % 100, condition)
            return (noise - tokens.sin()).square().mean()

    monkeypatch.setattr(loss_module, "DiffusionLoss", Plain)


def gradients(model: VideoMAR, parts: list[Clips], frame: int) -> dict[str, Tensor]:
    model.zero_grad()
    for part in parts:
        (TrainingLoss(model)(part, frame) / len(parts)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(a: dict[str, Tensor], b: dict[str, Tensor], products: str) -> None:
    """Gradients alike: to rounding in float32, and to a few of bfloat16's steps of 2^-8 where it multiplies."""
    assert set(a) == set(b) and any(g.abs().max() > 1e-4 for g in a.values())
    for name in a:
        if products == "float32":
            torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6)
        else:
            assert (a[name] - b[name]).norm() <= 0.02 * a[name].norm() + 1e-6, name


@pytest.mark.parametrize("frame", [0, 1, 2])
def test_parts_of_a_batch_have_the_whole_batchs_gradients(
    frame: int, model: VideoMAR, monkeypatch: pytest.MonkeyPatch, products: str
) -> None:
    without_chance(monkeypatch)
    whole = clips(model, 6)
    same(
        gradients(model, [whole], frame),
        gradients(model, [whole.part(slice(i, None, 3)) for i in range(3)], frame),
        products,
    )


def test_a_sentence_counts_the_same_beside_longer_ones(model: VideoMAR, monkeypatch: pytest.MonkeyPatch) -> None:
    without_chance(monkeypatch)
    whole = clips(model, 4, seed=3)
    assert len({len(prompt) for prompt in whole.prompts}) > 1
    with torch.no_grad():
        alone = [float(TrainingLoss(model)(whole.part([row]), 1)) for row in range(4)]
        together = float(TrainingLoss(model)(whole, 1))
    assert together == pytest.approx(np.mean(alone), rel=1e-5) and np.std(alone) > 1e-3


def test_what_is_computed_again_has_the_same_gradients(
    model: VideoMAR, monkeypatch: pytest.MonkeyPatch, products: str
) -> None:
    without_chance(monkeypatch)
    whole = clips(model, 2)
    kept = gradients(model, [whole], 1)
    for block in model.transformer.decoder_blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    same(kept, gradients(model, [whole], 1), products)


def test_a_frame_is_predicted_from_those_before_it_alone(model: VideoMAR, monkeypatch: pytest.MonkeyPatch) -> None:
    without_chance(monkeypatch)
    whole = clips(model, 2)
    with torch.no_grad():
        before = float(TrainingLoss(model)(whole, 1))
        whole.latents[:, 2:] += 1.0
        assert float(TrainingLoss(model)(whole, 1)) == before
        whole.latents[:, 0] += 1.0
        assert float(TrainingLoss(model)(whole, 1)) != before


def test_between_seven_tenths_of_the_tokens_and_all_of_them_are_masked() -> None:
    torch.manual_seed(0)
    share = mask_tokens(4000, 100).float().mean(1)
    assert share.min() >= 0.7 and share.max() == 1.0
    # N(1, 0.25) cut to [0.7, 1]: its mean is 1 - 0.25 (phi(0) - phi(1.2)) / (Phi(0) - Phi(-1.2)); ceil adds 0.005.
    assert share.mean() == pytest.approx(1 - 0.25 * (0.39894 - 0.19419) / (0.5 - 0.11507) + 0.005, abs=0.005)
    assert mask_tokens(4000, 100).float().mean(0).std() < 0.01, "no position is favoured"


def test_held_out_losses_are_the_same_at_every_call_and_leave_the_generator_alone(model: VideoMAR) -> None:
    loss, whole = TrainingLoss(model), clips(model, 5)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = held_out_losses(loss, whole, range(1, 3))
    assert torch.equal(torch.get_rng_state(), state) and set(first) == {1, 2}
    torch.manual_seed(2)
    assert held_out_losses(loss, whole, range(1, 3)) == first
