"""Time of a transformer step for the forms that INT8 can take on the CPU, side by side in one run.

    python benchmarks/int8.py ARTIFACTS [--width 1536 --depth 4 --tokens 1440] [--threads 1] [--rounds 15]

ARTIFACTS are FP32 ones of `videomar export`. With --width, a model of that width and random weights is exported and
timed instead (its numbers mean nothing, its time does). Every form quantizes the same linears from the same ranges. The
forms take turns, so that a machine whose speed drifts is fair to all. The processor's time (of all threads) is what
counts: time by the clock also holds the turns that other work on the machine had.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import QuantType, quantize_dynamic

from videomar.artifacts import read_manifest
from videomar.calibration.linears import Linear, find_linears
from videomar.calibration.observe import watched_copy
from videomar.calibration.qdq import Form, quantize
from videomar.config import VIDEOMAR_1_4B, ModelConfig
from videomar.graphs import TRANSFORMER_STEP, contract
from videomar.runtime.backends.ort_session import open_session

FORMS: dict[str, Form] = {
    "s8 x s8 per channel, symmetric (what calibrate writes)": Form(),
    "s8 x s8 per tensor, symmetric": Form(per_channel=False),
    "u8 x s8 per channel, asymmetric": Form(QuantType.QUInt8, symmetric=False),
    "u8 x s8 per channel, asymmetric, 7-bit weights": Form(QuantType.QUInt8, symmetric=False, reduce_range=True),
    "u8 x s8 per tensor, asymmetric": Form(QuantType.QUInt8, symmetric=False, per_channel=False),
}


def wide_step(width: int, depth: int, folder: Path) -> tuple[Path, ModelConfig]:
    """A portable FP32 transformer_step of the official shape but for width and depth, with random weights."""
    import torch

    from videomar.export.build import GraphBuilder
    from videomar.export.emitters import emitter
    from videomar.export.onnx_files import save
    from videomar.model.random_parts import RandomParts

    t = dataclasses.replace(VIDEOMAR_1_4B.transformer, width=width, depth=depth, heads=width // 64)
    config = dataclasses.replace(VIDEOMAR_1_4B, name=f"{width}x{depth}", transformer=t)
    emit = emitter("portable")
    specs = contract(config, "fp32", emit.in_place)
    with torch.inference_mode():
        graph = GraphBuilder(RandomParts(config, torch.float32), specs, emit, torch.float32, 0, folder)
        save(graph.build(TRANSFORMER_STEP), folder / f"{TRANSFORMER_STEP}.onnx")
    return folder / f"{TRANSFORMER_STEP}.onnx", config


def feeds_of(file: Path, tokens: int, past: int) -> dict[str, np.ndarray]:
    """Random inputs of one mask step: both branches, an eighth of the tokens predicted."""
    rng = np.random.default_rng(0)
    sizes = {
        "branches": 2,
        "tokens": tokens,
        "predicted": tokens // 8,
        "text": 16,
        "past": past,
        "total": past + tokens,
    }
    feeds: dict[str, np.ndarray] = {}
    for value in onnx.load(file, load_external_data=False).graph.input:
        shape = [d.dim_value or sizes[d.dim_param] for d in value.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        made = {"predict": np.arange(sizes["predicted"]), "start": np.full(2, past), "masked": rng.random(shape) < 0.5}
        feeds[value.name] = made.get(value.name, rng.standard_normal(shape)).astype(dtype)
    return feeds


def session(file: Path, threads: int, optimized: Path | None = None) -> ort.InferenceSession:
    """A graph on the CPU; with `optimized`, what ONNX Runtime made of it is written there."""
    written = {"optimized_model_filepath": str(optimized)} if optimized else {}
    return open_session(file, threads, log_severity_level=4, **written)


def absmax(file: Path, linears: list[Linear], feeds: dict[str, np.ndarray], folder: Path) -> dict[str, float]:
    """Largest value of every linear's input on these feeds."""
    found: dict[str, float] = {}
    copy = session(watched_copy(file, folder, largest=True), 1)
    values = dict(zip((o.name for o in copy.get_outputs()), copy.run(None, feeds), strict=True))
    for linear in linears:
        found[linear.name] = float(values[f"{linear.source}::largest"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", type=Path, nargs="?")
    parser.add_argument("--width", type=int)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--tokens", type=int, help="of one frame (default: the artifacts' own)")
    parser.add_argument("--finished", type=int, default=2, help="frames whose K/V are kept")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.width:
            file, config = wide_step(args.width, args.depth, folder)
        else:
            file, config = args.artifacts / f"{TRANSFORMER_STEP}.onnx", read_manifest(args.artifacts).config
        s, t = config.sampling, config.tokenizer
        tokens = args.tokens or s.height * s.width // t.spatial_stride**2
        feeds = feeds_of(file, tokens, args.finished * tokens)
        linears = find_linears(onnx.load(file, load_external_data=False).graph)
        (folder / "watched").mkdir()
        thresholds = absmax(file, linears, feeds, folder / "watched")
        files = {"FP32": file}
        for i, (label, form) in enumerate(FORMS.items()):
            files[label] = folder / f"form{i}.onnx"
            quantize(file, files[label], linears, thresholds, {}, form)
        for label, per_channel in (("dynamic per channel", True), ("dynamic per tensor", False)):
            files[label] = folder / f"{label.replace(' ', '-')}.onnx"
            quantize_dynamic(
                file,
                files[label],
                op_types_to_quantize=["MatMul"],
                nodes_to_quantize=[linear.node for linear in linears],
                per_channel=per_channel,
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )
        sessions, fused = {}, {}
        for label, path in files.items():
            small = path.stat().st_size < 1 << 28
            sessions[label] = session(path, args.threads, folder / "optimized.onnx" if small else None)
            if small:
                nodes = onnx.load(folder / "optimized.onnx").graph.node
                kinds = Counter(n.op_type for n in nodes if n.op_type in INTEGER)
                fused[label] = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        spent: dict[str, list[tuple[float, float]]] = {label: [] for label in files}
        for round_ in range(args.rounds + 1):  # the first one warms up
            for label, one in sessions.items():
                began, clock = time.process_time(), time.perf_counter()
                one.run(["z"], feeds)
                if round_:
                    spent[label].append((1e3 * (time.process_time() - began), 1e3 * (time.perf_counter() - clock)))
    t_ = config.transformer
    print(
        f"width {t_.width}, {t_.depth} layers, 2 x {tokens} tokens, {args.finished} finished frames, "
        f"{args.threads} threads, ONNX Runtime {ort.__version__}, median of {args.rounds}"
    )
    print("| form | ms of the processor | speed | ms by the clock | products made integer |")
    print("|---|---|---|---|---|")
    first = 0.0
    for label, times in spent.items():
        cpu, clock = (statistics.median(column) for column in zip(*times, strict=True))
        first = first or cpu
        print(f"| {label} | {cpu:.2f} | {first / cpu:.2f}x | {clock:.2f} | {fused.get(label, '')} |")


INTEGER = ("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger", "QLinearMatMul")

if __name__ == "__main__":
    main()
