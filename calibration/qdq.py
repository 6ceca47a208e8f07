"""transformer_step with explicit Q/DQ around chosen linears, written by ONNX Runtime's quantizer.

Symmetric int8 with zero point 0, activations per tensor, weights per output channel: what TensorRT reads. Knows nothing
of how thresholds were found.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorData, TensorsData, save_tensors_data

from videomar.calibration.linears import Linear
from videomar.unfinished import scratch

HALF_OPSET = 19  # the first whose QuantizeLinear takes float16
MAX_INLINE_BYTES = 1 << 30  # above this, weights go to a .onnx.data file beside the graph (protobuf ends at 2 GiB)


@dataclass(frozen=True)
class Form:
    """How the quantizer writes a product; the default is what TensorRT reads, the others are there to be measured."""

    activation: QuantType = QuantType.QInt8
    symmetric: bool = True  # activations; weights always are
    per_channel: bool = True  # weights
    reduce_range: bool = False  # weights in 7 bits


def fold(model: onnx.ModelProto, divisors: Mapping[str, np.ndarray], linears: Sequence[Linear]) -> None:
    """Divide norms' results by powers of two, in their weight and bias, and multiply the linears' matrices by them."""
    tensors = {t.name: t for t in model.graph.initializer}
    norms = {n.output[0]: n for n in model.graph.node if n.op_type == "LayerNormalization"}
    for norm, divisor in divisors.items():
        for name in norms[norm].input[1:]:
            _scale(tensors[name], 1 / divisor)
    for linear in linears:
        if linear.norm in divisors:
            _scale(tensors[linear.weight], divisors[linear.norm][:, None])


def _scale(tensor: TensorProto, factor: np.ndarray) -> None:
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((values * factor).astype(values.dtype), tensor.name))


def quantize(
    source: Path,
    target: Path,
    linears: Sequence[Linear],
    thresholds: Mapping[str, float],
    divisors: Mapping[str, np.ndarray],
    form: Form = Form(),
) -> int:
    """Write `source` with the linears named in `thresholds` quantized (all linears are smoothed); returns its opset.

    thresholds: linear -> largest value of its (smoothed) input that int8 holds.
    """
    model = onnx.load(source)
    fold(model, divisors, linears)
    chosen = [linear for linear in linears if linear.name in thresholds]
    half = {t.name: t.data_type for t in model.graph.initializer}[linears[0].weight] == TensorProto.FLOAT16
    if half:
        # Between 18 and 19 operators only gained types and attributes.
        for opset in model.opset_import:
            opset.version = max(opset.version, HALF_OPSET)
    for linear in chosen:
        _own_input(model.graph, linear)
    with scratch("qdq") as folder:
        _save(model, folder / "plain.onnx")
        dtype = np.float16 if half else np.float32
        data = {
            _input(linear): TensorData(
                lowest=np.array(-thresholds[linear.name], dtype), highest=np.array(thresholds[linear.name], dtype)
            )
            for linear in chosen
        }
        save_tensors_data(TensorsData(CalibrationMethod.MinMax, data), folder / "ranges.json")
        if chosen:
            with _quiet():
                quantize_static(
                    folder / "plain.onnx",
                    folder / "quantized.onnx",
                    quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=["MatMul"],
                    nodes_to_quantize=[linear.node for linear in chosen],
                    per_channel=form.per_channel,
                    reduce_range=form.reduce_range,
                    activation_type=form.activation,
                    weight_type=QuantType.QInt8,
                    use_external_data_format=_bytes(model) > MAX_INLINE_BYTES,
                    calibration_cache_path=folder / "ranges.json",
                    extra_options={
                        "ActivationSymmetric": form.symmetric,
                        "WeightSymmetric": True,
                        "MatMulConstBOnly": True,
                        "OpTypesToExcludeOutputQuantization": ["MatMul"],
                    },
                )
            model = onnx.load(folder / "quantized.onnx")
            _drop_identities(model.graph, [_input(linear) for linear in chosen])
            del model.graph.value_info[:]
            del model.metadata_props[:]
        _save(model, target)
    return next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))


def _input(linear: Linear) -> str:
    return f"{linear.name}.input"


def _own_input(graph: onnx.GraphProto, linear: Linear) -> None:
    """Give a linear a tensor of its own to read: the quantizer sends *all* readers of a tensor through the Q/DQ pair,
    and a residual or another layer must not be."""
    at = next(i for i, node in enumerate(graph.node) if node.name == linear.node)
    graph.node[at].input[0] = _input(linear)
    graph.node.insert(at, helper.make_node("Identity", [linear.source], [_input(linear)], name=_input(linear)))


def _drop_identities(graph: onnx.GraphProto, tensors: Sequence[str]) -> None:
    sources = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Identity" and n.output[0] in tensors}
    kept = [n for n in graph.node if n.output[0] not in sources]
    for node in kept:
        node.input[:] = [sources.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(kept)


def _bytes(model: onnx.ModelProto) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)  # ByteSize refuses beyond 2 GiB


def _save(model: onnx.ModelProto, file: Path) -> None:
    if _bytes(model) > MAX_INLINE_BYTES:
        onnx.save(model, file, save_as_external_data=True, location=f"{file.name}.data", size_threshold=4096)
        onnx.checker.check_model(str(file))
    else:
        onnx.checker.check_model(model)
        onnx.save(model, file)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantizer's advice (to run a preprocessing that renames and fuses) to itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
