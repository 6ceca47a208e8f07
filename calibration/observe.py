"""Graphs that say more: copies of an artifact directory's files with inner tensors among the outputs.

A linear's input is handed out whole, of a few linears at a time; of every other tensor the largest absolute value,
computed inside the graph: memory stays bounded for a model of any depth.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, shape_inference

from videomar.calibration.linears import Linear
from videomar.calibration.plain import Arrays
from videomar.calibration.ranges import Ranges, Seen

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
LARGEST = "::largest"


def watched_copy(file: Path, folder: Path, tensors: Iterable[str] = (), largest: bool = False) -> Path:
    """Write a copy of `file` into `folder` that also returns `tensors`, and with `largest` every tensor's absmax.

    Weights beside the graph are linked, or copied where the file system cannot.
    """
    model = onnx.load(file, load_external_data=False)
    graph = model.graph
    named = {v.name for v in graph.output}
    wanted = dict.fromkeys(t for t in tensors if t not in named)
    if largest:
        for name in float_tensors(model):
            graph.node.append(helper.make_node("Cast", [name], [f"{name}::float"], to=TensorProto.FLOAT))
            graph.node.append(helper.make_node("Abs", [f"{name}::float"], [f"{name}::abs"]))
            graph.node.append(helper.make_node("ReduceMax", [f"{name}::abs"], [name + LARGEST], keepdims=0))
            wanted[name + LARGEST] = None
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    for data in file.parent.glob(f"{file.name}.data"):
        link_or_copy(data, folder / data.name)
    onnx.save(model, folder / file.name)
    return folder / file.name


def float_tensors(model: onnx.ModelProto) -> Iterator[str]:
    """Names of the floating-point tensors that the graph's nodes make, the ones in loops left out."""
    inferred = shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.output)}
    for node in model.graph.node:
        if node.op_type != "Constant":
            yield from (name for name in node.output if types.get(name) in FLOATS)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for the same bytes: inputs are never modified, so sharing them is safe."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


class Observer:
    """Takes what watched graphs return into `Ranges`."""

    def __init__(self, ranges: Ranges, linears: Iterable[Linear], seed: int) -> None:
        self._ranges, self._linears = ranges, list(linears)
        self._rng = np.random.default_rng(seed)

    def __call__(self, graph: str, outputs: Arrays) -> None:
        """One call of one graph."""
        for linear in self._linears:
            if linear.source in outputs:
                seen = self._ranges.inputs.setdefault(linear.name, Seen())
                seen.add(outputs[linear.source], self._rng)
        found = {n.removesuffix(LARGEST): float(v) for n, v in outputs.items() if n.endswith(LARGEST)}
        if found:
            largest = self._ranges.largest.setdefault(graph, {})
            for name, value in found.items():
                largest[name] = float(np.fmax(value, largest.get(name, 0.0)))
