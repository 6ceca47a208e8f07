"""What the floor counts is a clip's arithmetic, as the plan and the model's sizes say it independently."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.floor import Product, head_products, transformer_products
from videomar.config import VIDEOMAR_1_4B, ModelConfig
from videomar.plan.graphs_transformer import Pass
from videomar.plan.graphs_transformer import Step as Written
from videomar.plan.tape import Tape
from videomar.steps import ClipSteps


def clip_of(guidance: float) -> ClipSteps:
    config: ModelConfig = VIDEOMAR_1_4B
    return ClipSteps.of(config, dataclasses.replace(config.sampling, guidance_scale=guidance), 1)


def linears(tape: Tape) -> float:
    return sum(op.flops for op in tape.ops if op.linear)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_linears_of_a_transformer_pass_are_those_that_the_plan_counts(guidance: float) -> None:
    clip = clip_of(guidance)
    for step in clip.steps[::50]:
        branches, tokens = (2 if guidance != 1 else 1), clip.shape.tokens
        sizes = Pass(branches, tokens, step.frame * tokens, 300, max(1, step.predicted))
        tape = Written(clip.config.transformer, sizes, Tape("fp32"), native=True).write()
        made = transformer_products(clip, step, 300)
        assert sum(n * p.operations for p, n in made.items() if not p.batch) == linears(tape)
        attention = sum(n * p.operations for p, n in made.items() if p.batch)
        assert 0.95 * (tape.flops - linears(tape)) < attention < tape.flops - linears(tape)


def test_a_window_bounds_what_attention_multiplies() -> None:
    clip = clip_of(3.0)
    window = ClipSteps.of(clip.config, clip.sampling.but(kv_window=1), 1)
    whole, bounded = (transformer_products(c, c.steps[-1], 300) for c in (clip, window))
    tokens, t = clip.shape.tokens, clip.config.transformer
    assert whole[Product(tokens, t.head_dim, 4 * tokens, 2 * t.heads)] == t.depth - 1
    assert bounded[Product(tokens, t.head_dim, 3 * tokens, 2 * t.heads)] == t.depth - 1


def test_the_heads_loop_reads_12_6_of_36_megabytes_of_weights_and_modulations_are_65_percent() -> None:
    clip = clip_of(3.0)
    step = next(s for s in clip.steps if s.predicted)
    made, steps = head_products(clip, step), clip.sampling.head_steps
    loop = sum(n // steps * p.inner * p.columns for p, n in made.items() if n >= steps)
    (ahead,) = (p for p in made if p.rows == 2 * step.predicted * steps)
    taken = ahead.inner * ahead.columns
    assert 2 * loop / 1e6 == pytest.approx(12.6, abs=0.1)
    assert 2 * (loop + taken) / 1e6 == pytest.approx(36, abs=0.5)
    assert taken / (loop + taken) == pytest.approx(0.65, abs=0.01)


def test_a_pass_that_predicts_nothing_has_no_head() -> None:
    clip = clip_of(3.0)
    assert not head_products(clip, clip.steps[0])
