"""What calibration looks at: pictures or clips with prompts, from a list or from the demo world.

A list is a text file of lines `clip<TAB>prompt`; a clip is a picture, a video file or a directory of pictures, its path
relative to the list. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from videomar.demo.world import MOTIONS, render, sample_scene
from videomar.errors import InputError
from videomar.files import regular
from videomar.runtime.media import PICTURE_SUFFIXES, load_picture
from videomar.runtime.recording import load_clip

DEMO_SEED = 2 * 10**9  # training draws from small seeds, the evaluation from 10**9


@dataclass(frozen=True)
class CalibrationClip:
    """The start of one trajectory."""

    name: str
    given: np.ndarray  # [frames, height, width, 3] uint8
    prompt: str
    seed: int

    @property
    def key(self) -> str:
        """A hash of what decides the trajectory."""
        digest = hashlib.sha256(self.given.tobytes())
        digest.update(f"{self.given.shape}\n{self.prompt}\n{self.seed}".encode())
        return digest.hexdigest()[:32]


def read_list(path: Path, given: int, first_seed: int = 0) -> list[CalibrationClip]:
    """Every clip of a list, its first `given` frames; raises InputError naming the line that cannot be used."""
    try:
        text = regular(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"{path} cannot be read ({why}), expected a text file of lines clip<TAB>prompt") from None
    return list(_clips(path, text, given, first_seed))


def _clips(path: Path, text: str, given: int, first_seed: int) -> Iterator[CalibrationClip]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, tab, prompt = line.partition("\t")
        if not tab or not prompt.strip():
            raise InputError(
                f"{path}, line {number} is {line[:60]!r}, expected clip<TAB>prompt; put a tab between them"
            )
        file = path.parent / name
        try:
            is_picture = file.suffix.lower() in PICTURE_SUFFIXES and not file.is_dir()
            frames = load_picture(file)[None] if is_picture else load_clip(file, given)
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        yield CalibrationClip(name, frames, prompt.strip(), first_seed + number)


def demo_clips(count: int, given: int, height: int, width: int) -> list[CalibrationClip]:
    """`count` starts of the demo world, every motion in turn; no scene of training or of the evaluation."""
    if height != width:
        raise InputError(f"--demo draws square pictures, got {width}x{height}; give --clips for this size")
    clips = []
    for i in range(count):
        rng = np.random.default_rng([DEMO_SEED, i])
        scene = sample_scene(rng, MOTIONS[i % len(MOTIONS)], size=height)
        frames = render(scene, max(given, 1), height)
        clips.append(CalibrationClip(f"demo {i}: {scene.prompt}", frames, scene.prompt, DEMO_SEED + i))
    return clips
