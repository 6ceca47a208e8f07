"""Generation as the authors' code does it: both branches in a batch, K/V joined anew in every pass, the head called
once a diffusion step on fresh numbers from the host's tables. Everything else stays on the device.

`lean=True` keeps the tables on the device and the number of rows fixed, as whoever compiles a loop would. Knows
nothing of how it is timed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from videomar.config import ModelConfig
from videomar.model.head import DiffusionHead
from videomar.model.transformer import KeyValue, Transformer
from videomar.schedule import DiffusionSchedule, guidance_at, masked_after_steps, rope_tables


def fill(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights of a size that keeps numbers near one, drawn where the module lies."""
    generator = torch.Generator(next(module.parameters()).device).manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.normal_(0.0, 0.1 if p.ndim < 2 else p[0].numel() ** -0.5, generator=generator)
            if p.ndim < 2 and name.endswith("weight"):
                p.add_(1.0)
    return module.eval().requires_grad_(False)


def calm(head: DiffusionHead) -> None:
    """A random head answers with numbers of thousands; a quiet one leaves what it is given."""
    with torch.no_grad():
        head.final_layer.linear.weight.mul_(0.01)
        head.final_layer.linear.bias.mul_(0.01)


class Loop:
    """One clip's frames, one at a time."""

    def __init__(
        self, config: ModelConfig, device: str, dtype: torch.dtype, grid: tuple[int, int], lean: bool = False
    ) -> None:
        self.config, self.device, self.dtype, self.grid, self.lean = config, device, dtype, grid, lean
        t, s = config.transformer, config.sampling
        with torch.device(device):
            previous = torch.get_default_dtype()
            torch.set_default_dtype(dtype)
            try:
                self.transformer = fill(Transformer(t, config.text.width, config.text.max_tokens))
                self.head = fill(DiffusionHead(config.head, t.token_channels, t.width), 1)
            finally:
                torch.set_default_dtype(previous)
        calm(self.head)
        self.tokens = grid[0] * grid[1]
        self.left = masked_after_steps(self.tokens, s.mask_steps)
        self.most = max(a - b for a, b in zip([self.tokens, *self.left[:-1]], self.left, strict=True))
        self.schedule = DiffusionSchedule.respaced(config.head.train_steps, s.head_steps, s.max_beta)
        self.table = torch.from_numpy(self.schedule.coefficients).to(device)
        self.times = torch.from_numpy(self.schedule.timesteps).to(device)
        states = torch.randn(1, config.text.max_tokens, config.text.width, device=device, dtype=dtype)
        context = torch.cat([self.transformer.text_context(states), self.transformer.fake_latent])
        self.text = self.transformer.text_key_values(context)
        self.run_transformer: Callable[..., tuple[Tensor, list[KeyValue]]] = self.transformer
        self.run_head: Callable[..., tuple[Tensor, Tensor]] = self.head

    def past(self, finished: int) -> list[KeyValue]:
        """K/V of so many finished frames, at random."""
        t = self.config.transformer
        shape = (2, t.heads, finished * self.tokens, t.head_dim)
        return [
            (
                torch.randn(shape, device=self.device, dtype=self.dtype),
                torch.randn(shape, device=self.device, dtype=self.dtype),
            )
            for _ in range(t.depth)
        ]

    def rope(self, frame: int) -> tuple[Tensor, Tensor]:
        t = self.config.transformer
        cos, sin = rope_tables(frame, *self.grid, t.rope_split, t.rope_theta)
        return torch.from_numpy(cos).to(self.device, self.dtype), torch.from_numpy(sin).to(self.device, self.dtype)

    def frame(self, finished: int, after: Callable[[str], None] = lambda stage: None) -> Tensor:
        """All mask steps of the frame after `finished` ones, [S, C]; `after` is told when a stage was given out."""
        channels, steps = self.config.transformer.token_channels, self.config.sampling.mask_steps
        past, (cos, sin) = self.past(finished), self.rope(finished)
        order = torch.randperm(self.tokens, device=self.device)
        x = torch.zeros(self.tokens, channels, device=self.device)
        masked = torch.ones(self.tokens, dtype=torch.bool, device=self.device)
        before = [self.tokens, *self.left[:-1]]
        for step in range(steps):
            z = self.one_pass(x, masked, cos, sin, past)
            after("transformer")
            predict = order[self.tokens - before[step] : self.tokens - self.left[step]]
            scale = guidance_at(self.config.sampling.guidance_scale, self.left[step], self.tokens)
            drawn = self.sample(z[:, predict], scale)
            x[predict], masked[predict] = drawn, False
            after("head")
        return x

    def one_pass(self, x: Tensor, masked: Tensor, cos: Tensor, sin: Tensor, past: list[KeyValue]) -> Tensor:
        """z [2, S, W] of both branches."""
        if self.lean:
            torch.compiler.cudagraph_mark_step_begin()
        tokens = x.to(self.dtype).expand(2, -1, -1)
        return self.run_transformer(tokens, masked.expand(2, -1), cos, sin, self.text, past=past)[0]

    def sample(self, z: Tensor, scale: float) -> Tensor:
        """The whole diffusion of N tokens under z [2, N, W]: [N, C] float32."""
        count = z.shape[1]
        if self.lean:  # always as many rows, so that one compiled graph serves every mask step
            z = torch.cat([z, z[:, :1].expand(-1, self.most - count, -1)], dim=1)
        rows = z.shape[1]
        x = torch.randn(rows, self.config.transformer.token_channels, device=self.device)
        condition, steps = z.flatten(0, 1), len(self.schedule.timesteps)
        for i in range(steps):
            time, coefficients = self._numbers(i, 2 * rows)
            if self.lean:
                torch.compiler.cudagraph_mark_step_begin()
            eps, variance = self.run_head(x.to(self.dtype).repeat(2, 1), time, condition)
            draw = torch.randn_like(x) if i + 1 < steps else torch.zeros_like(x)
            x = self._step(x, eps.float(), variance.float(), coefficients, draw, scale)
        return x[:count]

    def _numbers(self, step: int, rows: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The step's number for every row, and its six coefficients."""
        if self.lean:
            return self.times[step].expand(rows), self.table[step].unbind()
        # Gaussian diffusion's usual code keeps its tables in NumPy and brings one entry over at every use.
        time = torch.full((rows,), float(self.schedule.timesteps[step]), device=self.device)
        row = self.schedule.coefficients[step]
        return time, tuple(torch.from_numpy(np.array(number)).to(self.device) for number in row)

    def _step(
        self, x: Tensor, eps: Tensor, variance: Tensor, numbers: tuple[Tensor, ...], draw: Tensor, scale: float
    ) -> Tensor:
        a, b, p, q, low, high = numbers
        with_text, without = eps.chunk(2)
        guided = without + scale * (with_text - without)
        share = (variance.chunk(2)[0] + 1) / 2
        start = a * x - b * guided
        return p * start + q * x + torch.exp(0.5 * (share * high + (1 - share) * low)) * draw
