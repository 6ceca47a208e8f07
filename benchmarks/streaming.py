"""Decoding frame by frame against decoding the whole clip: the same pixels? how much memory? when is a frame there?

    python benchmarks/streaming.py [--preset videomar-1.4b --size 240 384] [--artifacts out/demo-fp32] [--clips 5]

Weights are the preset's with random numbers, FP32, on ONNX Runtime's CPU provider with one thread. Every decode runs in
a process of its own, whose largest resident memory the kernel tells (VmHWM). The whole-clip graph is diffusers' decoder
traced as it is; the runtime has no such graph. With --artifacts: time to the first generated frame, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

THREADS = 1


def make(preset: str, h: int, w: int, frames: int, folder: Path) -> dict[str, Any]:
    """Both graphs, latents, and PyTorch's whole decode of them."""
    import torch
    from torch import Tensor, nn

    from videomar.config import PRESETS
    from videomar.export.build import AUTO, GraphBuilder
    from videomar.export.emitters import EMITTERS
    from videomar.export.onnx_files import save, to_onnx
    from videomar.graphs import TOKENIZER_DECODER, GraphSpec, TensorSpec, contract
    from videomar.model.tokenizer import VideoTokenizer

    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    config = PRESETS[preset]
    tokenizer = VideoTokenizer(config.tokenizer).eval().requires_grad_(False)
    for p in tokenizer.vae.decoder.parameters():
        p.add_(0.02 * torch.randn_like(p))  # no more zeros and ones in norms and biases

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokenizer = tokenizer

        def forward(self, latents: Tensor) -> Tensor:
            return self.tokenizer.decode(latents).clamp(-1, 1)

    channels = config.tokenizer.latent_channels
    latents = TensorSpec("latents", "float32", (1, channels, "t", "h", "w"))
    pixels = TensorSpec("pixels", "float32", (1, 3, "frames", "height", "width"))
    with torch.inference_mode():
        sample = torch.randn(1, channels, frames, h, w)
        truth = Whole()(sample)
        parts = SimpleNamespace(config=config, video_tokenizer=tokenizer)
        builder = GraphBuilder(parts, contract(config, "fp32", False), EMITTERS["portable"], torch.float32, 0, folder)
        save(builder.build(TOKENIZER_DECODER), folder / "stream.onnx")
        spec, axes = GraphSpec("whole", (latents,), (pixels,)), [{2: AUTO, 3: AUTO, 4: AUTO}]
        save(to_onnx(Whole(), [torch.zeros(1, channels, 3, 4, 5)], axes, spec, 18), folder / "whole.onnx")
    np.savez(folder / "truth.npz", latents=sample.numpy(), pixels=truth.numpy())
    return {"standard deviation": float(truth.std()), "at the clip": float((truth.abs() == 1).float().mean())}


def run(preset: str, kind: str, frames: int, h: int, w: int, folder: Path) -> dict[str, Any]:
    """One decode after a first one; seconds, memory and (for the clip that PyTorch decoded) the largest difference."""
    import onnxruntime as ort

    from videomar.config import PRESETS
    from videomar.graphs import contract
    from videomar.runtime.backends.ort_decoder import OrtDecoder
    from videomar.runtime.backends.ort_memory import HostMemory

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = THREADS, 3
    session = ort.InferenceSession(str(folder / f"{kind}.onnx"), options)
    loaded = resident("VmHWM")
    truth = np.load(folder / "truth.npz")
    config, known = PRESETS[preset], truth["latents"].shape[2]
    latents = truth["latents"][:, :, np.arange(frames) % known]
    backend: Any = SimpleNamespace(
        config=config, specs=contract(config, "fp32", False), memory=HostMemory(), session=lambda name: session
    )

    def decode() -> list[np.ndarray]:
        if kind == "whole":
            return [session.run(None, {"latents": latents})[0]]
        decoder, pixels = OrtDecoder(backend, frames, h, w), []
        for i in range(frames):
            made = decoder.next(latents[0, :, i])
            pixels.append(made.copy() if frames == known else made[..., :1, :1].copy())  # as a stream: shown, then gone
        decoder.close()
        return pixels

    pixels, seconds = [], []
    for _ in range(1 if latents.size > 1e5 else 5):
        began = time.perf_counter()
        pixels = decode()
        seconds.append(time.perf_counter() - began)
    found: dict[str, Any] = {"seconds": min(seconds), "loaded": loaded, "peak": resident("VmHWM")}
    if frames == known:
        found["difference"] = float(np.abs(np.concatenate(pixels, axis=2) - truth["pixels"]).max())
    return found


def resident(key: str) -> float:
    """MiB of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0]) / 1024


def first_frames(artifacts: Path, clips: int) -> None:
    """Print when the first generated frame of a stream is there, and when the whole clip is."""
    from videomar.demo.world import render, sample_scene
    from videomar.runtime.pipeline import Pipeline
    from videomar.runtime.timing import Timing

    scene = sample_scene(np.random.default_rng(10**9))
    print("\n| frames | first generated frame, ms | whole clip, ms | decoder, ms a latent frame |\n|---|---|---|---|")
    with Pipeline.open(artifacts, threads=THREADS) as pipe:
        for frames in (17, 33, 65):
            rows = []
            for seed in range(clips + 1):  # the first one warms up
                timing = Timing()
                for _ in pipe.stream(render(scene)[0], scene.prompt, frames=frames, seed=seed, timing=timing):
                    pass
                decoder = timing.seconds["decoder"] / timing.calls["decoder"]
                rows.append((timing.first_frame or 0.0, timing.total, decoder))
            first, whole, decoder = (1e3 * statistics.median(column) for column in zip(*rows[1:], strict=True))
            print(f"| {frames} | {first:.0f} | {whole:.0f} | {decoder:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--frames", type=int, nargs="+", default=(1, 2, 4, 8, 16), help="latent frames")
    parser.add_argument("--artifacts", type=Path)
    parser.add_argument("--clips", type=int, default=5)
    parser.add_argument("--worker", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        kind, preset, frames, h, w, folder = args.worker
        numbers = int(frames), int(h), int(w)
        found = (
            make(preset, numbers[1], numbers[2], numbers[0], Path(folder))
            if kind == "make"
            else run(preset, kind, *numbers, Path(folder))
        )
        print(json.dumps(found))
        return

    from videomar.config import PRESETS

    stride = PRESETS[args.preset].tokenizer.spatial_stride
    h, w = (str(side // stride) for side in args.size)
    with tempfile.TemporaryDirectory() as folder:

        def worker(kind: str, frames: int) -> dict[str, float]:
            words = [kind, args.preset, str(frames), h, w, folder]
            command = [sys.executable, __file__, "--worker", *words]
            return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

        print(f"{args.preset}, {args.size[1]}x{args.size[0]}, FP32; pixels of PyTorch: {worker('make', 4)}")
        print(
            "| latent frames | whole: s | MiB above the loaded graph | by frame: s | MiB above | largest difference |"
        )
        print("|---|---|---|---|---|---|")
        for frames in args.frames:
            whole, stream = worker("whole", frames), worker("stream", frames)
            cells = [c for r in (whole, stream) for c in (f"{r['seconds']:.3f}", f"{r['peak'] - r['loaded']:.0f}")]
            difference = [f"{r['difference']:.1e}" for r in (whole, stream) if "difference" in r]
            print(f"| {frames} | {' | '.join(cells)} | {' whole, by frame '.join(difference)} |")
    if args.artifacts:
        first_frames(args.artifacts, args.clips)


if __name__ == "__main__":
    main()
