"""`videomar build`: an artifact directory of ONNX graphs -> engines for this machine. Torch-free.

One worker process a graph does the building (`build_worker`); here is decided what is built, with which shapes, and
what the directory says of itself. The parent never loads TensorRT.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from videomar.artifacts import Manifest, read_manifest, up_to_date, verify, write_directory, write_manifest
from videomar.capabilities import capabilities, check_graphs
from videomar.errors import ArtifactError, BuildError, InputError
from videomar.export.profiles import ENGINES
from videomar.export.sources import BuildOptions, Source, jobs, open_source, rebuild_command, weights_bytes
from videomar.export.workers import MIB, OnProgress, failure, free_memory, run_job
from videomar.fingerprint import Machine, as_data
from videomar.unfinished import scratch

Progress = Callable[[str, float, float], None]  # stage, done, of


def build_engines(
    directory: Path,
    out: Path,
    options: BuildOptions,
    force: bool = False,
    progress: Progress = lambda stage, done, total: None,
    note: Callable[[str], None] = lambda text: None,
    machine: Machine | None = None,
) -> Manifest | None:
    """Build every engine of `directory` into `out`, read back and verify it; None if `out` is up to date.

    machine: what the engines are for; asked of TensorRT when None. Raises ArtifactError for bad artifacts or target,
    InputError for options that do not fit, BuildError when TensorRT fails; then `out` is left as it was.
    """
    source = open_source(directory, options)
    with scratch("build") as folder:
        here, rtx = probe(options.builder, folder)
        here = machine or here
        capability = capabilities(here.tensorrt, rtx)
        check_graphs(capability, source.manifest.emitter, source.manifest.opset)
        check_lint(source, capability.max_opset, note)
        if not here.has_gpu and not rtx:
            raise InputError("no GPU was found, and TensorRT builds on the one that runs the engines; check nvidia-smi")
        if odd := [sm for sm in options.compute_capabilities if sm not in capability.gpus]:
            known = ", ".join(map(str, sorted(capability.gpus))) or "none: it builds for the GPU it runs on"
            raise InputError(f"compute capability is {odd[0]}, {capability.name} takes {known}")
        inputs = _inputs(source, options, here)
        if not force and up_to_date(out, inputs):
            return None
        with write_directory(out, force=force) as target:
            shutil.copy(directory / "tokenizer.json", target / "tokenizer.json")
            built = _build_all(source, target, out, options, here, folder, progress)
            manifest = write_manifest(target, _manifest(source, out, options, here, inputs, built))
            for name, result in built.items():  # read from the disk, against what the worker had in memory
                if manifest.files[f"{name}.engine"].sha256 != result["sha256"]:
                    raise BuildError(f"{name}.engine on disk is not what was built; give another disk with -o")
    progress("verifying", 1.0, 1.0)
    manifest = read_manifest(out)  # only what lies under its final name counts as built
    verify(out, manifest)
    return manifest


def probe(builder: str, scratch: Path) -> tuple[Machine, bool]:
    """What machine TensorRT sees, asked in a worker; and whether it is TensorRT-RTX."""
    outcome = run_job({"probe": True, "builder": builder}, scratch)
    if "error" in outcome:
        raise failure("anything", outcome, 0, 0, free_memory(), Path("-"))
    return Machine(**outcome["machine"]), outcome["rtx"]


def check_lint(source: Source, max_opset: int, note: Callable[[str], None]) -> None:
    """Lint the graphs; without the onnx package (a board) what export recorded counts instead. Raises ArtifactError."""
    try:
        from videomar.export.linter import lint_file
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "onnx":
            raise
        if "lint" not in source.manifest.extra:
            note("the graphs were not linted: the onnx package is not here, and their export recorded nothing")
            return
        found = [text for name in ENGINES for text in source.manifest.extra["lint"].get(name, [])]
    else:
        files = [source.directory / f"{name}.onnx" for name in ENGINES]
        found = [str(f) for file in files for f in lint_file(file, max_opset=max_opset)]
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ArtifactError(f"{source.directory}: {found[0]}{more}")


def _build_all(
    source: Source, target: Path, out: Path, options: BuildOptions, here: Machine, scratch: Path, progress: Progress
) -> dict[str, dict[str, Any]]:
    """graph -> what its worker measured. Raises BuildError, and then leaves the failed graph's log beside `out`."""
    # Time goes with the weights, on top of what every graph costs.
    costs = {name: weights_bytes(source, name) / MIB + 20 for name in ENGINES}
    total, before, built = sum(costs.values()), 0.0, {}
    for name, job in jobs(source, target, options, here).items():
        free = free_memory()
        result = run_job(job, scratch, _scaled(progress, name, before, costs[name], total))
        if "error" in result:
            log = out.with_name(f"{out.name}.{name}.log")
            if result["stage"] != "user" and Path(job["log"]).is_file():  # what is not TensorRT's is not in its log
                shutil.copy(job["log"], log)
            raise failure(name, result, weights_bytes(source, name), job["workspace"], free, log)
        before += costs[name]
        built[name] = result
    return built


def _scaled(progress: Progress, name: str, before: float, cost: float, total: float) -> OnProgress:
    return lambda stage, done: progress(f"{name}: {stage}", before + cost * done, total)


def _inputs(source: Source, options: BuildOptions, here: Machine) -> dict[str, str]:
    files = {name: entry.sha256 for name, entry in source.manifest.files.items()}
    kept = dataclasses.asdict(dataclasses.replace(options, timing_cache=None, sizes={}))
    data = {"files": files, "machine": as_data(here), "sizes": dataclasses.asdict(source.sizes), "options": kept}
    return {"videomar": version("videomar"), **{k: json.dumps(v, sort_keys=True, default=str) for k, v in data.items()}}


def _manifest(
    source: Source,
    out: Path,
    options: BuildOptions,
    here: Machine,
    inputs: dict[str, str],
    built: dict[str, dict[str, Any]],
) -> Manifest:
    m = source.manifest
    onnx = {name: entry.sha256 for name, entry in m.files.items() if ".onnx" in name}
    return Manifest(
        kind="engine",
        precision=m.precision,
        emitter=m.emitter,
        opset=m.opset,
        config=m.config,
        inputs=inputs,
        made_by={
            "videomar": version("videomar"),
            here.flavour: here.tensorrt,
            "host": platform.platform(terse=True),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        },
        checks={n: {k: r[k] for k in ("bytes", "seconds", "peak_bytes")} for n, r in built.items()},
        extra={
            "cache_tokens": m.cache_tokens,
            "activations": m.activations,
            "sizes": dataclasses.asdict(source.sizes),
            "fingerprint": {
                "machine": as_data(here),
                "targets": [str(sm) for sm in options.compute_capabilities],
                "onnx": onnx,
                "profiles": source.profiles,
                "emitter": m.emitter,
                "options": {k: str(v) for k, v in dataclasses.asdict(options).items() if k != "sizes"},
                "command": rebuild_command(source, out, options),
            },
        },
    )
