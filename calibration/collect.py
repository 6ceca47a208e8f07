"""Ranges from whole trajectories of the real loop, clip by clip, so that a killed run goes on where it was.

Each clip is one generation with all its frames, mask steps and both guidance branches. The loop, the pipeline and the
graphs are the runtime's own; what is watched is read from copies of the graphs that return more.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import onnx

from videomar.artifacts import Manifest
from videomar.calibration.clips import CalibrationClip
from videomar.calibration.linears import Linear, find_linears
from videomar.calibration.observe import Observer, watched_copy
from videomar.calibration.plain import USED, Arrays, Graphs, PlainBackend, Run
from videomar.calibration.ranges import Ranges
from videomar.config import SamplingOptions
from videomar.errors import InputError
from videomar.graphs import TRANSFORMER_STEP
from videomar.runtime.pipeline import Pipeline
from videomar.runtime.prompt import PromptTokenizer
from videomar.unfinished import scratch

MEMORY = 2 << 30  # bytes of activations that one call may hand out
Progress = Callable[[str, int, int], None]  # (what, done, of)


def model_id(manifest: Manifest) -> str:
    """A hash of the checkpoint that artifacts were made of: the same for every precision and emitter."""
    hashes = sorted(f"{k} {v}" for k, v in manifest.inputs.items() if re.fullmatch("[0-9a-f]{64}", v))
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def trajectory_key(clip: CalibrationClip, sampling: SamplingOptions) -> str:
    """A hash of what decides a clip's trajectory."""
    return hashlib.sha256(f"{clip.key} {json.dumps(sampling, sort_keys=True)}".encode()).hexdigest()[:32]


def linears_of(directory: Path) -> list[Linear]:
    """The quantizable linears of an artifact directory."""
    return find_linears(onnx.load(directory / f"{TRANSFORMER_STEP}.onnx", load_external_data=False).graph)


def pipeline(directory: Path, manifest: Manifest, run: Run) -> Pipeline:
    """The runtime's pipeline around any way to run graphs."""
    tokenizer = PromptTokenizer(directory / "tokenizer.json", manifest.config.text)
    return Pipeline(manifest.config, PlainBackend(manifest, run), tokenizer)


def generate(pipe: Pipeline, clip: CalibrationClip, sampling: SamplingOptions, tick: Callable[[], None]) -> None:
    """One whole trajectory, decoded."""
    pipe(clip.given, clip.prompt, seed=clip.seed, progress=lambda step: tick(), **sampling)


def collect(
    directory: Path,
    manifest: Manifest,
    clips: Sequence[CalibrationClip],
    sampling: SamplingOptions,
    state: Path,
    threads: int | None = None,
    memory: int = MEMORY,
    progress: Progress = lambda what, done, of: None,
) -> Ranges:
    """Run every clip and return what was seen; `state` is kept up to date after each, and read if it is there."""
    ranges = Ranges(model_id(manifest))
    if state.exists():
        found = Ranges.load(state)
        if found.model == ranges.model:
            ranges = found
    linears, keys = linears_of(directory), [trajectory_key(clip, sampling) for clip in clips]
    with scratch("ranges") as folder:
        groups = list(_groups(linears, manifest, sampling, memory))
        steps = _steps(directory, manifest, clips, sampling)
        of, done = steps * len(groups) * len(clips), 0
        for index, group in enumerate(groups):
            graphs = _watched(directory, folder, group, largest=index == 0, threads=threads)
            for clip, key in zip(clips, keys, strict=True):
                part = f"{key}/{group[0].name}"
                if part in ranges.parts or key in ranges.clips:
                    done += steps
                    continue
                seen = Ranges(ranges.model)
                watch = Observer(seen, group, clip.name)

                def run(graph: str, feeds: Arrays, graphs: Graphs = graphs, watch: Observer = watch) -> Arrays:
                    outputs = graphs(graph, feeds)
                    watch(graph, outputs)
                    return outputs

                def tick(name: str = clip.name) -> None:
                    nonlocal done
                    done += 1
                    progress(name, done, of)

                generate(pipeline(directory, manifest, run), clip, sampling, tick)
                ranges.merge(seen)
                ranges.parts.append(part)
                if index == len(groups) - 1:
                    ranges.clips[key] = clip.name
                    ranges.parts = [p for p in ranges.parts if not p.startswith(key)]
                ranges.save(state)
    return ranges


def check_ranges(ranges: Ranges, linears: Sequence[Linear]) -> None:
    """Raise InputError for a linear that was not seen, or whose input never changed."""
    for linear in linears:
        seen = ranges.inputs.get(linear.name)
        if seen is None or not seen.count:
            raise InputError(
                f"the ranges hold nothing of {linear.name}, expected every linear; collect them with this version"
            )
        if len(seen.channels) != linear.width:
            raise InputError(
                f"the ranges hold {len(seen.channels)} channels of the input of {linear.name}, expected {linear.width}"
            )
        if seen.constant:
            raise InputError(
                f"the input of {linear.name} was {seen.least:g} everywhere, expected numbers that vary; give other "
                "clips, or export the checkpoint again if its weights are broken"
            )


def _groups(
    linears: list[Linear], manifest: Manifest, sampling: SamplingOptions, memory: int
) -> Iterator[list[Linear]]:
    """Linears whose inputs fit into `memory` together."""
    wanted, stride = manifest.config.sampling.but(**sampling), manifest.config.tokenizer.spatial_stride
    tokens = 2 * (wanted.height // stride) * (wanted.width // stride)
    group: list[Linear] = []
    size = 0
    for linear in linears:
        needs = tokens * linear.width * 4
        if group and size + needs > memory:
            yield group
            group, size = [], 0
        group.append(linear)
        size += needs
    yield group


def _watched(directory: Path, folder: Path, group: list[Linear], largest: bool, threads: int | None) -> Graphs:
    """Graphs that return the inputs of `group`, and with `largest` every tensor's absmax; the rest as they are."""
    place = Path(tempfile.mkdtemp(dir=folder))
    files = {
        name: watched_copy(
            directory / f"{name}.onnx",
            place,
            [linear.source for linear in group] if name == TRANSFORMER_STEP else [],
            largest,
        )
        for name in (USED if largest else [TRANSFORMER_STEP])
    }
    return Graphs(directory, threads, files)


def _steps(directory: Path, manifest: Manifest, clips: Sequence[CalibrationClip], sampling: SamplingOptions) -> int:
    """Steps of one clip; raises InputError for a clip or option that does not fit, before anything is run."""
    pipe = pipeline(directory, manifest, Graphs(directory))
    return max(len(pipe.start(clip.given, clip.prompt, **sampling).steps) for clip in clips)
