"""The diffusion loop of one mask step, in the ways it can be run: microseconds a diffusion step against the time in
which its weights can be read once. And whether it hides behind another clip's transformer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.parts.authors import Loop
from benchmarks.gpu.parts.notes import Job, median_seconds, start
from benchmarks.gpu.parts.rates import captured
from benchmarks.gpu.parts.sizes import latent, model
from videomar.model.head import DiffusionHead


class Rows:
    """All that one mask step's loop reads and writes, at fixed addresses."""

    def __init__(self, loop: Loop, predicted: int) -> None:
        self.head, self.steps, c = loop.head, len(loop.schedule.timesteps), loop.config.transformer
        self.z = torch.randn(2, predicted, c.width, device=loop.device, dtype=loop.dtype)
        self.initial = torch.randn(predicted, c.token_channels, device=loop.device)
        self.draws = torch.randn(self.steps, predicted, c.token_channels, device=loop.device)
        self.table, self.times, self.scale = loop.table, loop.times, torch.full((1,), 2.0, device=loop.device)
        self.dtype = loop.dtype

    def as_written(self) -> Tensor:
        """The head as the checkpoint has it: embeddings and modulations in every step."""
        x, rows = self.initial, 2 * len(self.initial)
        for i in range(self.steps):
            eps, variance = self.head(x.to(self.dtype).repeat(2, 1), self.times[i].expand(rows), self.z.flatten(0, 1))
            x = self._advance(i, x, eps.unflatten(0, (2, -1)), variance.unflatten(0, (2, -1)))
        return x

    def ahead(self) -> Tensor:
        """All modulations, which do not depend on x, as one product before the loop; the loop is the MLP alone."""
        head, width = self.head, self.head.config.width
        y = head.time_embed(self.times)[:, None, None] + head.cond_embed(self.z)[None]  # [steps, 2, N, W]
        y = torch.nn.functional.silu(y)
        blocks = [block.adaLN_modulation[1](y).split(width, dim=-1) for block in head.res_blocks]
        last = head.final_layer.adaLN_modulation[1](y).split(width, dim=-1)
        x = self.initial
        for i in range(self.steps):
            h = head.input_proj(x.to(self.dtype))
            for block, (shift, scale, gate) in zip(head.res_blocks, blocks, strict=True):
                h = h + gate[i] * block.mlp(block.in_ln(h) * (1 + scale[i]) + shift[i])
            shift, scale = last
            out = head.final_layer.linear(head.final_layer.norm_final(h) * (1 + scale[i]) + shift[i])
            x = self._advance(i, x, *out.chunk(2, dim=-1))
        return x

    def _advance(self, i: int, x: Tensor, eps: Tensor, variance: Tensor) -> Tensor:
        a, b, p, q, low, high = self.table[i].unbind()
        eps, variance = eps.float(), variance.float()
        guided = eps[1] + self.scale * (eps[0] - eps[1])
        share = (variance[0] + 1) / 2
        start = a * x - b * guided
        return p * start + q * x + torch.exp(0.5 * (share * high + (1 - share) * low)) * self.draws[i]


@torch.inference_mode()
def main(job: Job) -> None:
    notes, config = job.notes, model("full", job.device)
    _, h, w = latent(config)
    dtype = torch.float16 if job.cuda else torch.float32
    wait: Callable[[], object] = torch.cuda.synchronize if job.cuda else lambda: None
    loop = Loop(config, job.device, dtype, (h, w))
    whole, inside = weights(loop.head)
    bandwidth = _bandwidth(job, wait)
    notes.value("bytes of the loop's weights, modulations ahead", inside)
    notes.value("bytes of all the head's weights", whole)
    floor = notes.value("us to read the loop's weights once", 1e6 * inside / bandwidth)
    notes.value("us to read all the head's weights once", 1e6 * whole / bandwidth)
    mean = max(1, round(loop.tokens / config.sampling.mask_steps))
    for predicted in sorted({1, mean, loop.most}):
        rows = Rows(loop, predicted)
        with notes.trying("both ways give one result"):
            one, other = rows.as_written(), rows.ahead()
            error = float((one - other).norm() / one.norm())
            notes.row("modulations ahead against the head as written", predicted=predicted, relative_L2=error)
        for ahead, work in ((False, rows.as_written), (True, rows.ahead)):
            ways: list[tuple[str, Callable[[], object]]] = [("kernel by kernel", work)]
            with notes.trying(f"capture, {predicted} tokens, modulations {'ahead' if ahead else 'inside'}"):
                if not job.cuda:
                    raise RuntimeError("nothing is captured on a CPU")
                ways.append(("captured graph", captured(work).replay))
            for way, run in ways:
                spent = median_seconds(run, wait, 5 if job.cuda else 2) / rows.steps
                notes.row("a diffusion step", predicted=predicted, modulations="ahead" if ahead else "in every step",
                          way=way, us=1e6 * spent, times_the_floor=1e6 * spent / floor)  # fmt: skip
                if predicted == mean and ahead and (way == "captured graph" or not job.cuda):
                    notes.value("us a diffusion step, captured, modulations ahead", 1e6 * spent)
    if job.cuda:
        with notes.trying("a clip's head behind another's transformer"):
            _behind(job, loop, Rows(loop, mean), wait)
    with notes.trying("the exported graph of the loop"):
        _exported(job, mean)


def weights(head: DiffusionHead) -> tuple[int, int]:
    """Bytes of all weights, and of those that a loop with modulations ahead reads in every step."""

    def size(*modules: torch.nn.Module) -> int:
        return sum(p.nbytes for m in modules for p in m.parameters())

    blocks = [part for b in head.res_blocks for part in (b.in_ln, b.mlp)]
    return size(head), size(head.input_proj, *blocks, head.final_layer.linear)


def _bandwidth(job: Job, wait: Callable[[], object]) -> float:
    """Bytes/s of a large copy, read and written."""
    source = torch.ones((1 << 29) if job.cuda else (1 << 21), device=job.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_seconds(lambda: target.copy_(source), wait, 5, 5)


def _behind(job: Job, loop: Loop, rows: Rows, wait: Callable[[], object]) -> None:
    """Two streams: a captured head of one clip beside a captured transformer pass of another."""
    x = torch.zeros(loop.tokens, loop.config.transformer.token_channels, device=loop.device)
    masked, tables, past = torch.ones(loop.tokens, dtype=torch.bool, device=loop.device), loop.rope(2), loop.past(2)
    transformer, head = captured(lambda: loop.one_pass(x, masked, *tables, past)), captured(rows.ahead)
    one, other = torch.cuda.Stream(), torch.cuda.Stream()

    def together() -> None:
        for stream, graph in ((one, transformer), (other, head)):
            with torch.cuda.stream(stream):
                graph.replay()

    apart = [median_seconds(graph.replay, wait, 5) for graph in (transformer, head)]
    both = median_seconds(together, wait, 5)
    job.notes.row("head and transformer of two clips", transformer_ms=1e3 * apart[0], head_ms=1e3 * apart[1],
                  on_two_streams_ms=1e3 * both, gained=sum(apart) / both)  # fmt: skip
    job.notes.value("throughput gained by two streams, at most", sum(apart) / both)


def _exported(job: Job, predicted: int) -> None:
    """ONNX Runtime's own time for the whole loop's graph, inputs and outputs bound on the device."""
    import numpy as np

    from benchmarks.gpu.parts.graphs import Bound

    bound = Bound(job, "full-fp16", "diffusion_head", {"branches": 2, "predicted": predicted})
    steps = bound.sizes["steps"]
    spent = [bound.seconds() for _ in range(4)][1:]
    job.notes.row("a diffusion step", predicted=predicted, modulations="as exported", way="ONNX Runtime's loop",
                  us=1e6 * float(np.median(spent)) / steps,
                  times_the_floor=1e6 * float(np.median(spent)) / steps
                  / job.notes.values["us to read the loop's weights once"])  # fmt: skip


if __name__ == "__main__":
    start(main)
