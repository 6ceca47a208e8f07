"""A backend in which every call of a graph is one function call on named arrays, so that whoever wants can look on.

K/V are explicit arrays and the head is run in parts, so that nothing of the real loop is hidden; slower than
`OrtBackend`, by design. Knows nothing of who looks on or why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from videomar.artifacts import Manifest
from videomar.errors import ArtifactError
from videomar.graphs import (
    HEAD_CONDITION,
    HEAD_STEP,
    TEXT_ENCODER,
    TEXT_KEY_VALUES,
    TOKENIZER_DECODER,
    TOKENIZER_ENCODER,
    TRANSFORMER_STEP,
    contract,
    layer_names,
)
from videomar.runtime.backends.base import ClipPlan
from videomar.runtime.backends.ort import allowed_cores

Arrays = dict[str, np.ndarray]
Run = Callable[[str, Arrays], Arrays]  # (graph, its inputs) -> all of its outputs

USED = (
    TEXT_ENCODER,
    TEXT_KEY_VALUES,
    TOKENIZER_ENCODER,
    TOKENIZER_DECODER,
    TRANSFORMER_STEP,
    HEAD_CONDITION,
    HEAD_STEP,
)


def open_session(file: Path, threads: int | None = None) -> ort.InferenceSession:
    """One graph on the CPU; raises ArtifactError when ONNX Runtime cannot load it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or allowed_cores()
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exception types are not public
        why = str(error).splitlines()[0]
        raise ArtifactError(
            f"{file} cannot be loaded by ONNX Runtime ({why:.200}); export the checkpoint again"
        ) from None


class Graphs:
    """The graphs of an artifact directory as a `Run`, opened when first used; `files` stand for some of them."""

    def __init__(self, directory: Path, threads: int | None = None, files: Mapping[str, Path] | None = None) -> None:
        self._directory, self._threads, self._files = directory, threads, dict(files or {})
        self._sessions: dict[str, ort.InferenceSession] = {}

    def __call__(self, graph: str, feeds: Arrays) -> Arrays:
        if graph not in self._sessions:
            file = self._files.get(graph, self._directory / f"{graph}.onnx")
            self._sessions[graph] = open_session(file, self._threads)
        session = self._sessions[graph]
        return dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))


class PlainBackend:
    """`Backend` over a `Run`."""

    name = "plain"

    def __init__(self, manifest: Manifest, run: Run) -> None:
        self.config, self.run = manifest.config, run
        self.in_place = manifest.emitter == "native"
        self.cache_tokens: int | None = manifest.extra.get("cache_tokens")
        specs = contract(manifest.config, manifest.activations, self.in_place, self.cache_tokens)
        self.dtype = np.dtype(specs[TRANSFORMER_STEP].outputs[0].dtype)

    def encode_text(self, ids: np.ndarray) -> np.ndarray:
        return self.run(TEXT_ENCODER, {"ids": ids})["states"]

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        return self.run(TOKENIZER_ENCODER, {"pixels": pixels})["latents"]

    def decode(self, latents: np.ndarray) -> np.ndarray:
        return self.run(TOKENIZER_DECODER, {"latents": latents})["pixels"]

    def begin(self, states: np.ndarray, plan: ClipPlan) -> PlainClip:
        return PlainClip(self, states, plan)

    def close(self) -> None:
        pass


class PlainClip:
    """`Clip` over a `Run`."""

    def __init__(self, backend: PlainBackend, states: np.ndarray, plan: ClipPlan) -> None:
        self._backend, self._plan, t = backend, plan, backend.config.transformer
        both = backend.run(TEXT_KEY_VALUES, {"states": states})
        self._text = {n: both[n][: plan.branches] for n in layer_names("text", t.depth)}
        empty = np.zeros((plan.branches, t.heads, 0, t.head_dim), backend.dtype)
        self._past = dict.fromkeys(layer_names("past", t.depth), empty)
        self._finished = 0
        self._results: Arrays = {}
        self._z = empty

    def step(
        self, tokens: np.ndarray, masked: np.ndarray, predict: np.ndarray, cos: np.ndarray, sin: np.ndarray
    ) -> None:
        backend, dtype = self._backend, self._backend.dtype
        feeds = {
            "tokens": np.array(tokens, np.float32, order="C"),  # copies: the loop changes its arrays
            "masked": np.array(masked),
            "predict": np.array(predict),
            "rope_cos": cos.astype(dtype),
            "rope_sin": sin.astype(dtype),
            **self._text,
            **self._past,
        }
        if backend.in_place:
            past, total = (n * self._plan.tokens for n in (self._finished, self._finished + 1))
            feeds |= {name: _padded(v, backend.cache_tokens or total) for name, v in self._past.items()}
            feeds["start"] = np.full(self._plan.branches, past)
            if backend.cache_tokens:
                feeds["reach"] = np.zeros(total, np.float32)
        self._results = backend.run(TRANSFORMER_STEP, feeds)
        self._z = self._results["z"]

    def sample(self, guidance: float, initial: np.ndarray, draws: np.ndarray) -> np.ndarray:
        run, plan, scale = self._backend.run, self._plan, np.full(1, guidance, np.float32)
        made = run(HEAD_CONDITION, {"timesteps": plan.timesteps, "z": self._z})
        x = initial
        for time, coefficients, draw in zip(made["time"], plan.coefficients, draws, strict=True):
            feeds = {"x": x, "step_time": time, "step_coefficients": coefficients, "draw": draw.astype(np.float32)}
            x = run(HEAD_STEP, {**feeds, "condition": made["condition"], "guidance": scale})["next"]
        return x

    def keep(self) -> None:
        self._finished += 1
        length = self._finished * self._plan.tokens
        depth = self._backend.config.transformer.depth
        names = zip(layer_names("past", depth), layer_names("present", depth), strict=True)
        self._past = {past: self._results[present][:, :, :length] for past, present in names}

    def close(self) -> None:
        self._results, self._past, self._text = {}, {}, {}


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    widths = [(0, 0)] * values.ndim
    widths[2] = (0, length - values.shape[2])
    return np.pad(values, widths)
