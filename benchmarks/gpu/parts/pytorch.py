"""The authors' loop in PyTorch, FP16: as they write it (eager), or under torch.compile(mode="reduce-overhead").

Frame by frame, so that a run that is cut short has measured whole frames. Compiled, only the middle frame is: every
length of K/V is another compilation, and a clip is as many frames as it long.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.gpu.parts.authors import Loop
from benchmarks.gpu.parts.notes import Job, Notes, start
from benchmarks.gpu.parts.sizes import latent, model, own_clip


@torch.no_grad()
def main(job: Job) -> None:
    which, way = job.words
    compiled, notes, config = way == "compiled", job.notes, own_clip(model(which, job.device), job.device)
    frames, h, w = latent(config)
    dtype = torch.float16 if job.cuda else torch.float32
    wait: Callable[[], object] = torch.cuda.synchronize if job.cuda else lambda: None
    loop = Loop(config, job.device, dtype, (h, w), lean=compiled)
    wait()
    new = list(range(1, frames))  # finished frames before each generated one
    notes.value("mask steps a clip", len(new) * config.sampling.mask_steps)
    if compiled:
        _compile(job, loop, new[len(new) // 2], wait)
        spent = one_frame(notes, loop, new[len(new) // 2], wait, which)
        notes.value("clip seconds", spent * len(new))
        notes.value("clip seconds are", f"those of the frame with {new[len(new) // 2]} finished times {len(new)}")
    else:
        _warm(loop, wait)
        whole = 0.0
        for at, finished in enumerate(new):
            whole += one_frame(notes, loop, finished, wait, which)
            notes.value("clip seconds", whole * len(new) / (at + 1))
            notes.value("clip seconds are", f"measured, {at + 1} of {len(new)} frames")
    _decoder(job, config, dtype, wait, (frames, h, w))


def one_frame(notes: Notes, loop: Loop, finished: int, wait: Callable[[], object], which: str) -> float:
    """Seconds of one frame's mask steps without a wait between them, and the shares of the stages with waits."""
    wait()
    began = time.perf_counter()
    made = loop.frame(finished)
    wait()
    spent = time.perf_counter() - began
    notes.value("finite", bool(torch.isfinite(made).all()))
    parts, last = {"transformer": 0.0, "head": 0.0}, [0.0]
    steps, sampling = loop.config.sampling.mask_steps, loop.config.sampling

    def after(stage: str) -> None:
        wait()
        now = time.perf_counter()
        parts[stage] += now - last[0]
        last[0] = now
        if stage == "head" and parts["head"] + parts["transformer"] > 4.0:
            raise StopIteration

    counted = 0
    last[0] = time.perf_counter()

    def count(stage: str) -> None:
        nonlocal counted
        counted += stage == "head"
        after(stage)

    try:
        loop.frame(finished, count)
    except StopIteration:
        pass
    notes.row(f"a mask step, {which}", finished_frames=finished, ms=1e3 * spent / steps,
              transformer_ms=1e3 * parts["transformer"] / counted, head_ms=1e3 * parts["head"] / counted,
              head_us_a_diffusion_step=1e6 * parts["head"] / counted / sampling.head_steps)  # fmt: skip
    return spent


def _warm(loop: Loop, wait: Callable[[], object]) -> None:
    """One mask step: libraries are loaded and their choices made."""
    x = torch.zeros(loop.tokens, loop.config.transformer.token_channels, device=loop.device)
    masked = torch.ones(loop.tokens, dtype=torch.bool, device=loop.device)
    for _ in range(2):
        z = loop.one_pass(x, masked, *loop.rope(1), loop.past(1))
        loop.sample(z[:, : loop.most], 2.0)
    wait()


def _compile(job: Job, loop: Loop, finished: int, wait: Callable[[], object]) -> None:
    """Transformer and head, each one compiled graph; three calls of each: compiled, warmed up, recorded."""
    # On a CPU traced and not compiled: a compiler of C++ is not what is tried here.
    how = {"mode": "reduce-overhead"} if job.cuda else {"backend": "eager"}
    began = time.perf_counter()
    torch._dynamo.config.cache_size_limit = 64
    head, transformer = loop.head, loop.transformer
    loop.run_head = torch.compile(head, dynamic=False, **how)
    past, tables = loop.past(finished), loop.rope(finished)
    x = torch.zeros(loop.tokens, loop.config.transformer.token_channels, device=loop.device)
    masked = torch.ones(loop.tokens, dtype=torch.bool, device=loop.device)
    z = loop.one_pass(x, masked, *tables, past)
    for _ in range(2):
        loop.sample(z[:, : loop.most - 1], 2.0)
    wait()
    job.notes.value("seconds to compile the head", time.perf_counter() - began)
    began = time.perf_counter()
    loop.run_transformer = torch.compile(transformer, dynamic=False, **how)
    for _ in range(3):
        loop.one_pass(x, masked, *tables, past)
    wait()
    job.notes.value("seconds to compile the transformer", time.perf_counter() - began)


def _decoder(job: Job, config: object, dtype: torch.dtype, wait: Callable[[], object], grid: tuple[int, ...]) -> None:
    """What a clip needs besides: one decoding of all its frames, as the authors do at the end."""
    with job.notes.trying("the video tokenizer"):
        from videomar.model.tokenizer import VideoTokenizer

        with torch.device(job.device):
            tokenizer = VideoTokenizer(config.tokenizer).to(dtype).eval()  # type: ignore[attr-defined]
        latents = torch.randn(1, 16, *grid, device=job.device, dtype=dtype)
        spent = []
        for _ in range(2):
            wait()
            began = time.perf_counter()
            tokenizer.decode(latents)
            wait()
            spent.append(time.perf_counter() - began)
        job.notes.value("decoder seconds", spent[-1])


if __name__ == "__main__":
    start(main)
