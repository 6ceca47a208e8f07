"""One side of a bisection whose layers can be seen: ONNX graphs cut into pieces. `TorchSide` is the other kind.

A part is a graph, but for the head: `head_condition` and `head_step` are what its graph runs before and in its loop.
A call's inputs are the contract's, in the portable form (past K/V of exactly the finished tokens); each side puts them
into its own. Knows nothing of what is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from videomar.artifacts import Manifest
from videomar.graphs import DIFFUSION_HEAD, HEAD_CONDITION, HEAD_STEP, TRANSFORMER_STEP
from videomar.parity.bisecting.pieces import Cut, Graph, padded

Arrays = Mapping[str, np.ndarray]
Listen = Callable[[str, np.ndarray], None]


class Side(Protocol):
    """What A has to offer; B has to be an `OnnxSide`."""

    precision: str
    emitter: str

    def tensors(self, part: str, inputs: Arrays) -> dict[str, str]:
        """Comparable tensors of a part -> the operator that makes them ("" where unknown), in dataflow order."""

    def flow(self, part: str, inputs: Arrays, tensors: Iterable[str], listen: Listen) -> None:
        """Run a part and tell the tensors."""

    def weight(self, part: str, name: str) -> np.ndarray | None:
        """A stored tensor in the graph's form; None if there is none of that name."""

    def whole(self, part: str, inputs: Arrays, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Run a part without looking into it: these outputs, K/V of exactly the finished and new tokens."""


class OnnxSide:
    """An artifact directory. At most one part's graph is held at a time."""

    def __init__(self, directory: Path, manifest: Manifest, threads: int | None) -> None:
        self.precision, self.emitter, self.config = manifest.precision, manifest.emitter, manifest.config
        self._directory, self._manifest, self._threads = directory, manifest, threads
        self._cache_tokens: int | None = manifest.cache_tokens
        self._held: dict[str, Graph] = {}

    def graph(self, part: str) -> Graph:
        """A part's graph."""
        if part not in self._held:
            self._held.clear()
            if part in (HEAD_CONDITION, HEAD_STEP):
                before, body = Graph.read(self._directory / f"{DIFFUSION_HEAD}.onnx").loop()
                self._held = {HEAD_CONDITION: before, HEAD_STEP: body}
            else:
                self._held[part] = Graph.read(self._directory / f"{part}.onnx")
        return self._held[part]

    def tensors(self, part: str, inputs: Arrays) -> dict[str, str]:
        return self.graph(part).comparable()

    def cut(self, part: str, tensors: Iterable[str], keep_open: bool = False) -> Cut:
        """The part, cut at these tensors."""
        cut = Cut(self.graph(part), tensors, self._threads, keep_open)
        cut.cache_tokens = self._cache_tokens if part == TRANSFORMER_STEP else None
        return cut

    def inputs(self, part: str, inputs: Arrays) -> dict[str, np.ndarray]:
        """A call's inputs as this graph takes them."""
        given = dict(inputs)
        if part == TRANSFORMER_STEP and self._manifest.emitter == "native":
            past = inputs["past_key_0"].shape[2]
            total = past + inputs["tokens"].shape[0]
            length = self._cache_tokens or total
            given |= {name: padded(v, length) for name, v in inputs.items() if name.startswith("past_")}
            given["start"] = np.full(inputs["past_key_0"].shape[0], past, np.int64)
            given["reach"] = np.zeros(total, np.float32)
        graph = self.graph(part)
        with np.errstate(over="ignore"):
            return {name: given[name].astype(graph.dtype(name), copy=False) for name in graph.inputs}

    def flow(self, part: str, inputs: Arrays, tensors: Iterable[str], listen: Listen) -> None:
        step = part == TRANSFORMER_STEP
        total = inputs["past_key_0"].shape[2] + inputs["tokens"].shape[0] if step else 0

        def tell(name: str, value: np.ndarray) -> None:
            listen(name, value[:, :, :total] if step and name.startswith("present_") else value)

        self.cut(part, tensors).flow(self.inputs(part, inputs), tell)

    def weight(self, part: str, name: str) -> np.ndarray | None:
        graph = self.graph(part)
        return graph.weight(name) if name in graph.weights else None

    def whole(self, part: str, inputs: Arrays, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        self.flow(part, inputs, [n for n in self.graph(part).comparable() if n in set(outputs)], found.__setitem__)
        return found
