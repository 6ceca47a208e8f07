"""`videomar bisect`: open both sides, find the place, print it and write it down.

Knows the order of things. Knows nothing of how the place is found.
"""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack

from videomar.artifacts import atomic_write
from videomar.console import log
from videomar.errors import InputError
from videomar.options import sampling_of
from videomar.parity.bisecting.bisect import bisect
from videomar.parity.bisecting.conclusion import as_data, as_text, conclude
from videomar.parity.cases import make_cases
from videomar.parity.comparing.compare import check_outputs
from videomar.parity.subject import open_subject, require_comparable
from videomar.progress import Progress


def run(args: argparse.Namespace) -> int:
    """Find where B leaves A; 0 when nothing leaves its gate, 1 when something does."""
    check_outputs([args.json])
    with ExitStack() as stack:
        a, b = (stack.enter_context(open_subject(d, args.threads, args.backend)) for d in (args.a, args.b))
        require_comparable([a, b])
        for side in (a, b):
            log.info(f"{side.directory}: {side.why}")
        sampling = sampling_of(a.config.sampling, args)
        if sampling.refresh_every > 1:
            raise InputError(
                f"refresh every is {sampling.refresh_every}, expected 1: bisect follows passes over whole frames; "
                "leave out --refresh-every and --quality"
            )
        shape = (sampling.frames, sampling.height, sampling.width)
        cases = make_cases(a.config, args.image, args.prompt, args.cases, args.seed, *shape, args.from_text)
        for case in cases:
            a.pipeline().start(case.given, case.prompt, sampling=sampling).close()  # refuses before anything runs
        with Progress() as progress:
            finding = bisect(a, b, cases, sampling, args.threads, progress.step)
        conclusion = conclude(finding, b.precision)
        print(as_text(finding, conclusion))
        if args.json:
            data = as_data(finding, conclusion, {"a": str(a.directory), "b": str(b.directory)})
            atomic_write(args.json, json.dumps(data, indent=2, allow_nan=False) + "\n")
    return 1 if finding.found else 0
