"""Whole clips of the runtime on ONNX Runtime, everything bound on the device: by stage, by step, and the memory.

The text comes as an embedding at full size, so that no language model is loaded.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks.gpu.parts.notes import Job, start
from benchmarks.gpu.parts.sizes import latent, own_clip
from benchmarks.gpu.parts.watch import Call, Watched
from videomar.config import ModelConfig
from videomar.plan.memory import plan_memory
from videomar.plan.request import Request
from videomar.plan.roofline import pass_flops
from videomar.runtime.embedding import PromptEmbedding
from videomar.runtime.pipeline import Pipeline
from videomar.runtime.probes import resident
from videomar.runtime.system import System

PROMPT = "a red circle bounces"
EVERY = 0.02  # seconds between two looks at the memory


def main(job: Job) -> None:
    (which,) = job.words
    notes, directory = job.notes, job.artifacts / f"{which}-fp16"
    used = used_memory(job)
    before = used()
    with watching(used) as most, Pipeline.open(
        directory, backend=job.backend, check_hashes=False, lean=True, memory_check=False
    ) as pipe:  # fmt: skip
        config = own_clip(pipe.config, job.device)
        calls: list[Call] = []
        pipe.backend = Watched(pipe.backend, calls.append)
        notes.value("backend", pipe.why)
        prompt, picture = embedding(config) if which == "full" else PROMPT, a_picture(config)
        began = time.perf_counter()
        short = config.sampling.but(frames=1 + config.tokenizer.temporal_stride, mask_steps=2)
        pipe(picture, prompt, sampling=short)
        notes.value("seconds of the first, short clip", time.perf_counter() - began)
        clips = 1 if which == "full" else 3
        totals, stages = list[float](), list[dict[str, float]]()
        for clip in range(clips):
            calls.clear()
            began = time.perf_counter()
            with reporting(job, calls, config, began):
                video = pipe(picture, prompt, seed=clip, sampling=config.sampling)
            totals.append(time.perf_counter() - began)
            stages.append(dict(video.timing.seconds))
        spent = notes.value("clip seconds", statistics.median(totals))
        middle = stages[totals.index(sorted(totals)[len(totals) // 2])]
        for stage, seconds in middle.items():
            notes.row("stages of a clip", stage=stage, seconds=seconds, share=seconds / spent)
        rest = spent - sum(middle.values())
        notes.row("stages of a clip", stage="the loop's own Python", seconds=rest, share=rest / spent)
        notes.value("finite", bool(np.isfinite(video.latents).all()))
    steps(job, calls, config)
    _memory(job, config, most(), before)


def embedding(config: ModelConfig) -> PromptEmbedding:
    """Random text states of the longest prompt."""
    shape = (1, config.text.max_tokens, config.text.width)
    return PromptEmbedding(PROMPT, np.random.default_rng(0).standard_normal(shape).astype(np.float32), config.text)


def a_picture(config: ModelConfig) -> np.ndarray:
    """[height, width, 3] uint8."""
    s = config.sampling
    ramp = np.linspace(0, 255, s.height * s.width * 3).reshape(s.height, s.width, 3)
    return ramp.astype(np.uint8)


@contextmanager
def reporting(job: Job, calls: list[Call], config: ModelConfig, began: float) -> Iterator[None]:
    """Say every few seconds how far a clip is, so that one that is cut short says it too."""
    over = threading.Event()
    last = latent(config)[0]

    def tell() -> None:
        while not over.wait(3.0):
            done = [c for c in calls if c.kind == "sample"]
            if done:
                job.notes.value("so far", f"{len(done)} mask steps (of {(last - 1) * config.sampling.mask_steps}) in "
                                f"{time.perf_counter() - began:.1f} s")  # fmt: skip
                steps(job, list(calls), config)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def steps(job: Job, calls: list[Call], config: ModelConfig) -> None:
    """Medians by the number of finished frames; the transformer's rate by the plan's count of its operations."""
    request = Request(config, config.sampling)
    job.notes.tables.pop("a mask step", None)
    for finished in sorted({c.finished for c in calls if c.kind == "sample"}):
        step, head, store = (
            [c.seconds for c in calls if c.kind == kind and c.finished == finished]
            for kind in ("step", "sample", "store")
        )
        rate = pass_flops(request, finished) / statistics.median(step) / 1e12
        job.notes.row("a mask step", finished_frames=finished, transformer_ms=1e3 * statistics.median(step),
                      slowest_ms=1e3 * max(step), TFLOP_per_s=rate,
                      head_ms=1e3 * statistics.median(head),
                      head_us_a_diffusion_step=1e6 * statistics.median(head) / config.sampling.head_steps,
                      storing_ms=1e3 * statistics.median(store) if store else None)  # fmt: skip
        job.notes.values["transformer TFLOP/s"] = rate
        job.notes.values["head us a diffusion step"] = 1e6 * statistics.median(head) / config.sampling.head_steps
    keeps = [c.seconds for c in calls if c.kind == "keep"]
    if keeps:
        job.notes.value("ms to keep a frame's K/V", 1e3 * statistics.median(keeps))


def used_memory(job: Job) -> Callable[[], int]:
    """Bytes in use now: of the whole card, or resident in this process."""
    if not job.cuda:
        return lambda: resident(System())
    from videomar.runtime.backends.cuda import Cuda

    cuda = Cuda()
    start = cuda.free_memory()  # makes the context, which is not counted as ours: the plan's base has one
    return lambda: start - cuda.free_memory()


@contextmanager
def watching(used: Callable[[], int]) -> Iterator[Callable[[], int]]:
    """The most that was in use between entering and leaving."""
    over, found = threading.Event(), [used()]

    def look() -> None:
        while not over.wait(EVERY):
            found[0] = max(found[0], used())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield lambda: found[0]
    finally:
        over.set()
        thread.join()


def _memory(job: Job, config: ModelConfig, most: int, before: int) -> None:
    """Against the plan's count for engines, the nearest that it has to ONNX Runtime on a GPU."""
    backend = "trt" if job.cuda else "ort-cpu"
    embedded = job.words[0] == "full"
    request = Request(config, config.sampling, "fp16", "native", text_embeddings=embedded)
    planned = plan_memory(request, backend)
    for part, size in planned.largest.parts.items():
        job.notes.row("memory by the plan", part=part, MiB=size / 2**20)
    base = planned.baseline
    job.notes.value("memory planned without the base, bytes", planned.peak - base)
    job.notes.value("memory measured, bytes", most - before if job.cuda else most - base)
    job.notes.row("memory", what="planned (without the process's base)", MiB=(planned.peak - base) / 2**20)
    job.notes.row("memory", what="measured, most", MiB=job.notes.values["memory measured, bytes"] / 2**20)
    job.notes.row("memory", what="in use before", MiB=before / 2**20)


if __name__ == "__main__":
    start(main)
