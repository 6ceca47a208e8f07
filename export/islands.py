"""FP32 islands in an FP16 graph: tensors too large for FP16, what makes them and what reads them, computed in FP32.

A pass over a finished graph, so that any tensor can be named, whatever module it belongs to. Knows nothing of how the
tensors were found: `videomar calibrate` looks for them in the real loop, `videomar bisect` where two graphs part.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from videomar.errors import InputError
from videomar.fields import FieldError, Fields, parse
from videomar.files import regular
from videomar.graphs import GRAPHS

# They move numbers and make none: what is too large before them is so behind them.
MOVING = {"Reshape", "Transpose", "Split", "Gather", "Slice", "Squeeze", "Unsqueeze", "Expand", "Concat", "Identity"}


def read_islands(file: Path) -> dict[str, set[str]]:
    """Tensors by graph that `calibration.json` of `videomar calibrate` says FP16 cannot hold, or only just.

    Raises InputError for any other file.
    """
    try:
        rows = Fields(parse(regular(file).read_bytes())).rows("fp16")
        found = [(row.text("graph", GRAPHS), row.text("tensor")) for row in rows if row.text("verdict") != "ok"]
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}), expected calibration.json") from None
    except FieldError as error:
        raise InputError(
            f"{file} is no calibration.json ({error}); run `videomar calibrate` on the FP32 export and give what it "
            "wrote"
        ) from None
    islands: dict[str, set[str]] = {}
    for graph, tensor in found:
        islands.setdefault(graph, set()).add(tensor)
    return islands


def named_islands(names: Collection[str], others: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Tensors named as GRAPH:TENSOR, added to others; raises InputError for any other form."""
    islands = {graph: set(tensors) for graph, tensors in others.items()}
    for name in names:
        graph, _, tensor = name.partition(":")
        if graph not in GRAPHS or not tensor:
            raise InputError(f"--fp32 is {name!r}, expected GRAPH:TENSOR with one of {', '.join(GRAPHS)}")
        islands.setdefault(graph, set()).add(tensor)
    return islands


def keep_fp32(model: onnx.ModelProto, tensors: Collection[str], folder: Path | None = None) -> int:
    """Compute these tensors of an FP16 graph in FP32, in place; returns how many operators do now.

    Graph inputs and outputs keep their dtype. Weights that such an operator reads are held as FP32; folder: where
    those lie that are beside the graph. Raises InputError for a module's name that the graph does not have.
    """
    graph = model.graph
    made = {name for node in graph.node for name in node.output}
    # Names with "/" count operators, which differ between precisions and emitters.
    if odd := sorted(name for name in tensors if name not in made and "/" not in name):
        raise InputError(f"the graph makes no tensor {odd[0]!r}, which was to be in FP32; see `videomar bisect`")
    halves = _halves(model)
    large = _spread(graph, {name for name in tensors if name in halves})
    if not large:
        return 0
    weights = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT16}
    outputs = {v.name for v in graph.output}
    wide: dict[str, str] = {}  # FP16 name -> its FP32 twin
    nodes: list[onnx.NodeProto] = []
    count = 0

    def widened(name: str) -> str:
        if name not in wide:
            wide[name] = f"{name}/fp32"
            if name in weights:
                value = numpy_helper.to_array(weights[name], str(folder or "")).astype(np.float32)
                graph.initializer.append(numpy_helper.from_array(value, wide[name]))
            else:
                nodes.append(_cast(name, wide[name], TensorProto.FLOAT))
        return wide[name]

    for node in graph.node:
        touched = any(name in large for name in (*node.input, *node.output))
        if not touched or node.op_type in ("Shape", "Cast"):
            if node.op_type == "Cast":  # it reads the true number, not one that FP16 has cut
                node.input[0] = wide.get(node.input[0], node.input[0]) if node.input[0] in large else node.input[0]
            nodes.append(node)
            continue
        count += 1
        node.input[:] = [widened(name) if name in halves or name in weights else name for name in node.input]
        made = [name for name in node.output if name in halves]
        node.output[:] = [f"{name}/fp32" if name in halves else name for name in node.output]
        nodes.append(node)
        for name in made:
            wide[name] = f"{name}/fp32"
            # Also of a tensor that no FP16 operator reads: shapes are read from it, and outputs stay as they are.
            nodes.append(_cast(wide[name], name, TensorProto.FLOAT16))
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unread(graph, outputs)
    return count


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}:Cast", to=to)


def _halves(model: onnx.ModelProto) -> set[str]:
    """FP16 tensors that are no weights."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values: Mapping[str, int] = {
        v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)
    }
    return {name for name, kind in values.items() if kind == TensorProto.FLOAT16}


def _spread(graph: onnx.GraphProto, tensors: set[str]) -> set[str]:
    """With the same numbers elsewhere: behind operators that only move them."""
    large = set(tensors)
    for node in graph.node:
        if node.op_type in MOVING and node.input and any(name in large for name in node.input):
            large.update(node.output)
    return large


def _drop_unread(graph: onnx.GraphProto, outputs: set[str]) -> None:
    """Casts and weights that nothing reads any more."""
    while True:
        read = {name for node in graph.node for name in node.input} | outputs
        dead = [n for n in graph.node if n.op_type == "Cast" and n.output[0] not in read]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    for tensor in [t for t in graph.initializer if t.name not in read]:
        graph.initializer.remove(tensor)
