"""Muon for matrices and convolution kernels, AdamW for the rest: about twice the progress a step of AdamW alone."""

from __future__ import annotations

import torch
from torch import nn


class Optimizers:
    """Both optimizers behind one `step`; kernels of any rank are shown to Muon as matrices that share their memory."""

    def __init__(self, model: nn.Module, weight_decay: float = 0.01, muon: bool = True) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        matrices = [p for p in self._parameters if muon and p.ndim >= 2 and min(p.shape[0], p[0].numel()) > 1]
        chosen = {id(p) for p in matrices}
        self._pairs = [(p, nn.Parameter(p.detach().flatten(1))) for p in matrices]
        self._muon = torch.optim.Muon(
            [view for _, view in self._pairs], weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        ) if matrices else None
        self._adam = torch.optim.AdamW(
            [p for p in self._parameters if id(p) not in chosen], betas=(0.9, 0.95), weight_decay=weight_decay
        )

    def step(self, learning_rate: float) -> None:
        """Clip the gradients, take one step and forget them."""
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for parameter, view in self._pairs:
            view.grad = None if parameter.grad is None else parameter.grad.flatten(1)
        for optimizer in filter(None, (self._muon, self._adam)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
        for parameter in self._parameters:
            parameter.grad = None
