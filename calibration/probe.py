"""One session in which any choice of quantized linears can be tried: int8 pretended in floating point.

transformer_step once, with the scale of every linear's input, every matrix and every norm as inputs that can be fed
anew in each run: nothing is written or loaded between tries. The graph that is shipped is written by qdq.py and
measured itself; tests hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from videomar.calibration.choose import LEVELS, fake_quantize_weight
from videomar.calibration.linears import Linear
from videomar.calibration.observe import link_or_copy
from videomar.calibration.plain import Arrays, open_graph
from videomar.unfinished import scratch


class Probe:
    """Try quantized linears on a step's inputs."""

    def __init__(self, source: Path, linears: Sequence[Linear], threads: int | None = None) -> None:
        """source: transformer_step.onnx of floating-point artifacts."""
        self._linears = list(linears)
        model = onnx.load(source)
        tensors = {t.name: t for t in model.graph.initializer}
        norms = {n.output[0]: list(n.input[1:]) for n in model.graph.node if n.op_type == "LayerNormalization"}
        self.weights: Arrays = {x.name: numpy_helper.to_array(tensors[x.weight]) for x in linears}
        self._norms = {x.norm: norms[x.norm] for x in linears if x.norm}
        self._affine = {name: numpy_helper.to_array(tensors[name]) for names in self._norms.values() for name in names}
        del model
        with scratch("probe") as folder:
            self._session = open_graph(_probe_graph(source, folder, self._linears, list(self._affine)), threads)
        self._off = {_scale(x): np.zeros((), np.float32) for x in self._linears}
        self.configure({}, {})

    def configure(self, thresholds: Mapping[str, float], divisors: Mapping[str, np.ndarray]) -> None:
        """Quantize the linears in `thresholds` from now on; divisors as in `qdq.quantize`."""
        self._feeds = dict(self._off)
        for linear in self._linears:
            weight, divisor = self.weights[linear.name], divisors.get(linear.norm or "")
            changed = weight.astype(np.float32) if divisor is None else weight * divisor[:, None]
            if linear.name in thresholds:
                self._feeds[_scale(linear)] = np.array(thresholds[linear.name] / LEVELS, np.float32)
                changed = fake_quantize_weight(changed)
            if linear.name in thresholds or divisor is not None:
                self._feeds[linear.weight] = changed.astype(weight.dtype)
        for norm, divisor in divisors.items():
            for name in self._norms[norm]:
                self._feeds[name] = (self._affine[name] / divisor).astype(self._affine[name].dtype)

    def __call__(self, feeds: Arrays) -> np.ndarray:
        """z of one step."""
        return self._session.run(["z"], {**feeds, **self._feeds})[0]


def _scale(linear: Linear) -> str:
    return f"{linear.name}.input::scale"


def _probe_graph(source: Path, folder: Path, linears: Sequence[Linear], norms: Sequence[str]) -> Path:
    """Write the graph; a scale of 0 leaves a linear's input as it is."""
    model = onnx.load(source, load_external_data=False)
    graph = model.graph
    types = {t.name: (t.data_type, list(t.dims)) for t in graph.initializer}
    for name in [*(x.weight for x in linears), *norms]:  # an initializer that is an input, too, can be fed anew
        graph.input.append(helper.make_tensor_value_info(name, *types[name]))
    for name, value in (("least", -LEVELS - 1.0), ("most", float(LEVELS)), ("zero", 0.0), ("one", 1.0)):
        graph.initializer.append(helper.make_tensor(f"::{name}", TensorProto.FLOAT, [], [value]))
    inserted: dict[str, list[onnx.NodeProto]] = {}
    for linear in linears:
        scale, prefix = _scale(linear), f"{linear.name}.input::"
        graph.input.append(helper.make_tensor_value_info(scale, TensorProto.FLOAT, []))
        steps = [
            ("Equal", [scale, "::zero"], "off"),
            ("Where", [prefix + "off", "::one", scale], "divisor"),
            ("Cast", [linear.source], "float"),
            ("Div", [prefix + "float", prefix + "divisor"], "scaled"),
            ("Round", [prefix + "scaled"], "rounded"),
            ("Clip", [prefix + "rounded", "::least", "::most"], "clipped"),
            ("Mul", [prefix + "clipped", prefix + "divisor"], "quantized"),
            ("Where", [prefix + "off", prefix + "float", prefix + "quantized"], "chosen"),
            ("Cast", [prefix + "chosen"], "input"),
        ]
        kinds = {"float": TensorProto.FLOAT, "input": types[linear.weight][0]}
        inserted[linear.node] = [
            helper.make_node(op, inputs, [prefix + out], **({"to": kinds[out]} if op == "Cast" else {}))
            for op, inputs, out in steps
        ]
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.name in inserted:
            nodes += inserted[node.name]
            node.input[0] = inserted[node.name][-1].output[0]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    for data in source.parent.glob(f"{source.name}.data"):
        link_or_copy(data, folder / data.name)
    onnx.save(model, folder / source.name)
    return folder / source.name
