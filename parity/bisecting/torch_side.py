"""The PyTorch reference as side A: forward hooks tell what the modules make, in the graphs' form.

The graphs' queries and keys have their RoPE channels reordered, their packed products all of q, then k, then v, and the
last block computes the predicted rows alone; here the paper's form is turned into that. Knows nothing of ONNX.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from videomar.carried import Carried
from videomar.graphs import (
    HEAD_CONDITION,
    HEAD_STEP,
    TEXT_ENCODER,
    TEXT_KEY_VALUES,
    TOKENIZER_DECODER,
    TOKENIZER_ENCODER,
    TRANSFORMER_STEP,
    contract,
)
from videomar.model.decoder import DecodeFrame
from videomar.model.head import DiffusionHead, ancestral_step
from videomar.model.transformer import Block, SelfAttention
from videomar.model.videomar import VideoMAR

Arrays = Mapping[str, np.ndarray]
Listen = Callable[[str, np.ndarray], None]
Tell = Callable[[str, Tensor], None]


class TorchSide:
    """A checkpoint's model in FP32."""

    precision, emitter = "fp32", "pytorch"

    def __init__(self, model: VideoMAR, prefix: int) -> None:
        self._model, self._prefix = model, prefix

    def tensors(self, part: str, inputs: Arrays) -> dict[str, str]:
        told: Counter[str] = Counter()
        self._run(part, inputs, lambda name, value: told.update([name]))
        return {name: "" for name, times in told.items() if times == 1}  # a module used twice has no one result

    @torch.inference_mode()
    def flow(self, part: str, inputs: Arrays, tensors: Iterable[str], listen: Listen) -> None:
        wanted = set(tensors)

        def tell(name: str, value: Tensor) -> None:
            if name in wanted:
                listen(name, value.numpy().copy())  # modules may go on in place

        self._run(part, inputs, tell)

    def weight(self, part: str, name: str) -> np.ndarray | None:
        """Only of norms, whose form is the same."""
        found = dict(self._model.transformer.named_parameters()).get(name) if part == TRANSFORMER_STEP else None
        return None if found is None or found.ndim != 1 else found.detach().numpy()

    def whole(self, part: str, inputs: Arrays, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        self.flow(part, inputs, outputs, found.__setitem__)
        return found

    @torch.inference_mode()
    def _run(self, part: str, inputs: Arrays, tell: Tell) -> None:
        given = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()}
        run = {
            TEXT_ENCODER: self._text,
            TEXT_KEY_VALUES: self._text_key_values,
            TOKENIZER_ENCODER: self._encode,
            TRANSFORMER_STEP: self._transformer,
            HEAD_CONDITION: self._condition,
            HEAD_STEP: self._head,
        }.get(part, self._decode)
        run(given, tell)

    def _text(self, given: dict[str, Tensor], tell: Tell) -> None:
        with hooked(self._model.text_encoder, lambda name, value: tell(f"encoder.{name}", value)):
            tell("states", self._model.text_encoder.prompt_states(given["ids"], self._prefix))

    def _text_key_values(self, given: dict[str, Tensor], tell: Tell) -> None:
        t = self._model.transformer

        def forward(name: str, value: Tensor) -> None:
            found = re.fullmatch(r"decoder_blocks\.(\d+)\.attn2\.(wkv|k_norm)", name)
            if name == "context_embed":
                tell(name, value)
            elif found and found[2] == "wkv":
                tell(f"attentions.{found[1]}.wkv", value)

        with hooked(t, forward):
            context = t.text_context(given["states"])
            context = torch.cat([context, t.no_text(context.shape[1])])
            for i, (key, value) in enumerate(t.text_key_values(context)):
                tell(f"text_key_{i}", key)
                tell(f"text_value_{i}", value)

    def _encode(self, given: dict[str, Tensor], tell: Tell) -> None:
        with hooked(self._model.video_tokenizer, tell):
            tell("latents", self._model.video_tokenizer.encode(given["pixels"]))

    def _decode(self, given: dict[str, Tensor], tell: Tell) -> None:
        """One latent frame, by PyTorch's modules as the graph has them (model/decoder.py)."""
        decode = DecodeFrame(self._model.video_tokenizer)
        spec = contract(self._model.config, "fp32", in_place=False)[TOKENIZER_DECODER]
        latents, done, *carried = (given[t.name] for t in spec.inputs)
        split = len(Carried.of(self._model.config.tokenizer).convolutions)
        with hooked(decode, tell):
            made = decode(latents, done, carried[:split], carried[split:])
        for tensor, value in zip(spec.outputs, made, strict=True):
            tell(tensor.name, value)

    def _transformer(self, given: dict[str, Tensor], tell: Tell) -> None:
        t, c = self._model.transformer, self._model.config.transformer
        order = _halves_first(c.rope_split)
        rows, last = given["predict"], f"decoder_blocks.{c.depth - 1}"
        text = [(given[f"text_key_{i}"], given[f"text_value_{i}"]) for i in range(c.depth)]
        # Finished keys come in the graphs' order of channels.
        back = torch.argsort(order)
        past = [(given[f"past_key_{i}"][..., back], given[f"past_value_{i}"]) for i in range(c.depth)]

        def forward(name: str, value: Tensor) -> None:
            layer, _, inner = name.rpartition(".")
            if name == "z_proj":
                return tell(name, value[0])
            if name == "decoder_norm":
                return tell("z", value[:, rows])
            if not name.startswith("decoder_blocks."):
                return None
            if inner in ("key", "value"):
                number = name.split(".")[1]
                return tell(f"present_{inner}_{number}", value[..., order] if inner == "key" else value)
            of_last = name.startswith(f"{last}.") or name == last
            if inner in ("q_norm", "k_norm"):  # [B, H, S, D] -> [B, S, H, D]
                value = value.transpose(1, 2)
                value = value[..., order] if layer.endswith("attn1") else value
                value = value * c.head_dim**-0.5 if inner == "q_norm" else value
            if inner == "wqkv":
                q, k, v = value.unflatten(-1, (c.heads, 3, c.head_dim)).unbind(-2)
                q, k, v = (part.flatten(-2) for part in (q[..., order], k[..., order], v))
                if of_last:
                    tell(f"{layer}.wq", q[:, rows])
                    return tell(f"{layer}.wkv", torch.cat([k, v], -1))
                value = torch.cat([q, k, v], -1)
            whole = inner in ("norm1", "k_norm")  # the last block's other layers work on the predicted rows
            return tell(name, value if whole or not of_last else value[:, rows])

        with hooked(t, forward):
            branches = text[0][0].shape[0]
            split = c.rope_split
            t(
                given["tokens"].expand(branches, -1, -1),
                given["masked"].expand(branches, -1),
                _whole_tables(given["rope_cos"], split),
                _whole_tables(given["rope_sin"], split),
                text,
                past=past,
            )

    def _condition(self, given: dict[str, Tensor], tell: Tell) -> None:
        head = self._model.diffusion_head
        with hooked(head, lambda name, value: tell(name, value) if "mlp" in name else None):
            time = head.time_embed(given["timesteps"])
        tell("cond_embed", condition := head.cond_embed(given["z"]))
        for i, value in enumerate(_modulations(head, time[:, None, None] + condition)):
            tell(f"modulations.{i}", value.flatten(0, 2))
            tell(f"modulations_{i}", value)

    def _head(self, given: dict[str, Tensor], tell: Tell) -> None:
        head, z = self._model.diffusion_head, given["z"]
        branches = z.shape[0]

        def forward(name: str, value: Tensor) -> None:
            if "adaLN_modulation" in name:
                return
            if name in ("input_proj", "res_blocks.0.in_ln"):  # before the condition, the same for all branches
                tell(name, value.unflatten(0, (branches, -1))[0])
            elif ".mlp." in name or name == "final_layer.linear":  # rows of both branches, as the graph has them there
                tell(name, value)
            elif name.startswith(("res_blocks.", "final_layer")):
                tell(name, value.unflatten(0, (branches, -1)))

        x = given["x"]
        both = x.expand(branches, -1, -1).flatten(0, 1)
        with hooked(head, forward):
            eps, variance = head(both, given["timestep"].expand(len(both)), z.flatten(0, 1))
        eps, variance = eps.unflatten(0, (branches, -1)), variance.unflatten(0, (branches, -1))
        guided = eps[-1] + given["guidance"] * (eps[0] - eps[-1])
        tell("next", ancestral_step(x, guided, variance[0], given["step_coefficients"], given["draw"]))


@contextmanager
def hooked(root: nn.Module, tell: Tell) -> Iterator[None]:
    """Tell every inner module's result by its path while the context lasts; keys and values as an attention's own."""

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def listen(module: nn.Module, args: object, output: object) -> None:
            value = output[0] if isinstance(module, (Block, SelfAttention)) else output
            if isinstance(value, Tensor):
                tell(name, value)
            if isinstance(module, SelfAttention):  # at once: all that is told later waits for them
                key, value = output[1]
                tell(f"{name}.key", key)
                tell(f"{name}.value", value)

        return listen

    handles = [module.register_forward_hook(hook(name)) for name, module in root.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _modulations(head: DiffusionHead, y: Tensor) -> list[Tensor]:
    """Of the embedded steps and conditions, as the graphs hand them on: a scale as 1 + scale."""
    parts = []
    for each, count in (*((block, 3) for block in head.res_blocks), (head.final_layer, 2)):
        chunks = each.adaLN_modulation(y).chunk(count, dim=-1)
        parts += [1 + chunk if i == 1 else chunk for i, chunk in enumerate(chunks)]
    return parts


def _halves_first(split: tuple[int, int, int]) -> Tensor:
    """The order of head channels that export gives queries and keys: every slice's first half, then every second."""
    starts = np.cumsum([0, *split[:2]])
    slices = list(zip(starts, split, strict=True))
    halves = [[np.arange(s + h * n // 2, s + (h + 1) * n // 2) for s, n in slices] for h in (0, 1)]
    return torch.from_numpy(np.concatenate([*halves[0], *halves[1]]))


def _whole_tables(half: Tensor, split: tuple[int, int, int]) -> Tensor:
    """The graphs' tables [S, D/2] as the paper's [S, D]: every slice's angles twice."""
    slices = half.split([width // 2 for width in split], -1)
    return torch.cat([part for each in slices for part in (each, each)], dim=-1)
