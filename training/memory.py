"""What a run will need is said before it starts. Knows nothing of how it is counted."""

from __future__ import annotations

from collections.abc import Collection

import torch

from videomar.config import ModelConfig
from videomar.console import log
from videomar.plan.report import size_text
from videomar.plan.training import TRAINED, Sizes, training_memory
from videomar.training.precision import products
from videomar.training.recipe import Recipe, Stage


def needed(
    recipe: Recipe, config: ModelConfig, trained: Collection[str], device: torch.device, recompute: bool
) -> tuple[Stage, int]:
    """The stage that needs most memory, and its bytes without the process itself; of --layers, whole parts count."""

    def peak(stage: Stage) -> int:
        sizes = Sizes(
            config,
            stage.frames,
            stage.height,
            stage.width,
            stage.batch,
            accumulate=stage.accumulate,
            recompute=recompute,
            trained=tuple(part for part in TRAINED if part in trained),
            lora=recipe.lora,
            activation_bytes=products(device.type).itemsize,
        )
        return max(moment.total for moment in training_memory(sizes))

    found = {stage: peak(stage) for stage in recipe.stages}
    largest = max(found, key=lambda stage: found[stage])
    return largest, found[largest]


def say_memory(
    recipe: Recipe, config: ModelConfig, trained: Collection[str], device: torch.device, recompute: bool
) -> None:
    """Log it; warn where the GPU has less."""
    stage, size = needed(recipe, config, trained, device, recompute)
    log.info(f"memory planned: {size_text(size)} with {stage}, beside the process itself")
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if size > free:
            log.warning(
                f"{size_text(size)} planned and {size_text(free)} free on {device}: expect to run out; add "
                "--recompute, or raise accumulate, or lower batch, frames or size of that stage"
            )
