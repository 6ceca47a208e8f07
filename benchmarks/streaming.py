"""Decoding frame by frame against decoding the whole clip: the same pixels? how much memory? when is a frame there?

    python benchmarks/streaming.py [--preset videomar-1.4b --size 96 160] [--turns] [--artifacts out/demo-fp32]

The preset's sizes with random weights, FP32, on ONNX Runtime's CPU provider with one thread. Every decode runs in a
process of its own, of which the kernel tells the largest resident memory (VmHWM); the table shows what lies above the
loaded graph. The whole-clip graph is diffusers' decoder traced as it is; the runtime has none. --turns times both in
one process; --artifacts shows when a stream's first generated frame is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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
    for p in tokenizer.vae.decoder.conv_out.conv_t.parameters():
        p.mul_(0.2)  # or most pixels are cut at -1 and 1

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
        save(builder.build(TOKENIZER_DECODER), folder / f"{TOKENIZER_DECODER}.onnx")
        spec, axes = GraphSpec("whole", (latents,), (pixels,)), [{2: AUTO, 3: AUTO, 4: AUTO}]
        save(to_onnx(Whole(), [torch.zeros(1, channels, 3, 4, 5)], axes, spec, 18), folder / "whole.onnx")
    np.savez(folder / "truth.npz", latents=sample.numpy(), pixels=truth.numpy())
    return {"standard deviation": float(truth.std()), "at the clip": float((truth.abs() == 1).float().mean())}


def run(preset: str, kind: str, frames: int, h: int, w: int, folder: Path) -> dict[str, Any]:
    """Decode once: memory above the loaded graph and, for the clip that PyTorch decoded, the largest difference.

    kind: "whole", "stream", or "turns": both, one after the other, nine times: median seconds of each.
    """
    from videomar.artifacts import Manifest
    from videomar.config import PRESETS
    from videomar.graphs import TOKENIZER_DECODER
    from videomar.runtime.backends.ort import OrtBackend
    from videomar.runtime.backends.ort_session import open_session

    manifest = Manifest("onnx", "fp32", "portable", 18, PRESETS[preset])
    backend = OrtBackend(folder, manifest, THREADS, lean=True)  # loads no graph yet
    if kind != "whole":
        backend.session(TOKENIZER_DECODER)
    if kind != "stream":
        session = open_session(folder / "whole.onnx", THREADS, enable_mem_pattern=False)
    Path("/proc/self/clear_refs").write_text("5")  # from now on the kernel looks for a new largest
    loaded = resident("VmRSS")
    truth = np.load(folder / "truth.npz")
    known = truth["latents"].shape[2]
    latents = truth["latents"][:, :, np.arange(frames) % known]

    def whole() -> list[np.ndarray]:
        return [session.run(None, {"latents": latents})[0]]

    def stream() -> list[np.ndarray]:
        decoder, pixels = backend.decoder(frames, h, w), []
        for i in range(frames):
            made = decoder.next(latents[0, :, i])
            pixels.append(made.copy() if frames == known else made[..., :1, :1].copy())  # as a stream: shown, then gone
        decoder.close()
        return pixels

    if kind == "turns":
        return {name: statistics.median(times) for name, times in turns({"whole": whole, "stream": stream}).items()}
    pixels = whole() if kind == "whole" else stream()
    found = {"above": resident("VmHWM") - loaded}
    if frames == known:
        found["difference"] = float(np.abs(np.concatenate(pixels, axis=2) - truth["pixels"]).max())
    return found


def turns(ways: dict[str, Callable[[], object]], rounds: int = 9) -> dict[str, list[float]]:
    """Seconds of each, taken in turn; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    return {name: times[1:] for name, times in seconds.items()}


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
    parser.add_argument("--turns", action="store_true", help="time both, in turn")
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
        if args.turns:
            for frames in args.frames:
                ms = {name: 1e3 * seconds for name, seconds in worker("turns", frames).items()}
                print(f"{frames} latent frames: whole {ms['whole']:.1f} ms, frame by frame {ms['stream']:.1f} ms")
        print("| latent frames | whole, MiB | frame by frame, MiB | largest difference from PyTorch |")
        print("|---|---|---|---|")
        for frames in args.frames:
            whole, stream = worker("whole", frames), worker("stream", frames)
            difference = [f"{r['difference']:.1e}" for r in (whole, stream) if "difference" in r]
            print(f"| {frames} | {whole['above']:.0f} | {stream['above']:.0f} | {', '.join(difference)} |")
    if args.artifacts:
        first_frames(args.artifacts, args.clips)


if __name__ == "__main__":
    main()
