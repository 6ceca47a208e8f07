"""Two clips in flight: each in a thread of its own with buffers of its own, the sessions shared; against one by one."""

from __future__ import annotations

import threading
import time

from benchmarks.gpu.parts.notes import Job, start
from benchmarks.gpu.parts.runtime import PROMPT, a_picture, embedding
from benchmarks.gpu.parts.sizes import own_clip
from videomar.runtime.pipeline import Pipeline


def main(job: Job) -> None:
    (which,) = job.words
    directory, notes = job.artifacts / f"{which}-fp16", job.notes
    with Pipeline.open(
        directory, backend=job.backend, check_hashes=False, lean=which == "full", memory_check=False
    ) as pipe:  # fmt: skip
        config = own_clip(pipe.config, job.device)
        picture, prompt = a_picture(config), embedding(config) if which == "full" else PROMPT
        failures: list[str] = []

        def clips(count: int, seed: int) -> None:
            try:
                for clip in range(count):
                    pipe(picture, prompt, seed=seed + clip, sampling=config.sampling)
            except Exception as error:
                failures.append(f"{type(error).__name__}: {error}")

        each = 2 if job.cuda else 1
        clips(1, 0)
        began = time.perf_counter()
        clips(each, 1)
        alone = (time.perf_counter() - began) / each
        for count in (2, 3) if job.cuda else (2,):
            threads = [threading.Thread(target=clips, args=(each, 10 * i)) for i in range(count)]
            began = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            spent = (time.perf_counter() - began) / (each * count)
            notes.row("clips in flight", clips=count, seconds_a_clip=spent, one_by_one=alone, gained=alone / spent)
            if failures:
                raise RuntimeError("; ".join(failures))
            notes.value(f"throughput gained by {count} clips in flight", alone / spent)


if __name__ == "__main__":
    start(main)
