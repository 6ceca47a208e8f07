"""Every graph is the PyTorch model at every size and precision, says only what TensorRT understands, and the check that
export relies on notices planted faults."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from videomar.config import ModelConfig
from videomar.errors import InputError, ParityError
from videomar.export import build, checks
from videomar.export.build import SIZES, GraphBuilder
from videomar.export.checks import CASES, Case, check_graph, relative_error
from videomar.export.emitters import EMITTERS, Portable, emitter, halves_first
from videomar.graphs import (
    DIFFUSION_HEAD,
    GRAPHS,
    HEAD_STEP,
    PRECISIONS,
    TEXT_ENCODER,
    TEXT_KEY_VALUES,
    TOKENIZER_DECODER,
    TOKENIZER_ENCODER,
    TOLERANCE,
    TRANSFORMER_STEP,
    GraphSpec,
    contract,
)
from videomar.model.transformer import rotate
from videomar.model.videomar import VideoMAR
from videomar.schedule import half_tables, rope_tables

CACHE_TOKENS = 64


@dataclass(frozen=True)
class Variant:
    """One file that export can write."""

    name: str
    precision: str = "fp32"
    emitter: str = "portable"
    cache_tokens: int | None = None

    def __str__(self) -> str:
        cache = "" if self.cache_tokens is None else f"-cache-{self.cache_tokens}"
        return f"{self.name}-{self.precision}-{self.emitter}{cache}"

    @property
    def in_place(self) -> bool:
        return EMITTERS[self.emitter].in_place

    def spec(self, config: ModelConfig) -> GraphSpec:
        return contract(config, self.precision, self.in_place, self.cache_tokens)[self.name]


# The emitters write only the transformer differently; test_only_the_transformer_differs_between_emitters holds that.
WAYS = (("portable", None), ("native", None), ("native", CACHE_TOKENS))
VARIANTS = [
    Variant(name, precision, *way)
    for precision, name in itertools.product(PRECISIONS, GRAPHS)
    for way in (WAYS if name == TRANSFORMER_STEP else WAYS[:1])
]
all_variants = pytest.mark.parametrize("variant", VARIANTS, ids=str)


class Check:
    """check_graph on the tiny model, for a variant's own file or another."""

    def __init__(self, graph: Any, model: VideoMAR, prefix: int) -> None:
        self.graph, self.model, self.prefix = graph, model, prefix

    def file(self, v: Variant) -> Path:
        return self.graph(v.name, v.precision, v.emitter, v.cache_tokens)

    def load(self, v: Variant) -> ModelProto:
        return onnx.load(self.file(v))

    def __call__(self, v: Variant, file: Path | None = None) -> dict[str, float]:
        spec, tolerance = v.spec(self.model.config), TOLERANCE[v.precision][v.name]
        path = file or self.file(v)
        with torch.inference_mode():
            return check_graph(path, spec, self.model, self.prefix, tolerance, v.in_place, v.cache_tokens)


@pytest.fixture(scope="module")
def check(tiny_graph: Any, tiny_model: VideoMAR, tiny_prefix: int) -> Check:
    torch.set_num_threads(1)
    return Check(tiny_graph, tiny_model, tiny_prefix)


# ---- the same numbers as PyTorch


@all_variants
def test_every_graph_agrees_with_pytorch(check: Check, variant: Variant) -> None:
    errors = check(variant)
    kinds = {t.name.rstrip("0123456789").rstrip("_") for t in variant.spec(check.model.config).outputs}
    assert set(errors) == kinds
    assert max(errors.values()) <= TOLERANCE[variant.precision][variant.name]


def test_every_graph_of_the_contract_is_tested_at_every_precision_and_by_every_emitter() -> None:
    assert {(v.precision, v.name) for v in VARIANTS} == set(itertools.product(PRECISIONS, GRAPHS))
    assert {(v.precision, v.emitter) for v in VARIANTS} == set(itertools.product(PRECISIONS, EMITTERS))
    assert all(set(TOLERANCE[precision]) == set(GRAPHS) for precision in PRECISIONS)


def test_only_the_transformer_differs_between_emitters(
    tiny_model: VideoMAR, tiny_prefix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: list[tuple[str, int]] = []

    def record(module: torch.nn.Module, args: Any, axes: Any, spec: GraphSpec, opset: int, folder: Path | None) -> None:
        traced.append((type(module).__name__, opset))

    monkeypatch.setattr(build, "to_onnx", record)
    monkeypatch.setattr(build, "loop_over_steps", lambda *args: None)
    seen = {}
    for e in EMITTERS.values():
        builder = GraphBuilder(tiny_model, contract(tiny_model.config, "fp32", e.in_place), e, torch.float32, 4)
        for name in GRAPHS:
            traced.clear()
            builder.build(name)
            seen[e.name, name] = tuple(traced)
    for name in GRAPHS:
        same = seen["portable", name] == seen["native", name]
        assert same == (name != TRANSFORMER_STEP), name


EDGES = (
    Case((1, 1), 0, 1, 1, 1, 1, 11),  # one token, one branch, nothing before it, one word, one diffusion step
    Case((5, 3), 3, 2, 7, 15, 9, 12),  # every token predicted, the longest clip that fits the fixed cache
    Case((1, 7), 1, 1, 8, 2, 20, 13),  # one row; all text tokens; every trained diffusion step
)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.precision == "fp32"], ids=str)
def test_every_dynamic_axis_moves(check: Check, variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CASES", EDGES)
    check(variant)


def test_the_checks_cases_take_every_axis_away_from_the_traced_size_twice() -> None:
    def sizes(c: Case) -> dict[str, int]:
        tokens = c.grid[0] * c.grid[1]
        return {
            "branches": c.branches,
            "tokens": tokens,
            "past": tokens * c.past_frames,
            "total": tokens * (c.past_frames + 1),
            "text": c.text,
            "predicted": c.predicted,
            "steps": c.steps,
        }

    assert set(sizes(CASES[0])) == set(SIZES)
    for axis, traced in SIZES.items():
        values = {sizes(c)[axis] for c in CASES} - {traced}
        assert len(values) >= (1 if axis == "branches" else 2), axis


@all_variants
def test_a_file_declares_the_contracts_names_types_and_axes(check: Check, variant: Variant) -> None:
    graph, spec = check.load(variant).graph, variant.spec(check.model.config)
    for values, wanted in ((graph.input, spec.inputs), (graph.output, spec.outputs)):
        for value, tensor in zip(values, wanted, strict=True):
            t = value.type.tensor_type
            assert value.name == tensor.name
            assert helper.tensor_dtype_to_np_dtype(t.elem_type) == np.dtype(tensor.dtype)
            assert tuple(d.dim_param or d.dim_value for d in t.shape.dim) == tensor.axes


@all_variants
def test_weights_are_held_once_and_in_the_graphs_precision(check: Check, variant: Variant) -> None:
    model = check.load(variant)
    assert not [g for g in graphs(model.graph) if g is not model.graph and g.initializer]
    large = [t for t in model.graph.initializer if np.prod(t.dims) > 64]
    wanted = TensorProto.FLOAT16 if variant.precision == "fp16" else TensorProto.FLOAT
    assert large and {t.data_type for t in large} == {wanted}
    names = [t.name for t in model.graph.initializer]
    assert len(names) == len(set(names))


# ---- nothing that TensorRT does not understand, and nothing of this machine


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and all that its nodes hold."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from graphs(attribute.g)


def nodes(model: ModelProto) -> Iterator[NodeProto]:
    for graph in graphs(model.graph):
        yield from graph.node


RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
RANDOM |= {"Multinomial", "Bernoulli", "Dropout"}
DATA_DEPENDENT = {"NonZero", "Unique", "Compress", "If", "Loop", "NonMaxSuppression", "Resize", "TopK"}
SINCE_23 = {"Attention", "RotaryEmbedding", "RMSNormalization", "TensorScatter"}


@all_variants
def test_graphs_hold_standard_operators_without_chance_or_shapes_that_depend_on_data(
    check: Check, variant: Variant
) -> None:
    model = check.load(variant)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", EMITTERS[variant.emitter].opset)]
    assert not model.functions
    used = {n.op_type for n in nodes(model)}
    assert {n.domain for n in nodes(model)} <= {"", "ai.onnx"}
    assert not used & RANDOM
    assert not used & DATA_DEPENDENT
    native = variant.name == TRANSFORMER_STEP and variant.emitter == "native"
    assert used & SINCE_23 == (SINCE_23 if native else set())
    assert ("Scan" in used) == (variant.name == DIFFUSION_HEAD)


@all_variants
def test_attention_has_only_what_tensorrt_honours(check: Check, variant: Variant) -> None:
    model = check.load(variant)
    depth = check.model.config.transformer.depth
    attentions = [n for n in nodes(model) if n.op_type == "Attention"]
    native = variant.name == TRANSFORMER_STEP and variant.emitter == "native"
    assert len(attentions) == (2 * depth if native else 0)
    for n in attentions:
        assert len(n.input) == 3 and all(n.input) and len(n.output) == 1  # no mask, no past, no nonpad_kv_seqlen
        assert {a.name: a.f for a in n.attribute} == {"scale": 1.0}  # no softcap, no softmax_precision, not causal
    for n in nodes(model):
        if n.op_type == "TensorScatter":
            attributes = {a.name: helper.get_attribute_value(a) for a in n.attribute}
            assert attributes.pop("mode", b"linear") == b"linear" and attributes == {"axis": 2}
            assert n.input[0].startswith("past_") and n.output[0] == n.input[0].replace("past_", "present_")
        if n.op_type == "RotaryEmbedding":
            assert len(n.input) == 3 and not n.attribute


@all_variants
def test_files_tell_nothing_of_the_machine_that_wrote_them(check: Check, variant: Variant) -> None:
    model, data = check.load(variant), check.file(variant).read_bytes()
    assert not model.doc_string and not model.metadata_props
    for g in graphs(model.graph):
        assert not g.doc_string and not g.metadata_props and not g.value_info and not g.quantization_annotation
        for item in [*g.node, *g.input, *g.output, *g.initializer]:
            assert not item.doc_string and not item.metadata_props, item.name
    root = str(Path(build.__file__).parents[1])
    for trace in (root, str(Path.home()), "site-packages", ".py", "/tmp/"):
        assert trace.encode() not in data, trace


# ---- the FP32 island of the diffusion loop


def island(model: ModelProto) -> tuple[dict[str, int], list[str], set[str]]:
    """Walk back from the loop's next state, up to casts: (types of all tensors met, casts met, body inputs met)."""
    (scan,) = [n for n in model.graph.node if n.op_type == "Scan"]
    body = scan.attribute[[a.name for a in scan.attribute].index("body")].g
    outer = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    known = {v.name: v for v in [*outer.value_info, *outer.input]}
    constants = [t for t in model.graph.initializer]
    inner = {o for n in body.node for o in n.output} | {v.name for v in body.input} | {t.name for t in constants}
    captured = sorted({i for n in body.node for i in n.input if i and i not in inner})
    alone = helper.make_model(
        helper.make_graph(body.node, "body", [*body.input, *(known[c] for c in captured)], body.output, constants),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    inferred = onnx.shape_inference.infer_shapes(alone, strict_mode=True).graph
    values = [*inferred.input, *inferred.output, *inferred.value_info]
    types = {v.name: v.type.tensor_type.elem_type for v in values} | {t.name: t.data_type for t in constants}
    makers = {o: n for n in body.node for o in n.output}
    met: dict[str, int] = {}
    casts, reached, todo = [], set(), [body.output[0].name]
    while todo:
        name = todo.pop()
        if name in met:
            continue
        met[name] = types[name]
        if name not in makers:
            if name not in {t.name for t in constants}:
                reached.add(name)
        elif makers[name].op_type == "Cast":
            casts.append(makers[name].input[0])
        else:
            todo += [i for i in makers[name].input if i]
    return met, casts, reached


def cast_the_state(model: ModelProto) -> None:
    """Plant: the state goes through FP16 once, on its way into the posterior mean."""
    (scan,) = [n for n in model.graph.node if n.op_type == "Scan"]
    body = scan.attribute[[a.name for a in scan.attribute].index("body")].g
    last = body.node[-1]
    down = helper.make_node("Cast", [last.input[0]], ["planted_half"], to=TensorProto.FLOAT16)
    up = helper.make_node("Cast", ["planted_half"], ["planted_float"], to=TensorProto.FLOAT)
    last.input[0] = "planted_float"
    rest = [*list(body.node)[:-1], down, up, last]
    copies = [NodeProto.FromString(n.SerializeToString()) for n in rest]
    del body.node[:]
    body.node.extend(copies)


def test_the_diffusion_loops_state_and_arithmetic_are_fp32_in_an_fp16_graph(check: Check) -> None:
    model = check.load(Variant(DIFFUSION_HEAD, "fp16"))
    met, casts, reached = island(model)
    assert {t for t in met.values() if t in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)} == {
        TensorProto.FLOAT
    }
    (scan,) = [n for n in model.graph.node if n.op_type == "Scan"]
    body = scan.attribute[[a.name for a in scan.attribute].index("body")].g
    state, *modulations, coefficients, draw = (v.name for v in body.input)
    kinds = [v.type.tensor_type.elem_type for v in body.input]
    assert kinds == [TensorProto.FLOAT, *[TensorProto.FLOAT16] * len(modulations), *[TensorProto.FLOAT] * 2]
    assert body.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    made = [f"modulations_{i}" for i in range(len(modulations))]
    assert list(scan.input) == ["initial", *made, "coefficients", "draws"] and len(made) == 8
    # All that the new state is made of: FP32 inputs, and the network's output behind one cast.
    assert reached == {state, coefficients, draw, "guidance"}
    assert len(casts) == 1
    makers = {o: n for n in body.node for o in n.output}
    product = makers[makers[casts[0]].input[0]]  # reshaped from the rows of both branches
    assert product.op_type == "Gemm"
    (bias,) = [i for i in product.input if i.endswith("final_layer.linear.bias")]
    assert {t.name: t.data_type for t in model.graph.initializer}[bias] == TensorProto.FLOAT16


def test_a_state_that_goes_through_fp16_is_seen(check: Check) -> None:
    model = check.load(Variant(DIFFUSION_HEAD, "fp16"))
    cast_the_state(model)
    assert len(island(model)[1]) == 2


def test_tensors_between_graphs_are_fp32_where_the_loop_needs_it(tiny_config: ModelConfig) -> None:
    for spec in contract(tiny_config, "fp16", in_place=True, cache_tokens=64).values():
        for t in [*spec.inputs, *spec.outputs]:
            always = {"tokens", "coefficients", "guidance", "initial", "draws", "sampled", "x", "draw", "next"}
            always |= {"timesteps", "step_coefficients", "pixels", "latents", "reach"}
            assert (t.dtype == "float32") == (t.name in always), t


# ---- planted faults


def scanned(model: ModelProto) -> GraphProto:
    return next(g for g in graphs(model.graph) if g is not model.graph)


def first(graph: GraphProto, op: str, where: Callable[[NodeProto], bool] = lambda n: True) -> NodeProto:
    return next(n for n in graph.node if n.op_type == op and where(n))


def weight_of(model: ModelProto, node: NodeProto) -> TensorProto:
    return next(t for t in model.graph.initializer if t.name in node.input)


def change(model: ModelProto, tensor: TensorProto, how: Callable[[np.ndarray], np.ndarray]) -> None:
    value = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(how(value).astype(value.dtype)), tensor.name))


def constant(model: ModelProto, name: str, values: list[int]) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    return name


def transposed_head_weight(m: ModelProto) -> None:
    weights = {t.name: t for t in m.graph.initializer}
    square = first(scanned(m), "Gemm", lambda n: len(set(weights[n.input[1]].dims)) == 1)
    change(m, weights[square.input[1]], np.transpose)


def swapped_keys_and_values(m: ModelProto) -> None:
    split = first(m.graph, "Split", lambda n: len(n.output) == 3)
    split.output[1], split.output[2] = split.output[2], split.output[1]


def wrong_rope_half(m: ModelProto) -> None:
    first(m.graph, "Sub").op_type = "Add"


def scaled_weight(m: ModelProto) -> None:
    last = [n for n in m.graph.node if n.op_type == "MatMul"][-1]
    change(m, weight_of(m, last), lambda w: w * 1.01)


def frozen(tensor: str, size: int) -> Callable[[ModelProto], None]:
    """The size of an axis, as it was when traced."""

    def edit(m: ModelProto) -> None:
        node = first(m.graph, "Shape", lambda n: n.input[0].startswith(tensor))
        output = node.output[0]
        node.output[0] = "unused"
        m.graph.initializer.append(numpy_helper.from_array(np.array([size], np.int64), output))

    return edit


def lost_output(m: ModelProto) -> None:
    del m.graph.output[-1]


def reordered_inputs(m: ModelProto) -> None:
    names = [v.name for v in m.graph.input]
    a, b = names.index("rope_cos"), names.index("rope_sin")
    m.graph.input[a].name, m.graph.input[b].name = "rope_sin", "rope_cos"


def other_output_type(m: ModelProto) -> None:
    node = next(n for n in m.graph.node if "z" in n.output)
    node.output[0] = "half_z"
    m.graph.node.append(helper.make_node("Cast", ["half_z"], ["z"], to=TensorProto.FLOAT))
    m.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT


def overflow(m: ModelProto) -> None:
    last = [n for n in m.graph.node if n.op_type == "MatMul"][-1]
    change(m, weight_of(m, last), lambda w: w * 60000)


def swapped_guidance_branches(m: ModelProto) -> None:
    uncond, cond = [n for n in scanned(m).node if n.op_type == "Gather"][:2]
    uncond.input[1], cond.input[1] = cond.input[1], uncond.input[1]


def variance_of_the_other_branch(m: ModelProto) -> None:
    uncond, _, variance = [n for n in scanned(m).node if n.op_type == "Gather"]
    variance.input[1] = uncond.input[1]


def swapped_text_branches(m: ModelProto) -> None:
    concat = first(m.graph, "Concat")
    concat.input[0], concat.input[1] = concat.input[1], concat.input[0]


def ignored_mask(m: ModelProto) -> None:
    where = first(m.graph, "Where")
    where.input[1], where.input[2] = where.input[2], where.input[1]


def other_epsilon(m: ModelProto) -> None:
    norm = [n for n in m.graph.node if n.op_type == "LayerNormalization"][-1]
    next(a for a in norm.attribute if a.name == "epsilon").f = 1e-3


def other_latent_scale(m: ModelProto) -> None:
    last = next(n for n in m.graph.node if "latents" in n.output)
    change(m, weight_of(m, last), lambda w: w * 1.001)


def unclipped_pixels(m: ModelProto) -> None:
    clip = first(m.graph, "Clip")
    change(m, next(t for t in m.graph.initializer if t.name == clip.input[2]), lambda w: w * 2)


def system_prompt_kept(m: ModelProto) -> None:
    slice_ = next(n for n in m.graph.node if "states" in n.output)
    slice_.input[1] = constant(m, "planted", [0])


def start_ignored(m: ModelProto) -> None:
    for n in m.graph.node:
        if n.op_type == "TensorScatter":
            del n.input[2]


def twice_scaled_attention(m: ModelProto) -> None:
    first(m.graph, "Attention").attribute[0].f = 0.25


def rubbish_behind_reach_seen(m: ModelProto) -> None:
    attention = first(m.graph, "Attention")
    attention.input[1], attention.input[2] = "present_key_0", "present_value_0"


STEP, NATIVE = Variant(TRANSFORMER_STEP), Variant(TRANSFORMER_STEP, "fp32", "native")
PLANTS: list[tuple[Variant, Callable[[ModelProto], None], str]] = [
    (Variant(DIFFUSION_HEAD), transposed_head_weight, "'sampled'"),
    (Variant(DIFFUSION_HEAD), swapped_guidance_branches, "'sampled'"),
    (Variant(DIFFUSION_HEAD), variance_of_the_other_branch, "'sampled'"),
    (Variant(TEXT_KEY_VALUES), swapped_text_branches, "'text_key_0'"),
    (Variant(TEXT_ENCODER), system_prompt_kept, "'states'.* shape"),
    (Variant(TOKENIZER_ENCODER), other_latent_scale, "'latents'"),
    (Variant(TOKENIZER_DECODER), unclipped_pixels, "'pixels'"),
    (STEP, swapped_keys_and_values, "'z'"),
    (STEP, wrong_rope_half, "'(z|present_key_1)'"),
    (STEP, scaled_weight, "'z'"),
    (STEP, frozen("tokens", SIZES["tokens"]), "cannot run"),
    (STEP, frozen("text_key", SIZES["branches"]), "'z'.* shape|cannot run"),
    (STEP, lost_output, "'present_value_1'"),
    (STEP, reordered_inputs, "'rope_(cos|sin)'"),
    (STEP, ignored_mask, "'z'"),
    (STEP, other_epsilon, "'z'"),
    (Variant(TRANSFORMER_STEP, "fp16"), overflow, "'z' is inf away"),
    (Variant(TRANSFORMER_STEP, "fp16"), other_output_type, "'z' is float32"),
    (NATIVE, start_ignored, "'z'"),
    (NATIVE, twice_scaled_attention, "'(z|present_key_1)'"),
    (Variant(TRANSFORMER_STEP, "fp32", "native", CACHE_TOKENS), rubbish_behind_reach_seen, "'(z|present_key_1)'"),
]


@pytest.mark.parametrize(("variant", "plant", "named"), PLANTS, ids=lambda v: getattr(v, "__name__", None))
def test_the_check_names_graph_and_tensor_of_a_planted_fault(
    check: Check, variant: Variant, plant: Callable[[ModelProto], None], named: str, tmp_path: Path
) -> None:
    model = check.load(variant)
    onnx.save(model, tmp_path / "same.onnx")
    check(variant, tmp_path / "same.onnx")
    plant(model)
    onnx.save(model, tmp_path / "planted.onnx")
    with pytest.raises(ParityError, match=f"graph {variant.name}: .*({named})") as caught:
        check(variant, tmp_path / "planted.onnx")
    assert "\n" not in str(caught.value)


def test_errors_are_relative_and_what_is_not_a_number_is_infinitely_wrong() -> None:
    ones = np.ones(4, np.float32)
    assert relative_error(ones * 1.5, ones) == pytest.approx(0.5)
    assert relative_error(ones * 3e-20, ones * 2e-20) > 0  # no division by zero
    for bad in (np.nan, np.inf, -np.inf):
        assert relative_error(np.array([1, bad]), np.ones(2)) == float("inf")


# ---- reordered head channels


@st.composite
def splits(draw: st.DrawFn) -> tuple[int, int, int]:
    a, b, c = (2 * draw(st.integers(1, 5)) for _ in range(3))
    return a, b, c


@settings(max_examples=50, deadline=None)
@given(
    split=splits(), frame=st.integers(0, 9), grid=st.tuples(st.integers(1, 4), st.integers(1, 4)), seed=st.integers(0)
)
def test_reordered_channels_and_half_tables_leave_queries_times_keys_unchanged(
    split: tuple[int, int, int], frame: int, grid: tuple[int, int], seed: int
) -> None:
    size, dim = grid[0] * grid[1], sum(split)
    rng = np.random.default_rng(seed)
    q, k = (torch.from_numpy(rng.standard_normal((1, 2, size, dim))) for _ in range(2))
    cos, sin = (torch.from_numpy(t).double() for t in rope_tables(frame, *grid, split, 10000.0))
    half_cos, half_sin = (torch.from_numpy(t).double() for t in half_tables(frame, *grid, split, 10000.0))
    assert half_cos.shape == (size, dim // 2)
    order = halves_first(split)
    assert sorted(order.tolist()) == list(range(dim))

    turned = [Portable().rotary(x[..., order], half_cos, half_sin) for x in (q, k)]
    wanted = [rotate(x, cos, sin, split) for x in (q, k)]
    for got, want in zip(turned, wanted, strict=True):
        torch.testing.assert_close(got, want[..., order], rtol=0, atol=1e-12)
    products = [a @ b.transpose(-1, -2) for a, b in (turned, wanted)]
    torch.testing.assert_close(*products, rtol=0, atol=1e-11)


def test_an_unknown_emitter_or_precision_is_refused_by_name(tiny_config: ModelConfig) -> None:
    with pytest.raises(InputError, match="emitter is 'tensorrt', expected one of portable, native; change --emitter"):
        emitter("tensorrt")
    with pytest.raises(InputError, match="precision is 'int4', expected one of fp32, fp16; change --precision"):
        contract(tiny_config, "int4", in_place=False)


def test_the_heads_loop_and_its_single_step_are_one_computation(check: Check) -> None:
    """The same nodes, so that a backend that captures the loop itself gets the same numbers."""
    body = scanned(check.load(Variant(DIFFUSION_HEAD)))
    step = check.load(Variant(HEAD_STEP)).graph
    assert [n.op_type for n in body.node] == [n.op_type for n in step.node]


def test_fp16_keeps_the_language_models_rotary_frequencies(
    tiny_graph: Callable[..., Path], tiny_model: VideoMAR
) -> None:
    """Rounded to FP16 they would turn position 300 by up to a tenth of a radian too far."""
    frequencies = tiny_model.text_encoder.llm.rotary_emb.inv_freq.numpy()
    graph = onnx.load(tiny_graph(TEXT_ENCODER, "fp16")).graph
    stored = [numpy_helper.to_array(t) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    same = [t for t in stored if t.size == frequencies.size and np.allclose(t.ravel(), frequencies, rtol=1e-6)]
    assert same
