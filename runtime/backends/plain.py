"""A backend in which every call of a graph is one function call on named arrays, so that whoever wants can look on.

K/V are explicit arrays and the head is run in parts, so that nothing of the real loop is hidden; slower than
`OrtBackend`, by design. Knows nothing of who looks on or why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from videomar.artifacts import Manifest
from videomar.carried import decoder_axes
from videomar.config import ANCESTRAL
from videomar.graphs import (
    HEAD_CONDITION,
    HEAD_STEP,
    TEXT_ENCODER,
    TEXT_KEY_VALUES,
    TOKENIZER_DECODER,
    TOKENIZER_ENCODER,
    TRANSFORMER_STEP,
    GraphSpec,
    contract,
    layer_names,
)
from videomar.runtime.backends.base import Backend, ClipPlan

Arrays = dict[str, np.ndarray]
Run = Callable[[str, Arrays], Arrays]  # (graph, its inputs) -> all of its outputs


class PlainBackend(Backend):
    """`Backend` over a `Run`."""

    name = "plain"

    def __init__(self, manifest: Manifest, run: Run) -> None:
        self.config, self.run = manifest.config, run
        self.in_place = manifest.emitter == "native"
        self.cache_tokens: int | None = manifest.cache_tokens
        self.specs = contract(manifest.config, manifest.activations, self.in_place, self.cache_tokens)
        self.dtype = np.dtype(self.specs[TRANSFORMER_STEP].outputs[0].dtype)

    def encode_text(self, ids: np.ndarray) -> np.ndarray:
        return self.run(TEXT_ENCODER, {"ids": ids})["states"]

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        return self.run(TOKENIZER_ENCODER, {"pixels": pixels})["latents"]

    def decoder(self, frames: int, h: int, w: int) -> PlainDecoder:
        axes = decoder_axes(self.config.tokenizer, frames, h, w)
        return PlainDecoder(self.run, nothing_carried(self.specs[TOKENIZER_DECODER], axes))

    def begin(self, states: np.ndarray, plan: ClipPlan) -> PlainClip:
        return PlainClip(self, states, plan)

    def close(self) -> None:
        pass


class PlainDecoder:
    """`Decoder` over a `Run`."""

    def __init__(self, run: Run, carried: Arrays) -> None:
        self._run, self._carried, self._done = run, carried, 0

    def next(self, latent: np.ndarray) -> np.ndarray:
        feeds = {"latents": latent[None, :, None], "done": np.array([self._done]), **self._carried}
        made = self._run(TOKENIZER_DECODER, feeds)
        self._carried = {name: made[name.replace("past_", "present_")] for name in self._carried}
        self._done += 1
        return made["pixels"] if self._done > 1 else made["pixels"][:, :, -1:]

    def close(self) -> None:
        self._carried = {}


def nothing_carried(decoder: GraphSpec, axes: Mapping[str, int]) -> Arrays:
    """What the decoder graph is given at a clip's first frame, which it does not read."""
    carried = [t for t in decoder.inputs if t.name.startswith("past_")]
    return {t.name: np.zeros([axes[a] if isinstance(a, str) else a for a in t.axes], t.dtype) for t in carried}


class PlainClip:
    """`Clip` over a `Run`."""

    def __init__(self, backend: PlainBackend, states: np.ndarray, plan: ClipPlan) -> None:
        self._backend, self._plan, t = backend, plan, backend.config.transformer
        both = backend.run(TEXT_KEY_VALUES, {"states": states})
        self._text = {n: both[n][: plan.branches] for n in layer_names("text", t.depth)}
        empty = np.zeros((plan.branches, t.heads, 0, t.head_dim), backend.dtype)
        self._past = dict.fromkeys(layer_names("past", t.depth), empty)
        self._finished = 0
        self._frame: Arrays = {}  # the current frame's K/V, position after position
        self._results: Arrays = {}
        self._z = empty

    def step(
        self,
        tokens: np.ndarray,
        masked: np.ndarray,
        predict: np.ndarray,
        cos: np.ndarray,
        sin: np.ndarray,
        first: int = 0,
        branches: int | None = None,
    ) -> None:
        backend, dtype, count = self._backend, self._backend.dtype, branches or self._plan.branches
        part = np.arange(first, first + len(tokens))
        past = {n: self._before(n, part)[:count] for n in self._past}
        feeds = {
            "tokens": np.array(tokens, np.float32, order="C"),  # copies: the loop changes its arrays
            "masked": np.array(masked),
            "predict": np.array(predict),
            "rope_cos": cos.astype(dtype),
            "rope_sin": sin.astype(dtype),
            **{n: v[:count] for n, v in self._text.items()},
            **past,
        }
        if backend.in_place:
            feeds = in_place(feeds, backend.cache_tokens)
        self._results = backend.run(TRANSFORMER_STEP, feeds)
        self._z = self._results["z"]
        for name, before in past.items():
            at = before.shape[2]
            new = self._results[name.replace("past_", "present_")][:, :, at : at + len(part)]
            if name not in self._frame:
                shape = (self._plan.branches, new.shape[1], self._plan.tokens, new.shape[3])
                self._frame[name] = np.zeros(shape, new.dtype)
            self._frame[name][:count, :, part] = new

    def _before(self, name: str, part: np.ndarray) -> np.ndarray:
        """K/V that a pass over these positions finds: of finished frames, and of the frame's other positions."""
        if len(part) == self._plan.tokens:
            return self._past[name]
        return np.concatenate([self._past[name], np.delete(self._frame[name], part, axis=2)], axis=2)

    def sample(self, guidance: float, initial: np.ndarray, draws: np.ndarray, solver: str = ANCESTRAL) -> np.ndarray:
        return sample_in_parts(self._backend.run, self._plan, self._z, guidance, initial, draws, solver)

    def z(self) -> np.ndarray:
        return self._z.astype(np.float32)

    def force(self, z: np.ndarray) -> None:
        self._z = z.astype(self._backend.dtype)

    def keep(self) -> None:
        self._finished += 1
        length = self._finished * self._plan.tokens
        depth = self._backend.config.transformer.depth
        names = zip(layer_names("past", depth), layer_names("present", depth), strict=True)
        self._past = {past: self._results[present][:, :, :length] for past, present in names}
        self._frame = {}

    def close(self) -> None:
        self._results, self._past, self._text, self._frame = {}, {}, {}, {}


def sample_in_parts(
    run: Run,
    plan: ClipPlan,
    z: np.ndarray,
    guidance: float,
    initial: np.ndarray,
    draws: np.ndarray,
    solver: str = ANCESTRAL,
) -> np.ndarray:
    """The diffusion head as engines run it: its modulations ahead, then step by step. z: [branches, N, width]; the
    others as of `Clip.sample`, and so is the result."""
    scale, schedule, x = np.full(1, guidance, np.float32), plan.schedules[len(draws), solver], initial
    made = run(HEAD_CONDITION, {"timesteps": schedule.timesteps, "z": z})
    for i, (coefficients, draw) in enumerate(zip(schedule.coefficients, draws, strict=True)):
        feeds = {"x": x, "step_coefficients": coefficients, "draw": draw.astype(np.float32), "guidance": scale}
        x = run(HEAD_STEP, feeds | modulations_of(made, i))["next"]
    return x


def modulations_of(made: Mapping[str, np.ndarray], step: int) -> Arrays:
    """What the head's first part made for one of its diffusion steps, as the second takes it; whoever looks on may have
    the graph tell more besides."""
    numbers = (name.removeprefix("modulations_") for name in made)
    return {f"modulation_{n}": made[f"modulations_{n}"][step] for n in numbers if n.isdecimal()}


def in_place(feeds: Mapping[str, np.ndarray], cache_tokens: int | None) -> Arrays:
    """A transformer step's portable inputs as a graph that writes K/V in place takes them (graphs.py, `contract`).

    cache_tokens: length of a cache that is fixed; None for one of exactly finished and new tokens.
    """
    branches, _, past, _ = feeds["past_key_0"].shape
    total = past + len(feeds["tokens"])
    length = cache_tokens or total
    given = {name: _padded(v, length) if name.startswith("past_") else v for name, v in feeds.items()}
    given["start"] = np.full(branches, past, np.int64)
    if cache_tokens:
        given["reach"] = np.zeros(total, np.float32)
    return given


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    widths = [(0, 0)] * values.ndim
    widths[2] = (0, length - values.shape[2])
    return np.pad(values, widths)
