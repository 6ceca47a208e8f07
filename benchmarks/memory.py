"""Peak memory of generating on ONNX Runtime's CPU, predicted by `videomar plan` and measured.

    python benchmarks/memory.py out/demo-fp32 out/demo-fp32-portable --clips 9x64 17x128 65x192
    python benchmarks/memory.py --make 512 8 fp16 portable -o out/wide-512-fp16   # random weights, demo's tokenizer

Every measurement is a process of its own: peak RSS of one clip, as `videomar generate` makes it, without writing a
video. `above` is what comes on top of a process that has loaded everything and run the smallest graph once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

MIB = 1 << 20
PROMPT = "a red circle bounces"
STEPS = {"mask_steps": 4, "head_steps": 4}  # more of them take longer and no more memory


def resident(key: str = "VmRSS") -> int:
    """Bytes of this process in memory (Linux); VmHWM: at most so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) << 10
    raise SystemExit("memory is read from /proc/self/status, which this system lacks")


def measure(directory: Path, frames: int, size: int, knobs: dict[str, int]) -> dict[str, int]:
    """One clip in this process: peak bytes, and bytes before the model was there."""
    from videomar.artifacts import read_manifest
    from videomar.graphs import HEAD_CONDITION, contract
    from videomar.runtime.backends.ort_session import open_session
    from videomar.runtime.pipeline import Pipeline

    manifest = read_manifest(directory)
    session = open_session(directory / f"{HEAD_CONDITION}.onnx")
    spec = contract(manifest.config, manifest.precision, manifest.emitter == "native")[HEAD_CONDITION]
    feeds = {t.name: np.zeros([a if isinstance(a, int) else 1 for a in t.axes], t.dtype) for t in spec.inputs}
    session.run(None, feeds)
    del session
    base = resident()
    with Pipeline.open(directory, threads=1, backend="ort-cpu", check_hashes=False, lean=True) as pipe:
        picture = np.zeros((size, size, 3), np.uint8)
        for _ in pipe.stream(picture, PROMPT, frames=frames, height=size, width=size, **STEPS, **knobs):
            pass
    return {"peak": resident("VmHWM"), "base": base}


def predict(directory: Path, frames: int, size: int, knobs: dict[str, int]) -> tuple[int, int]:
    """(peak bytes, of them before the model is there) by the plan."""
    from videomar.artifacts import read_manifest
    from videomar.plan.memory import plan_memory
    from videomar.plan.request import Request

    m = read_manifest(directory)
    sampling = m.config.sampling.but(frames=frames, height=size, width=size, **STEPS, **knobs)
    fields = {"precision": m.precision, "emitter": m.emitter, "cache_tokens": m.cache_tokens}
    memory = plan_memory(Request(m.config, sampling, text=len(PROMPT.split()), **fields), "ort-cpu")
    return memory.peak, memory.baseline


def make(width: int, depth: int, precision: str, emitter: str, out: Path) -> None:
    """Artifacts of a wider transformer and head around the demo's tokenizer and text encoder, random weights."""
    from videomar.config import DEMO, PRESETS, HeadConfig, TransformerConfig
    from videomar.export.export import export_random

    name = f"wide-{width}"
    transformer = TransformerConfig(width=width, depth=depth, heads=width // 64, head_dim=64)
    PRESETS[name] = dataclasses.replace(DEMO, name=name, transformer=transformer, head=HeadConfig(width=512))
    export_random(name, 0, out, precision, emitter)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", type=Path, nargs="*")
    parser.add_argument("--clips", nargs="+", default=["9x64", "17x128", "33x192", "65x192"], metavar="FRAMESxPIXELS")
    parser.add_argument("--make", nargs=4, metavar=("WIDTH", "DEPTH", "PRECISION", "EMITTER"))
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--kv-window", type=int)
    parser.add_argument("--guidance-passes", type=int)
    parser.add_argument("--one", action="store_true", help="measure here and print JSON")
    args = parser.parse_args()
    knobs = {k: v for k in ("kv_window", "guidance_passes") if (v := getattr(args, k)) is not None}
    clips = [tuple(map(int, clip.split("x"))) for clip in args.clips]
    if args.make:
        make(int(args.make[0]), int(args.make[1]), args.make[2], args.make[3], args.output)
    elif args.one:
        print(json.dumps(measure(args.directories[0], *clips[0], knobs)))
    else:
        table(args.directories, clips, knobs)


def table(directories: list[Path], clips: list[tuple[int, ...]], knobs: dict[str, int]) -> None:
    print(
        "| artifacts | frames, pixels | predicted, MiB | measured | error | predicted above | measured above | error |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for directory in directories:
        for frames, size in clips:
            words = [sys.executable, __file__, str(directory), "--one", "--clips", f"{frames}x{size}"]
            words += [word for name, value in knobs.items() for word in (f"--{name.replace('_', '-')}", str(value))]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr}")
            real = json.loads(done.stdout.splitlines()[-1])
            peak, base = predict(directory, frames, size, knobs)
            above, really = peak - base, real["peak"] - real["base"]
            cells = [directory.name, f"{frames}, {size}x{size}"]
            for ours, theirs in ((peak, real["peak"]), (above, really)):
                cells += [f"{ours / MIB:.0f}", f"{theirs / MIB:.0f}", f"{ours / theirs - 1:+.1%}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
