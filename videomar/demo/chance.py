"""What the demo world leaves to chance: sentences with several futures, and how likely each of them is.

Two tokens of a picture that were drawn without seeing each other disagree about the future as often as two throws of
the same die: only a sampler that lets later tokens see earlier ones draws one whole shape.
"""

from __future__ import annotations

import numpy as np

# Sentence -> outcome -> probability. An outcome is a motion of `world.trajectory`.
CHANCES: dict[str, dict[str, float]] = {
    "drifts left or right": {"drifts left": 1 / 2, "drifts right": 1 / 2},
    "drifts up or down": {"drifts up": 1 / 2, "drifts down": 1 / 2},
    "drifts mostly left": {"drifts left": 3 / 4, "drifts right": 1 / 4},
    "drifts away": {"drifts left": 1 / 4, "drifts right": 1 / 4, "drifts up": 1 / 4, "drifts down": 1 / 4},
}


def draw(rng: np.random.Generator, sentence: str) -> str:
    """One outcome of a sentence, with the probabilities of `CHANCES`."""
    outcomes = CHANCES[sentence]
    return str(rng.choice(list(outcomes), p=list(outcomes.values())))
