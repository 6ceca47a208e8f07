"""Muon for matrices and convolution kernels, AdamW for the rest: about twice the progress a step of AdamW alone."""

from __future__ import annotations

import math
from itertools import groupby

import torch
from torch import Tensor, nn

from videomar.training.precision import products


class Muon:
    """Momentum whose matrices are orthogonalised (Jordan et al. 2024), in `products` and many equal ones at a time.

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
        self.momentum = [torch.zeros(len(g), *g[0].flatten(1).shape, device=g[0].device) for g in self._groups]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """One step from the gradients; a parameter without one counts as having none to follow."""
        for group, momentum in zip(self._groups, self.momentum, strict=True):
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
    x = (matrices.mT if tall else matrices).to(products(matrices.device.type))
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


class Optimizers:
    """Both optimizers behind one `step`; `model` is whatever holds the parameters that are trained."""

    def __init__(self, model: nn.Module, weight_decay: float = 0.01) -> None:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self._parameters = [p for _, p in named]
        matrices = [
            p for n, p in named if p.ndim >= 2 and min(p.shape[0], p[0].numel()) > 1 and "embed_tokens" not in n
        ]
        chosen = {id(p) for p in matrices}
        rest = [p for p in self._parameters if id(p) not in chosen]
        self._muon = Muon(matrices, weight_decay)
        # Fine-tuning may train matrices alone.
        self._adam = torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=weight_decay) if rest else None
        self._rest = rest

    def step(self, learning_rate: float) -> float:
        """Clip the gradients, take one step and forget them; the gradients' norm before.

        A norm that is no number changes nothing.
        """
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, 1.0))
        if math.isfinite(norm):
            self._muon.step(learning_rate)
            if self._adam is not None:
                for group in self._adam.param_groups:
                    group["lr"] = learning_rate
                self._adam.step()
        for parameter in self._parameters:
            parameter.grad = None
        return norm

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on besides the parameters, by name."""
        tensors = {f"muon.{i}": momentum for i, momentum in enumerate(self._muon.momentum)}
        if self._adam is not None:
            for i, p in enumerate(self._rest):
                tensors |= {f"adam.{i}.{name}": value for name, value in self._adam.state[p].items()}
        return tensors

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for i, momentum in enumerate(self._muon.momentum):
            momentum.copy_(state[f"muon.{i}"])
        if self._adam is not None:
            for i, p in enumerate(self._rest):
                names = ("step", "exp_avg", "exp_avg_sq")
                kept = {name: state[f"adam.{i}.{name}"] for name in names if f"adam.{i}.{name}" in state}
                # The count stays where AdamW keeps it.
                self._adam.state[p] = {n: t.clone() if n == "step" else t.to(p.device) for n, t in kept.items()}
