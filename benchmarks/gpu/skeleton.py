"""Graphs without their weights: a model of 6 GB travels as a few MB, and is filled with random numbers on the spot.

    python -m benchmarks.gpu.skeleton hollow videomar-1.4b -o DIR      # here: traces the preset, keeps no weights
    python -m benchmarks.gpu.skeleton fill DIR -o ARTIFACTS            # there: needs numpy alone

Every large weight is remembered by mean and deviation, so the filled model is as fast as the real one and its numbers
stay finite; it makes no video. Knows nothing of devices.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

    from videomar.config import ModelConfig

INLINE = 64 << 10  # bytes; smaller tensors stay in the graph: norms, biases, constants
ALIGNMENT = 4096
BLOCK = 1 << 22  # random numbers that are drawn once and used everywhere, from another place on each time
CALM = 0.05  # factor on the head's matrices: a random head of full size would answer with numbers of thousands
MAX_BETA = 0.05  # a gentle diffusion schedule, for the same reason
WEIGHTS = "weights.json"


@dataclass(frozen=True)
class Weight:
    """Where a tensor lies in its graph's data file, and what its numbers are like."""

    graph: str
    dtype: str
    offset: int  # bytes
    elements: int
    mean: float
    deviation: float


def hollow_graph(model: onnx.ModelProto, name: str, folder: Path, calm: float = 1.0) -> tuple[bytes, list[Weight]]:
    """The graph with every large weight pointing into NAME.onnx.data, and what to write there.

    folder: where the graph's present data file lies. calm: factor on the weights' deviation.
    """
    from onnx import TensorProto, numpy_helper
    from onnx.external_data_helper import set_external_data

    weights, offset = list[Weight](), 0
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor, base_dir=str(folder))
        if tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16) or array.nbytes < INLINE:
            kept = numpy_helper.from_array(array, tensor.name)
            tensor.CopyFrom(kept)
            continue
        sample = array.reshape(-1)[:: max(1, array.size >> 16)].astype(np.float64)
        weights.append(
            Weight(name, array.dtype.name, offset, array.size, float(sample.mean()), calm * float(sample.std()))
        )
        tensor.ClearField("raw_data")
        del tensor.external_data[:]
        tensor.raw_data = b""  # set_external_data asks for the field
        set_external_data(tensor, f"{name}.onnx.data", offset, array.nbytes)
        tensor.ClearField("raw_data")
        offset = math.ceil((offset + array.nbytes) / ALIGNMENT) * ALIGNMENT
    return model.SerializeToString(), weights


def hollow(config: ModelConfig, out: Path, precision: str = "fp16", emitter_name: str = "native") -> None:
    """Trace a config's graphs with random weights and write them without; needs PyTorch and the onnx package."""
    import torch

    from videomar.artifacts import Manifest, write_directory, write_manifest
    from videomar.demo.words import write_tokenizer
    from videomar.export.build import GraphBuilder
    from videomar.export.emitters import emitter
    from videomar.graphs import contract
    from videomar.model.random_parts import RandomParts
    from videomar.runtime.backends.ort import NEEDED
    from videomar.runtime.prompt import PromptTokenizer

    config = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, max_beta=MAX_BETA))
    emit, dtype = emitter(emitter_name), torch.float16 if precision == "fp16" else torch.float32
    specs = contract(config, precision, emit.in_place)
    with write_directory(out) as directory, torch.inference_mode():
        write_tokenizer(directory / "tokenizer.json")
        prefix = PromptTokenizer(directory / "tokenizer.json", config.text).prefix
        weights: list[Weight] = []
        for name in NEEDED:  # all of the model's parts are let go between graphs: the large ones fill memory
            with tempfile.TemporaryDirectory(dir=out.parent) as folder:
                source = RandomParts(config, dtype)
                model = GraphBuilder(source, specs, emit, dtype, prefix, Path(folder)).build(name)
                graph, found = hollow_graph(model, name, Path(folder), CALM if "head" in name else 1.0)
            (directory / f"{name}.onnx").write_bytes(graph)
            weights += found
            print(f"{name}: {len(graph) / 2**20:.1f} MiB, without {_bytes(found, name) / 2**20:.0f} MiB of weights")
        (directory / WEIGHTS).write_text(json.dumps([dataclasses.asdict(w) for w in weights]))
        write_manifest(directory, Manifest("onnx", precision, emit.name, emit.opset, config))


def _bytes(weights: list[Weight], graph: str) -> int:
    return max((w.offset + w.elements * np.dtype(w.dtype).itemsize for w in weights if w.graph == graph), default=0)


def fill(skeleton: Path, out: Path, seed: int = 0) -> int:
    """Write the artifacts that a skeleton stands for; the bytes of its weights. Files are listed without hashes.

    Open them with `check_hashes=False`: hashing gigabytes of random numbers proves nothing.
    """
    from videomar.artifacts import FileEntry, read_manifest

    manifest, out_files = read_manifest(skeleton), dict[str, FileEntry]()
    weights = [Weight(**w) for w in json.loads((skeleton / WEIGHTS).read_text())]
    out.mkdir(parents=True, exist_ok=True)
    block = np.random.default_rng(seed).standard_normal(BLOCK, np.float32)
    for name in (n for n in manifest.files if n != WEIGHTS):
        shutil.copy(skeleton / name, out / name)
        out_files[name] = manifest.files[name]
    graphs = list(dict.fromkeys(w.graph for w in weights))
    with ThreadPoolExecutor() as pool:  # NumPy computes and writes beside itself
        files = list(pool.map(lambda graph: _filled(out, [w for w in weights if w.graph == graph], block), graphs))
    for file in files:
        out_files[file.name] = FileEntry(file.stat().st_size, "")
    (out / "manifest.json").write_text(dataclasses.replace(manifest, files=out_files).to_json())
    return sum(file.stat().st_size for file in files)


def _filled(out: Path, weights: list[Weight], block: np.ndarray) -> Path:
    """The data file of one graph."""
    file = out / f"{weights[0].graph}.onnx.data"
    with open(file, "wb") as data:
        for i, w in enumerate(weights):
            data.seek(w.offset)
            _write(data, w, block, i)
    return file


def _write(data: Any, w: Weight, block: np.ndarray, index: int) -> None:
    """A tensor's numbers, from another place of the block on for each tensor: equal layers would resonate."""
    at, left = index * 1_000_003 % BLOCK, w.elements
    while left:
        part = block[at : at + left]
        (part * np.float32(w.deviation) + np.float32(w.mean)).astype(w.dtype).tofile(data)
        at, left = 0, left - len(part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("hollow", "fill"))
    parser.add_argument("source", help="a preset, or a skeleton")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    if args.what == "fill":
        print(f"{args.output}: {fill(Path(args.source), args.output) / 2**30:.2f} GiB of random weights")
        return
    from videomar.config import PRESETS

    hollow(PRESETS[args.source], args.output)


if __name__ == "__main__":
    main()
