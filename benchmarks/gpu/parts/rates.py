"""What the card can do at most: matrix products, memory, copies over the bus, launches; beside the plan's table."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.gpu.parts.notes import Job, median_seconds, start
from benchmarks.gpu.parts.sizes import latent, model
from videomar.plan.devices import DEVICES

SUGGESTED = {"H100": "h200", "H200": "h200"}  # the table's nearest entry, by what a card's name holds


def main(job: Job) -> None:
    device, notes = torch.device(job.device), job.notes
    config = model("full", job.device)
    frames, h, w = latent(config)
    rows, width = 2 * h * w, config.transformer.width
    large = 8192 if job.cuda else 256
    wait = torch.cuda.synchronize if job.cuda else lambda: None
    torch.backends.cuda.matmul.allow_tf32 = False

    def seconds(work: Callable[[], object], inner: int = 10) -> float:
        return median_seconds(work, wait, 5, inner if job.cuda else 2)

    def product(title: str, m: int, k: int, n: int, dtype: torch.dtype) -> float:
        a, b = (torch.randn(*shape, device=device).to(dtype) for shape in ((m, k), (k, n)))
        spent = seconds(lambda: a @ b)
        rate = 2 * m * k * n / spent / 1e12
        notes.row("matrix products", what=title, m=m, k=k, n=n, ms=1e3 * spent, TFLOP_per_s=rate)
        return rate

    half = torch.float16
    best = product("large, FP16", large, large, large, half)
    notes.value("FP16 TFLOP/s", best)
    for title, k, n in (
        ("query, key, value", width, 3 * width),
        ("attention's output", width, width),
        ("MLP, in", width, 4 * width),
        ("MLP, out", 4 * width, width),
    ):
        product(f"{title}, FP16", rows, k, n, half)
    with notes.trying("BF16"):
        product("large, BF16", large, large, large, torch.bfloat16)
    with notes.trying("FP32"):
        notes.value("FP32 TFLOP/s", product("large, FP32 without TF32", large, large, large, torch.float32))
    with notes.trying("INT8"):
        a, b = (torch.randint(-127, 127, (large, large), device=device, dtype=torch.int8) for _ in range(2))
        spent = seconds(lambda: torch._int_mm(a, b.t()))
        notes.value("INT8 TOP/s", 2 * large**3 / spent / 1e12)
        notes.row("matrix products", what="large, INT8", m=large, k=large, n=large, ms=1e3 * spent,
                  TFLOP_per_s=2 * large**3 / spent / 1e12)  # fmt: skip
    _attention(job, seconds, frames)
    _memory(job, seconds)
    _launches(job, seconds)
    _compare(job)


def _attention(job: Job, seconds: Callable[..., float], frames: int) -> None:
    config = model("full", job.device)
    t, (_, h, w) = config.transformer, latent(config)
    for finished in range(frames):
        q, k, v = (
            torch.randn(2, t.heads, n * h * w, t.head_dim, device=job.device, dtype=torch.float16)
            for n in (1, finished + 1, finished + 1)
        )
        spent = seconds(lambda q=q, k=k, v=v: torch.nn.functional.scaled_dot_product_attention(q, k, v))
        flops = 4 * 2 * t.heads * t.head_dim * (h * w) ** 2 * (finished + 1)
        job.notes.row("attention, PyTorch", finished_frames=finished, ms=1e3 * spent, TFLOP_per_s=flops / spent / 1e12)


def _memory(job: Job, seconds: Callable[..., float]) -> None:
    size = 2 << 30 if job.cuda else 8 << 20
    source = torch.ones(size // 4, device=job.device)
    target = torch.empty_like(source)
    copied = 2 * size / seconds(lambda: target.copy_(source))
    read = size / seconds(lambda: source.sum())
    job.notes.value("bytes/s, copied", copied)
    job.notes.row("memory", what="copy on the device, read and written", GB_per_s=copied / 1e9)
    job.notes.row("memory", what="read and added up", GB_per_s=read / 1e9)
    if job.cuda:
        for title, pinned in (("pinned", True), ("pageable", False)):
            with job.notes.trying(f"copies over the bus, {title}"):
                host = torch.ones(64 << 20, pin_memory=pinned)
                up, down = target[: host.numel()], source[: host.numel()]
                for way, work in (
                    ("up", lambda up=up, host=host: up.copy_(host, non_blocking=True)),
                    ("down", lambda down=down, host=host: host.copy_(down, non_blocking=True)),
                ):
                    rate = host.nbytes / seconds(work, 3) / 1e9
                    job.notes.row("memory", what=f"{title} host memory, {way}", GB_per_s=rate)


def _launches(job: Job, seconds: Callable[..., float]) -> None:
    x, count = torch.ones(1024, device=job.device), 200

    def many() -> None:
        for _ in range(count):
            x.add_(1.0)

    launch = seconds(many, 3) / count
    job.notes.value("seconds a launch", launch)
    job.notes.row("launches", what="one operator of PyTorch, one by one", us=1e6 * launch)
    if job.cuda:
        graph = captured(many)
        spent = seconds(graph.replay, 3) / count
        job.notes.value("seconds a captured launch", spent)
        job.notes.row("launches", what="the same in a captured graph", us=1e6 * spent)


def captured(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """`work` as one graph; it has run before on a stream of its own, as capture asks."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def _compare(job: Job) -> None:
    """The plan's numbers for this card, or the nearest, and what was measured: shares of the peak are what it needs."""
    found, notes = job.notes.values, job.notes
    name = torch.cuda.get_device_name(0) if job.cuda else "none"
    entry = DEVICES[next((e for sign, e in SUGGESTED.items() if sign in name), "h200")]
    rows = (
        ("FP16, TFLOP/s", entry.fp16 * entry.of_peak / 1e12, found.get("FP16 TFLOP/s")),
        ("FP32, TFLOP/s", entry.fp32 * entry.of_peak / 1e12, found.get("FP32 TFLOP/s")),
        ("INT8, TOP/s", entry.int8 * entry.of_peak / 1e12, found.get("INT8 TOP/s")),
        ("memory, GB/s", entry.bandwidth * entry.of_bandwidth / 1e9, found["bytes/s, copied"] / 1e9),
        ("one launch, us", entry.launch * 1e6, found["seconds a launch"] * 1e6),
        ("a captured launch, us", entry.captured * 1e6, found.get("seconds a captured launch", float("nan")) * 1e6),
    )
    for what, planned, got in rows:
        ratio = got / planned if got and got == got else None
        notes.row(f"the plan's {entry.name} (peak times its share) and here", what=what, plan=planned, here=got,
                  ratio=ratio)  # fmt: skip
    if job.cuda and found.get("FP16 TFLOP/s"):
        bandwidth = next((b for sign, b in (("H100", 3.35e12), ("H200", 4.8e12)) if sign in name), entry.bandwidth)
        notes.value(
            "suggested for the plan's table",
            f"{name}: of_peak={found['FP16 TFLOP/s'] * 1e12 / entry.fp16:.2f}, "
            f"of_bandwidth={found['bytes/s, copied'] / bandwidth:.2f}, "
            f"launch={found['seconds a launch']:.1e}, captured={found.get('seconds a captured launch', 0):.1e}",
        )


if __name__ == "__main__":
    start(main)
