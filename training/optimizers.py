"""Muon for matrices and convolution kernels, AdamW for the rest: about twice the progress a step of AdamW alone."""

from __future__ import annotations

import torch
from torch import nn


class Optimizers:
    """Both optimizers behind one `step`; kernels of any rank are shown to Muon as matrices that share their memory."""

    def __init__(self, model: nn.Module, weight_decay: float = 0.01) -> None:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self._parameters = [p for _, p in named]
        matrices = [
            p for n, p in named if p.ndim >= 2 and min(p.shape[0], p[0].numel()) > 1 and "embed_tokens" not in n
        ]
        chosen = {id(p) for p in matrices}
        self._pairs = [(p, nn.Parameter(p.detach().flatten(1))) for p in matrices]
        self._muon = torch.optim.Muon(
            [view for _, view in self._pairs], weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self._adam = torch.optim.AdamW(
            [p for p in self._parameters if id(p) not in chosen], betas=(0.9, 0.95), weight_decay=weight_decay
        )

    def step(self, learning_rate: float) -> None:
        """Clip the gradients, take one step and forget them."""
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for parameter, view in self._pairs:
            view.grad = None if parameter.grad is None else parameter.grad.flatten(1)
        for optimizer in (self._muon, self._adam):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
        for parameter in self._parameters:
            parameter.grad = None
