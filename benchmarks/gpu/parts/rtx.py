"""A trial that may fail, with its words kept: the demo's engines built by TensorRT-RTX, read back here and run."""

from __future__ import annotations

import os
import sys

from benchmarks.gpu.parts.notes import Job, start
from benchmarks.gpu.parts.runtime import PROMPT, a_picture
from benchmarks.gpu.process import run


def main(job: Job) -> None:
    notes, engines = job.notes, job.scratch / "engines"
    words = [sys.executable, "-m", "videomar", "build", str(job.artifacts / "demo-fp16-portable"), "-o", str(engines)]
    done = run([*words, "--builder", "tensorrt-rtx"], job.inner(), job.scratch / "build", dict(os.environ))
    notes.row("trial", step="build", status=done.status, seconds=done.seconds, said=(done.stderr or done.stdout)[-600:])
    if done.status != "ok":
        raise SystemExit(f"the build {done.status}: {done.stderr[-2000:]}")
    if not job.cuda:
        notes.row("trial", step="run", status="left out", said="engines need a GPU")
        return
    from videomar.runtime.pipeline import Pipeline

    with Pipeline.open(engines, backend="trt-rtx", memory_check=False) as pipe:
        notes.row("trial", step="read back", status="ok", said=pipe.why)
        for clip in range(3):
            video = pipe(a_picture(pipe.config), PROMPT, seed=clip)
        execution = getattr(pipe.backend, "execution", "")
        notes.row("trial", step="run", status="ok", seconds=video.timing.total, said=execution)
        for stage, seconds in video.timing.seconds.items():
            notes.row("stages of a clip", stage=stage, seconds=seconds)


if __name__ == "__main__":
    start(main)
