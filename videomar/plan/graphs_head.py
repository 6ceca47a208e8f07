"""Operators of the diffusion head and of the text encoder."""

from __future__ import annotations

from videomar.config import HeadConfig, TextConfig, TransformerConfig
from videomar.graphs import modulation_names
from videomar.plan.tape import Tape, Value


def head_condition(c: HeadConfig, t: TransformerConfig, rows: int, steps: int, tape: Tape) -> Tape:
    """Modulations of `steps` diffusion steps for `rows` (branches times predicted tokens)."""
    _modulations(c, t, rows, steps, tape)
    return tape


def head_loop(c: HeadConfig, t: TransformerConfig, rows: int, predicted: int, steps: int, tape: Tape) -> Tape:
    """Modulations and, while they are there, one diffusion step: what a loop needs at its largest."""
    made = _modulations(c, t, rows, steps, tape)
    head_step(c, t, rows, predicted, tape)
    tape.move(1, *made)
    return tape


def _modulations(c: HeadConfig, t: TransformerConfig, rows: int, steps: int, tape: Tape) -> list[Value]:
    y = tape.linear(steps, c.time_features, c.width, tape.given(steps * c.time_features), bias=True)
    time = tape.linear(steps, c.width, c.width, tape.pointwise(y), bias=True)
    condition = tape.linear(rows, t.width, c.width, tape.given(rows * t.width), bias=True)
    y = tape.pointwise(tape.compute(steps * rows * c.width, time, condition), steps=2)
    count = len(modulation_names(c))
    return [tape.compute(steps * rows * c.width, y, flops=2.0 * steps * rows * c.width**2,
                         params=c.width * (c.width + 1), linear=True) for _ in range(count)]  # fmt: skip


def head_step(c: HeadConfig, t: TransformerConfig, rows: int, predicted: int, tape: Tape) -> Tape:
    """One diffusion step of `predicted` tokens, `rows` of them with both branches; modulations are given."""
    w, state = c.width, predicted * t.token_channels
    parts = [tape.given(rows * w) for _ in modulation_names(c)]
    h = tape.linear(predicted, t.token_channels, w, tape.given(state, 4), bias=True)
    for block in range(c.depth):
        shift, scale, gate = parts[3 * block : 3 * block + 3]
        x = tape.pointwise(tape.move(h.elements, h, params=2 * w), scale, shift, steps=2)
        x = tape.pointwise(tape.linear(rows, w, w, _rows(tape, x, rows * w), bias=True))
        h = tape.pointwise(tape.linear(rows, w, w, x, bias=True), gate, h, steps=2)
    x = tape.pointwise(tape.move(rows * w, h), *parts[-2:], steps=2)
    out = tape.linear(rows, w, 2 * t.token_channels, x, bias=True)
    tape.pointwise(tape.compute(state, out, flops=4.0 * state), tape.given(state, 4), steps=8)
    return tape


def _rows(tape: Tape, x: Value, elements: int) -> Value:
    return x if x.elements == elements else tape.move(elements, x)


def text_encoder(c: TextConfig, tokens: int, tape: Tape) -> Tape:
    """A Qwen2-family model over system prompt and prompt; the last hidden state."""
    w, dim = c.width, c.width // c.heads
    kv, seen = c.kv_heads * dim, tokens * tokens
    # The table is not read: rows of it are. It still lies in memory.
    x = tape.move(tokens * w, tape.given(tokens, 8), params=c.vocab_size * w)
    for _ in range(c.depth):
        n = _rms(tape, x, w)
        k = _turn(tape, tape.linear(tokens, w, kv, n, bias=True), w // kv if not tape.fused else 1)
        q = _turn(tape, tape.linear(tokens, w, w, n, bias=True), 1)
        flops = 2.0 * seen * w
        if tape.fused:
            v = tape.linear(tokens, w, kv, n, bias=True)
            y = tape.compute(tokens * w, q, k, v, flops=2 * flops)
        else:
            scores = tape.pointwise(tape.compute(c.heads * seen, q, k, flops=flops), steps=2)
            v = tape.move(tokens * w, tape.move(tokens * kv, tape.linear(tokens, w, kv, n, bias=True)))
            y = tape.compute(tokens * w, scores, v, flops=flops)
        x = tape.pointwise(tape.linear(tokens, w, w, tape.view(tokens * w, y)), x)
        n = _rms(tape, x, w)
        gate = tape.pointwise(tape.linear(tokens, w, c.mlp_width, n))
        h = tape.pointwise(tape.linear(tokens, w, c.mlp_width, n), gate)
        x = tape.pointwise(tape.linear(tokens, c.mlp_width, w, h), x)
    _rms(tape, x, w)
    return tape


def _rms(tape: Tape, x: Value, width: int) -> Value:
    return tape.pointwise(tape.pointwise(x, steps=2), params=width)


def _turn(tape: Tape, x: Value, repeated: int) -> Value:
    """Rotary positions; keys once a query head."""
    y = tape.view(x.elements, tape.pointwise(x))
    y = tape.pointwise(tape.pointwise(y), y, steps=2)
    return tape.move(repeated * y.elements, y)
