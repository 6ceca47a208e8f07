"""Muon for matrices and convolution kernels, AdamW for the rest: about twice the progress a step of AdamW alone."""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor, nn

from videomar.training.precision import PRODUCTS


class Muon:
    """Momentum whose matrices are orthogonalised (Jordan et al. 2024), in `PRODUCTS` and many equal ones at a time.

    torch.optim.Muon, its settings and `match_rms_adamw`, but for two things that it does not offer: it always
    multiplies in bfloat16, which takes a processor without it eight seconds a step here, and one matrix at a time.
    """

    MOMENTUM = 0.95
    STEPS = 5
    COEFFICIENTS = 3.4445, -4.7750, 2.0315

    def __init__(self, parameters: list[nn.Parameter], weight_decay: float) -> None:
        self._decay = weight_decay
        by_shape = sorted(parameters, key=lambda p: (len(p), p[0].numel()))
        self._groups = [list(same) for _, same in groupby(by_shape, key=lambda p: (len(p), p[0].numel()))]
        self._momentum = [torch.zeros(len(g), *g[0].flatten(1).shape) for g in self._groups]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """One step from the gradients; a parameter without one counts as having none to follow."""
        for group, momentum in zip(self._groups, self._momentum, strict=True):
            gradients = torch.stack([(torch.zeros_like(p) if p.grad is None else p.grad).flatten(1) for p in group])
            momentum.lerp_(gradients, 1 - self.MOMENTUM)
            updates = orthogonal(gradients.lerp(momentum, self.MOMENTUM), self.STEPS, self.COEFFICIENTS)
            rate = learning_rate * 0.2 * max(momentum.shape[1:]) ** 0.5
            for parameter, update in zip(group, updates, strict=True):
                parameter.mul_(1 - learning_rate * self._decay)
                parameter.sub_(rate * update.view_as(parameter))


def orthogonal(matrices: Tensor, steps: int, coefficients: tuple[float, float, float]) -> Tensor:
    """The nearest matrices with orthonormal rows or columns, roughly: singular values end between 0.5 and 1.5.

    matrices: [count, rows, columns] float32; a quintic Newton-Schulz iteration.
    """
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(PRODUCTS)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


class Optimizers:
    """Both optimizers behind one `step`."""

    def __init__(self, model: nn.Module, weight_decay: float = 0.01) -> None:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self._parameters = [p for _, p in named]
        matrices = [
            p for n, p in named if p.ndim >= 2 and min(p.shape[0], p[0].numel()) > 1 and "embed_tokens" not in n
        ]
        chosen = {id(p) for p in matrices}
        self._muon = Muon(matrices, weight_decay)
        self._adam = torch.optim.AdamW(
            [p for p in self._parameters if id(p) not in chosen], betas=(0.9, 0.95), weight_decay=weight_decay
        )

    def step(self, learning_rate: float) -> None:
        """Clip the gradients, take one step and forget them."""
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._muon.step(learning_rate)
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        self._adam.step()
        for parameter in self._parameters:
            parameter.grad = None
