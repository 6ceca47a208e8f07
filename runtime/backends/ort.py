"""ONNX Runtime on the CPU: the reference backend and the one that works anywhere.

Every buffer is allocated when a clip begins and bound. Knows nothing of masks, orders or schedules.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from videomar.artifacts import Manifest
from videomar.errors import ArtifactError, InputError
from videomar.graphs import (
    DIFFUSION_HEAD,
    TEXT_ENCODER,
    TEXT_KEY_VALUES,
    TOKENIZER_DECODER,
    TOKENIZER_ENCODER,
    TRANSFORMER_STEP,
    contract,
    layer_names,
)
from videomar.runtime.backends.base import ClipPlan, predicted_sizes
from videomar.runtime.backends.ort_cache import FixedCache, GrowingCache, wrap

PROVIDERS = ["CPUExecutionProvider"]
NEEDED = (TEXT_ENCODER, TEXT_KEY_VALUES, TOKENIZER_ENCODER, TOKENIZER_DECODER, TRANSFORMER_STEP, DIFFUSION_HEAD)


class OrtBackend:
    """All graphs of an artifact directory as ONNX Runtime sessions on the CPU."""

    name = "ort-cpu"

    def __init__(self, directory: Path, manifest: Manifest, threads: int | None = None) -> None:
        """threads: for one operator; None leaves the choice to ONNX Runtime (one a core)."""
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}, expected at least 1")
        self.config = manifest.config
        self.in_place = manifest.emitter == "native"
        self.cache_tokens: int | None = manifest.extra.get("cache_tokens")
        self.specs = contract(manifest.config, manifest.precision, self.in_place, self.cache_tokens)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        self.sessions: dict[str, ort.InferenceSession] = {}
        for name in NEEDED:
            file = directory / f"{name}.onnx"
            try:
                self.sessions[name] = ort.InferenceSession(str(file), options, providers=PROVIDERS)
            except Exception as error:  # ONNX Runtime's own exception types are not public
                raise ArtifactError(_why(file, manifest, error)) from None

    def encode_text(self, ids: np.ndarray) -> np.ndarray:
        return self._run(TEXT_ENCODER, ids)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        return self._run(TOKENIZER_ENCODER, pixels)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        return self._run(TOKENIZER_DECODER, latents)

    def _run(self, name: str, value: np.ndarray) -> np.ndarray:
        return self.sessions[name].run(None, {self.specs[name].inputs[0].name: value})[0]

    def begin(self, states: np.ndarray, plan: ClipPlan) -> OrtClip:
        return OrtClip(self, states, plan)

    def close(self) -> None:
        self.sessions.clear()


class OrtClip:
    """Buffers and bindings of one clip."""

    def __init__(self, backend: OrtBackend, states: np.ndarray, plan: ClipPlan) -> None:
        t = backend.config.transformer
        spec = backend.specs[TRANSFORMER_STEP]
        dtype = np.dtype(next(tensor.dtype for tensor in spec.outputs))
        self._step = backend.sessions[TRANSFORMER_STEP].io_binding()
        self._head = backend.sessions[DIFFUSION_HEAD].io_binding()
        self._run_step = backend.sessions[TRANSFORMER_STEP].run_with_iobinding
        self._run_head = backend.sessions[DIFFUSION_HEAD].run_with_iobinding

        # Inputs of every step, bound once: a step only overwrites their contents.
        self._tokens = np.zeros((plan.tokens, t.token_channels), np.float32)
        self._masked = np.zeros(plan.tokens, bool)
        self._cos = np.zeros((plan.tokens, t.head_dim // 2), dtype)
        self._sin = np.zeros_like(self._cos)
        for name, array in (
            ("tokens", self._tokens),
            ("masked", self._masked),
            ("rope_cos", self._cos),
            ("rope_sin", self._sin),
        ):
            self._step.bind_ortvalue_input(name, wrap(array))

        text = backend.sessions[TEXT_KEY_VALUES].run(None, {"states": states})
        self._text = [array[: plan.branches] for array in text]
        for name, array in zip(layer_names("text", t.depth), self._text, strict=True):
            self._step.bind_ortvalue_input(name, wrap(array))

        cache = GrowingCache if backend.cache_tokens is None else FixedCache
        self._cache = cache(backend, self._step, plan, dtype)

        self._sizes = {n: _Buffers(n, plan, t.width, t.token_channels, dtype) for n in predicted_sizes(plan.counts)}
        self._now = self._sizes[1]
        self._guidance = np.ones(1, np.float32)
        self._constant = [plan.timesteps.copy(), plan.coefficients.copy()]  # the bindings do not keep arrays alive
        for name, array in zip(("timesteps", "coefficients"), self._constant, strict=True):
            self._head.bind_ortvalue_input(name, wrap(array))
        self._head.bind_ortvalue_input("guidance", wrap(self._guidance))

    def step(
        self, tokens: np.ndarray, masked: np.ndarray, predict: np.ndarray, cos: np.ndarray, sin: np.ndarray
    ) -> None:
        self._tokens[:], self._masked[:] = tokens, masked
        self._cos[:], self._sin[:] = cos, sin
        self._now = now = self._sizes[len(predict)]
        now.predict[:] = predict
        self._step.bind_ortvalue_input("predict", now.predict_value)
        self._step.bind_ortvalue_output("z", now.z_value)
        self._run_step(self._step)

    def sample(self, guidance: float, initial: np.ndarray, draws: np.ndarray) -> np.ndarray:
        now = self._now
        self._guidance[0] = guidance
        now.initial[:], now.draws[:] = initial, draws
        self._head.bind_ortvalue_input("z", now.z_value)
        self._head.bind_ortvalue_input("initial", now.initial_value)
        self._head.bind_ortvalue_input("draws", now.draws_value)
        self._head.bind_ortvalue_output("sampled", now.sampled_value)
        self._run_head(self._head)
        return now.sampled

    def keep(self) -> None:
        self._cache.keep()

    def close(self) -> None:
        for binding in (self._step, self._head):
            binding.clear_binding_inputs()
            binding.clear_binding_outputs()
        self._cache.close()
        self._text.clear()
        self._sizes.clear()


class _Buffers:
    """What depends on the number of predicted tokens."""

    def __init__(self, count: int, plan: ClipPlan, width: int, channels: int, dtype: np.dtype) -> None:
        self.predict = np.zeros(count, np.int64)
        self.z = np.zeros((plan.branches, count, width), dtype)
        self.initial = np.zeros((count, channels), np.float32)
        self.draws = np.zeros((len(plan.timesteps), count, channels), np.float32)
        self.sampled = np.zeros((count, channels), np.float32)
        self.predict_value, self.z_value = wrap(self.predict), wrap(self.z)
        self.initial_value, self.draws_value = wrap(self.initial), wrap(self.draws)
        self.sampled_value = wrap(self.sampled)


def _why(file: Path, manifest: Manifest, error: Exception) -> str:
    if "opset" in str(error) or "Unsupported model IR version" in str(error):
        return (
            f"{file.name} uses ONNX opset {manifest.opset} ({manifest.emitter}), newer than ONNX Runtime "
            f"{ort.__version__} runs; upgrade onnxruntime or export with --emitter portable"
        )
    return f"{file} cannot be loaded by ONNX Runtime ({str(error).splitlines()[0]}); export the checkpoint again"
