"""The lists of operators, against the model itself: weights, operations and carried tensors counted elsewhere."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import pytest

from videomar import graphs
from videomar.carried import decoder_axes
from videomar.config import DEMO, PRESETS, VIDEOMAR_1_4B, HeadConfig, ModelConfig, TokenizerConfig
from videomar.graphs import contract
from videomar.plan.arena import Arena, Ideal
from videomar.plan.graphs_transformer import Pass, Step
from videomar.plan.memory import GPU_ENGINE, _carried, _text, key_values, peak_of, plan_memory, tapes, weights
from videomar.plan.request import Request
from videomar.plan.roofline import pass_flops
from videomar.plan.tape import Tape

ODD = dataclasses.replace(
    DEMO,
    name="odd",
    tokenizer=TokenizerConfig((8, 16, 24), (8, 24, 16), 2, (32,), 128, spatial_stride=8, temporal_stride=4),
    head=HeadConfig(width=96, depth=2, time_features=64),
    sampling=dataclasses.replace(DEMO.sampling, frames=9),
)
MODELS = {**PRESETS, "odd": ODD}


def request(config: ModelConfig, **changes: object) -> Request:
    return Request(config, config.sampling).but(**changes)


@pytest.fixture(scope="module", params=list(MODELS))
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return MODELS[request.param]


def parts(config: ModelConfig) -> Iterator[tuple[str, int]]:
    """(graph, weights) by PyTorch's own modules, without memory for them."""
    import torch

    from videomar.model.head import DiffusionHead
    from videomar.model.text import TextEncoder
    from videomar.model.tokenizer import VideoTokenizer
    from videomar.model.transformer import Transformer

    def count(module: torch.nn.Module | torch.nn.Parameter) -> int:
        tensors = [module] if isinstance(module, torch.nn.Parameter) else module.parameters()
        return sum(p.numel() for p in tensors)

    with torch.device("meta"):
        t = config.transformer
        transformer = Transformer(t, config.text)
        head = DiffusionHead(config.head, t.token_channels, t.width)
        vae = VideoTokenizer(config.tokenizer).vae
        text = TextEncoder(config.text)
    keys = [block.attn2.wkv for block in transformer.decoder_blocks]
    norms = [block.attn2.k_norm for block in transformer.decoder_blocks]
    text_side = [transformer.context_embed, transformer.fake_latent, *keys, *norms]
    yield graphs.TEXT_ENCODER, count(text)
    yield graphs.TEXT_KEY_VALUES, sum(map(count, text_side))
    yield graphs.TRANSFORMER_STEP, count(transformer) - sum(map(count, text_side))
    yield graphs.TOKENIZER_ENCODER, count(vae.encoder) + count(vae.quant_conv)
    yield graphs.TOKENIZER_DECODER, count(vae.decoder) + count(vae.post_quant_conv)
    layers = [*head.res_blocks, head.final_layer]
    ahead = [head.time_embed, head.cond_embed, *(layer.adaLN_modulation for layer in layers)]
    yield graphs.HEAD_CONDITION, sum(map(count, ahead))
    yield graphs.HEAD_STEP, count(head) - sum(map(count, ahead))


def test_every_weight_of_every_graph_is_counted(config: ModelConfig) -> None:
    made = tapes(request(config), "trt")
    expected = dict(parts(config))
    assert set(made) == set(expected)
    for name, count in expected.items():
        assert made[name].params == count, name


def test_weights_in_memory_are_as_wide_as_the_backend_holds_them() -> None:
    fp16, fp32 = request(DEMO, precision="fp16"), request(DEMO, precision="fp32")
    count = {name: tape.params for name, tape in tapes(fp32, "ort-cpu").items()}
    assert weights(fp32, "ort-cpu") == {name: 4 * n for name, n in count.items()}
    on_cpu = weights(fp16, "ort-cpu")  # computed in FP32, but the loop's body is cast in every step
    assert on_cpu == {name: (2 if name == graphs.HEAD_STEP else 4) * n for name, n in count.items()}
    assert weights(fp16, "trt") == {name: int(2 * n * GPU_ENGINE) for name, n in count.items()}


def test_int8_halves_the_transformers_linear_layers_and_nothing_else() -> None:
    fp16, int8 = (weights(request(VIDEOMAR_1_4B, precision=p), "trt") for p in ("fp16", "int8"))
    linear = VIDEOMAR_1_4B.transformer.depth * (3 + 1 + 1 + 1 + 8) * VIDEOMAR_1_4B.transformer.width**2
    saved = fp16[graphs.TRANSFORMER_STEP] - int8[graphs.TRANSFORMER_STEP]
    assert saved == pytest.approx(GPU_ENGINE * linear, rel=1e-3)
    assert {n: s for n, s in fp16.items() if n != graphs.TRANSFORMER_STEP} == {
        n: s for n, s in int8.items() if n != graphs.TRANSFORMER_STEP
    }


def shapes(config: ModelConfig, graph: str, prefix: str, axes: dict[str, int], precision: str = "fp16") -> int:
    """Bytes of a graph's inputs of this name, by the contract."""
    width = 2 if precision == "fp16" else 4
    tensors = [t for t in contract(config, precision, in_place=False)[graph].inputs if t.name.startswith(prefix)]
    assert tensors
    return sum(width * math.prod(axes[a] if isinstance(a, str) else a for a in t.axes) for t in tensors)


@pytest.mark.parametrize("changes", [{}, {"guidance_scale": 1.0}, {"kv_window": 1}, {"kv_window": 2, "frames": 65}])
def test_keys_and_values_are_the_contracts_tensors(changes: dict[str, object]) -> None:
    r = request(DEMO, **changes)
    axes = {"branches": r.branches, "past": r.tokens, "text": r.text_tokens}
    one = shapes(DEMO, graphs.TRANSFORMER_STEP, "past_", axes)
    seen = {"frames": 8, "kv_window": None} | changes
    finished = min(r.frames - 1, 1 + seen["kv_window"]) if seen["kv_window"] else r.frames - 1  # type: ignore[operator]
    assert key_values(r, "trt") == (finished + finished + 1) * one
    assert key_values(r, "ort-cpu") == 2 * (finished + 1) * one
    fixed = dataclasses.replace(r, emitter="native", cache_tokens=100 * r.tokens)
    assert key_values(fixed, "trt") == 100 * one
    assert _text(r, "trt") == shapes(DEMO, graphs.TRANSFORMER_STEP, "text_", axes | {"branches": 2})


def test_the_loop_that_computes_the_most_modulations_ahead_is_counted() -> None:
    """Of a hundred diffusion steps 34 in each of three lots; of 74, which a frame has later on, 37 in each of two."""
    once, annealed = request(VIDEOMAR_1_4B), request(VIDEOMAR_1_4B, head_steps_end=10)
    clips = [plan_memory(r, "trt").largest.parts["clip"] for r in (once, annealed)]
    assert clips[1] - clips[0] == (37 - 34) * 11 * 2 * 36 * 1024 * 2


def test_what_the_decoder_carries_is_the_contracts_tensors_twice() -> None:
    r = request(DEMO, frames=33, height=96, width=128)
    axes = decoder_axes(DEMO.tokenizer, r.frames, r.rows, r.columns)
    assert _carried(r, "trt") == 2 * shapes(DEMO, graphs.TOKENIZER_DECODER, "past_", axes)


def test_the_hand_worked_arithmetic_of_the_released_model() -> None:
    r = request(VIDEOMAR_1_4B)
    assert (r.tokens, r.frames, r.branches) == (1440, 4, 2)
    alone = pass_flops(r, 0)
    assert alone == pytest.approx(7.8e12, rel=0.03)  # 2 * 1.36e9 * 2880, which leaves attention to the past out
    assert 192 * alone == pytest.approx(1.5e15, rel=0.03)
    # Attention to one more frame: two products of 2 * 1440 queries, 1440 keys and 1536 channels in 36 layers.
    assert pass_flops(r, 1) - alone == pytest.approx(36 * 4 * 2880 * 1440 * 1536, rel=0.03)
    frame = key_values(r.but(frames=17), "trt") - key_values(r.but(frames=9), "trt")
    assert frame / 2 == pytest.approx(0.593 * 2**30, rel=1e-3)


def test_only_the_last_blocks_queries_are_those_of_the_predicted_positions() -> None:
    t = DEMO.transformer
    few, all_ = (Step(t, Pass(2, 64, 0, 8, n), Tape("fp32"), False).write().flops for n in (1, 64))
    linear = 2 * t.width**2 * (1 + 1 + 1 + 1 + 8)  # q, wo, cross q, cross wo, MLP
    attention = 4 * t.width * (64 + 8)  # tokens of the frame and of the text
    assert all_ - few == pytest.approx(2 * 63 * (linear + attention), rel=0.03)


def test_two_passes_of_guidance_need_less_working_memory_and_the_same_keys() -> None:
    once, twice = request(VIDEOMAR_1_4B), request(VIDEOMAR_1_4B, guidance_passes=2)
    for backend in ("ort-cpu", "trt"):
        assert key_values(once, backend) == key_values(twice, backend)
        step, half = (tapes(r, backend)[graphs.TRANSFORMER_STEP].peak(Ideal) for r in (once, twice))
        assert 0.45 * step < half < 0.6 * step


@pytest.mark.parametrize("backend", ["ort-cpu", "trt"])
def test_three_layers_tell_the_memory_of_all(backend: str) -> None:
    r = request(VIDEOMAR_1_4B, frames=9, height=160, width=160, mask_steps=8)
    allocator = Arena if backend == "ort-cpu" else Ideal
    for name in (graphs.TRANSFORMER_STEP, graphs.TEXT_ENCODER):
        whole = tapes(r, backend)[name].peak(allocator)
        assert peak_of(r, backend, name, allocator) == pytest.approx(whole, rel=0.02), name


def test_decoding_a_longer_clip_needs_no_larger_decoder() -> None:
    short, long = (tapes(request(DEMO, frames=n), "ort-cpu")[graphs.TOKENIZER_DECODER] for n in (17, 129))
    assert long.peak(Arena) < 1.1 * short.peak(Arena)


def test_the_text_encoder_is_given_the_tokens_of_the_system_prompt_too() -> None:
    words = dataclasses.replace(PRESETS["demo"].text, system_prompt="one two", system_tokens=7)
    config = dataclasses.replace(PRESETS["demo"], text=words)
    first = tapes(Request(config, config.sampling, text=5), "ort-cpu")[graphs.TEXT_ENCODER].ops[0]
    assert first.output.elements == 12  # ids


def test_another_clip_needs_its_own_keys_values_and_buffers_and_no_weights() -> None:
    for backend in ("ort-cpu", "trt"):
        r = request(DEMO)
        memory = plan_memory(r, backend)
        assert key_values(r, backend) + _text(r, backend) + _carried(r, backend) < memory.another < memory.peak / 2
        assert plan_memory(r.but(frames=33), backend).another > memory.another
        assert plan_memory(r.but(precision="fp16"), backend).another <= memory.another
