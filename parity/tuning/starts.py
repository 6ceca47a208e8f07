"""What `tune` continues, and what its figures hold for. Knows nothing of measuring."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from videomar.artifacts import MANIFEST
from videomar.config import ModelConfig, SamplingConfig
from videomar.errors import InputError
from videomar.parity.cases import make_cases
from videomar.parity.environment import processor
from videomar.parity.tuning.measure import Start
from videomar.runtime.media import PICTURE_SUFFIXES, load_picture
from videomar.runtime.pipeline import Pipeline
from videomar.runtime.recording import Recording


def starts(
    config: ModelConfig, sampling: SamplingConfig, file: Path | None, given: int, count: int, seed: int
) -> list[Start]:
    """The lines of a file, clip<TAB>prompt; without one, scenes of the demo world. Raises InputError naming a line."""
    if file is None:
        cases = make_cases(config, [], [], count, seed, sampling.frames, sampling.height, sampling.width)
        return [Start(case.name, case.given, case.prompt, seed + i) for i, case in enumerate(cases)]
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"{file} cannot be read ({why}), expected lines of picture-or-clip<TAB>prompt") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.startswith("#"):
            name, tab, prompt = line.partition("\t")
            if not tab or not prompt.strip():
                raise InputError(f"{file}, line {number} is {line[:60]!r}, expected picture-or-clip<TAB>prompt")
            found.append(Start(name, _frames(file.parent / name, given, sampling.fps), prompt.strip(), seed + number))
    if not found:
        raise InputError(f"{file} holds no line, expected some of picture-or-clip<TAB>prompt")
    return found


def _frames(path: Path, given: int, fps: float) -> np.ndarray:
    picture = path.suffix.lower() in PICTURE_SUFFIXES and not path.is_dir()
    return load_picture(path) if picture else Recording(path, fps).excerpt(given, start=0).frames


def key(
    directory: Path, pipe: Pipeline, sampling: SamplingConfig, cases: Sequence[Start], judged: int
) -> dict[str, Any]:
    """What the figures hold for: model, device, options and cases."""
    digest = hashlib.sha256()
    for case in cases:
        digest.update(repr((case.name, case.prompt, case.seed, case.given.shape)).encode())
        digest.update(np.ascontiguousarray(case.given).tobytes())
    return {
        "model": pipe.config.name,
        "artifacts": hashlib.sha256((directory / MANIFEST).read_bytes()).hexdigest()[:16],
        "backend": pipe.backend.name,
        "processor": processor(),
        "cases": len(cases),
        "judged": judged,
        "starts": digest.hexdigest()[:16],
        "sampling": asdict(sampling),
    }
