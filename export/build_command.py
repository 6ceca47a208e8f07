"""`videomar build` as the command line has it: options in, progress and tables out. Decides nothing."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from videomar.console import log
from videomar.errors import InputError
from videomar.export.engine import build_engines
from videomar.export.sources import BuildOptions, open_source, trtexec_commands
from videomar.progress import Progress


def run(args: argparse.Namespace) -> int:
    """Build, verify and describe engines; print trtexec's commands; or try whether graphs build. The exit code."""
    names = ("frames", "height", "width", "mask_steps", "branches", "max_text", "static")
    sizes = {name: getattr(args, name) for name in names}
    options = BuildOptions(
        sizes=sizes | {"passes": args.guidance_passes, "window": args.kv_window},
        builder=args.builder,
        workspace=args.workspace,
        tactic_memory=args.tactic_memory,
        timing_cache=args.timing_cache,
        compute_capabilities=tuple(args.compute_capability),
        optimization_level=args.optimization_level,
    )
    if args.gate:
        return _gate(args.directories, args.preset, options)
    if len(args.directories) != 1 or (args.output is None and not args.print_trtexec):
        raise InputError("give one artifact directory and -o ENGINES (several, and no -o, only with --gate)")
    directory, output = args.directories[0], args.output or Path("ENGINES")
    if args.print_trtexec:
        print("\n".join(trtexec_commands(open_source(directory, options), output, options)))
        return 0
    with Progress() as progress:
        manifest = build_engines(directory, output, options, args.force, progress.at, note=log.info)
    if manifest is None:
        print(f"{output} is up to date (the same graphs, options, TensorRT and GPU)")
        return 0
    print(f"completed: {output}, every engine read back and verified")
    for name, row in manifest.checks.items():
        size, peak = row["bytes"] / 2**20, row["peak_bytes"] / 2**30
        print(f"  {name:18} {size:9.1f} MiB  {row['seconds']:7.1f} s  peak memory {peak:.2f} GiB")
    return 0


def _gate(directories: list[Path], preset: str | None, options: BuildOptions) -> int:
    if bool(directories) == bool(preset):
        raise InputError("--gate takes either artifact directories (or checkpoints), or --preset")
    from videomar.export.gate import PROVES, gate, gate_preset  # needs the onnx package, which a board may lack

    if options.builder == "auto":  # the one that needs no GPU
        options = dataclasses.replace(options, builder="tensorrt-rtx")
    print(f"{'graph':18} {'emitter':8} {'type':4} {'engine MiB':>10} {'seconds':>8} {'peak GiB':>8}")
    failed = tried = 0
    with Progress() as progress:
        say = progress.step
        rows = gate_preset(preset, options, progress=say) if preset else gate(directories, options, progress=say)
        for row in rows:
            line = f"{row.graph:18} {row.emitter:8} {row.precision:4} "
            if row.error:
                line += f"FAILED: {row.error}"
            elif row.note:
                line += row.note
            else:
                size, peak = row.engine_bytes / 2**20, row.peak_bytes / 2**30
                line += f"{size:10.1f} {row.seconds:8.1f} {peak:8.2f}"
            failed, tried = failed + bool(row.error), tried + (not row.note)
            progress.write(line)
    print(f"{tried - failed} of {tried} graphs built.", PROVES.format(builder=options.builder))
    return 1 if failed else 0
