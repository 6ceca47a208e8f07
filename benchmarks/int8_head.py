"""Would INT8 pay for the head's modulations? Two thirds of its products, none of them on the way of x.

    python benchmarks/int8_head.py ARTIFACTS [--clips 6] [--rounds 30] [--threads 1]

ARTIFACTS are FP32 ones of the demo model. The modulations of diffusion_head are quantized (s8 x s8, weights per
channel, ranges from real loops of other clips); both graphs then run the same held-out loops in turn: processor time of
a mask step's loop, and how far the sampled tokens are.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from videomar.artifacts import read_manifest
from videomar.calibration.clips import demo_clips
from videomar.calibration.trials import Trial, record
from videomar.graphs import DIFFUSION_HEAD
from videomar.runtime.backends.ort_session import open_session

Feeds = dict[str, np.ndarray]


def loop_of(trial: Trial) -> Feeds:
    """A recorded mask step as the looped graph takes it."""
    coefficients, draws = (np.stack([f[name] for f in trial.head]) for name in ("step_coefficients", "draw"))
    feeds = {"z": trial.z, "timesteps": trial.timesteps, "guidance": trial.head[0]["guidance"]}
    return feeds | {"initial": trial.head[0]["x"], "coefficients": coefficients, "draws": draws}


class Loops(CalibrationDataReader):
    def __init__(self, loops: list[Feeds]) -> None:
        self._next: Iterator[Feeds] = iter(loops)

    def get_next(self) -> Feeds | None:
        return next(self._next, None)


def quantized(source: Path, loops: list[Feeds], target: Path) -> None:
    """The same graph with its modulations in INT8."""
    nodes = [n.name for n in onnx.load(source).graph.node if n.op_type == "Gemm" and "modulations." in n.output[0]]
    quantize_static(
        source,
        target,
        Loops(loops),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=nodes,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("artifacts", type=Path)
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    manifest = read_manifest(args.artifacts)
    s = manifest.config.sampling
    trials = record(args.artifacts, manifest, demo_clips(args.clips, 1, s.height, s.width), {}, args.threads)
    loops = [loop_of(trial) for trial in trials]
    half = len(loops) // 2
    file = args.artifacts / f"{DIFFUSION_HEAD}.onnx"
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "int8.onnx"
        quantized(file, loops[:half], small)
        sessions = {"FP32": open_session(file, args.threads), "INT8 modulations": open_session(small, args.threads)}
        least = {name: [float("inf")] * half for name in sessions}  # of each held-out loop
        off = whole = 0.0
        for round_ in range(args.rounds):
            for i, feeds in enumerate(loops[-half:]):
                made = {}
                for name, session in sessions.items():
                    began = time.process_time()
                    made[name] = session.run(None, feeds)[0]
                    least[name][i] = min(least[name][i], time.process_time() - began)
                if not round_:
                    off += float(((made["INT8 modulations"] - made["FP32"]) ** 2).sum())
                    whole += float((made["FP32"] ** 2).sum())
    mean = {name: sum(each) / half for name, each in least.items()}
    print(f"{half} held-out mask steps, {args.threads} thread(s), mean of the least of {args.rounds} rounds")
    for name, seconds in mean.items():
        print(f"| {name} | {1e3 * seconds:.2f} ms | {mean['FP32'] / seconds:.2f}x |")
    print(f"sampled tokens, relative L2: {np.sqrt(off / whole):.1e}")


if __name__ == "__main__":
    main()
