"""Operators of the transformer's graphs, in ONNX Runtime's order: `transformer_step` and `text_key_values`."""

from __future__ import annotations

from dataclasses import dataclass

from videomar.config import TransformerConfig
from videomar.plan.tape import Tape, Value


@dataclass(frozen=True)
class Pass:
    """Sizes of one transformer pass."""

    branches: int
    tokens: int
    past: int  # tokens of finished frames that are attended to
    text: int
    predicted: int


class Step:
    """Writes the operators of one pass over one frame; K/V of frames and text are the caller's memory."""

    def __init__(self, t: TransformerConfig, p: Pass, tape: Tape, native: bool) -> None:
        """native: the emitter of that name; portable otherwise."""
        self.t, self.p, self.tape, self.native = t, p, tape, native

    def write(self) -> Tape:
        t, p, tape = self.t, self.p, self.tape
        x = tape.linear(p.tokens, t.token_channels, t.width, tape.given(p.tokens * t.token_channels, 4), bias=True)
        x = tape.compute(x.elements, x, params=t.width)  # the mask token
        x = tape.move(p.branches * x.elements, x)
        table = tape.given(p.tokens * t.head_dim // 2)
        # Native graphs hold the RoPE tables once a branch.
        self._tables = [tape.move(p.branches * table.elements, table) if self.native else table for _ in range(2)]
        for layer in range(t.depth):
            x = self._block(x, last=layer == t.depth - 1)
        tape.move(x.elements, self._norm(x), bound=True)
        return tape

    def _block(self, x: Value, last: bool) -> Value:
        t, p, tape, w = self.t, self.p, self.tape, self.t.width
        rows, seen = p.branches * p.tokens, p.past + p.tokens
        queries = p.branches * p.predicted if last else rows
        n = self._norm(x)
        if last:  # queries of the predicted positions only
            kv = tape.linear(rows, w, 2 * w, n)
            k, v = (tape.view(rows * w, kv) for _ in range(2))
            q = tape.linear(queries, w, w, tape.move(queries * w, n))
        else:
            qkv = tape.linear(rows, w, 3 * w, n)
            q, k, v = (tape.view(rows * w, qkv) for _ in range(3))
        if self.native or tape.fused:
            q = self._rotary(self._head_norm(q))
            key, value = (
                self._append(self._rotary(self._head_norm(k)), seen),
                self._append(tape.view(v.elements, v), seen),
            )
            y = self._attend(q, key, value, queries, seen)
        elif tape.mode == "fp16-as-fp32":
            value = tape.cast(self._append(tape.view(v.elements, v), seen))
            key = tape.cast(self._append(self._rotary(self._head_norm(k)), seen))
            y = self._mix(self._scores(self._rotary(self._head_norm(q)), key, queries, seen), value, queries, seen)
        else:
            key = self._append(self._rotary(self._head_norm(k)), seen)
            scores = self._scores(self._rotary(self._head_norm(q)), key, queries, seen)
            value = self._append(tape.view(v.elements, v), seen)
            y = self._mix(scores, value, queries, seen)
        if last:
            x = tape.move(queries * w, x)
        x = tape.pointwise(tape.linear(queries, w, w, tape.view(y.elements, y)), x)
        q = self._head_norm(tape.linear(queries, w, w, x))
        key, value = (tape.given(p.branches * p.text * w) for _ in range(2))
        y = self._attend(q, key, value, queries, p.text)
        x = tape.pointwise(tape.linear(queries, w, w, tape.view(y.elements, y)), x)
        h = tape.linear(queries, w, t.mlp_ratio * w, self._norm(x))
        return tape.pointwise(tape.linear(queries, t.mlp_ratio * w, w, self._gelu(h)), x)

    def _norm(self, x: Value) -> Value:
        """LayerNorm: ONNX Runtime has it in FP16 too."""
        return self.tape.move(x.elements, x, flops=8.0 * x.elements, params=2 * self.t.width)

    def _head_norm(self, x: Value) -> Value:
        """RMSNorm of every head, and heads before tokens."""
        y = self.tape.compute(x.elements, x, flops=6.0 * x.elements, params=self.t.head_dim)
        return self.tape.view(y.elements, y)

    def _rotary(self, x: Value) -> Value:
        tape, half = self.tape, x.elements // 2
        if self.native or tape.fused:
            return tape.compute(x.elements, x, *self._tables, flops=3.0 * x.elements, folds=True)
        first, second = tape.move(half, x), tape.move(half, x)
        parts = []
        for a, b in ((second, first), (first, second)):
            cos, sin = self._tables
            products = tape.compute(half, b, sin, flops=half), tape.compute(half, a, cos, flops=half)
            parts.append(tape.compute(half, *products, flops=half))
        return tape.move(x.elements, *parts)

    def _append(self, new: Value, seen: int) -> Value:
        """Into the cache, which the caller owns; portable graphs copy what is in it."""
        elements = self.p.branches * seen * self.t.width
        past = self.tape.given(new.elements if self.native else elements - new.elements)
        copied = self.tape.move(new.elements if self.native else elements, new, past, bound=True)
        copied.elements = elements
        return copied

    def _attend(self, q: Value, key: Value, value: Value, queries: int, seen: int) -> Value:
        if not (self.native or self.tape.fused):
            return self._mix(self._scores(q, key, queries, seen), value, queries, seen)
        flops = 4.0 * queries * seen * self.t.width + 5.0 * queries * seen * self.t.heads
        scratch = 0 if self.tape.fused else queries * seen * self.t.heads
        return self.tape.compute(q.elements, q, key, value, flops=flops, scratch=scratch)

    def _scores(self, q: Value, key: Value, queries: int, seen: int) -> Value:
        elements = queries * seen * self.t.heads
        scores = self.tape.compute(elements, q, key, flops=2.0 * queries * seen * self.t.width)
        # ONNX Runtime's CPU has no Softmax in FP16: subtract the maximum, exponentiate, divide.
        return self.tape.pointwise(scores, steps=3 if self.tape.mode == "fp16-as-fp32" else 1)

    def _mix(self, scores: Value, value: Value, queries: int, seen: int) -> Value:
        return self.tape.compute(queries * self.t.width, scores, value, flops=2.0 * queries * seen * self.t.width)

    def _gelu(self, h: Value) -> Value:
        """tanh-GELU: one operator in native graphs, eight in portable ones."""
        tape = self.tape
        if self.native or tape.fused:
            return tape.compute(h.elements, h, flops=9.0 * h.elements, folds=True)
        y = tape.pointwise(h)
        y = tape.compute(h.elements, tape.compute(h.elements, y), h)
        for _ in range(4):
            y = tape.compute(h.elements, y, flops=h.elements)
        return tape.compute(h.elements, y, h, flops=h.elements)


def text_key_values(t: TransformerConfig, text_width: int, longest: int, text: int, tape: Tape) -> Tape:
    """K/V of the text for every layer, both branches; outputs are the caller's. longest: rows of `fake_latent`."""
    w = t.width
    embedded = tape.linear(text, text_width, w, tape.given(text * text_width), bias=True)
    context = tape.move(2 * text * w, embedded, params=longest * w)
    for _ in range(t.depth):
        both = tape.linear(2 * text, w, 2 * w, context)
        k, v = (tape.view(2 * text * w, both) for _ in range(2))
        tape.move(k.elements, tape.compute(k.elements, k, params=t.head_dim, flops=6.0 * k.elements), bound=True)
        tape.move(v.elements, v, bound=True)
    return tape
