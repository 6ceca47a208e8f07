"""What `videomar build` is told and what it reads: options, a checked ONNX directory, and the workers' jobs.

Knows nothing of TensorRT and builds nothing.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videomar.artifacts import Manifest, read_manifest
from videomar.errors import ArtifactError
from videomar.export.profiles import ENGINES, Profile, Sizes, axis_ranges, profiles
from videomar.export.workers import MIB, free_memory
from videomar.fingerprint import Machine
from videomar.graphs import GraphSpec, contract
from videomar.onnx_interface import verify_graphs
from videomar.runtime.prompt import PromptTokenizer


@dataclass(frozen=True)
class BuildOptions:
    """Everything a build is told; sizes as options of `Sizes.of`."""

    sizes: dict[str, Any] = field(default_factory=dict)
    builder: str = "auto"
    workspace: int = 2048  # MiB of scratch memory a kernel may ask for
    tactic_memory: int = 0  # MiB to try kernels in; 0: half of what is free
    timing_cache: Path | None = None  # None: in the user's cache, one a version and device
    compute_capabilities: tuple[int, ...] = ()  # TensorRT-RTX: SM numbers to compile for; (): its default
    optimization_level: int | None = None


@dataclass(frozen=True)
class Source:
    """An artifact directory of ONNX graphs, read and checked."""

    directory: Path
    manifest: Manifest
    specs: dict[str, GraphSpec]
    profiles: dict[str, Profile]
    sizes: Sizes


def open_source(directory: Path, options: BuildOptions) -> Source:
    """Read and verify an ONNX artifact directory and work out its profiles; raises ArtifactError and InputError."""
    manifest = read_manifest(directory)
    if manifest.kind != "onnx":
        raise ArtifactError(f"{directory} holds engines, expected the ONNX graphs they are built from")
    lacking = [f"{name}.onnx" for name in ENGINES if f"{name}.onnx" not in manifest.files]
    if lacking:
        raise ArtifactError(
            f"{directory} lacks {', '.join(lacking)}, expected every graph that engines are built from; export the "
            "checkpoint again with this version"
        )
    verify_graphs(directory, manifest)
    cache = manifest.cache_tokens
    if manifest.emitter == "native" and cache is None:
        raise ArtifactError(
            f"{directory} has a K/V cache of any length, TensorRT wants a fixed one; export again with "
            "--emitter native --cache-tokens N (latent frames * h * w)"
        )
    specs = contract(manifest.config, manifest.activations, manifest.emitter == "native", cache)
    sizes = Sizes.of(manifest.config, **options.sizes)
    prefix = PromptTokenizer(directory / "tokenizer.json", manifest.config.text).prefix
    ranges = axis_ranges(manifest.config, sizes, prefix, cache)
    return Source(directory, manifest, specs, profiles(specs, ranges, sizes.passes), sizes)


def jobs(source: Source, target: Path, options: BuildOptions, here: Machine) -> dict[str, dict[str, Any]]:
    """What each worker is told, graph -> job."""
    tactic = options.tactic_memory * MIB or free_memory() // 2
    return {
        name: {
            "builder": "tensorrt-rtx" if here.flavour == "TensorRT-RTX" else "tensorrt",
            "onnx": str((source.directory / f"{name}.onnx").resolve()),
            "engine": str(target / f"{name}.engine"),
            "log": str(target / f"{name}.log"),
            "inputs": [t.name for t in source.specs[name].inputs],
            "outputs": [t.name for t in source.specs[name].outputs],
            "profile": source.profiles[name],
            "workspace": options.workspace * MIB,
            "tactic_memory": tactic,
            "timing_cache": _timing_cache(options, here),
            "compute_capabilities": list(options.compute_capabilities),
            "optimization_level": options.optimization_level,
            "load": here.has_gpu,
        }
        for name in ENGINES
    }


def weights_bytes(source: Source, name: str) -> int:
    """Size of a graph's file and of the weights beside it."""
    files = source.manifest.files
    return sum(entry.size for file, entry in files.items() if file in (f"{name}.onnx", f"{name}.onnx.data"))


def rebuild_command(source: Source, out: Path, options: BuildOptions) -> str:
    """The command that makes these engines."""
    s = source.sizes
    words = ["videomar", "build", str(source.directory), "-o", str(out)]
    words += ["--frames", str(s.frames), "--height", str(s.height), "--width", str(s.width)]
    words += ["--mask-steps", str(s.mask_steps), "--branches", str(s.branches), "--max-text", str(s.max_text)]
    words += ["--guidance-passes", str(s.passes)] if s.passes != 1 else []
    words += ["--kv-window", str(s.window)] if s.window is not None else []
    words += ["--static"] * s.static
    words += [w for sm in options.compute_capabilities for w in ("--compute-capability", str(sm))]
    return shlex.join(words)


def trtexec_commands(source: Source, out: Path, options: BuildOptions) -> list[str]:
    """One command a graph. `trtexec` has no option for tactic memory; engines made by hand carry no fingerprint."""
    rtx = options.builder == "tensorrt-rtx"
    commands = []
    for name in ENGINES:
        words = ["tensorrt_rtx" if rtx else "trtexec", f"--onnx={source.directory / f'{name}.onnx'}"]
        words += [f"--saveEngine={out / f'{name}.engine'}", "--skipInference", "--profilingVerbosity=detailed"]
        if not rtx:  # RTX is always strongly typed and keeps no timing cache
            words += ["--stronglyTyped"]
            words += [f"--timingCacheFile={options.timing_cache}"] if options.timing_cache else []
        words += [f"--memPoolSize=workspace:{options.workspace}M"]
        for which, flag in enumerate(("minShapes", "optShapes", "maxShapes")):
            shapes = [f"{n}:{'x'.join(map(str, s[which]))}" for n, s in source.profiles[name].items()]
            words += [f"--{flag}={','.join(shapes)}"] if shapes else []
        commands.append(shlex.join(words))
    return commands


def _timing_cache(options: BuildOptions, here: Machine) -> str | None:
    """A file for exactly this TensorRT and GPU: a cache of another one is worse than none."""
    if not here.has_gpu or here.flavour == "TensorRT-RTX":  # times nothing, or keeps none
        return None
    if options.timing_cache is not None:
        return str(options.timing_cache.resolve())
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = re.sub(r"[^\w.]+", "-", f"{here.flavour} {here.tensorrt} {here.gpu} sm{here.sm} {here.jetpack}").strip("-")
    return str(home / "videomar" / f"{name}.timing")
