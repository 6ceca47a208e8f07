"""Who is predicted when, and with what numbers: mask counts, guidance, temperature, diffusion, RoPE, noise.

Pure numpy and seeded. Decides; never computes on a device.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from videomar.errors import InputError

HEAD_LOOPS = 8  # different numbers of diffusion steps in a clip, at most


def masked_after_steps(tokens: int, steps: int) -> list[int]:
    """How many of a frame's tokens are still masked after each mask step (model.md, the sampling loop, 2).

    floor(tokens * cos(pi/2 * (s+1)/steps)), at least 1 and at most one less than before; 0 after the last step.
    Raises InputError when there are more steps than tokens: a step has to predict something.
    """
    if not 1 <= steps <= tokens:
        raise InputError(
            f"mask steps is {steps}, expected 1 to {tokens} (the tokens of one frame at this size); lower --mask-steps"
        )
    counts, now = [], tokens
    for step in range(steps - 1):
        now = max(1, min(now - 1, int(np.floor(tokens * np.cos(np.pi / 2 * (step + 1) / steps)))))
        counts.append(now)
    return [*counts, 0]


def masked_after_halves(tokens: int, steps: int, detail_steps: int) -> list[int]:
    """The same for structure first: half of the tokens as `masked_after_steps` says, the others in equal parts.

    After generation-then-reconstruction (GtR): once every second token is known, the rest is nearly decided.
    """
    structure = (tokens + 1) // 2
    detail = tokens - structure
    if detail_steps > detail:
        raise InputError(
            f"detail steps is {detail_steps}, expected 1 to {detail} (half of one frame's tokens at this size); lower "
            "--detail-steps"
        )
    first = [detail + left for left in masked_after_steps(structure, steps - detail_steps)]
    return first + [detail - detail * (i + 1) // detail_steps for i in range(detail_steps)]


def head_steps_at(index: int, mask_steps: int, first: int, last: int | None, anneal: str) -> int:
    """Diffusion steps of a frame's mask step: from `first` down to `last` (DiSA); None: always `first`.

    linear and cosine reach `last` at the last mask step, two-stage in the second half of them. There are at most
    HEAD_LOOPS different numbers: an engine captures a loop of its own for each.
    """
    if last is None:
        return first
    at = index / max(1, mask_steps - 1)
    if anneal == "two-stage":
        return first if at < 0.5 else last
    left = 1 - at if anneal == "linear" else (1 + np.cos(np.pi * at)) / 2
    level = round(float(left) * (HEAD_LOOPS - 1)) / (HEAD_LOOPS - 1)
    return round(last + (first - last) * level)


def guidance_at(scale: float, still_masked: int, tokens: int, ramp: bool = True) -> float:
    """Guidance scale of a mask step: grows linearly from 1 as tokens become known; without ramp, `scale` throughout.

    The authors take it from the mask count before the last step empties it, which is never below 1: a frame ends at
    1 + (scale - 1) * (tokens - 1) / tokens, not at `scale`.
    """
    return 1.0 + (scale - 1.0) * (tokens - max(1, still_masked)) / tokens if ramp else scale


def temperature_at(generated_frame: int, fixed: float | None = None) -> float:
    """Factor on the noise of the diffusion steps; by default 0.9 + 10^-(t+1) for generated frame t = 0, 1, ..."""
    return 0.9 + 10.0 ** -(generated_frame + 1) if fixed is None else fixed


def cosine_betas(steps: int, max_beta: float = 0.999) -> np.ndarray:
    """Betas of the cosine schedule (Nichol and Dhariwal 2021, eq. 17), at most `max_beta`: [steps] float64."""
    bar = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    betas: np.ndarray = np.minimum(1 - bar[1:] / bar[:-1], max_beta)
    return betas


def _check_head_steps(trained: int, steps: int) -> None:
    if not 1 <= steps <= trained:
        raise InputError(f"head steps is {steps}, expected 1 to {trained}; change --head-steps")


@dataclass(frozen=True)
class DiffusionSchedule:
    """A sampler's numbers, noisiest step first.

    timesteps: [steps] float32, the original step numbers that the network is told.
    coefficients: [steps, 6] float32, columns named in COLUMNS:
      x0 = a * x - b * eps;  mean = p * x0 + q * x;  log variance between `low` and `high`.
    """

    COLUMNS = ("a", "b", "p", "q", "low", "high")

    timesteps: np.ndarray
    coefficients: np.ndarray

    @staticmethod
    def respaced(train_steps: int, steps: int, max_beta: float = 0.999) -> DiffusionSchedule:
        """The ancestral sampler's: keep `steps` of the trained steps, evenly spread, and derive their betas anew.

        Raises InputError when more steps are asked for than were trained.
        """
        _check_head_steps(train_steps, steps)
        # Evenly from the first to the last trained step, both kept (respacing of Nichol and Dhariwal's code).
        # The running sum is theirs too: at ties it rounds otherwise than a product.
        stride = (train_steps - 1) / (steps - 1) if steps > 1 else 1.0
        kept = np.array([round(at) for at in itertools.accumulate([stride] * (steps - 1), initial=0.0)])
        bar = np.cumprod(1 - cosine_betas(train_steps, max_beta))[kept]
        previous = np.concatenate([[1.0], bar[:-1]])
        beta = 1 - bar / previous
        posterior = beta * (1 - previous) / (1 - bar)
        if steps > 1:  # the first posterior variance is 0: its logarithm borrows the second
            posterior[0] = posterior[1]
        else:
            posterior = beta
        table = np.stack(
            [
                np.sqrt(1 / bar),
                np.sqrt(1 / bar - 1),
                beta * np.sqrt(previous) / (1 - bar),
                (1 - previous) * np.sqrt(1 - beta) / (1 - bar),
                np.log(posterior),
                np.log(beta),
            ],
            axis=1,
        )
        return DiffusionSchedule(kept[::-1].astype(np.float32), table[::-1].astype(np.float32).copy())

    @staticmethod
    def ddim(train_steps: int, steps: int, max_beta: float = 0.999) -> DiffusionSchedule:
        """The deterministic sampler in the same columns (Song et al. 2021, eq. 12 with sigma 0).

        The kept steps trail (Lin et al. 2024, table 2): from the noisiest in equal strides, so that none is spent
        where nearly all noise is gone. What is drawn has no weight: its logarithm is -80. Raises InputError as above.
        """
        _check_head_steps(train_steps, steps)
        kept = np.round(np.arange(1, steps + 1) * train_steps / steps).astype(int) - 1
        bar = np.cumprod(1 - cosine_betas(train_steps, max_beta))[kept]
        previous = np.concatenate([[1.0], bar[:-1]])
        q = np.sqrt((1 - previous) / (1 - bar))
        nothing = np.full(steps, -80.0)
        columns = np.sqrt(1 / bar), np.sqrt(1 / bar - 1), np.sqrt(previous) - q * np.sqrt(bar), q, nothing, nothing
        table = np.stack(columns, axis=1)
        return DiffusionSchedule(kept[::-1].astype(np.float32), table[::-1].astype(np.float32).copy())


def rope_tables(
    frame: int, height: int, width: int, split: tuple[int, int, int], theta: float
) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of the rotary angles of one frame's tokens, row by row: two [height * width, sum(split)] float32.

    Channels are split over (frame, row, column); inside a slice of width D the angle of channel i and i + D/2 is
    position / theta^(2i/D).
    """
    rows, columns = np.divmod(np.arange(height * width), width)
    angles = []
    for position, part in zip((np.full(height * width, frame), rows, columns), split, strict=True):
        inverse = theta ** (-np.arange(0, part, 2, dtype=np.float64) / part)
        half = position[:, None].astype(np.float64) * inverse
        angles += [half, half]
    angle = np.concatenate(angles, axis=1)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def half_tables(
    frame: int, height: int, width: int, split: tuple[int, int, int], theta: float
) -> tuple[np.ndarray, np.ndarray]:
    """The RoPE tables as the graphs take them, each slice's first half: two [height * width, D / 2] float32."""
    starts = np.cumsum([0, *split[:-1]])
    columns = np.concatenate([np.arange(s, s + n // 2) for s, n in zip(starts, split, strict=True)])
    cos, sin = rope_tables(frame, height, width, split, theta)
    return cos[:, columns], sin[:, columns]


class Noise(Protocol):
    """All randomness of a generation; replace it to give several backends identical bits."""

    def order(self, frame: int, tokens: int) -> np.ndarray:
        """Order in which a latent frame's positions are predicted: a permutation, [tokens] int64."""

    def initial(self, frame: int, step: int, shape: tuple[int, int]) -> np.ndarray:
        """Where the diffusion of a mask step's tokens starts: [tokens, channels] float32, standard normal."""

    def steps(self, frame: int, step: int, shape: tuple[int, int, int]) -> np.ndarray:
        """Noise added at each head step: [head steps, tokens, channels] float32, standard normal."""


class SeededNoise:
    """The default Noise: one seed; every draw is keyed by (frame, mask step), so no call depends on another."""

    def __init__(self, seed: int = 0) -> None:
        if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or not 0 <= seed < 2**63:
            raise InputError(f"seed is {seed!r:.40}, expected a whole number, 0 to 2^63 - 1")
        self.seed = seed

    def _generator(self, kind: int, frame: int, step: int = 0) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, kind, frame, step])))

    def order(self, frame: int, tokens: int) -> np.ndarray:
        return np.argsort(self._generator(0, frame).random(tokens), kind="stable")

    def initial(self, frame: int, step: int, shape: tuple[int, int]) -> np.ndarray:
        return self._generator(1, frame, step).standard_normal(shape, np.float32)

    def steps(self, frame: int, step: int, shape: tuple[int, int, int]) -> np.ndarray:
        return self._generator(2, frame, step).standard_normal(shape, np.float32)
