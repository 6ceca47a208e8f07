"""`videomar replay`: a golden pack, recorded on a CPU, against the graphs on this device."""

from __future__ import annotations

import json

from benchmarks.gpu.parts.ladder import gates
from benchmarks.gpu.parts.notes import Job, start


def main(job: Job) -> None:
    from videomar.cli import main as videomar

    file = job.scratch / "replay.json"
    words = ["replay", str(job.artifacts / "pack"), str(job.artifacts / "demo-fp32")]
    try:
        code = videomar([*words, "--backend", job.backend, "--json", str(file)])
    except SystemExit as ended:
        code = ended.code
    job.notes.value("exit code", code)
    data = json.loads(file.read_text())
    job.notes.value("passed", data["passed"])
    gates(job, data)


if __name__ == "__main__":
    start(main)
