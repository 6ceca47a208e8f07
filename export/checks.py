"""Is a graph still the PyTorch model? Every graph is fed and compared with the reference, not with its flat module.

Knows nothing of how graphs are made.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from videomar.errors import ParityError
from videomar.export.decoder_reference import frame_of_whole
from videomar.export.emitters import halves_first
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
    layer_names,
    modulation_names,
)
from videomar.model.generate import sample_tokens
from videomar.model.transformer import KeyValue
from videomar.model.videomar import PartsOfCheckpoint, VideoMAR
from videomar.runtime.backends.ort_session import open_session
from videomar.schedule import DiffusionSchedule, half_tables, rope_tables

Feeds = dict[str, np.ndarray]
Model = VideoMAR | PartsOfCheckpoint


@dataclass(frozen=True)
class Case:
    """Sizes of one check; two cases differ in every dynamic axis, so a frozen axis cannot pass."""

    grid: tuple[int, int]
    past_frames: int
    branches: int
    text: int
    predicted: int
    steps: int  # diffusion steps more than the model's own
    seed: int


CASES = (Case((4, 4), 1, 2, 6, 5, 6, 1), Case((2, 5), 2, 1, 3, 2, 4, 2), Case((3, 4), 0, 2, 4, 1, 3, 3))


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """||got - expected|| / ||expected|| in float64; infinite where `got` is not finite."""
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    if not np.isfinite(got).all():
        return float("inf")
    return float(np.linalg.norm(got - expected) / max(np.linalg.norm(expected), 1e-12))


def check_graph(
    file: Path,
    spec: GraphSpec,
    model: Model,
    prefix: int,
    tolerance: float,
    in_place: bool,
    cache_tokens: int | None = None,
) -> dict[str, float]:
    """Run a graph on the CPU and compare every output with the reference: output -> largest relative error.

    Layers of one kind (present_key_*) are reported together. Raises ParityError naming graph, tensor, error and
    tolerance.
    """
    with torch.inference_mode():
        references = [_REFERENCES[spec.name](model, case, prefix) for case in CASES]
    if isinstance(model, PartsOfCheckpoint):
        model.release()  # at full size the model and ONNX Runtime's copy of it do not fit together
    try:
        session = open_session(file)
    except Exception as error:  # ONNX Runtime's own exception types are not public
        raise ParityError(
            f"graph {spec.name}: ONNX Runtime {ort.__version__} cannot load it ({_line(error)}); upgrade "
            "onnxruntime or export with --emitter portable"
        ) from None
    for side, values, wanted in (
        ("input", session.get_inputs(), spec.inputs),
        ("output", session.get_outputs(), spec.outputs),
    ):
        pairs = zip_longest(((v.name, len(v.shape)) for v in values), ((t.name, len(t.axes)) for t in wanted))
        for got, want in pairs:
            if got != want:
                raise ParityError(f"graph {spec.name}: {side} {_named(got)}, the contract has {_named(want)}")
    errors: dict[str, float] = {}
    dtypes = {t.name: t.dtype for t in spec.inputs}
    for case, (feeds, expected) in zip(CASES, references, strict=True):
        if spec.name == TRANSFORMER_STEP and in_place:
            feeds = _as_cache(feeds, case, cache_tokens)
        feeds = {name: value.astype(dtypes[name]) for name, value in feeds.items()}
        try:
            outputs = session.run(None, feeds)
        except Exception as error:
            raise ParityError(f"graph {spec.name}: cannot run ({_line(error)}); case {case}") from None
        for tensor, got in zip(spec.outputs, outputs, strict=True):
            want = expected[tensor.name]
            if got.dtype.name != tensor.dtype:
                raise ParityError(f"graph {spec.name}: {tensor.name!r} is {got.dtype}, not {tensor.dtype}")
            if cache_tokens and tensor.name.startswith("present_"):
                got = got[:, :, : want.shape[2]]
            if got.shape != want.shape:
                raise ParityError(
                    f"graph {spec.name}: {tensor.name!r} has shape {list(got.shape)}, PyTorch has {list(want.shape)}"
                )
            error = relative_error(got, want)
            if not error <= tolerance:
                raise ParityError(
                    f"graph {spec.name}: {tensor.name!r} is {error:.2e} away from PyTorch (relative L2), "
                    f"tolerance {tolerance:.0e}; case {case}"
                )
            kind = tensor.name.rstrip("0123456789").rstrip("_")
            errors[kind] = max(errors.get(kind, 0.0), error)
    return errors


def _line(error: Exception) -> str:
    return f"{str(error).splitlines()[0]:.200}"


def _named(tensor: tuple[str, int] | None) -> str:
    return "nothing" if tensor is None else f"{tensor[0]!r} of rank {tensor[1]}"


def _as_cache(feeds: Feeds, case: Case, fixed: int | None) -> Feeds:
    """Finished K/V in a cache of `fixed` length, or with room for the new tokens alone; the room holds rubbish."""
    tokens = case.grid[0] * case.grid[1]
    total = (case.past_frames + 1) * tokens
    length = fixed or total
    for name in [n for n in feeds if n.startswith("past_")]:
        past = feeds[name]
        room = np.full((*past.shape[:2], length - past.shape[2], past.shape[3]), 7.0, past.dtype)
        feeds[name] = np.concatenate([past, room], axis=2)
    feeds["start"] = np.full(case.branches, case.past_frames * tokens, np.int64)
    return feeds | {"reach": np.zeros(total, np.float32)} if fixed else feeds


def _generator(case: Case) -> torch.Generator:
    return torch.Generator().manual_seed(case.seed)


def _text_encoder(model: Model, case: Case, prefix: int) -> tuple[Feeds, Feeds]:
    ids = torch.randint(model.config.text.vocab_size, (1, prefix + case.text), generator=_generator(case))
    states = model.text_encoder.prompt_states(ids, prefix)
    return {"ids": ids.numpy()}, {"states": states.numpy()}


def _context(model: Model, case: Case) -> tuple[Tensor, Tensor]:
    states = torch.randn(1, case.text, model.config.text.width, generator=_generator(case))
    drop = torch.tensor([False, True])
    return states, model.transformer.text_context(states.expand(2, -1, -1), drop)


def _text_key_values(model: Model, case: Case, prefix: int) -> tuple[Feeds, Feeds]:
    states, context = _context(model, case)
    names = layer_names("text", model.config.transformer.depth)
    pairs = [t.numpy() for pair in model.transformer.text_key_values(context) for t in pair]
    return {"states": states.numpy()}, dict(zip(names, pairs, strict=True))


def _pixels(model: Model, case: Case) -> Tensor:
    stride = model.config.tokenizer.spatial_stride
    frames = 1 + case.past_frames * model.config.tokenizer.temporal_stride
    small = torch.rand(1, 3, frames, *case.grid, generator=_generator(case)) * 2 - 1
    return torch.nn.functional.interpolate(small, scale_factor=(1, stride, stride), mode="trilinear")


def _tokenizer_encoder(model: Model, case: Case, prefix: int) -> tuple[Feeds, Feeds]:
    pixels = _pixels(model, case)
    return {"pixels": pixels.numpy()}, {"latents": model.video_tokenizer.encode(pixels).numpy()}


def _tokenizer_decoder(model: Model, case: Case, prefix: int) -> tuple[Feeds, Feeds]:
    return frame_of_whole(model.video_tokenizer, model.video_tokenizer.encode(_pixels(model, case)))


def _step(model: Model, case: Case) -> tuple[Feeds, Tensor, list[KeyValue]]:
    """Feeds of one step after `past_frames` finished frames, and what the reference makes of it."""
    generator, t = _generator(case), model.config.transformer
    tokens = case.grid[0] * case.grid[1]
    _, context = _context(model, case)
    text = model.transformer.text_key_values(context[: case.branches])
    past: list[KeyValue] | None = None
    known = torch.zeros(case.branches, tokens, dtype=torch.bool)
    for frame in range(case.past_frames):
        x = 0.6 * torch.randn(tokens, t.token_channels, generator=generator)
        tables = _rope(model, case, frame)
        _, past = model.transformer(x.expand(case.branches, -1, -1), known, *tables, text, past=past)
    x = 0.6 * torch.randn(tokens, t.token_channels, generator=generator)
    masked = torch.rand(tokens, generator=generator) < 0.5
    rows = torch.randperm(tokens, generator=generator)[: case.predicted]
    tables = _rope(model, case, case.past_frames)
    z, present = model.transformer(
        x.expand(case.branches, -1, -1), masked.expand(case.branches, -1), *tables, text, past=past
    )
    empty = torch.zeros(case.branches, t.heads, 0, t.head_dim)
    depth, split = t.depth, t.rope_split
    cos, sin = half_tables(case.past_frames, *case.grid, split, t.rope_theta)
    feeds = {"tokens": x, "masked": masked, "predict": rows}
    feeds |= dict(zip(layer_names("text", depth), (v for pair in text for v in pair), strict=True))
    feeds |= dict(zip(layer_names("past", depth), _reordered(past or [(empty, empty)] * depth, split), strict=True))
    return (
        {n: v.numpy() for n, v in feeds.items()} | {"rope_cos": cos, "rope_sin": sin},
        z[:, rows],
        present,
    )


def _rope(model: Model, case: Case, frame: int) -> tuple[Tensor, Tensor]:
    t = model.config.transformer
    cos, sin = rope_tables(frame, *case.grid, t.rope_split, t.rope_theta)
    return torch.from_numpy(cos), torch.from_numpy(sin)


def _reordered(pairs: list[KeyValue], split: tuple[int, int, int]) -> list[Tensor]:
    """K/V as the graphs keep them: key channels with the first halves of the RoPE slices first."""
    order = halves_first(split)
    return [t for key, value in pairs for t in (key[..., order], value)]


def _transformer_step(model: Model, case: Case, prefix: int) -> tuple[Feeds, Feeds]:
    feeds, z, present = _step(model, case)
    c = model.config.transformer
    tensors = [t.numpy() for t in _reordered(present, c.rope_split)]
    return feeds, {"z": z.numpy()} | dict(zip(layer_names("present", c.depth), tensors, strict=True))


@functools.lru_cache(maxsize=len(CASES))
def _z(model: Model, case: Case) -> Tensor:
    """What the head is given; kept, since its three graphs ask for the same."""
    return _step(model, case)[1]


def _steps(model: Model, case: Case) -> int:
    """Diffusion steps: about the model's own, another number in each case."""
    return min(model.config.head.train_steps, model.config.sampling.head_steps + case.steps)


def _diffusion_head(model: Model, case: Case, prefix: int) -> tuple[Feeds, Feeds]:
    z = _z(model, case)
    rng = np.random.default_rng(case.seed)
    shape = (z.shape[1], model.config.transformer.token_channels)
    c = model.config
    # As many steps as are sampled with: a schedule of few makes steps so steep that they multiply FP16's rounding by
    # thousands, which no clip does.
    steps = _steps(model, case)
    schedule = DiffusionSchedule.respaced(c.head.train_steps, steps, c.sampling.max_beta)
    initial = rng.standard_normal(shape).astype(np.float32)
    draws = rng.standard_normal((steps, *shape)).astype(np.float32)
    guidance, temperature = 2.5, 0.95
    sampled = sample_tokens(model, z, guidance, temperature, schedule, initial, draws)
    scaled = draws * np.float32(temperature)
    scaled[-1] = 0
    feeds = {
        "z": z.numpy(),
        "timesteps": schedule.timesteps,
        "coefficients": schedule.coefficients,
        "guidance": np.array([guidance], np.float32),
        "initial": initial,
        "draws": scaled,
    }
    return feeds, {"sampled": sampled.numpy()}


def _head_condition(model: Model, case: Case, prefix: int) -> tuple[Feeds, Feeds]:
    feeds, _ = _diffusion_head(model, case, prefix)
    head, z = model.diffusion_head, torch.from_numpy(feeds["z"])
    time = head.time_embed(torch.from_numpy(feeds["timesteps"]))
    y = time[:, None, None] + head.cond_embed(z)
    parts: list[Tensor] = []
    for layer, count in (*((block, 3) for block in head.res_blocks), (head.final_layer, 2)):
        shift, scale, *gate = layer.adaLN_modulation(y).chunk(count, dim=-1)
        parts += [shift, 1 + scale, *gate]
    names = modulation_names(head.config, "modulations")
    expected = dict(zip(names, (part.numpy() for part in parts), strict=True))
    return {"timesteps": feeds["timesteps"], "z": feeds["z"]}, expected


def _head_step(model: Model, case: Case, prefix: int) -> tuple[Feeds, Feeds]:
    """One step of the loop: what the whole loop makes of a schedule cut to its middle step."""
    feeds, _ = _diffusion_head(model, case, prefix)
    embedded = _head_condition(model, case, prefix)[1].values()
    at = len(feeds["timesteps"]) // 2
    schedule = DiffusionSchedule(feeds["timesteps"][at : at + 1], feeds["coefficients"][at : at + 1])
    z, draw = torch.from_numpy(feeds["z"]), feeds["draws"][at]
    after = sample_tokens(model, z, float(feeds["guidance"][0]), 1.0, schedule, feeds["initial"], draw[None] * 0)
    # The reference adds no noise at its last step; here it is added by hand, from the learned variance.
    low, high = feeds["coefficients"][at, 4:]
    _, variance = model.diffusion_head(
        torch.from_numpy(feeds["initial"]), torch.full((len(draw),), float(feeds["timesteps"][at])), z[0]
    )
    share = (variance.numpy() + 1) / 2
    expected = after.numpy() + np.exp(0.5 * (share * high + (1 - share) * low)) * draw
    return {
        "x": feeds["initial"],
        "step_coefficients": feeds["coefficients"][at],
        "draw": draw,
        "guidance": feeds["guidance"],
        **{n: v[at] for n, v in zip(modulation_names(model.config.head), embedded, strict=True)},
    }, {"next": expected.astype(np.float32)}


_REFERENCES: dict[str, Callable[[Model, Case, int], tuple[Feeds, Feeds]]] = {
    TEXT_ENCODER: _text_encoder,
    TEXT_KEY_VALUES: _text_key_values,
    TOKENIZER_ENCODER: _tokenizer_encoder,
    TOKENIZER_DECODER: _tokenizer_decoder,
    TRANSFORMER_STEP: _transformer_step,
    DIFFUSION_HEAD: _diffusion_head,
    HEAD_CONDITION: _head_condition,
    HEAD_STEP: _head_step,
}
