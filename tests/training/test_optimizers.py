from __future__ import annotations

import pytest
import torch
from torch import nn

from videomar.training import optimizers
from videomar.training.optimizers import Muon, orthogonal


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_steps_are_those_of_torchs_own_muon(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to what bfloat16, in which torch's always multiplies, leaves of an update."""
    monkeypatch.setattr(optimizers, "products", lambda _: dtype)
    torch.manual_seed(0)
    shapes = [(24, 12), (12, 24), (24, 12), (16, 16)]
    ours, theirs = ([nn.Parameter(torch.randn(s, generator=torch.manual_seed(1))) for s in shapes] for _ in "ab")
    muon = Muon(ours, weight_decay=0.01)
    reference = torch.optim.Muon(theirs, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        before = [p.detach().clone() for p in ours]
        reference.param_groups[0]["lr"] = 0.02
        muon.step(0.02)
        reference.step()
        for a, b, was in zip(ours, theirs, before, strict=True):
            moved = (a - was).norm()
            assert moved > 0.1 * 0.02 * 0.2 * max(a.shape) ** 0.5
            assert (a - b).norm() < 0.05 * moved
        with torch.no_grad():
            for a, b in zip(ours, theirs, strict=True):
                b.copy_(a)


def test_kernels_of_convolutions_are_stepped_as_matrices() -> None:
    kernel, matrix = nn.Parameter(torch.ones(4, 3, 2, 2)), nn.Parameter(torch.ones(4, 12))
    kernel.grad = torch.randn(kernel.shape, generator=torch.manual_seed(2))
    matrix.grad = kernel.grad.flatten(1).clone()
    muon = Muon([kernel, matrix], weight_decay=0.0)
    muon.step(0.1)
    assert torch.equal(kernel.flatten(1), matrix) and not torch.equal(matrix, torch.ones(4, 12))


def test_an_orthogonal_update_has_singular_values_around_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "products", lambda _: torch.float32)
    found = orthogonal(torch.randn(3, 40, 20, generator=torch.manual_seed(3)), Muon.STEPS, Muon.COEFFICIENTS)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.4 and values.max() < 1.4
