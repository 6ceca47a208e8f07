"""A finding, and a graph as the linter's rules look at it: types, producers, consumers, constants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper


@dataclass(frozen=True)
class Finding:
    """One thing that may not be, and what to do about it."""

    graph: str
    node: str  # operator and name, or a tensor
    rule: str
    what: str
    mend: str

    def __str__(self) -> str:
        return f"graph {self.graph}, {self.node}: {self.what} [{self.rule}]; {self.mend}"


class Graph:
    """A model with what the rules ask of it: types, producers, consumers, constants."""

    def __init__(self, model: onnx.ModelProto, name: str, base: Path) -> None:
        self.name, self.base, self.nodes = name, base, list(nodes_of(model.graph))
        try:
            typed = onnx.shape_inference.infer_shapes(model).graph
        except Exception:  # an odd graph has fewer types; the rules that need one stay silent
            typed = model.graph
        values = [*typed.value_info, *typed.input, *typed.output]
        self.types = {v.name: v.type.tensor_type.elem_type for v in values}
        self.shapes = {v.name: v.type.tensor_type.shape for v in values}
        self.weights = {t.name: t for t in model.graph.initializer}
        self.types |= {n: t.data_type for n, t in self.weights.items()}
        self.inputs = [v.name for v in model.graph.input]
        self.outputs = [v.name for v in model.graph.output]
        self.makers = {out: node for node in self.nodes for out in node.output if out}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            if node.op_type == "Constant" and (value := attribute(node, "value")) is not None:
                self.weights[node.output[0]] = value.t
                self.types[node.output[0]] = value.t.data_type
            for tensor in node.input:
                self.users.setdefault(tensor, []).append(node)

    def constant(self, tensor: str) -> bool:
        """Whether it is a weight, or made of one without arithmetic."""
        while (maker := self.makers.get(tensor)) is not None and maker.op_type in (
            *("DequantizeLinear", "QuantizeLinear", "Transpose", "Reshape", "Identity", "Cast"),
        ):
            tensor = maker.input[0]
        return tensor in self.weights

    def value(self, tensor: str) -> np.ndarray:
        return numpy_helper.to_array(self.weights[tensor], str(self.base))

    def finding(self, node: onnx.NodeProto | str, rule: str, what: str, mend: str) -> Finding:
        where = node if isinstance(node, str) else f"{node.op_type} {node.name}".strip()
        return Finding(self.name, where, rule, what, mend)


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of loops' bodies too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes_of(attribute.g)


def attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto | None:
    return next((a for a in node.attribute if a.name == name), None)
