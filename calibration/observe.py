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
from videomar.errors import InputError

LOWEST = {TensorProto.FLOAT: float(np.finfo(np.float32).min), TensorProto.FLOAT16: float(np.finfo(np.float16).min)}
LARGEST = "::largest"
MARGIN = 0.01  # of the lowest number


def watched_copy(file: Path, folder: Path, tensors: Iterable[str] = (), largest: bool = False) -> Path:
    """Write a copy of `file` into `folder` that also returns `tensors`, and with `largest` every tensor's absmax.

    Weights beside the graph are linked, or copied where the file system cannot.
    """
    model = onnx.load(file, load_external_data=False)
    named = {v.name for v in model.graph.output}
    wanted = [name for name in dict.fromkeys(tensors) if name not in named]
    if largest:
        wanted += _add_largest(model)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    for data in file.parent.glob(f"{file.name}.data"):
        link_or_copy(data, folder / data.name)
    onnx.save(model, folder / file.name)
    return folder / file.name


def float_tensors(model: onnx.ModelProto) -> Iterator[tuple[str, int]]:
    """Name and type of the floating-point tensors that the graph's nodes make, the ones in loops left out."""
    inferred = shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.output)}
    for node in model.graph.node:
        if node.op_type != "Constant":
            yield from ((name, types[name]) for name in node.output if types.get(name) in LOWEST)


def _add_largest(model: onnx.ModelProto) -> list[str]:
    """Compute every tensor's largest absolute value; what is near the lowest number there is, is a mask's and no value.

    "Near", since scores are added to a mask. An overflow to minus infinity is not near it and is seen.
    """
    nodes, made = model.graph.node, []
    for name, kind in list(float_tensors(model)):
        own = f"{name}::"
        lowest = LOWEST[kind]
        for word, value in (("lowest", lowest), ("margin", -MARGIN * lowest), ("zero", 0.0)):
            model.graph.initializer.append(helper.make_tensor(own + word, TensorProto.FLOAT, [], [value]))
        steps = [
            ("Cast", [name], "plain"),
            ("Sub", [own + "plain", own + "lowest"], "above"),
            ("Abs", [own + "above"], "away"),
            ("LessOrEqual", [own + "away", own + "margin"], "masked"),
            ("Where", [own + "masked", own + "zero", own + "plain"], "value"),
            ("Abs", [own + "value"], "size"),
            ("ReduceMax", [own + "size"], "largest"),
        ]
        more: dict[str, dict[str, int]] = {"Cast": {"to": TensorProto.FLOAT}, "ReduceMax": {"keepdims": 0}}
        nodes.extend(helper.make_node(op, inputs, [own + out], **more.get(op, {})) for op, inputs, out in steps)
        made.append(name + LARGEST)
    return made


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for the same bytes: inputs are never modified, so sharing them is safe."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


class Observer:
    """Takes what watched graphs return into `Ranges`."""

    def __init__(self, ranges: Ranges, linears: Iterable[Linear], clip: str) -> None:
        self._ranges, self._linears, self._clip = ranges, list(linears), clip

    def __call__(self, graph: str, outputs: Arrays) -> None:
        """One call of one graph; raises InputError at the first linear whose input is not finite."""
        for linear in self._linears:
            if linear.source in outputs:
                seen = self._ranges.inputs.setdefault(linear.name, Seen())
                seen.add(outputs[linear.source])
                if seen.bad:
                    raise InputError(
                        f"clip {self._clip!r}: the input of {linear.name} held {seen.bad} NaN or infinite numbers, "
                        "expected finite ones; calibrate the fp32 export, or mend the checkpoint"
                    )
        found = {n.removesuffix(LARGEST): float(v) for n, v in outputs.items() if n.endswith(LARGEST)}
        if found:
            largest = self._ranges.largest.setdefault(graph, {})
            for name, value in found.items():
                largest[name] = float(np.fmax(value, largest.get(name, 0.0)))
