"""Tensor and node names of a traced graph, after the modules they come from: `decoder_blocks.0.attn1.wqkv`.

The tracer counts (`linear_1`, `val_42`): its names say nothing and differ between precisions and emitters. After this,
a module's result is called as the module is in PyTorch, whatever the precision, so that layers can be compared by
name. Knows nothing of what the modules are.
"""

from __future__ import annotations

import ast
from collections import Counter

import onnx

SCOPES = "pkg.torch.onnx.name_scopes"  # the tracer's list: module paths from the outside in, then the call
OUTSIDE = "graph"  # what belongs to no module


def name_by_module(graph: onnx.GraphProto) -> None:
    """Rename nodes, inner tensors and unnamed constants of `graph`; its inputs, outputs and parameters keep theirs.

    The result of a module `a.b` is `a.b`; any other tensor inside it is `a.b/operator`, numbered from the second on;
    a constant is `a.b.weight` where it is the matrix of a product, else `a.b/constant`.
    """
    scopes = _scopes(graph)
    finals = {scope: i for i, scope in enumerate(scopes)}  # the last node of exactly this module
    ends: dict[str, int] = {}  # the last node of this module or of one inside it
    for i, scope in enumerate(scopes):
        parts = scope.split(".")
        for k in range(1, len(parts) + 1):
            ends[".".join(parts[:k])] = i
    kept = {v.name for v in (*graph.input, *graph.output)} | {t.name for t in graph.initializer if "." in t.name}
    used: Counter[str] = Counter({name: 1 for name in kept})
    names = {name: name for name in kept} | {"": ""}

    def fresh(name: str) -> str:
        used[name] += 1
        return name if used[name] == 1 else fresh(f"{name}_{used[name] - 1}")

    constants = {t.name for t in graph.initializer}
    for i, (node, scope) in enumerate(zip(graph.node, scopes, strict=True)):
        result = scope != OUTSIDE and finals[scope] == ends.get(scope) == i and _listed(node) is not None
        for slot, name in enumerate(node.input):
            if name in constants and name not in names:
                matrix = node.op_type in ("MatMul", "Gemm") and slot == 1
                names[name] = fresh(f"{scope}.weight" if matrix else f"{scope}/constant")
        for slot, name in enumerate(node.output):
            if name not in names:
                inner = f"{scope}/{node.op_type.lower()}" + (f".{slot}" if slot else "")
                names[name] = fresh(scope if result and not slot else inner)
        node.name = fresh(f"{scope}:{node.op_type}")
    for node in graph.node:
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)


def _scopes(graph: onnx.GraphProto) -> list[str]:
    """Every node's innermost module; a split that the tracer's optimizer made belongs around the module it splits."""
    made: dict[str, str] = {}
    scopes = []
    for node in graph.node:
        listed = _listed(node)
        if listed is None:
            source = next((made[name] for name in node.input if name in made), OUTSIDE)
            scope = source.rpartition(".")[0] or OUTSIDE
        else:
            modules = [m for m in ast.literal_eval(listed)[:-1] if m and not m.startswith("_empty")]
            scope = modules[-1] if modules else OUTSIDE
        scopes.append(scope)
        made.update(dict.fromkeys(node.output, scope))
    return scopes


def _listed(node: onnx.NodeProto) -> str | None:
    return next((p.value for p in node.metadata_props if p.key == SCOPES), None)
