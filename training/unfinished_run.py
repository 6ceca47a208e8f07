"""A run that is not over, on disk: recipe, how far it is, and every number that the next step depends on.

Lies in `training/STEP` beside the checkpoint, each written whole under a new name before the one before it goes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from videomar.artifacts import atomic_write
from videomar.errors import ArtifactError, InputError
from videomar.fields import FieldError, Fields, parse
from videomar.training.recipe import Recipe
from videomar.unfinished import folder

PLACE = "training"
STEP_DIGITS = 9


@dataclass(frozen=True)
class Mark:
    """How far a run is."""

    step: int = 0  # in all
    stage: int = 0
    stage_step: int = 0
    stage_minutes: float = 0.0
    minutes: float = 0.0  # in all
    processes: int = 1
    threads: int = 1


def save(out: Path, recipe: Recipe, mark: Mark, tensors: dict[str, Tensor], sources: list[dict[str, Tensor]]) -> None:
    """Keep this as the place to go on from, and drop the places before it."""
    place = out / PLACE
    place.mkdir(parents=True, exist_ok=True)
    target = place / f"{mark.step:0{STEP_DIGITS}d}"
    with folder(target) as temporary:
        atomic_write(temporary / "recipe.json", recipe.to_json())
        atomic_write(temporary / "mark.json", json.dumps(dataclasses.asdict(mark)) + "\n")
        save_file(tensors, temporary / "tensors.safetensors")
        for rank, source in enumerate(sources):
            save_file(source, temporary / f"source-{rank}.safetensors")
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
    for other in _places(out):
        if other != target:
            shutil.rmtree(other)


def exists(out: Path) -> bool:
    """Whether there is a run to go on with."""
    return bool(_places(out))


def load(out: Path) -> tuple[Recipe, Mark, Path]:
    """The last place of a run, and where its tensors are; raises InputError where there is none."""
    places = _places(out)
    if not places:
        raise InputError(
            f"{out} holds no unfinished run, expected one for --resume; leave --resume out to begin, or --from {out} "
            "to train its checkpoint further"
        )
    place = places[-1]
    try:
        recipe = Recipe.from_json((place / "recipe.json").read_bytes())
        row = Fields(parse((place / "mark.json").read_bytes()))
        counts = {n: row.whole(n) for n in ("step", "stage", "stage_step", "processes", "threads")}
        times = {n: row.number(n, 0) for n in ("stage_minutes", "minutes")}
        if counts["stage"] >= len(recipe.stages):
            raise FieldError(f"stage is {counts['stage']}, expected less than {len(recipe.stages)}")
    except (OSError, FieldError, TypeError) as error:
        raise ArtifactError(f"{place} is no unfinished run ({error}); begin anew with --force") from None
    return recipe, Mark(**counts, **times), place


def tensors(place: Path, name: str) -> dict[str, Tensor]:
    """Those of one file of a place."""
    file = place / f"{name}.safetensors"
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{file} cannot be read ({error}); begin anew with --force") from None


def forget(out: Path) -> None:
    """The run is over."""
    shutil.rmtree(out / PLACE, ignore_errors=True)


def _places(out: Path) -> list[Path]:
    place = out / PLACE
    return sorted(p for p in place.iterdir() if p.name.isdecimal()) if place.is_dir() else []
