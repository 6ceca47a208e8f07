"""`videomar record`: run one short clip and keep what a device needs to prove itself later.

Knows the order of things. Knows nothing of file formats or of how calls are chosen.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from videomar.artifacts import Manifest, up_to_date, write_directory, write_manifest
from videomar.config import SamplingConfig
from videomar.errors import InputError
from videomar.graphs import GRAPHS
from videomar.options import sampling_of
from videomar.parity.cases import Case, make_cases
from videomar.parity.environment import environment
from videomar.parity.packs.pack import VERSION
from videomar.parity.packs.pack_files import write_calls, write_clip
from videomar.parity.packs.tee import NotedNoise, Tee
from videomar.parity.subject import Subject, open_subject
from videomar.progress import Progress
from videomar.runtime.pipeline import Pipeline
from videomar.tolerances import GATES, graph_tolerances


def run(args: argparse.Namespace) -> int:
    """Write the pack; 0."""
    if args.output.resolve() == args.directory.resolve():
        raise InputError(f"{args.output} is what is recorded; give another place with -o")
    with open_subject(args.directory, args.threads, args.backend) as side:
        manifest = _recordable(side)
        stride = side.config.tokenizer.temporal_stride
        sampling = sampling_of(side.config.sampling.but(frames=1 + 2 * stride), args)
        images, prompts = ([args.image] if args.image else []), ([args.prompt] if args.prompt else [])
        (case,) = make_cases(
            side.config, images, prompts, 1, args.seed, sampling.frames, sampling.height, sampling.width, args.from_text
        )
        inputs = {name: entry.sha256 for name, entry in manifest.files.items()}
        picture = args.image.read_bytes().hex() if args.image else ""
        inputs |= {"prompt": case.prompt, "seed": str(args.seed), "picture": picture[:64], "version": str(VERSION)}
        inputs |= {"from_text": "yes"} if args.from_text else {}
        inputs |= {"sampling": json.dumps(dataclasses.asdict(sampling), sort_keys=True)}
        if not args.force and up_to_date(args.output, inputs):
            print(f"{args.output} is up to date (the same artifacts and options)")
            return 0
        with write_directory(args.output, args.force) as folder:
            graphs = _fill(folder, side, manifest, case, sampling)
            written = write_manifest(
                folder,
                Manifest(
                    kind="pack",
                    precision=manifest.precision,
                    emitter=manifest.emitter,
                    opset=manifest.opset,
                    config=manifest.config,
                    inputs=inputs,
                    made_by=environment(),
                    extra={
                        "activations": manifest.activations,
                        "pack": {
                            "version": VERSION,
                            "recorded": {name: entry.sha256 for name, entry in manifest.files.items()},
                            "recorded_on": side.backend.name,
                            "prompt": case.prompt,
                            "sampling": dataclasses.asdict(sampling),
                            "graphs": list(graphs),
                            "tolerances": {precision: graph_tolerances(precision) for precision in GATES},
                        },
                    },
                ),
            )
    size = sum(entry.size for entry in written.files.values()) / 1e6
    print(f"wrote {args.output}: {sum(graphs.values())} calls of {len(graphs)} graphs and a clip, {size:.1f} MB")
    print(f"on the device: videomar replay {args.output} ENGINES")
    return 0


def _recordable(side: Subject) -> Manifest:
    if side.manifest is None or not hasattr(side.backend, "run_graph"):
        raise InputError(
            f"{side.directory} is a checkpoint, expected artifacts, whose graphs a pack holds; run `videomar export` "
            "and record those"
        )
    return side.manifest


def _fill(folder: Path, side: Subject, manifest: Manifest, case: Case, sampling: SamplingConfig) -> dict[str, int]:
    """Run the clip and write the files; the graphs and how many calls of each there are."""
    tee = Tee(side.backend, manifest)
    pipe, noise = Pipeline(side.config, tee, side.tokenizer), NotedNoise(case.noise, tee.arrays)
    with pipe.start(case.given, case.prompt, sampling=sampling, noise=noise) as run:
        with Progress(len(run.steps)) as progress:
            while not run.finished:
                run.advance()
                progress.step("recording")
    write_clip(folder, tee.arrays | {"given": case.given, "ids": side.tokenizer(case.prompt)})
    for graph in GRAPHS:
        if graph in tee.calls:
            write_calls(folder, graph, tee.calls[graph])
    return {graph: len(tee.calls[graph]) for graph in GRAPHS if graph in tee.calls}
