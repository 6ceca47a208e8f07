"""What an ONNX file takes and gives, read from its bytes without loading it, and held against the contract.

A directory whose manifest does not fit its graphs is refused here, before a session takes memory or time. Needs no
onnx package: protobuf is fields of (number, value), and all but a handful are skipped by their length.
"""

from __future__ import annotations

import mmap
import shlex
from collections.abc import Iterator
from pathlib import Path

from videomar.artifacts import Manifest, verify
from videomar.errors import ArtifactError, ConfigError, InputError
from videomar.graphs import GraphSpec, TensorSpec, contract

# onnx.proto: field numbers of ModelProto.graph, GraphProto.input and output, and so on down to a dimension.
GRAPH, INPUT, OUTPUT, NAME, TYPE, TENSOR, ELEMENT, SHAPE, DIM, DIM_VALUE, DIM_NAME = 7, 11, 12, 1, 2, 1, 1, 2, 1, 1, 2
ELEMENTS = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16"}


def verify_graphs(directory: Path, manifest: Manifest, hashes: bool = True) -> None:
    """`artifacts.verify`, and every ONNX graph in the manifest against the contract of its configuration.

    Raises ArtifactError naming the file and the first tensor that deviates.
    """
    verify(directory, manifest, hashes=hashes)
    if manifest.kind != "onnx":
        return
    mend = f"run `videomar export CHECKPOINT -o {shlex.quote(str(directory))}`"
    try:
        specs = contract(manifest.config, manifest.activations, manifest.emitter == "native", manifest.cache_tokens)
    except (InputError, ConfigError) as error:
        raise ArtifactError(f"{directory}: {error}; {mend}") from None
    for name, spec in specs.items():
        file = directory / f"{name}.onnx"
        if file.name in manifest.files:
            check_graph(file, spec, mend)


def check_graph(file: Path, spec: GraphSpec, mend: str) -> None:
    """Raise ArtifactError unless the file's inputs and outputs are those of `spec`: names, order, dtypes and axes."""
    found = read_interface(file, mend)
    for side, got, expected in (("input", found.inputs, spec.inputs), ("output", found.outputs, spec.outputs)):
        for i in range(max(len(got), len(expected))):
            ours, theirs = (side_[i] if i < len(side_) else None for side_ in (expected, got))
            if ours != theirs:
                raise ArtifactError(
                    f"{file}: {side} {i} is {_say(theirs)}, expected {_say(ours)} by the manifest's config; {mend}"
                )


def read_interface(file: Path, mend: str = "export the checkpoint again") -> GraphSpec:
    """The inputs and outputs of an ONNX file; raises ArtifactError for any other file."""
    try:
        with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            sides: dict[int, list[TensorSpec]] = {INPUT: [], OUTPUT: []}
            for number, (start, end) in _fields(data, 0, len(data)):
                if number == GRAPH:
                    for inner, (first, last) in _fields(data, start, end):
                        if inner in sides:
                            sides[inner].append(_tensor(data[first:last]))
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read ({error.strerror}), expected an ONNX graph; {mend}") from None
    except (ValueError, IndexError) as error:  # an empty file cannot be mapped; text that is no UTF-8
        raise ArtifactError(f"{file} is no ONNX graph ({error!s:.60}); {mend}") from None
    return GraphSpec(file.stem, tuple(sides[INPUT]), tuple(sides[OUTPUT]))


def _tensor(data: bytes) -> TensorSpec:
    name, dtype, axes = "", "unknown", list[int | str]()
    for text in _inside(data, NAME):
        name = text.decode()
    for tensor in (tensor for kind in _inside(data, TYPE) for tensor in _inside(kind, TENSOR)):
        for number, value in _values(tensor):
            if number == ELEMENT and isinstance(value, int):
                dtype = ELEMENTS.get(value, f"element type {value}")
        axes = [_axis(axis) for shape in _inside(tensor, SHAPE) for axis in _inside(shape, DIM)]
    return TensorSpec(name, dtype, tuple(axes))


def _inside(data: bytes, wanted: int) -> Iterator[bytes]:
    """What fields of that number hold."""
    return (value for number, value in _values(data) if number == wanted and isinstance(value, bytes))


def _axis(data: bytes) -> int | str:
    for number, value in _values(data):
        if number == DIM_VALUE and isinstance(value, int):
            return value
        if number == DIM_NAME and not isinstance(value, int):
            return value.decode()
    return "?"


def _values(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Every field with its number, or its bytes."""
    for number, (start, end) in _fields(data, 0, len(data)):
        yield number, data[start:end] if end >= 0 else start


def _fields(data: bytes | mmap.mmap, at: int, end: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Every field between two places: its number and where its bytes lie, or (value, -1) of a plain number."""
    while at < end:
        key, at = _varint(data, at, end)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at, end)
            yield key >> 3, (value, -1)
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"wire type {wire}")
        size, at = _varint(data, at, end) if wire == 2 else ({1: 8, 5: 4}[wire], at)
        if at + size > end:
            raise ValueError("it ends early")
        yield key >> 3, (at, at + size)
        at += size


def _varint(data: bytes | mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("it ends early")
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise ValueError("a number of too many bytes")


def _say(tensor: TensorSpec | None) -> str:
    if tensor is None:
        return "missing"
    return f"{tensor.name!r:.40} {tensor.dtype} [{', '.join(map(str, tensor.axes))}]"
