"""The training half of the diffusion head: noise a token, ask the head for the noise, learn the variance's range."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from videomar.model.head import DiffusionHead
from videomar.schedule import DiffusionSchedule, cosine_betas


class DiffusionLoss:
    """Mean squared error on the noise, plus the variational bound that trains the variance alone.

    Nichol and Dhariwal 2021, section 3.1 (L_simple + L_vlb with the mean held fixed).
    """

    def __init__(self, train_steps: int) -> None:
        schedule = DiffusionSchedule.respaced(train_steps, train_steps)
        self.coefficients = torch.from_numpy(schedule.coefficients[::-1].copy())  # row t is step t
        self.alpha_bar = torch.from_numpy((1 - cosine_betas(train_steps)).cumprod()).float()

    def __call__(self, head: DiffusionHead, tokens: Tensor, condition: Tensor) -> Tensor:
        """tokens [N, C] float32, condition [N, W] -> scalar loss."""
        device = tokens.device
        self.coefficients, self.alpha_bar = self.coefficients.to(device), self.alpha_bar.to(device)
        t = torch.randint(len(self.alpha_bar), (len(tokens),), device=device)
        noise = torch.randn_like(tokens)
        bar = self.alpha_bar[t, None]
        x = bar.sqrt() * tokens + (1 - bar).sqrt() * noise
        eps, variance = head(x, t, condition)
        eps, variance = eps.float(), variance.float()
        a, b, p, q, low, high = self.coefficients[t].T[..., None]
        share = (variance + 1) / 2
        log_variance = share * high + (1 - share) * low
        true_mean = p * tokens + q * x
        mean = p * (a * x - b * eps.detach()) + q * x
        kl = 0.5 * (
            log_variance - low - 1 + torch.exp(low - log_variance) + (true_mean - mean) ** 2 / log_variance.exp()
        )
        # At t = 0 the bound is a likelihood of discrete data, which latents are not: left out.
        bound = torch.where(t[:, None] > 0, kl, 0.0).mean() / math.log(2)
        return torch.mean((eps - noise) ** 2) + bound
