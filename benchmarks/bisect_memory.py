"""Memory of the walk through a transformer's layers against its depth.

    python benchmarks/bisect_memory.py [--artifacts out/demo-fp32-portable] [--tokens 1024] [--depths 4 12 36]

A block of the exported graph is repeated with new random weights, which lie beside the graph as those of large models
do. One process a depth: peak resident memory of comparing all layers of one call, what the walk held of it, and what
all the layers' tensors are together (which is what marking every tensor as an output would hold, twice).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from videomar.artifacts import read_manifest
from videomar.graphs import layer_names
from videomar.parity.bisecting.layers import walk
from videomar.parity.bisecting.pieces import Cut, Graph

BLOCK = "decoder_blocks.1"  # neither the first, which makes shared constants, nor the last, which drops rows


def deepened(source: Path, target: Path, depth: int) -> None:
    """Write transformer_step with `depth` blocks: its first, copies of its second, its last."""
    model = onnx.load(source)
    graph, rng = model.graph, np.random.default_rng(0)
    last = max(int(v.name.rsplit("_", 1)[1]) for v in graph.output if v.name.startswith("present_key_"))

    def at(name: str, number: int) -> str:
        """A name of block 1 (or of what it reads, block 0's result) as block `number` has it."""
        if name == "decoder_blocks.0":
            return f"decoder_blocks.{number - 1}"
        if name.startswith((f"{BLOCK}.", f"{BLOCK}/")) or name == BLOCK:
            return f"decoder_blocks.{number}{name[len(BLOCK) :]}"
        stem, _, tail = name.rpartition("_")
        kinds = ("past_key", "past_value", "present_key", "present_value", "text_key", "text_value")
        return f"{stem}_{number}" if stem in kinds and tail == "1" else name

    def to_last(name: str) -> str:
        moved = {f"decoder_blocks.{last - 1}": f"decoder_blocks.{depth - 2}"}
        for prefix in (f"decoder_blocks.{last}.", f"decoder_blocks.{last}/"):
            if name.startswith(prefix):
                return f"decoder_blocks.{depth - 1}{prefix[-1]}{name[len(prefix) :]}"
        if name == f"decoder_blocks.{last}":
            return f"decoder_blocks.{depth - 1}"
        stem, _, tail = name.rpartition("_")
        if stem in ("past_key", "past_value", "present_key", "present_value", "text_key", "text_value"):
            return f"{stem}_{depth - 1}" if tail == str(last) else name
        return moved.get(name, name)

    def of(node: onnx.NodeProto, number: int) -> bool:
        outputs = (f"present_key_{number}", f"present_value_{number}")
        block = f"decoder_blocks.{number}"
        return (
            node.output[0] in outputs
            or node.output[0] == block
            or node.output[0].startswith((f"{block}.", f"{block}/"))
        )

    middle = [n for n in graph.node if of(n, 1)]
    first = [n for n in graph.node if not any(of(n, k) for k in range(1, last + 1)) and n.output[0] != "z"]
    tail = [n for n in graph.node if of(n, last) or n.output[0] == "z"]
    weights = {t.name: t for t in graph.initializer}
    nodes, stored = list(first), {}
    for number in range(1, depth - 1):
        nodes += [_renamed(n, lambda name, number=number: at(name, number)) for n in middle]
    nodes += [_renamed(n, to_last) for n in tail]
    sources = {at(n, k): n for n in weights for k in range(1, depth - 1)} | {to_last(n): n for n in weights}
    for name in dict.fromkeys(n for node in nodes for n in node.input):
        if name in sources:
            values = numpy_helper.to_array(weights[sources[name]])
            if values.ndim == 2:
                values = (rng.standard_normal(values.shape) / values.shape[0] ** 0.5).astype(values.dtype)
            stored[name] = numpy_helper.from_array(values, name)
    made = {n for node in nodes for n in node.output}
    read = [
        n for n in dict.fromkeys(n for node in nodes for n in node.input) if n and n not in made and n not in stored
    ]
    kinds = {v.name: v.type.tensor_type.elem_type for v in graph.input}
    inputs = [helper.make_tensor_value_info(n, kinds.get(n, onnx.TensorProto.FLOAT), None) for n in read]
    outputs = [onnx.ValueInfoProto(name=n) for n in ["z", *layer_names("present", depth)]]
    built = helper.make_graph(nodes, "deep", inputs, outputs, list(stored.values()))
    built = helper.make_model(built, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    onnx.save(built, target, save_as_external_data=True, location=f"{target.name}.data", size_threshold=1024)


def _renamed(node: onnx.NodeProto, rename: object) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = ""
    copy.input[:], copy.output[:] = map(rename, node.input), map(rename, node.output)  # type: ignore[arg-type]
    return copy


def measure(file: Path, tokens: int, config: Path) -> None:
    """Walk the graph against itself and print one row."""
    t, rng = read_manifest(config).config.transformer, np.random.default_rng(1)
    graph = Graph.read(file)
    kv = np.zeros((2, t.heads, 0, t.head_dim), np.float32)
    inputs = {n: kv for n in graph.inputs if n.startswith("past_")}
    text = rng.standard_normal((2, t.heads, 16, t.head_dim)).astype(np.float32)
    inputs |= {n: text for n in graph.inputs if n.startswith("text_")}
    angles = rng.standard_normal((tokens, t.head_dim // 2)).astype(np.float32)
    inputs |= {"rope_cos": np.cos(angles), "rope_sin": np.sin(angles), "masked": np.zeros(tokens, bool)}
    inputs |= {"tokens": rng.standard_normal((tokens, t.token_channels)).astype(np.float32), "predict": np.arange(4)}
    before, began, told = _peak(), time.perf_counter(), [0]
    order = list(graph.comparable())
    a, b = Cut(graph, order, 1), Cut(Graph.read(file), order, 1)

    def flow(listen: object) -> None:
        def tell(name: str, value: np.ndarray) -> None:
            told[0] += value.nbytes
            listen(name, value)  # type: ignore[operator]

        a.flow(inputs, tell)

    walked = walk(flow, b, inputs, inputs, 1e-5, ["z"])
    assert walked.guilty is None and walked.outputs["z"] == 0
    weights = file.with_name(f"{file.name}.data").stat().st_size
    print(
        f"| {len(inputs) // 4 - 1} | {len(walked.layers)} | {weights / 2**20:.0f} | {told[0] / 2**20:.0f} | "
        f"{walked.peak_tensors} | {walked.peak_bytes / 2**20:.0f} | {before:.0f} | {_peak():.0f} | "
        f"{time.perf_counter() - began:.0f} |"
    )


def _peak() -> float:
    """MiB; not getrusage, whose figure starts at the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=Path, default=Path("out/demo-fp32-portable"))
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 12, 36])
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.file:
        measure(args.file, args.tokens, args.artifacts)
        return
    print(
        "| blocks | layers | weights, MiB | all tensors, MiB | held at once | MiB | MiB before | peak MiB | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for depth in args.depths:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "deep.onnx"
            deepened(args.artifacts / "transformer_step.onnx", file, depth)
            options = ["--artifacts", str(args.artifacts), "--tokens", str(args.tokens), "--file", str(file)]
            subprocess.run([sys.executable, __file__, *options], check=True)


if __name__ == "__main__":
    main()
