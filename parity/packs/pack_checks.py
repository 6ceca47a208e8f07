"""Whether what a golden pack holds can be what it says: every array's dtype and shape, by its configuration.

Knows the clip's steps and the contract. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from videomar.config import ModelConfig, SamplingConfig
from videomar.graphs import GraphSpec, TensorSpec
from videomar.steps import ClipSteps

Arrays = Mapping[str, np.ndarray]
Axes = tuple["int | str", ...]


class Misfit(ValueError):
    """An array is missing, or of another dtype or shape; says which, what was got and what was expected."""


def check_clip(config: ModelConfig, sampling: SamplingConfig, arrays: Arrays) -> None:
    """Raise Misfit, or InputError for a clip that cannot be, unless these are the arrays of one recorded clip."""
    given = arrays.get("given")
    axes: Axes = ("height", "width", 3) if given is not None and given.ndim == 3 else ("given", "height", "width", 3)
    sizes = _fit(TensorSpec("given", "uint8", axes), arrays, {})
    clip = ClipSteps.of(config, sampling, sizes.get("given", 1))
    c, shape, order = config.transformer.token_channels, clip.shape, range(clip.shape.tokens)
    wanted: list[tuple[str, str, Axes]] = [
        ("ids", "int64", (1, "prompt")),
        ("states", "float32", (1, "text", config.text.width)),
        *([("encoded", "float32", (1, c, shape.given, shape.rows, shape.columns))] if shape.given else []),
        ("decoded", "float32", (1, 3, sampling.frames, sampling.height, sampling.width)),
    ]
    for i, step in enumerate(clip.steps):
        wanted.append((f"z/{i}", "float32", (step.branches, max(1, step.predicted), config.transformer.width)))
    predicting = [step for step in clip.steps if step.predicted]
    for i, step in enumerate(predicting):
        n, at = step.predicted, f"{step.frame}/{step.index}"
        wanted.append((f"sampled/{i}", "float32", (n, c)))
        wanted.append((f"initial/{at}", "float32", (n, c)))
        wanted.append((f"steps/{at}", "float32", (step.head_steps, n, c)))
        wanted.append((f"order/{step.frame}", "int64", (shape.tokens,)))
    for name, dtype, axes in wanted:
        sizes = _fit(TensorSpec(name, dtype, axes), arrays, sizes)
    if not 1 <= sizes["text"] <= config.text.max_tokens:
        raise Misfit(f"'states' has {sizes['text']} tokens, expected 1 to {config.text.max_tokens}")
    for frame in {step.frame for step in predicting}:
        if sorted(arrays[f"order/{frame}"].tolist()) != list(order):
            raise Misfit(f"'order/{frame}' is no order of the numbers 0 to {len(order) - 1}")


def check_calls(spec: GraphSpec, calls: Sequence[tuple[Arrays, Arrays]]) -> None:
    """Raise Misfit unless every call gives a graph its inputs, and holds its outputs."""
    for feeds, made in calls:
        sizes: dict[str, int] = {}
        for tensors, arrays in ((spec.inputs, feeds), (spec.outputs, made)):
            for tensor in tensors:
                sizes = _fit(tensor, arrays, sizes)
            if odd := sorted(arrays.keys() - {t.name for t in tensors}):
                raise Misfit(f"there is an unknown array {odd[0]!r:.40}")
        # What stands for a place in another tensor has to be one.
        for name, axis in (("predict", "tokens"),):
            if name in feeds and not ((feeds[name] >= 0) & (feeds[name] < sizes[axis])).all():
                raise Misfit(f"{name!r} holds places beyond the {sizes[axis]} {axis}")


def _fit(tensor: TensorSpec, arrays: Arrays, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of named axes, with those of this tensor."""
    value, known = arrays.get(tensor.name), dict(sizes)
    if value is None:
        raise Misfit(f"lacks {tensor.name!r}")
    good = value.dtype.name == tensor.dtype and value.ndim == len(tensor.axes)
    for axis, size in zip(tensor.axes, value.shape, strict=False):
        good = good and size == (known.setdefault(axis, size) if isinstance(axis, str) else axis)
    if not good:
        axes = ", ".join(str(sizes.get(a, a) if isinstance(a, str) else a) for a in tensor.axes)
        raise Misfit(f"{tensor.name!r} is {value.dtype} {list(value.shape)}, expected {tensor.dtype} [{axes}]")
    return known
