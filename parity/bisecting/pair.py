"""Two sides of one call: B cut where both can tell a tensor, walked against A, and whose fault a guilty layer is.

Knows nothing of the loop around the call.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from videomar.graphs import HEAD_STEP, TRANSFORMER_STEP
from videomar.parity.bisecting.layers import Walk, Walked, relative
from videomar.parity.bisecting.pieces import Cut
from videomar.parity.bisecting.sides import OnnxSide, Side

Arrays = Mapping[str, np.ndarray]


class Pair:
    """A and B, layer by layer; the part cut last is kept."""

    def __init__(self, a: Side, b: OnnxSide, gate: float) -> None:
        """gate: the largest relative L2 error that a layer may add."""
        self.a, self.b, self.gate = a, b, gate
        self._part = ""
        self._latest: tuple[list[str], Cut]

    def walk(
        self,
        part: str,
        mine: Arrays,
        theirs: Arrays,
        found: list[dict[str, np.ndarray]] | None = None,
    ) -> Walked:
        """One call with A's inputs and B's own; `found` takes A's and B's results."""
        order, pieces = self._cut(part, mine)
        outputs = self.b.graph(part).outputs
        listener = Walk(
            pieces,
            self.b.inputs(part, mine),
            self.b.inputs(part, theirs),
            self.gate,
            [n for n in outputs if n in pieces.order],
            found is not None,
        )
        self.a.flow(part, mine, order, listener)
        walked = listener.finish()
        if found is not None:
            for into, lane in zip(found, (listener.reference, listener.own), strict=True):
                into.update({name: lane[name] for name in outputs})
        return walked

    def weights(self, part: str, tensor: str) -> dict[str, float | None]:
        """How far the guilty layer's stored tensors are from A's of the same name; None where A has none of that name
        and form."""
        found: dict[str, float | None] = {}
        for name in self._latest[1].weights(tensor):
            stem = name.removesuffix("_scale")
            mine, theirs = self.a.weight(part, name), self.b.weight(part, name)
            whole = self.b.weight(part, f"{stem}_quantized") if stem != name else None
            if whole is not None and theirs is not None:  # per output channel
                name, mine, theirs = stem, self.a.weight(part, stem), whole * theirs
            if theirs is not None and theirs.dtype.kind == "f" and theirs.ndim:
                found[name] = None if mine is None else relative(theirs, mine)
        return found

    def module(self, tensor: str, weights: Mapping[str, float | None]) -> str:
        """Whose fault it is: a layer may run through several modules where the sides are not written alike.

        The first whose stored tensors are not A's; else the only one of which nothing can be said; else the last.
        """
        cut = self._latest[1]
        if "int8" in (self.a.precision, self.b.precision):
            return cut.graph.module(tensor)  # a quantized linear with the smoothed norm in front
        steps = cut.modules(tensor)
        for module, read in steps:
            if any((weights.get(name) or 0) > self.gate / 5 for name in read):
                return module
        open_ones = {m for m, read in steps if not read or any(weights.get(name) is None for name in read)}
        return open_ones.pop() if len(open_ones) == 1 else cut.graph.module(tensor)

    def _cut(self, part: str, inputs: Arrays) -> tuple[list[str], Cut]:
        """The tensors both sides can tell, in A's order, and B cut at them, in its own."""
        if part == self._part:
            return self._latest
        mine, theirs = self.a.tensors(part, inputs), self.b.tensors(part, inputs)
        inner = part != TRANSFORMER_STEP or self.a.emitter == self.b.emitter
        smoothed = self._smoothed(part) if "int8" in (self.a.precision, self.b.precision) else set()
        common = {
            name
            for name, operator in theirs.items()
            if name in mine and name not in smoothed and ("/" not in name or (inner and mine[name] == operator))
        }
        if self.a.emitter == "pytorch":
            common = self._alike(part, inputs, common)
        # The head's layers are walked once a diffusion step.
        cut = self.b.cut(part, [n for n in theirs if n in common], keep_open=part == HEAD_STEP)
        self._part, self._latest = part, ([n for n in mine if n in common], cut)
        return self._latest

    def _alike(self, part: str, inputs: Arrays, names: set[str]) -> set[str]:
        """Those of one shape on both sides: a graph may go on, in a module's name, after what the module returns."""
        shapes: list[dict[str, tuple[int, ...]]] = [{}, {}]
        for side, found in zip((self.a, self.b), shapes, strict=True):
            ordered = [n for n in side.tensors(part, inputs) if n in names]
            side.flow(part, inputs, ordered, lambda name, value, found=found: found.update({name: value.shape}))
        return {name for name in names if shapes[0].get(name) == shapes[1].get(name)}

    def _smoothed(self, part: str) -> set[str]:
        """Norms whose weights differ by powers of two a channel: calibration folds such divisors into them."""
        found = set()
        for name, operator in self.b.tensors(part, {}).items():
            if operator == "LayerNormalization" and name.endswith(("norm1", "norm2")):
                mine, theirs = (side.weight(part, f"{name}.weight") for side in (self.a, self.b))
                if mine is not None and theirs is not None and mine.shape == theirs.shape:
                    with np.errstate(divide="ignore", invalid="ignore"):
                        ratio = mine.astype(np.float64) / theirs.astype(np.float64)
                    powers = np.log2(np.abs(ratio))
                    if np.nanmax(np.abs(powers)) > 0.5 and np.nanmax(np.abs(powers - np.round(powers))) < 1e-2:
                        found.add(name)
        return found
