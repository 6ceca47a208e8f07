"""The contract: every graph's tensors (name, dtype, axes) and tolerances, written once.

Read by the exporter, the engine builder, the runtime and the tests. Knows nothing of how anything is run.

Axes are numbers or names; a name is a dynamic axis, the same name the same size:
  branches   1 (text) or 2 (text, then `fake_latent`)      tokens     positions of one latent frame, h * w
  prompt     ids of system prompt and prompt               past       tokens of finished frames
  text       tokens of the prompt                          total      past + tokens
  predicted  positions whose tokens are sampled            steps      diffusion steps
  frames, height, width: pixels; t, h, w: latents.        clip       latent frames of the clip being decoded
  2h, 2w, 4h, 2clip...: a multiple of the latent's, inside the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass

from videomar.carried import CONTEXT, Carried, Place, scaled
from videomar.config import HeadConfig, ModelConfig
from videomar.errors import InputError

PRECISIONS = ("fp32", "fp16")

TEXT_ENCODER = "text_encoder"
TEXT_KEY_VALUES = "text_key_values"
TOKENIZER_ENCODER = "tokenizer_encoder"
TOKENIZER_DECODER = "tokenizer_decoder"
TRANSFORMER_STEP = "transformer_step"
DIFFUSION_HEAD = "diffusion_head"
HEAD_CONDITION = "head_condition"
HEAD_STEP = "head_step"
GRAPHS = (
    TEXT_ENCODER,
    TEXT_KEY_VALUES,
    TOKENIZER_ENCODER,
    TOKENIZER_DECODER,  # one latent frame, with what it carries from frame to frame
    TRANSFORMER_STEP,
    DIFFUSION_HEAD,  # the whole loop of a mask step in one call
    HEAD_CONDITION,  # the same in two parts, for backends that capture the loop themselves: for many steps ahead of it
    HEAD_STEP,  # and one diffusion step
)
MODULATION_BYTES = 64 << 20  # that the modulations of diffusion steps computed ahead may take

# Largest relative L2 error of any output against the FP32 PyTorch model that export lets pass. FP16's are what the
# arithmetic honestly reaches, with room of about two: the head's loop multiplies an error by its early, steep steps.
# INT8 rounds the transformer's linears alone, the rest is as exported. Demo model: K/V of a frame 2.4e-2, z 1.4e-2; the
# bound is that of z's least cosine, 0.997, which is 7.7e-2.
TOLERANCE: dict[str, dict[str, float]] = {
    "fp32": dict.fromkeys(GRAPHS, 1e-4),
    "fp16": {
        TEXT_ENCODER: 5e-3,
        TEXT_KEY_VALUES: 5e-3,
        TOKENIZER_ENCODER: 5e-3,
        TOKENIZER_DECODER: 5e-3,
        TRANSFORMER_STEP: 1e-2,
        DIFFUSION_HEAD: 2e-2,
        HEAD_CONDITION: 5e-3,
        HEAD_STEP: 1e-2,
    },
}
TOLERANCE["int8"] = TOLERANCE["fp16"] | {TRANSFORMER_STEP: 1e-1}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output; dtype as numpy names it."""

    name: str
    dtype: str
    axes: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One graph's interface."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def layer_names(prefix: str, depth: int) -> list[str]:
    """Tensor names of per-layer keys and values, in the graphs' order: prefix_key_0, prefix_value_0, prefix_key_1..."""
    return [f"{prefix}_{kind}_{layer}" for layer in range(depth) for kind in ("key", "value")]


def modulation_names(config: HeadConfig, prefix: str = "modulation") -> list[str]:
    """Tensor names of the head's modulations, in order: shift, scale, gate of every block, shift, scale of the end."""
    return [f"{prefix}_{i}" for i in range(3 * config.depth + 2)]


def require_engine_width(config: HeadConfig) -> None:
    """Raise InputError for a head that no engine can be given one diffusion step's modulations of: TensorRT wants
    every tensor to begin at a multiple of 256 bytes."""
    if config.width % 128:
        raise InputError(
            f"the diffusion head's width is {config.width}, TensorRT needs a multiple of 128; run this model on ONNX "
            "Runtime"
        )


def steps_ahead(config: HeadConfig, rows: int, steps: int, itemsize: int) -> int:
    """Diffusion steps whose modulations are computed ahead at once: all, or even lots that fit MODULATION_BYTES.

    rows: predicted tokens times branches; steps: of the whole loop; itemsize: bytes of a number.
    """
    step = len(modulation_names(config)) * rows * config.width * itemsize
    lots = -(-steps // max(1, MODULATION_BYTES // step))
    return -(-steps // lots)


def carried_tensors(config: ModelConfig, prefix: str, dtype: str) -> list[TensorSpec]:
    """What the decoder carries: frames before every convolution over time, then K/V of every attention over time."""
    carried = Carried.of(config.tokenizer)

    def tensor(name: str, place: Place, time: int | str) -> TensorSpec:
        h, w = scaled("h", place.scale), scaled("w", place.scale)
        return TensorSpec(f"{prefix}_{name}", dtype, (1, place.channels, time, h, w))

    return [
        *(tensor(f"frames_{i}", place, CONTEXT) for i, place in enumerate(carried.convolutions)),
        *(
            tensor(f"{kind}_{i}", place, scaled("clip", place.frames))
            for i, place in enumerate(carried.attentions)
            for kind in ("key", "value")
        ),
    ]


def contract(
    config: ModelConfig, precision: str, in_place: bool, cache_tokens: int | None = None
) -> dict[str, GraphSpec]:
    """Every graph's interface.

    precision: "fp32" or "fp16", the dtype between graphs; loop state, noise, schedule and pixels are always float32.
    in_place: finished K/V come as a cache of `total` tokens that the graph writes into from token `start` on (the
    output `present_*` is the same memory); otherwise as `past_*` of `past` tokens, and `present_*` is a new tensor.
    cache_tokens: with in_place, a cache of this fixed length instead, of which the first `total` tokens count; the
    length of the input `reach` says how many (its values are never read). TensorRT wants it so.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}; change --precision")
    t, f = config.transformer, "float16" if precision == "fp16" else "float32"
    if cache_tokens is not None and not in_place:
        raise InputError("a cache of fixed length needs K/V written in place; export with --emitter native")
    c, z = t.token_channels, config.tokenizer.latent_channels
    half = t.head_dim // 2

    def per_layer(prefix: str, branches: int | str, length: int | str) -> list[TensorSpec]:
        return [TensorSpec(n, f, (branches, t.heads, length, t.head_dim)) for n in layer_names(prefix, t.depth)]

    pixels = TensorSpec("pixels", "float32", (1, 3, "frames", "height", "width"))
    latents = TensorSpec("latents", "float32", (1, z, "t", "h", "w"))
    stride = config.tokenizer.temporal_stride
    states = TensorSpec("states", f, (1, "text", config.text.width))
    condition = TensorSpec("z", f, ("branches", "predicted", t.width))
    cache = cache_tokens or "total"
    timesteps = TensorSpec("timesteps", "float32", ("steps",))
    guidance = TensorSpec("guidance", "float32", (1,))

    def modulations(prefix: str, *axes: str) -> list[TensorSpec]:
        names = modulation_names(config.head, prefix)
        return [TensorSpec(n, f, (*axes, "branches", "predicted", config.head.width)) for n in names]

    specs = [
        GraphSpec(TEXT_ENCODER, (TensorSpec("ids", "int64", (1, "prompt")),), (states,)),
        GraphSpec(TEXT_KEY_VALUES, (states,), tuple(per_layer("text", 2, "text"))),
        GraphSpec(TOKENIZER_ENCODER, (pixels,), (latents,)),
        GraphSpec(
            TOKENIZER_DECODER,
            (
                TensorSpec("latents", "float32", (1, z, 1, "h", "w")),
                TensorSpec("done", "int64", (1,)),  # latent frames before; of the pixels after 0, the last frame counts
                *carried_tensors(config, "past", f),
            ),
            (
                TensorSpec("pixels", "float32", (1, 3, stride, "height", "width")),
                *carried_tensors(config, "present", f),
            ),
        ),
        GraphSpec(
            TRANSFORMER_STEP,
            (
                TensorSpec("tokens", "float32", ("tokens", c)),
                TensorSpec("masked", "bool", ("tokens",)),
                TensorSpec("predict", "int64", ("predicted",)),
                TensorSpec("rope_cos", f, ("tokens", half)),
                TensorSpec("rope_sin", f, ("tokens", half)),
                *per_layer("text", "branches", "text"),
                *per_layer("past", "branches", cache if in_place else "past"),
                *([TensorSpec("start", "int64", ("branches",))] if in_place else []),
                *([TensorSpec("reach", "float32", ("total",))] if cache_tokens else []),
            ),
            (condition, *per_layer("present", "branches", cache)),
        ),
        GraphSpec(
            DIFFUSION_HEAD,
            (
                condition,
                timesteps,
                TensorSpec("coefficients", "float32", ("steps", 6)),
                guidance,
                TensorSpec("initial", "float32", ("predicted", c)),
                TensorSpec("draws", "float32", ("steps", "predicted", c)),
            ),
            (TensorSpec("sampled", "float32", ("predicted", c)),),
        ),
        GraphSpec(
            HEAD_CONDITION,
            (timesteps, condition),
            tuple(modulations("modulations", "steps")),
        ),
        GraphSpec(
            HEAD_STEP,
            (
                TensorSpec("x", "float32", ("predicted", c)),
                TensorSpec("step_coefficients", "float32", (6,)),
                TensorSpec("draw", "float32", ("predicted", c)),
                guidance,
                *modulations("modulation"),
            ),
            (TensorSpec("next", "float32", ("predicted", c)),),
        ),
    ]
    return {spec.name: spec for spec in specs}
