"""The exponential moving average of the weights that are trained: what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

DECAY = 0.999  # a step


class Average:
    """Follows parameters; shorter at first, so that the beginning is soon forgotten."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self.values = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step number `step`, counted from 0."""
        decay = min(DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, list(self._parameters), 1 - decay)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The model is the average meanwhile."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for p, value in zip(self._parameters, self.values, strict=True):
            p.data, value.data = value.data, p.data

    def state(self) -> dict[str, Tensor]:
        """By name; `restore` goes on from it."""
        return {f"average.{i}": value for i, value in enumerate(self.values)}

    def restore(self, state: dict[str, Tensor]) -> None:
        for i, value in enumerate(self.values):
            value.copy_(state[f"average.{i}"])
