"""What a source of clips is, for the loop: the demo world and folders of videos look alike. Knows neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from videomar.training.recipe import Stage


@dataclass(frozen=True)
class Clips:
    """Encoded clips and their sentences."""

    latents: Tensor  # [clips, frames, tokens, channels] float32, unscaled
    grid: tuple[int, int]  # rows and columns of a frame's tokens
    prompts: tuple[tuple[int, ...], ...]  # of each clip: ids of system prompt and sentence, no padding

    def __len__(self) -> int:
        return len(self.latents)

    def part(self, rows: Sequence[int] | np.ndarray | slice) -> Clips:
        """Some of them, in this order."""
        chosen = range(len(self))[rows] if isinstance(rows, slice) else [int(row) for row in rows]
        return Clips(self.latents[list(chosen)], self.grid, tuple(self.prompts[row] for row in chosen))

    def to(self, device: torch.device) -> Clips:
        """The same on another device."""
        return Clips(self.latents.to(device), self.grid, self.prompts)


def to_pixels(clips: np.ndarray) -> Tensor:
    """[count, frames, h, w, 3] uint8 -> [count, 3, frames, h, w] float32 in [-1, 1]."""
    return torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


class Source(Protocol):
    """Clips for one process; whatever it draws comes from the generators it is given, so a step can be made again."""

    def enter(self, stage: Stage, rng: np.random.Generator) -> None:
        """Make clips of a stage's length and size ready; may take long, and shows how far it is."""

    def batch(self, count: int, rng: np.random.Generator) -> Clips:
        """The clips of one step."""

    def held_out(self) -> Clips:
        """The same clips at every call of a stage, which training never sees."""

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs to go on as if nothing had been in between."""

    def restore(self, stage: Stage, state: dict[str, Tensor]) -> None:
        """Instead of `enter`."""
