"""How long a generation takes: each operator at the peak or the bandwidth, whichever is slower, and a launch.

Estimates: no Jetson and no GPU was timed. Knows nothing of memory that has to fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

from videomar import graphs
from videomar.graphs import steps_ahead
from videomar.plan.devices import Device
from videomar.plan.graphs_head import head_condition, head_step
from videomar.plan.graphs_transformer import Pass, Step
from videomar.plan.memory import mode, tapes
from videomar.plan.request import Request
from videomar.plan.tape import Op, Tape


@dataclass(frozen=True)
class Times:
    """Seconds of the stages, and of their pieces."""

    text: float
    encoder: float
    transformer: float  # of the clip
    heads: float  # of the clip
    decoder: float  # of the clip
    step: float  # transformer of one mask step of the last frame
    head: float  # head's loop of one mask step
    frame: float  # the last latent frame, all mask steps
    first: float  # from the start until the first generated latent frame can be seen

    @property
    def clip(self) -> float:
        """All of it, one stage after another."""
        return self.text + self.encoder + self.transformer + self.heads + self.decoder


def operator_seconds(op: Op, device: Device, tape: Tape, int8: bool, launch: float) -> float:
    """Roofline of one operator; products with weights run in INT8 if asked for."""
    dense = op.params > 0 and op.linear
    if tape.mode == "fp16":
        peak = device.int8 if int8 and dense else device.fp16
    else:
        peak = device.fp32
    if op.folded:
        moved, launch = sum(v.size for v in op.inputs[1:]), 0.0
    else:
        weights = op.params * (1 if int8 and dense else tape.weight_width) if op.flops else 0  # not a table's rows
        moved = weights + op.output.size + sum(v.size for v in op.inputs)
    return max(op.flops / (peak * device.of_peak), moved / (device.bandwidth * device.of_bandwidth)) + launch


def tape_seconds(tape: Tape, device: Device, int8: bool = False, launch: float | None = None) -> float:
    """Sum over a graph's operators."""
    each = device.captured if launch is None else launch
    return sum(operator_seconds(op, device, tape, int8, each) for op in tape.ops)


@lru_cache(maxsize=256)
def plan_times(request: Request, device: Device) -> Times:
    """Every stage's seconds on a device."""
    backend, sampling = device.backend, request.sampling
    made, int8 = tapes(request, backend), request.precision == "int8"
    fused = backend != "ort-cpu"

    def one(name: str) -> float:
        return tape_seconds(made[name], device, launch=device.launch) if name in made else 0.0

    @cache
    def step(seen: int, rows: int, part: int, branches: int) -> float:
        """A pass that computes `part` of a frame's positions, after `seen` finished frames."""
        at_once = min(branches, request.branches_at_once)
        past = (seen + 1) * request.tokens - part
        sizes = Pass(at_once, part, past, request.text_tokens, min(rows, part))
        tape = Step(request.config.transformer, sizes, Tape(mode(request, backend), fused), request.emitter == "native")
        return branches // at_once * tape_seconds(tape.write(), device, int8)

    @cache
    def loop(rows: int, steps: int, branches: int) -> float:
        c, width = request.config, Tape(mode(request, backend), fused)
        both = branches * rows
        ahead = steps_ahead(c.head, both, steps, width.width)
        lots = -(-steps // ahead)
        before = lots * tape_seconds(head_condition(c.head, c.transformer, both, ahead, width), device)
        each = head_step(c.head, c.transformer, both, rows, Tape(width.mode, fused))
        return before + steps * tape_seconds(each, device)

    # Shapes never change inside a clip on an engine: every step takes as many rows as the largest. The transformer's
    # time hardly depends on them, so one pass stands for all that see as many finished frames.
    rows = max(request.counts) if fused else max(1, round(request.tokens / sampling.mask_steps))
    clip, seen = request.clip, request.seen
    transformer, heads = dict.fromkeys(range(request.frames), 0.0), dict.fromkeys(range(request.frames), 0.0)
    for each in clip.steps:
        transformer[each.frame] += step(min(each.frame, seen), rows, each.computed, each.branches)
        if each.predicted:
            heads[each.frame] += loop(rows if fused else each.predicted, each.head_steps, each.branches)
    first, last = clip.shape.given, request.frames - 1
    decoding = one(graphs.TOKENIZER_DECODER)
    text = one(graphs.TEXT_ENCODER) + one(graphs.TEXT_KEY_VALUES)
    encoding = one(graphs.TOKENIZER_ENCODER) if request.given else 0.0
    prefill = sum(transformer[f] for f in range(first))
    masking = sum(
        step(min(first, seen), rows, s.computed, s.branches) for s in clip.steps if s.frame == first and s.predicted
    )
    return Times(
        text=text,
        encoder=encoding,
        transformer=sum(transformer.values()),
        heads=sum(heads.values()),
        decoder=decoding * request.frames,
        step=step(seen, rows, request.tokens, request.branches),
        head=heads[last] / sampling.mask_steps,
        frame=transformer[last] + heads[last],
        first=text + encoding + prefill + masking + heads[first] + decoding * (first + 1),
    )


def pass_flops(request: Request, finished: int) -> float:
    """Multiplications and additions of one transformer pass over all branches with this many frames finished."""
    sizes = Pass(request.branches, request.tokens, finished * request.tokens, request.text_tokens, request.tokens)
    return Step(request.config.transformer, sizes, Tape("fp16", True), native=False).write().flops
