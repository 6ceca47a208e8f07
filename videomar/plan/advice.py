"""The smallest change that makes a generation fit: what costs the result nothing first, then what costs it least.

Proposes only what the tool can do, as the options that do it. Knows nothing of how memory is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from videomar.plan.request import Request

Fits = Callable[[Request], bool]


@dataclass(frozen=True)
class Change:
    """A request that differs: the options or commands that make it, and what they cost the result."""

    request: Request
    options: tuple[str, ...]
    cost: str


def smallest_change(request: Request, fits: Fits) -> Change | None:
    """The change that costs the result least among those that fit; None if nothing helps.

    Exact changes are tried alone and together; then every other kind on top of those, and on top of all kinds before
    it, in the order of `_rungs`, the last one only as far as it must go. What is not needed is taken away again.
    """
    for rungs in _orders(list(_rungs(request))):
        chosen = _climb(request, rungs, fits)
        if chosen:
            chosen = _trimmed(request, chosen, fits)
            costs = dict.fromkeys(size.cost for size in chosen if size.cost)
            options = tuple(size.option for size in chosen)
            return Change(_with(request, chosen), options, ", ".join(costs) or "the same result")
    return None


@dataclass(frozen=True)
class Size:
    """One change: the option that asks for it, what differs, and what it costs ("" for the same result)."""

    option: str
    fields: Mapping[str, object]
    cost: str = ""


Rung = tuple[Size, ...]  # one kind of change, its sizes from the mildest on


def _rungs(request: Request) -> Iterator[Rung]:
    """In the order of what they cost the result."""
    s, c = request.sampling, request.config.tokenizer
    if not request.text_embeddings:
        yield (Size("--text-embeddings FILE.npz", {"text_embeddings": True}),)
    if request.branches == 2 and request.sampling.passes == 1:
        yield (Size("--guidance-passes 2", {"guidance_passes": 2}),)
    if request.precision == "fp32":
        yield (Size("`videomar export --precision fp16`", {"precision": "fp16"}, "FP16's rounding"),)
    if request.precision != "int8":
        yield (Size("`videomar calibrate` (INT8 linears)", {"precision": "int8"}, "INT8's rounding"),)
    window = request.sampling.kv_window
    longest = request.seen - 1 if window is None else window
    windows = [w for w in range(longest - 1 if window else longest, 0, -1) if w < request.frames - 2]
    if windows:
        yield tuple(Size(f"--kv-window {w}", {"kv_window": w}, "frames further back are not seen") for w in windows)
    least = request.given + c.temporal_stride if request.given else 1
    fewer = range(s.frames - c.temporal_stride, least - 1, -c.temporal_stride)
    if fewer:
        yield tuple(Size(f"--frames {n}", {"frames": n}, "a shorter clip") for n in fewer)
    sizes = tuple(_smaller(request))
    if sizes:
        yield sizes
    if request.branches == 2:
        yield (Size("--guidance-scale 1", {"guidance_scale": 1.0}, "no guidance"),)


def _smaller(request: Request) -> Iterator[Size]:
    """Pictures of about the same shape, ever smaller, with enough tokens for the mask steps."""
    s, stride = request.sampling, request.config.tokenizer.spatial_stride
    rows, columns = request.rows, request.columns
    for height in range(rows - 1, 0, -1):
        width = max(1, round(height * columns / rows))
        if height * width < max(s.mask_steps, 4):
            return
        options = f"--height {height * stride} --width {width * stride}"
        yield Size(options, {"height": height * stride, "width": width * stride}, "a smaller picture")


def _orders(rungs: list[Rung]) -> Iterator[list[Rung]]:
    """Which rungs to climb together: each exact one, all of them, those with each other one, those with all before."""
    exact, others = [r for r in rungs if not r[0].cost], [r for r in rungs if r[0].cost]
    yield from ([rung] for rung in exact)
    yield exact
    for i, rung in enumerate(others):
        yield [*exact, rung]
        yield [*exact, *others[: i + 1]]


def _with(request: Request, sizes: Sequence[Size]) -> Request:
    fields: dict[str, object] = {}
    for size in sizes:
        fields |= size.fields
    return request.but(**fields)


def _climb(request: Request, rungs: list[Rung], fits: Fits) -> list[Size]:
    """All rungs but the last as far as they go, the last as far as it must; empty if that is not enough."""
    if not rungs:
        return []
    below, last = [rung[-1] for rung in rungs[:-1]], rungs[-1]
    if not fits(_with(request, [*below, last[-1]])):
        return []
    low, high = 0, len(last) - 1  # more of a change never needs more memory
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(_with(request, [*below, last[middle]])) else (middle + 1, high)
    return [*below, last[low]]


def _trimmed(request: Request, chosen: list[Size], fits: Fits) -> list[Size]:
    """Without what it fits without, the costliest first."""
    for size in reversed(chosen):
        rest = [other for other in chosen if other is not size]
        if rest and fits(_with(request, rest)):
            chosen = rest
    return chosen
