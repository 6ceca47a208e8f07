"""The linear layers of transformer_step that are quantized, and the norm in front of each, found by name in the graph.

Attention products, the head, `z_proj`, embeddings and norms are no candidates: they stay as they are.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import onnx

from videomar.errors import ArtifactError


@dataclass(frozen=True)
class Linear:
    """One product of an activation with a stored matrix [in, out]."""

    name: str  # module, and the tensor it makes: decoder_blocks.0.attn1.wqkv
    node: str
    source: str  # the tensor that it multiplies
    weight: str  # initializer
    width: int  # of `source`
    outputs: int
    norm: str | None  # the LayerNormalization in front whose every reader is a linear: it can absorb a scale

    @property
    def family(self) -> str:
        """The module without its block: attn1.wqkv."""
        return self.name.split(".", 2)[2]


def find_linears(graph: onnx.GraphProto) -> list[Linear]:
    """The blocks' linears in the order they are run; raises ArtifactError when a graph has none by these names."""
    weights = {t.name: list(t.dims) for t in graph.initializer}
    makers = {out: node for node in graph.node for out in node.output}
    users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)

    def is_linear(node: onnx.NodeProto) -> bool:
        return (
            node.op_type == "MatMul"
            and node.output[0].startswith("decoder_blocks.")
            and node.input[1] == f"{node.output[0]}.weight"
            and node.input[1] in weights
        )

    def readers(tensor: str) -> list[onnx.NodeProto]:
        """Who computes with a tensor; taking some of its rows is no computing."""
        return [r for u in users[tensor] for r in (readers(u.output[0]) if u.op_type == "Gather" else [u])]

    def norm(tensor: str) -> str | None:
        node = makers.get(tensor)
        while node is not None and node.op_type == "Gather":
            node = makers.get(node.input[0])
        if node is None or node.op_type != "LayerNormalization" or not all(n in weights for n in node.input[1:]):
            return None
        return node.output[0] if all(map(is_linear, readers(node.output[0]))) else None

    found = [
        Linear(n.output[0], n.name, n.input[0], n.input[1], *weights[n.input[1]], norm(n.input[0]))
        for n in graph.node
        if is_linear(n)
    ]
    if not found:
        raise ArtifactError(
            "transformer_step holds no product called decoder_blocks.*, expected the blocks' linear layers by their "
            "modules' names; export the checkpoint again with this version"
        )
    return found
