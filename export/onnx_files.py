"""A flat torch module -> an ONNX file that keeps the contract. Knows nothing of what the graphs compute."""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import torch
from onnx import helper
from torch import nn
from torch._dynamo import config as dynamo_config

from videomar.errors import ParityError
from videomar.export.names import name_by_module
from videomar.graphs import GraphSpec, TensorSpec

MAX_INLINE_BYTES = 1 << 30  # above this, weights go to a .onnx.data file beside the graph (protobuf ends at 2 GiB)
FEW_COLLECTIONS = 100_000  # new objects before the collector looks again
EXTERNAL_FROM = 4096  # bytes; smaller tensors stay in the graph
DTYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "int64": onnx.TensorProto.INT64,
    "bool": onnx.TensorProto.BOOL,
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's notes to itself; what matters is checked by numbers afterwards."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def swift() -> Iterator[None]:
    """Trace without what costs a quarter of the time and does not pay here.

    Millions of small objects are made, nearly all freed by count: the collector finds little and looks often. And the
    tracer's cache of results costs more where sizes are symbols than what it saves.
    """
    thresholds = gc.get_threshold()
    gc.set_threshold(FEW_COLLECTIONS, *thresholds[1:])
    try:
        with dynamo_config.patch(fake_tensor_cache_enabled=False):
            yield
    finally:
        gc.set_threshold(*thresholds)


def to_onnx(
    module: nn.Module,
    args: Sequence[Any],
    dynamic_shapes: Sequence[Any],
    spec: GraphSpec,
    opset: int,
    folder: Path | None = None,
) -> onnx.ModelProto:
    """Trace `module` with example `args` into a graph with the contract's tensor names and axes.

    folder: where weights that are too many for one file go at once, as NAME.onnx.data, never all copied in memory.
    Raises ParityError when the traced graph's tensors differ from the contract in number, dtype or rank.
    """
    with quiet(), swift(), torch.inference_mode():
        program = torch.onnx.export(
            module,
            tuple(args),
            dynamo=True,
            opset_version=opset,
            input_names=[t.name for t in spec.inputs],
            output_names=[t.name for t in spec.outputs],
            dynamic_shapes=tuple(dynamic_shapes),
            verbose=False,
        )
        size = sum(p.nbytes for p in module.parameters())
        if folder is not None and size > MAX_INLINE_BYTES:
            model = onnx_ir.to_proto(_unloaded(program.model, folder, data_file(spec.name)))
        else:
            model = program.model_proto
    name_by_module(model.graph)
    strip(model.graph)
    apply_contract(model.graph, spec)
    return model


def _unloaded(model: onnx_ir.Model, folder: Path, name: str) -> onnx_ir.Model:
    """Write large weights to a file, one after the other."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, onnx_ir.Tensor) and isinstance(array := tensor.raw, np.ndarray) and array.ndim == 2:
            # The tracer turns weights over, and numpy writes a turned matrix number by number.
            dtype, shape = tensor.dtype, tensor.shape
            value.const_value = onnx_ir.LazyTensor(
                functools.partial(_straight, array), dtype=dtype, shape=shape, name=tensor.name, cache=False
            )
    return onnx_ir.external_data.unload_from_model(model, folder, name, size_threshold_bytes=EXTERNAL_FROM)


def _straight(array: np.ndarray) -> onnx_ir.Tensor:
    return onnx_ir.tensor(torch.from_numpy(array).contiguous().numpy())


def data_file(name: str) -> str:
    """Name of the file beside the graph that holds its weights when they are too many for one."""
    return f"{name}.onnx.data"


def strip(graph: onnx.GraphProto) -> None:
    """Drop what the tracer left for debugging: stack traces, source paths, intermediate shapes."""
    del graph.value_info[:]
    del graph.metadata_props[:]
    graph.doc_string = ""
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*graph.input, *graph.output]:
        del value.metadata_props[:]
        value.doc_string = ""
    for tensor in graph.initializer:
        del tensor.metadata_props[:]


def apply_contract(graph: onnx.GraphProto, spec: GraphSpec) -> None:
    """Check names, dtypes and ranks of a graph's tensors, then name its axes as the contract does."""
    for side, values, wanted in (("input", graph.input, spec.inputs), ("output", graph.output, spec.outputs)):
        got = [v.name for v in values]
        names = [t.name for t in wanted]
        if got != names:
            odd = next((pair for pair in zip(got, names, strict=False) if pair[0] != pair[1]), (len(got), len(names)))
            raise ParityError(f"graph {spec.name}: {side} {odd[0]!r} found where the contract has {odd[1]!r}")
        for value, tensor in zip(values, wanted, strict=True):
            found = value.type.tensor_type
            if found.elem_type != DTYPES[tensor.dtype] or len(found.shape.dim) != len(tensor.axes):
                raise ParityError(
                    f"graph {spec.name}: {side} {tensor.name!r} is "
                    f"{onnx.TensorProto.DataType.Name(found.elem_type)} of rank {len(found.shape.dim)}, "
                    f"the contract says {tensor.dtype} {list(tensor.axes)}"
                )
            value.CopyFrom(value_info(tensor))


def value_info(tensor: TensorSpec) -> onnx.ValueInfoProto:
    """The contract's tensor as ONNX says it."""
    return helper.make_tensor_value_info(tensor.name, DTYPES[tensor.dtype], list(tensor.axes))


def save(model: onnx.ModelProto, file: Path) -> None:
    """Write a graph, with its weights beside it when they are too large for one file; checks the ONNX rules."""
    # Not ByteSize: protobuf refuses to count beyond 2 GiB.
    if any(onnx.external_data_helper.uses_external_data(tensor) for tensor in model.graph.initializer):
        file.write_bytes(model.SerializeToString())
        onnx.checker.check_model(str(file))
    elif sum(len(tensor.raw_data) for tensor in model.graph.initializer) > MAX_INLINE_BYTES:
        onnx.save(model, file, save_as_external_data=True, location=data_file(file.stem), size_threshold=EXTERNAL_FROM)
        onnx.checker.check_model(str(file))
    else:
        onnx.checker.check_model(model)
        onnx.save(model, file)


def loop_over_steps(
    prologue: onnx.ModelProto, body: onnx.ModelProto, spec: GraphSpec, state: tuple[str, str], scanned: dict[str, str]
) -> onnx.ModelProto:
    """One graph that runs `prologue` once and then `body` in an ONNX Scan over the first axis of the scanned tensors.

    state: (graph input that starts the loop, body input); the body's only output is the next state.
    scanned: body input -> tensor of the outer graph (an input or an output of the prologue).
    Every other input of the body is taken by name from the outer graph.
    """
    inner = onnx.compose.add_prefix(body, "step_", rename_inputs=False, rename_outputs=False).graph
    inputs = {v.name: v for v in inner.input}
    loop = helper.make_graph(
        list(inner.node),
        "step",
        [inputs[state[1]], *(inputs[name] for name in scanned)],
        list(inner.output),
    )
    scan = helper.make_node(
        "Scan",
        [state[0], *scanned.values()],
        [spec.outputs[0].name],
        body=loop,
        num_scan_inputs=len(scanned),
        scan_input_axes=[0] * len(scanned),
    )
    # Weights live outside the body, so that they are stored and prepared once.
    graph = helper.make_graph(
        [*prologue.graph.node, scan],
        spec.name,
        [value_info(t) for t in spec.inputs],
        [value_info(t) for t in spec.outputs],
        [*prologue.graph.initializer, *inner.initializer],
    )
    return helper.make_model(graph, opset_imports=list(body.opset_import), ir_version=body.ir_version)
