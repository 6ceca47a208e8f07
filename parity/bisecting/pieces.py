"""One ONNX graph run piece by piece: a piece computes one tensor from those before it, with its own weights only.

A graph is read without the weights that lie beside it; a piece reads its own. Knows nothing of what is compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper, shape_inference
from onnx.external_data_helper import load_external_data_for_tensor

from videomar.errors import ArtifactError
from videomar.parity.bisecting.widen import unquantized, wide_node, wide_tensor
from videomar.runtime.backends.ort_session import open_session

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], np.ndarray]

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
DTYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float16): TensorProto.FLOAT16}
DTYPES |= {np.dtype(np.int64): TensorProto.INT64, np.dtype(np.bool_): TensorProto.BOOL}
# These only move numbers: what they make is no layer's result, unless a module or the graph ends there.
LAYOUT = {"Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze"}
LAYOUT |= {"Tile", "Transpose", "Unsqueeze", "QuantizeLinear", "DequantizeLinear"}
SHAPES = {"Constant", "ConstantOfShape", "Range", "Shape", "Size"}
BODY = "step_"  # in front of every name inside the head's loop


class Graph:
    """Nodes, inputs, outputs and (lazily) weights of one graph."""

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        self._folder, self.opsets, self.ir_version = folder, list(model.opset_import), model.ir_version
        graph = model.graph
        self.nodes = list(graph.node)
        self.inputs = [v.name for v in graph.input]
        self.outputs = [v.name for v in graph.output]
        self.weights = {t.name: t for t in graph.initializer}
        self._made_by = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self._types = _element_types(model)

    @staticmethod
    def read(file: Path) -> Graph:
        """Raises ArtifactError when the file is no ONNX graph."""
        try:
            return Graph(onnx.load(file, load_external_data=False), file.parent)
        except Exception as error:  # protobuf's own exception types are not public
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ArtifactError(f"{file} is no ONNX graph ({why:.120}); export the checkpoint again") from None

    def loop(self) -> tuple[Graph, Graph]:
        """What this graph computes before its Scan, and the body of the Scan, as graphs of their own."""
        at = next(i for i, node in enumerate(self.nodes) if node.op_type == "Scan")
        body = next(a.g for a in self.nodes[at].attribute if a.name == "body")
        given = [v.name for v in body.input]

        def plain(name: str) -> str:
            return name if name in given else name.removeprefix(BODY)

        nodes = [_renamed(node, plain) for node in body.node]
        made = {name for node in nodes for name in node.output}
        weights = {plain(name): _called(tensor, plain(name)) for name, tensor in self.weights.items()}
        read = dict.fromkeys(name for node in nodes for name in node.input if name)
        outer = [name for name in read if name not in made and name not in weights and name not in given]
        inputs = [*body.input, *map(self._typed, outer)]
        loop = self._derived(nodes, inputs, [plain(v.name) for v in body.output], weights)
        before = self.nodes[:at]
        needed = {name for node in before for name in node.input} & set(self.inputs)
        results = [n for node in before for n in node.output if n in self.nodes[at].input or n in outer]
        return self._derived(before, [self._typed(n) for n in self.inputs if n in needed], results, self.weights), loop

    def _typed(self, name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, self._types[name], None)

    def _derived(
        self,
        nodes: Sequence[onnx.NodeProto],
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[str],
        weights: Mapping[str, TensorProto],
    ) -> Graph:
        read = {name for node in nodes for name in node.input}
        kept = [tensor for name, tensor in weights.items() if name in read]
        graph = helper.make_graph(nodes, "part", inputs, [onnx.ValueInfoProto(name=n) for n in outputs], kept)
        return Graph(helper.make_model(graph, opset_imports=self.opsets, ir_version=self.ir_version), self._folder)

    def comparable(self) -> dict[str, str]:
        """Floating-point tensors that can be compared -> the operator that makes them, in dataflow order.

        Results of modules (their names have no `/`), outputs, and whatever an operator really computes.
        """
        found = {}
        for node in self.nodes:
            for name in node.output:
                whole = name in self.outputs or "/" not in name
                if self._types.get(name) in FLOATS and (whole or node.op_type not in LAYOUT):
                    found[name] = node.op_type
        return found

    def dtype(self, tensor: str) -> np.dtype:
        """Of a tensor that the graph is given or makes."""
        return next(dtype for dtype, kind in DTYPES.items() if kind == self._types[tensor])

    def module(self, tensor: str) -> str:
        """The module that makes a tensor, from its node's name or its own."""
        node = self.nodes[self._made_by[tensor]]
        named, separator, _ = node.name.rpartition(":")
        return named if separator and named != "graph" else tensor.split("/")[0]

    def weight(self, name: str) -> np.ndarray:
        """The values of a stored tensor."""
        return numpy_helper.to_array(self.stored(name))

    def stored(self, name: str) -> TensorProto:
        """A stored tensor with its data."""
        tensor = self.weights[name]
        if tensor.data_location == TensorProto.EXTERNAL:
            whole = TensorProto()
            whole.CopyFrom(tensor)
            load_external_data_for_tensor(whole, str(self._folder))
            whole.ClearField("external_data")
            whole.data_location = TensorProto.DEFAULT
            return whole
        return tensor

    def between(self, target: str, cuts: Iterable[str]) -> Piece:
        """What computes `target` from the inputs and the tensors of `cuts`."""
        cuts, wanted, seen = set(cuts) - {target}, [target], set()
        while wanted:
            at = self._made_by[wanted.pop()]
            if at not in seen:
                seen.add(at)
                wanted += [n for n in self.nodes[at].input if n in self._made_by and n not in cuts]
        nodes = [self.nodes[i] for i in sorted(seen)]
        made = {name for node in nodes for name in node.output}
        read = [name for node in nodes for name in node.input if name]
        reads = [n for n in dict.fromkeys(read) if n not in self.weights and (n in cuts or n not in made)]
        return Piece(self, target, nodes, reads, [n for n in dict.fromkeys(read) if n in self.weights])


class Cut:
    """A graph cut at some of its tensors; `layers.Pieces`, and a flow of its own tensors."""

    def __init__(self, graph: Graph, order: Iterable[str], threads: int | None, keep_open: bool = False) -> None:
        """keep_open: hold every layer's session, for a graph that is walked many times."""
        self.graph, self.order = graph, list(order)
        self._threads, self._keep_open = threads, keep_open
        self._pieces = {tensor: graph.between(tensor, self.order) for tensor in self.order}
        self._open: dict[tuple[str, bool], Run] = {}
        self.cache_tokens: int | None = None  # of K/V caches of fixed length

    def reads(self, tensor: str) -> Sequence[str]:
        return self._pieces[tensor].reads

    def weights(self, tensor: str) -> Sequence[str]:
        """Names of the stored tensors a layer reads."""
        return self._pieces[tensor].weights

    def modules(self, tensor: str) -> list[tuple[str, list[str]]]:
        """(module, stored numbers that it reads) of every operator of a layer that computes, in order."""
        return self._pieces[tensor].modules()

    def run(self, tensor: str, lanes: Sequence[Arrays], wide: Sequence[Arrays] = ()) -> list[np.ndarray]:
        results = []
        for is_wide, inputs in ((False, lanes), (True, wide)):
            if inputs:
                try:
                    run = self._session(tensor, is_wide)
                    results += [run(values) for values in inputs]
                except Exception as error:  # ONNX Runtime's own exception types are not public
                    raise RuntimeError(f"{tensor} cannot be computed: {error}") from error
        return results

    def _session(self, tensor: str, wide: bool) -> Run:
        if (tensor, wide) in self._open:
            return self._open[tensor, wide]
        piece = self._pieces[tensor]
        run = piece.open({name: self.graph.dtype(name) for name in piece.reads}, self._threads, wide)
        if self._keep_open:
            self._open[tensor, wide] = run
        return run

    def fit(self, tensor: str, value: np.ndarray) -> np.ndarray:
        if self.cache_tokens and tensor.startswith("present_") and value.shape[2] < self.cache_tokens:
            return padded(value, self.cache_tokens)
        return value

    def flow(self, inputs: Arrays, listen: Callable[[str, np.ndarray], None]) -> None:
        """Tell every tensor of `order`, each dropped after its last reader."""
        values, left = dict(inputs), Counter(name for t in self.order for name in self.reads(t))
        for tensor in self.order:
            (values[tensor],) = self.run(tensor, [values])
            listen(tensor, values[tensor])
            left.subtract(self.reads(tensor))
            for name in (*self.reads(tensor), tensor):
                if not left[name]:
                    values.pop(name, None)


def padded(values: np.ndarray, length: int) -> np.ndarray:
    """K or V [B, H, tokens, D] with zeros behind, up to `length` tokens."""
    widths = [(0, 0)] * values.ndim
    widths[2] = (0, length - values.shape[2])
    return np.pad(values, widths)


class Piece:
    """The nodes that make one tensor, and the names of what they read."""

    def __init__(
        self, graph: Graph, target: str, nodes: Sequence[onnx.NodeProto], reads: Sequence[str], weights: Sequence[str]
    ) -> None:
        self._graph, self.target, self._nodes = graph, target, nodes
        self.reads, self.weights = list(reads), list(weights)

    def modules(self) -> list[tuple[str, list[str]]]:
        """(module, floating-point tensors it reads) of every operator that computes, in order."""
        graph = self._graph
        return [
            (graph.module(node.output[0]), [n for n in node.input if n in graph.weights and graph.weights[n].dims])
            for node in self._nodes
            if node.op_type not in LAYOUT | SHAPES
        ]

    def open(self, dtypes: Mapping[str, np.dtype], threads: int | None, wide: bool = False) -> Run:
        """Ready to run on inputs of these dtypes; wide: all in FP32 and no activation quantized, same stored weights.

        Raises RuntimeError for what ONNX Runtime refuses.
        """
        # An operator that makes several tensors may make one that is given here.
        nodes = [_without_outputs(node, set(self.reads)) for node in self._nodes]
        stored = [self._graph.stored(name) for name in self.weights]
        if wide:
            nodes = unquantized([wide_node(node) for node in nodes], self.weights)
            stored = [wide_tensor(tensor) for tensor in stored]
            dtypes = {n: np.dtype(np.float32) if d == np.float16 else d for n, d in dtypes.items()}
        given = [helper.make_tensor_value_info(name, DTYPES[dtypes[name]], None) for name in self.reads]
        graph = helper.make_graph(nodes, "piece", given, [onnx.ValueInfoProto(name=self.target)], stored)
        model = helper.make_model(graph, opset_imports=self._graph.opsets, ir_version=self._graph.ir_version)
        as_written = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = open_session(
            model.SerializeToString(), threads, log_severity_level=4, graph_optimization_level=as_written
        )

        def run(values: Arrays) -> np.ndarray:
            with np.errstate(over="ignore"):  # a number that FP16 cannot hold becomes infinite, which is to be seen
                feeds = {name: np.ascontiguousarray(values[name], dtypes[name]) for name in self.reads}
            return session.run(None, feeds)[0]

        return run


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Tensor -> element type, of all that the graph's nodes make; weights are left out of the inference."""
    light = onnx.ModelProto()
    light.CopyFrom(onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import))
    graph = light.graph
    graph.name = "types"
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(onnx.ValueInfoProto(name=v.name) for v in model.graph.output)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) <= 64 and tensor.data_location != TensorProto.EXTERNAL:  # shapes and the like
            graph.initializer.append(tensor)
        else:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    inferred = shape_inference.infer_shapes(light).graph
    return {
        v.name: v.type.tensor_type.elem_type
        for v in (*model.graph.input, *inferred.value_info, *inferred.output)
        if v.type.tensor_type.elem_type
    }


def _renamed(node: onnx.NodeProto, rename: Callable[[str], str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = rename(node.name)
    copy.input[:], copy.output[:] = map(rename, node.input), map(rename, node.output)
    return copy


def _called(tensor: TensorProto, name: str) -> TensorProto:
    copy = TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    return copy


def _without_outputs(node: onnx.NodeProto, names: set[str]) -> onnx.NodeProto:
    if not names & set(node.output):
        return node
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.output[:] = [f"{name}:unused" if name in names else name for name in node.output]
    return copy
