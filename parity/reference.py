"""The PyTorch reference behind the backends' protocol: the same loop drives it and all that is compared with it.

Nothing is rearranged, fused or cached beyond K/V. Knows nothing of ONNX, files or the loop.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from videomar.config import ANCESTRAL
from videomar.model.generate import FrameKeyValues, sample_tokens
from videomar.model.transformer import KeyValue
from videomar.model.videomar import VideoMAR
from videomar.runtime.backends.base import ClipPlan


class TorchBackend:
    """One model in FP32 on the CPU; `prefix` is the number of system prompt ids."""

    name = "pytorch"

    def __init__(self, model: VideoMAR, prefix: int) -> None:
        self.model, self.prefix = model, prefix

    @torch.inference_mode()
    def encode_text(self, ids: np.ndarray) -> np.ndarray:
        return self.model.text_encoder.prompt_states(torch.from_numpy(ids), self.prefix).numpy()

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray) -> np.ndarray:
        return self.model.video_tokenizer.encode(torch.from_numpy(pixels)).numpy()

    def decoder(self, frames: int, h: int, w: int) -> TorchDecoder:
        return TorchDecoder(self.model)

    @torch.inference_mode()
    def decode(self, latents: np.ndarray) -> np.ndarray:
        return self.model.video_tokenizer.decode(torch.from_numpy(latents)).clamp(-1, 1).numpy()

    def begin(self, states: np.ndarray, plan: ClipPlan) -> TorchClip:
        return TorchClip(self.model, states, plan)

    def close(self) -> None:
        """Nothing to free."""


class TorchDecoder:
    """Decodes all frames so far again for every frame, so that nothing is carried."""

    def __init__(self, model: VideoMAR) -> None:
        self._tokenizer, self._latents = model.video_tokenizer, list[Tensor]()

    @torch.inference_mode()
    def next(self, latent: np.ndarray) -> np.ndarray:
        self._latents.append(torch.from_numpy(np.array(latent)))
        pixels = self._tokenizer.decode(torch.stack(self._latents, dim=1)[None]).clamp(-1, 1)
        return pixels[:, :, -self._tokenizer.config.temporal_stride :].numpy()

    def close(self) -> None:
        self._latents = []


class TorchClip:
    """K/V of one clip."""

    @torch.inference_mode()
    def __init__(self, model: VideoMAR, states: np.ndarray, plan: ClipPlan) -> None:
        self._model, self._plan = model, plan
        context = model.transformer.text_context(torch.from_numpy(np.asarray(states, np.float32)))
        if plan.branches == 2:
            context = torch.cat([context, model.transformer.no_text(context.shape[1])])
        self._text = model.transformer.text_key_values(context)
        self._past: list[KeyValue] | None = None
        self._frame = FrameKeyValues(plan.tokens)

    @torch.inference_mode()
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
        count, t = branches or self._plan.branches, self._model.transformer
        z, self._present = t(
            torch.from_numpy(tokens).expand(count, -1, -1),
            torch.from_numpy(masked).expand(count, -1),
            self._whole(cos),
            self._whole(sin),
            [(k[:count], v[:count]) for k, v in self._text],
            past=self._frame.before(self._past, first, len(tokens), count),
        )
        self._frame.take(self._present, first, len(tokens))
        self._z = z[:, torch.from_numpy(predict)]

    def _whole(self, half: np.ndarray) -> Tensor:
        """The backends' tables [S, D/2] as the paper's [S, D]: every slice's angles twice."""
        slices = torch.from_numpy(half).split([width // 2 for width in self._model.config.transformer.rope_split], -1)
        return torch.cat([part for each in slices for part in (each, each)], dim=-1)

    def z(self) -> np.ndarray:
        return self._z.numpy()

    def force(self, z: np.ndarray) -> None:
        self._z = torch.from_numpy(np.array(z, np.float32))

    @torch.inference_mode()
    def sample(self, guidance: float, initial: np.ndarray, draws: np.ndarray, solver: str = ANCESTRAL) -> np.ndarray:
        # The draws are scaled already, and zero at the last step.
        schedule = self._plan.schedules[len(draws), solver]
        return sample_tokens(self._model, self._z, guidance, 1.0, schedule, initial, draws).numpy()

    def keep(self) -> None:
        self._past = self._present

    def close(self) -> None:
        self._past = None
