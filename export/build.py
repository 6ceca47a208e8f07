"""Each graph of the contract: which flat module, which example inputs, which axes move. Knows nothing of files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from videomar.export.emitters import Emitter
from videomar.export.head import HeadCondition, HeadStep
from videomar.export.onnx_files import loop_over_steps, to_onnx
from videomar.export.tokenizer import Decode, Encode, TextStates
from videomar.export.transformer import TextKeyValues, TransformerStep
from videomar.graphs import (
    DIFFUSION_HEAD,
    TEXT_ENCODER,
    TEXT_KEY_VALUES,
    TOKENIZER_DECODER,
    TOKENIZER_ENCODER,
    TRANSFORMER_STEP,
    GraphSpec,
    TensorSpec,
)
from videomar.model.videomar import VideoMAR

AUTO = torch.export.Dim.AUTO
# Example sizes; all different, so that the tracer cannot take one axis for another.
BRANCHES, TOKENS, PAST, TEXT, PREDICTED, STEPS = 2, 12, 36, 5, 3, 7


def build(
    name: str, spec: GraphSpec, model: VideoMAR, emit: Emitter, dtype: torch.dtype, prefix: int
) -> onnx.ModelProto:
    """One graph of `model` with weights of `dtype`; `prefix` is the number of system prompt ids."""
    return _BUILDERS[name](spec, model, emit, dtype, prefix)


def _weights(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    return module if dtype == torch.float32 else copy.deepcopy(module).to(dtype)


def _text_encoder(spec: GraphSpec, model: VideoMAR, emit: Emitter, dtype: torch.dtype, prefix: int) -> onnx.ModelProto:
    module = _weights(TextStates(model.text_encoder, prefix), dtype)
    return to_onnx(module, [torch.arange(prefix + TEXT)[None]], [{1: AUTO}], spec, emit.opset)


def _text_key_values(
    spec: GraphSpec, model: VideoMAR, emit: Emitter, dtype: torch.dtype, prefix: int
) -> onnx.ModelProto:
    module = _weights(TextKeyValues(model.transformer), dtype)
    return to_onnx(module, [torch.zeros(1, TEXT, model.config.text.width, dtype=dtype)], [{1: AUTO}], spec, emit.opset)


def _tokenizer_encoder(
    spec: GraphSpec, model: VideoMAR, emit: Emitter, dtype: torch.dtype, prefix: int
) -> onnx.ModelProto:
    c = model.config.tokenizer
    t, h, w = (torch.export.Dim(n, min=1, max=4096) for n in ("t", "h", "w"))
    shape = (1, 3, 1 + 2 * c.temporal_stride, 4 * c.spatial_stride, 3 * c.spatial_stride)
    axes = {2: c.temporal_stride * t + 1, 3: c.spatial_stride * h, 4: c.spatial_stride * w}
    return to_onnx(_weights(Encode(model.video_tokenizer), dtype), [torch.zeros(shape)], [axes], spec, emit.opset)


def _tokenizer_decoder(
    spec: GraphSpec, model: VideoMAR, emit: Emitter, dtype: torch.dtype, prefix: int
) -> onnx.ModelProto:
    latents = torch.zeros(1, model.config.tokenizer.latent_channels, 3, 4, 5)
    axes = {2: AUTO, 3: AUTO, 4: AUTO}
    return to_onnx(_weights(Decode(model.video_tokenizer), dtype), [latents], [axes], spec, emit.opset)


def _transformer_step(
    spec: GraphSpec, model: VideoMAR, emit: Emitter, dtype: torch.dtype, prefix: int
) -> onnx.ModelProto:
    sizes = {"branches": BRANCHES, "tokens": TOKENS, "past": PAST, "total": PAST + TOKENS, "text": TEXT}
    sizes["predicted"] = PREDICTED
    example = {t.name: _zeros(t, sizes) for t in spec.inputs}
    axes = {t.name: {i: AUTO for i, a in enumerate(t.axes) if isinstance(a, str)} for t in spec.inputs}

    def arrange(values: dict[str, Any]) -> list[Any]:
        lists = [[v for n, v in values.items() if n.startswith(p)] for p in ("text_", "past_")]
        rest = [values[n] for n in ("tokens", "masked", "predict", "rope_cos", "rope_sin")]
        return [*rest, *lists, *([values["start"]] if emit.in_place else [])]

    module = _weights(TransformerStep(model.transformer, emit), dtype)
    return to_onnx(module, arrange(example), arrange(axes), spec, emit.opset)


def _diffusion_head(
    spec: GraphSpec, model: VideoMAR, emit: Emitter, dtype: torch.dtype, prefix: int
) -> onnx.ModelProto:
    head = _weights(model.diffusion_head, dtype)
    width, c = model.config.head.width, model.config.transformer.token_channels
    f = {torch.float32: "float32", torch.float16: "float16"}[dtype]
    z = spec.inputs[0]
    time = TensorSpec("time", f, ("steps", width))
    condition = TensorSpec("condition", f, ("branches", "predicted", width))
    before = GraphSpec(spec.name, (spec.inputs[1], z), (time, condition))
    sizes = {"branches": BRANCHES, "predicted": PREDICTED, "steps": STEPS}
    prologue = to_onnx(
        HeadCondition(head),
        [_zeros(t, sizes) for t in before.inputs],
        [{0: AUTO}, {0: AUTO, 1: AUTO}],
        before,
        emit.opset,
    )
    x = TensorSpec("x", "float32", ("predicted", c))
    step = GraphSpec(
        spec.name,
        (
            x,
            TensorSpec("step_time", f, (width,)),
            TensorSpec("step_coefficients", "float32", (6,)),
            TensorSpec("draw", "float32", ("predicted", c)),
            condition,
            TensorSpec("guidance", "float32", (1,)),
        ),
        (TensorSpec("next", "float32", x.axes),),
    )
    body = to_onnx(
        HeadStep(head),
        [_zeros(t, sizes) for t in step.inputs],
        [{0: AUTO}, {}, {}, {0: AUTO}, {0: AUTO, 1: AUTO}, {}],
        step,
        emit.opset,
    )
    scanned = {"step_time": "time", "step_coefficients": "coefficients", "draw": "draws"}
    return loop_over_steps(prologue, body, spec, ("initial", "x"), scanned)


def _zeros(tensor: TensorSpec, sizes: dict[str, int]) -> Tensor:
    shape = [sizes[a] if isinstance(a, str) else a for a in tensor.axes]
    return torch.zeros(shape, dtype=getattr(torch, tensor.dtype))


_BUILDERS: dict[str, Callable[[GraphSpec, VideoMAR, Emitter, torch.dtype, int], onnx.ModelProto]] = {
    TEXT_ENCODER: _text_encoder,
    TEXT_KEY_VALUES: _text_key_values,
    TOKENIZER_ENCODER: _tokenizer_encoder,
    TOKENIZER_DECODER: _tokenizer_decoder,
    TRANSFORMER_STEP: _transformer_step,
    DIFFUSION_HEAD: _diffusion_head,
}
