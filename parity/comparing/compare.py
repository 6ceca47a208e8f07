"""`videomar compare`: open every side, climb the ladder, judge, write what was asked for.

Knows the order of things. Knows nothing of how anything is measured or drawn.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from videomar.artifacts import atomic_write
from videomar.config import SamplingConfig
from videomar.console import log
from videomar.errors import InputError
from videomar.options import sampling_of
from videomar.parity.cases import Case, make_cases
from videomar.parity.comparing.ladder import Ladder, Shown, climb
from videomar.parity.comparing.results import Data, as_data
from videomar.parity.comparing.table import as_text
from videomar.parity.comparing.verdict import judge
from videomar.parity.environment import environment
from videomar.parity.reporting.extras import read_extra
from videomar.parity.subject import Subject, open_subject, require_comparable
from videomar.progress import Progress


def run(args: argparse.Namespace) -> int:
    """Compare directories; 0 when every gate passed, 1 when one was missed."""
    check_outputs([args.json, args.html, args.png])
    extras = {name: read_extra(getattr(args, name), name) for name in ("layers", "ranges", "sensitivity")}
    with ExitStack() as stack:
        sides = [
            stack.enter_context(open_subject(directory, args.threads, args.backend))
            for directory in (args.reference, *args.candidates)
        ]
        require_comparable(sides)
        reference, others = sides[0], labelled(sides[1:])
        for side in sides:
            log.info(f"{side.directory}: {side.why}")
        sampling = sampling_of(reference.config.sampling, args)
        cases = make_cases(
            reference.config,
            args.image,
            args.prompt,
            args.cases,
            args.seed,
            sampling.frames,
            sampling.height,
            sampling.width,
            args.from_text,
        )
        ladder = climb_all(reference, others, cases, sampling)
    data = conclude(reference, others, cases, sampling, ladder)
    return write(data, ladder, args, extras)


def climb_all(
    reference: Subject, others: Mapping[str, Subject], cases: Sequence[Case], sampling: SamplingConfig
) -> Ladder:
    """`ladder.climb` under a progress bar; what does not fit is refused before anything runs."""
    steps = 0
    for case in cases:
        with reference.pipeline().start(case.given, case.prompt, sampling=sampling) as run:
            steps += len(run.steps) * (1 + len(others))
    with Progress(steps) as progress:
        return climb(reference, others, cases, sampling, progress.step)


def conclude(
    reference: Subject,
    others: Mapping[str, Subject],
    cases: Sequence[Case],
    sampling: SamplingConfig,
    ladder: Ladder,
) -> Data:
    """Verdicts and everything beneath them."""
    verdicts = [judge(ladder, label, (reference.precision, other.precision)) for label, other in others.items()]
    return as_data(reference, others, cases, sampling, ladder, verdicts, environment())


def write(data: Data, ladder: Ladder, args: argparse.Namespace, extras: Mapping[str, Any]) -> int:
    """Write JSON, page and picture, print the table; 0 or 1."""
    try:
        _write_files(data, ladder, args, extras)
    finally:  # a disk that refuses does not take the figures with it, nor a closed pipe the files
        print(as_text(data))
    return 0 if data["passed"] else 1


def _write_files(data: Data, ladder: Ladder, args: argparse.Namespace, extras: Mapping[str, Any]) -> None:
    shown: dict[str, Shown] = {label: c.shown for label, c in ladder.climbs.items() if c.shown is not None}
    if args.json:
        atomic_write(args.json, json.dumps(data, indent=2, allow_nan=False) + "\n")
    if args.html:
        from videomar.parity.reporting.report import page

        atomic_write(args.html, page(data, shown, extras))
    if args.png:
        from videomar.parity.reporting.drawing import png
        from videomar.parity.reporting.picture import card

        atomic_write(args.png, png(card(data, shown)))


def labelled(sides: Sequence[Subject]) -> dict[str, Subject]:
    """Candidates by what tables call them: the directory's name, or its path where names are alike."""
    names = [side.label for side in sides]
    found: dict[str, Subject] = {}
    for side, name in zip(sides, names, strict=True):
        label = name if names.count(name) == 1 else str(side.directory)
        if label in found:
            raise InputError(f"{side.directory} is given twice, expected different directories to compare")
        found[label] = side
    return found


def check_outputs(paths: Sequence[Path | None]) -> None:
    """Raise InputError now for a file that could not be written after the work."""
    given = [path for path in paths if path is not None]
    for path in given:
        if path.is_dir():
            raise InputError(f"{path} is a directory, expected a file to write; name a file in it")
        if given.count(path) > 1:
            raise InputError(f"{path} is asked for twice, expected a file for each output; name another")
        try:
            with tempfile.TemporaryFile(dir=path.resolve().parent):
                pass
        except OSError as error:
            raise InputError(
                f"{path} cannot be written ({error.strerror}), expected a place that can; name another file"
            ) from None
