"""Everything that is to be known of a card, in one call of nine minutes.

    python3 -m benchmarks.gpu -o RESULTS [--brought DIR] [--artifacts DIR] [--only PART ...] [--cpu]

Installs what DIR brings into a fresh place, runs each part in a process of its own with its own time limit, and writes
RESULTS/results.json and RESULTS/results.md after every part. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import environment
from benchmarks.gpu.budget import PARTS, TOTAL, Part, allowance, lacking
from benchmarks.gpu.process import run
from benchmarks.gpu.report import page
from benchmarks.gpu.results import Results, read_notes

CHECKOUT = Path(__file__).resolve().parents[2]
FILL = Part("fill", "fill", (), 60, 3, "random weights for the full-size graphs")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--brought", type=Path, help="wheels, slices of wheels, archives of artifacts")
    parser.add_argument("--artifacts", type=Path, help="a directory of artifact directories, besides what is brought")
    parser.add_argument("--work", type=Path, help="where to install and build (default: a new temporary directory)")
    parser.add_argument("--seconds", type=float, default=TOTAL, help=f"for everything (default {TOTAL:.0f})")
    parser.add_argument("--only", nargs="+", metavar="PART", help=f"some of: {', '.join(p.name for p in PARTS)}")
    parser.add_argument("--cpu", action="store_true", help="try it all with small sizes on the CPU")
    args = parser.parse_args(argv)
    if unknown := set(args.only or ()) - {p.name for p in PARTS}:
        parser.error(f"no part is called {', '.join(sorted(unknown))}")
    for given in (args.brought, args.artifacts):
        if given is not None and not given.is_dir():
            parser.error(f"{given} is not a directory")
    args.output.mkdir(parents=True, exist_ok=True)
    work = args.work or Path(tempfile.mkdtemp(prefix="videomar-gpu-"))
    return Session(args, work).run()


class Session:
    """One call: a clock, a place, and what was found so far."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.began, self.args, self.work = time.monotonic(), args, work
        self.device = "cpu" if args.cpu else "cuda"
        about = {
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "command": f"python3 -m benchmarks.gpu {shlex.join(sys.argv[1:])}",
            "device": self.device,
            "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        }
        self.results = Results(args.output / "results.json", about)

    def left(self) -> float:
        return self.args.seconds - (time.monotonic() - self.began)

    def run(self) -> int:
        """0 if every part that was started ended well; what is written does not depend on it."""
        try:
            place = environment.make(CHECKOUT, self.args.brought, self.work, max(10.0, self.left() / 3))
        except Exception as error:  # nothing can be measured then, but somebody has to read why
            self.results.add("environment", status="failed", why=repr(error))
            self.write()
            return 1
        if self.args.artifacts:
            (self.work / "artifacts").mkdir(exist_ok=True)
            for given in sorted(p for p in self.args.artifacts.iterdir() if p.is_dir()):
                link = self.work / "artifacts" / given.name
                if not link.exists():
                    link.symlink_to(given.resolve())
        self.results.data["about"]["installed"] = place.notes
        self.results.data["about"]["seconds to install"] = time.monotonic() - self.began
        variables = place.variables() | ({"OMP_NUM_THREADS": "1"} if self.args.cpu else {})
        fine = self.one(FILL, variables, {})
        environment.find_artifacts(self.work / "artifacts", place)
        for part in PARTS:
            if self.args.only is None or part.name in self.args.only:
                fine = self.one(part, variables, place.artifacts) and fine
        self.results.data["about"]["seconds in all"] = time.monotonic() - self.began
        self.write()
        print((self.args.output / "results.md").read_text())
        return 0 if fine else 1

    def one(self, part: Part, variables: dict[str, str], artifacts: dict[str, Path]) -> bool:
        """Run a part and keep what it noted, however it ended."""
        limit = allowance(part, self.left())
        if missing := lacking(part, artifacts):
            return self.skipped(part, f"{', '.join(missing)} was not brought")
        if not limit:
            return self.skipped(part, f"{max(0.0, self.left()):.0f} s are left of all, it needs {part.least:.0f}")
        name = "".join(c if c.isalnum() else "-" for c in part.name)
        notes, scratch = self.work / f"{name}.json", self.work / name
        module = part.module if "." in part.module else f"benchmarks.gpu.parts.{part.module}"
        command = [sys.executable, "-m", module, *part.words]
        command += ["--notes", str(notes), "--device", self.device, "--until", f"{time.monotonic() + limit:.2f}"]
        command += ["--artifacts", str(self.work / "artifacts"), "--scratch", str(scratch)]
        print(f"{part.name}: {part.about} ({limit:.0f} s at most)", flush=True)
        done = run(command, limit, self.work / f"{name}.log", variables, CHECKOUT)
        fields: dict[str, Any] = {"status": done.status, "seconds": done.seconds, "limit": limit, "about": part.about}
        fields |= {"code": done.code, "found": read_notes(notes)}
        if done.status != "ok":
            said = done.stderr.strip() or done.stdout.strip() or "it said nothing"
            fields["why"] = f"{said}\n(code {done.code} after {done.seconds:.0f} of {limit:.0f} s)"
        self.results.add(part.name, **fields)
        self.write()
        print(f"{part.name}: {done.status} after {done.seconds:.1f} s, {self.left():.0f} s left", flush=True)
        return done.status == "ok"

    def skipped(self, part: Part, why: str) -> bool:
        self.results.add(part.name, status="left out", about=part.about, why=why)
        print(f"{part.name}: left out, {why}", flush=True)
        self.write()
        return True

    def write(self) -> None:
        self.results.write()
        (self.args.output / "results.md").write_text(page(self.results.data))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what a part has started, too
    raise SystemExit(main())
