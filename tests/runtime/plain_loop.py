"""The graphs of an artifact directory run one after another, as plainly as ONNX Runtime allows: the TensorRT tests'
other opinion. No binding, no buffers, the diffusion loop in Python. Rows are padded as for TensorRT: matrix products of
another height may round otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from videomar.artifacts import Manifest
from videomar.config import ANCESTRAL
from videomar.graphs import layer_names
from videomar.runtime.backends.base import ClipPlan

Arrays = list[np.ndarray]


class PlainBackend:
    """session: ONNX file -> ONNX Runtime session."""

    name = "plain"

    def __init__(self, directory: Path, manifest: Manifest, session: Callable[[str], Any]) -> None:
        self.directory, self.session, self.t = directory, session, manifest.config.transformer
        self.dtype = np.float16 if manifest.precision == "fp16" else np.float32
        self.cache: int | None = manifest.cache_tokens

    def run(self, graph: str, feeds: dict[str, np.ndarray]) -> Arrays:
        return self.session(str(self.directory / f"{graph}.onnx")).run(None, feeds)

    def encode_text(self, ids: np.ndarray) -> np.ndarray:
        return self.run("text_encoder", {"ids": ids})[0]

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        return self.run("tokenizer_encoder", {"pixels": pixels})[0]

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Carries what the graph gives back, in NaNs at first, since nothing may read that."""
        session, (_, _, frames, h, w) = self.session(str(self.directory / "tokenizer_decoder.onnx")), latents.shape
        sizes = {"clip": frames} | {f"{n}{a}": int(n or 1) * s for n in ("", "2") for a, s in (("h", h), ("w", w))}
        shapes = {t.name: [sizes.get(a, a) for a in t.shape] for t in session.get_inputs()[2:]}
        carried = {name: np.full(shape, np.nan, self.dtype) for name, shape in shapes.items()}
        pixels = []
        for i in range(frames):
            feeds = {"latents": latents[:, :, i : i + 1], "done": np.array([i])} | carried
            made, *rest = self.run("tokenizer_decoder", feeds)
            pixels.append(made if i else made[:, :, -1:])
            carried = dict(zip(carried, rest, strict=True))
        return np.concatenate(pixels, axis=2)

    def begin(self, states: np.ndarray, plan: ClipPlan) -> PlainClip:
        return PlainClip(self, states, plan)

    def close(self) -> None: ...


class PlainClip:
    """`kept` collects the finished K/V after every frame, [branches, heads, tokens so far, dim] each."""

    def __init__(self, backend: PlainBackend, states: np.ndarray, plan: ClipPlan) -> None:
        self.backend, self.plan, self.rows = backend, plan, max(plan.counts)
        self.text = [a[: plan.branches] for a in backend.run("text_key_values", {"states": states})]
        t = backend.t
        shape = (plan.branches, t.heads, backend.cache or 0, t.head_dim)
        self.past: Arrays = [np.zeros(shape, backend.dtype) for _ in range(2 * t.depth)]
        # The current frame's, position after position; NaNs where nothing was computed yet.
        shape = (plan.branches, t.heads, plan.tokens, t.head_dim)
        self.frame: Arrays = [np.full(shape, np.nan, backend.dtype) for _ in self.past]
        self.kept: list[Arrays] = []
        self.finished = 0

    def padded(self, values: np.ndarray, axis: int = 0) -> np.ndarray:
        """Repeat the first row up to the clip's most."""
        return np.concatenate([values, *[values.take([0], axis)] * (self.rows - values.shape[axis])], axis)

    def step(
        self, tokens: Any, masked: Any, predict: Any, cos: Any, sin: Any, first: int = 0, branches: int | None = None
    ) -> None:
        backend, plan, count = self.backend, self.plan, branches or self.plan.branches
        part, before = slice(first, first + len(tokens)), self.finished * plan.tokens
        feeds = {"tokens": np.ascontiguousarray(tokens), "masked": masked, "predict": self.padded(predict)}
        feeds |= {"rope_cos": cos.astype(backend.dtype), "rope_sin": sin.astype(backend.dtype)}
        kept = [(p[:count], f[:count]) for p, f in zip(self.past, self.frame, strict=True)]
        if backend.cache:
            after = before + plan.tokens
            past = [np.concatenate([p[:, :, :before], f, p[:, :, after:]], axis=2) for p, f in kept]
            feeds["start"], feeds["reach"] = np.full(count, before + first, np.int64), np.zeros(after, np.float32)
        else:
            past = [np.concatenate([p, np.delete(f, part, axis=2)], axis=2) for p, f in kept]
        feeds |= {n: a[:count] for n, a in zip(layer_names("text", backend.t.depth), self.text, strict=True)}
        feeds |= dict(zip(layer_names("past", backend.t.depth), past, strict=True))
        self.z, *self.present = backend.run("transformer_step", feeds)
        at = before + first if backend.cache else self.present[0].shape[2] - len(tokens)
        for frame, present in zip(self.frame, self.present, strict=True):
            frame[:count, :, part] = present[:, :, at : at + len(tokens)]

    def sample(self, guidance: float, initial: np.ndarray, draws: np.ndarray, solver: str = ANCESTRAL) -> np.ndarray:
        run = self.backend.run
        schedule = self.plan.schedules[len(draws), solver]
        made = run("head_condition", {"timesteps": schedule.timesteps, "z": self.z})
        x, draws = self.padded(initial), self.padded(draws, 1)
        for step, (coefficients, draw) in enumerate(zip(schedule.coefficients, draws, strict=True)):
            feeds = {"x": x, "step_coefficients": coefficients, "draw": draw}
            feeds |= {f"modulation_{i}": each[step] for i, each in enumerate(made)}
            (x,) = run("head_step", feeds | {"guidance": np.array([guidance], np.float32)})
        return x[: len(initial)]

    def keep(self) -> None:
        self.past, self.finished = self.present, self.finished + 1
        self.kept.append([a[:, :, : self.finished * self.plan.tokens] for a in self.past])
        for frame in self.frame:
            frame.fill(np.nan)

    def close(self) -> None: ...
