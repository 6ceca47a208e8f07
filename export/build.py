"""Each graph of the contract: which flat module, which example inputs, which axes move. Knows nothing of files."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from videomar.carried import Carried, decoder_axes
from videomar.export.emitters import Emitter, Portable
from videomar.export.head import HeadCondition, HeadStep
from videomar.export.islands import keep_fp32
from videomar.export.onnx_files import loop_over_steps, to_onnx
from videomar.export.tokenizer import Encode, TextStates
from videomar.export.transformer import TextKeyValues, TransformerStep
from videomar.graphs import (
    DIFFUSION_HEAD,
    HEAD_CONDITION,
    HEAD_STEP,
    TEXT_ENCODER,
    TEXT_KEY_VALUES,
    TOKENIZER_DECODER,
    TOKENIZER_ENCODER,
    TRANSFORMER_STEP,
    GraphSpec,
    TensorSpec,
    modulation_names,
)
from videomar.model.decoder import DecodeFrame
from videomar.model.videomar import PartsOfCheckpoint, VideoMAR

AUTO = torch.export.Dim.AUTO
# Example sizes; all different, so that the tracer cannot take one axis for another.
SIZES = {"branches": 2, "tokens": 12, "past": 36, "total": 48, "text": 5, "predicted": 3, "steps": 7}
# Only the transformer differs between emitters: the other graphs hold attention that TensorRT has no fused kernel for
# (wide heads in the tokenizer, a causal mask in the text encoder), and build as primitive operators.
OPSET = Portable.opset


class GraphBuilder:
    """Builds the graphs of one model for one set of specs; `prefix` is the number of system prompt ids."""

    def __init__(
        self,
        model: VideoMAR | PartsOfCheckpoint,
        specs: dict[str, GraphSpec],
        emit: Emitter,
        dtype: torch.dtype,
        prefix: int,
        folder: Path | None = None,
        islands: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        """folder: where graphs with too many weights for one file leave them while they are built. islands: graph ->
        tensors to be computed in FP32 although the rest is not."""
        self.model, self.specs, self.emit, self.dtype, self.prefix = model, specs, emit, dtype, prefix
        self.folder, self.islands = folder, islands or {}
        self.wide: dict[str, int] = {}  # graph -> operators in its FP32 islands

    def build(self, name: str) -> onnx.ModelProto:
        """One graph of the contract."""
        builders: dict[str, Callable[[], onnx.ModelProto]] = {
            TEXT_ENCODER: self._text_encoder,
            TEXT_KEY_VALUES: self._text_key_values,
            TOKENIZER_ENCODER: self._tokenizer_encoder,
            TOKENIZER_DECODER: self._tokenizer_decoder,
            TRANSFORMER_STEP: self._transformer_step,
            DIFFUSION_HEAD: self._diffusion_head,
            HEAD_CONDITION: lambda: self._head_condition,
            HEAD_STEP: lambda: self._head_step,
        }
        return builders[name]()

    def _trace(
        self, name: str, module: nn.Module, args: list[Any], axes: list[Any], opset: int = OPSET
    ) -> onnx.ModelProto:
        if any(p.dtype != self.dtype for p in module.parameters()):
            module = copy.deepcopy(module)
            for p in module.parameters():  # buffers, such as rotary frequencies, keep their precision
                p.data = p.data.to(self.dtype)
        graph = to_onnx(module.eval(), args, axes, self.specs[name], opset, self.folder)
        if tensors := self.islands.get(name):
            self.wide[name] = keep_fp32(graph, tensors, self.folder)
        return graph

    def _examples(self, name: str) -> tuple[list[Tensor], list[dict[int, Any]]]:
        """Inputs of the contract's sizes, and their moving axes."""
        inputs = self.specs[name].inputs
        return [_zeros(t) for t in inputs], [_moving(t) for t in inputs]

    def _text_encoder(self) -> onnx.ModelProto:
        module = TextStates(self.model.text_encoder, self.prefix)
        ids = torch.arange(self.prefix + SIZES["text"])[None]
        return self._trace(TEXT_ENCODER, module, [ids], [{1: AUTO}])

    def _text_key_values(self) -> onnx.ModelProto:
        return self._trace(TEXT_KEY_VALUES, TextKeyValues(self.model.transformer), *self._examples(TEXT_KEY_VALUES))

    def _tokenizer_encoder(self) -> onnx.ModelProto:
        c = self.model.config.tokenizer
        t, h, w = (torch.export.Dim(n, min=1, max=4096) for n in ("t", "h", "w"))
        pixels = torch.zeros(1, 3, 1 + 2 * c.temporal_stride, 4 * c.spatial_stride, 3 * c.spatial_stride)
        axes = {2: c.temporal_stride * t + 1, 3: c.spatial_stride * h, 4: c.spatial_stride * w}
        return self._trace(TOKENIZER_ENCODER, Encode(self.model.video_tokenizer), [pixels], [axes])

    def _tokenizer_decoder(self) -> onnx.ModelProto:
        tokenizer = self.model.config.tokenizer
        sizes = decoder_axes(tokenizer, clip=3, h=4, w=5)
        dims = {}
        for root in ("clip", "h", "w"):
            dim = torch.export.Dim(root, min=1, max=4096)
            for axis in (a for a in sizes if a.lstrip("0123456789") == root):
                dims[axis] = dim if axis == root else sizes[axis] // sizes[root] * dim

        def grouped(items: list[Any]) -> list[Any]:
            """As DecodeFrame.forward takes them: what is carried in two lists."""
            split = 2 + len(Carried.of(tokenizer).convolutions)
            return [*items[:2], items[2:split], items[split:]]

        inputs = self.specs[TOKENIZER_DECODER].inputs
        values, axes = [_zeros(t, sizes) for t in inputs], [_moving(t, dims) for t in inputs]
        return self._trace(TOKENIZER_DECODER, DecodeFrame(self.model.video_tokenizer), grouped(values), grouped(axes))

    def _transformer_step(self) -> onnx.ModelProto:
        names = [t.name for t in self.specs[TRANSFORMER_STEP].inputs]
        values, axes = self._examples(TRANSFORMER_STEP)

        def grouped(items: list[Any]) -> list[Any]:
            """As TransformerStep.forward takes them: the per-layer tensors in two lists."""
            by_name = dict(zip(names, items, strict=True))
            layers = [[v for n, v in by_name.items() if n.startswith(p)] for p in ("text_", "past_")]
            single = [v for n, v in by_name.items() if not n.startswith(("text_", "past_"))]
            return [*single[:5], *layers, *single[5:]]

        module = TransformerStep(self.model.transformer, self.emit)
        return self._trace(TRANSFORMER_STEP, module, grouped(values), grouped(axes), self.emit.opset)

    @cached_property
    def _head_condition(self) -> onnx.ModelProto:
        return self._trace(HEAD_CONDITION, HeadCondition(self.model.diffusion_head), *self._examples(HEAD_CONDITION))

    @cached_property
    def _head_step(self) -> onnx.ModelProto:
        values, axes = ([*items[:4], items[4:]] for items in self._examples(HEAD_STEP))  # modulations in a list
        return self._trace(HEAD_STEP, HeadStep(self.model.diffusion_head), values, axes)

    def _diffusion_head(self) -> onnx.ModelProto:
        head = self.model.config.head
        scanned = dict(zip(modulation_names(head), modulation_names(head, "modulations"), strict=True))
        scanned |= {"step_coefficients": "coefficients", "draw": "draws"}
        return loop_over_steps(
            self._head_condition, self._head_step, self.specs[DIFFUSION_HEAD], ("initial", "x"), scanned
        )


def _zeros(tensor: TensorSpec, sizes: dict[str, int] = SIZES) -> Tensor:
    shape = [sizes[a] if isinstance(a, str) else a for a in tensor.axes]
    return torch.zeros(shape, dtype=getattr(torch, tensor.dtype))


def _moving(tensor: TensorSpec, dims: dict[str, Any] | None = None) -> dict[int, Any]:
    return {i: dims[a] if dims else AUTO for i, a in enumerate(tensor.axes) if isinstance(a, str)}
