"""Generation in plain PyTorch, written like the paper: the truth that every other backend is compared with.

`cache=False` recomputes all earlier frames at every mask step under a frame-causal mask; `cache=True` keeps their K/V.
Knows nothing of ONNX or speed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from videomar.config import SamplingConfig
from videomar.errors import InputError
from videomar.model.head import ancestral_step
from videomar.model.transformer import KeyValue
from videomar.model.videomar import VideoMAR
from videomar.orders import arrange
from videomar.schedule import DiffusionSchedule, Noise, rope_tables
from videomar.steps import ClipSteps, Step


@torch.inference_mode()
def generate(
    model: VideoMAR,
    pixels: Tensor,
    ids: Tensor,
    prefix: int,
    sampling: SamplingConfig,
    noise: Noise,
    cache: bool = True,
    progress: Callable[[Step], None] = lambda step: None,
) -> tuple[Tensor, Tensor]:
    """Continue a clip, or make one of the sentence alone; model.md, "The sampling loop".

    pixels: [1, 3, 1 + 8k, height, width] float32 in [-1, 1], the conditioning frames, or 0 of them.
    ids: [1, length] int64, system prompt (its first `prefix` positions) and prompt.
    Returns (latents [1, channels, t, h, w] scaled, pixels [1, 3, frames, height, width] in [-1, 1]).
    """
    c, t = model.config, model.config.transformer
    clip, kv_window = ClipSteps.of(c, sampling, pixels.shape[2]), sampling.kv_window
    given, tokens = clip.shape.given, clip.shape.tokens
    h, w = clip.shape.rows, clip.shape.columns
    encoded = model.video_tokenizer.encode(pixels)[0].unbind(1) if given else ()
    done = [latent.flatten(1).T for latent in encoded]  # each [S, C]

    context = model.transformer.text_context(model.text_encoder.prompt_states(ids, prefix))
    if sampling.guidance_scale != 1:
        context = torch.cat([context, model.transformer.no_text(context.shape[1])])
    text = model.transformer.text_key_values(context)
    branches = context.shape[0]

    def rope(frame: int) -> tuple[Tensor, Tensor]:
        cos, sin = rope_tables(frame, h, w, t.rope_split, t.rope_theta)
        return torch.from_numpy(cos), torch.from_numpy(sin)

    def seen(frame: int) -> list[int]:
        """Finished frames that a frame sees."""
        return [f for f in range(frame) if f == 0 or kv_window is None or f >= frame - kv_window]

    def run(step: Step, x: Tensor, masked: Tensor, past: list[KeyValue] | None) -> tuple[Tensor, list[KeyValue]]:
        """One pass over a frame, or the part of it that `step` computes; without a cache, over all frames up to it.

        Returns z [branches, S, W], of the other positions what was there before.
        """
        frame = step.frame
        if cache:
            if past is not None and len(seen(frame)) < past[0][0].shape[2] // tokens:  # frame 1 of those kept falls out
                past = [tuple(torch.cat([t[:, :, :tokens], t[:, :, 2 * tokens :]], dim=2) for t in kv) for kv in past]
            rows, count = layout[step.part], step.branches
            z, key_values = model.transformer(
                x[rows].expand(count, -1, -1),
                masked[rows].expand(count, -1),
                *(table[rows] for table in rope(frame)),
                [(k[:count], v[:count]) for k, v in text],
                past=current.before(past, step.first, step.computed, count),
            )
            current.take(key_values, step.first, step.computed)
            everywhere = torch.zeros(count, tokens, z.shape[2])
            everywhere[:, rows] = z
            return everywhere, key_values
        if step.computed < tokens:
            raise InputError("parts of a frame need K/V that stay, expected cache=True; or leave refresh_every at 1")
        everything = torch.cat([*done[:frame], x])
        hidden = torch.cat([torch.zeros(frame * tokens, dtype=torch.bool), masked])
        tables = [torch.cat(parts) for parts in zip(*(rope(f) for f in range(frame + 1)), strict=True)]
        of = torch.arange(frame + 1)
        may = torch.tensor([[k in (*seen(int(q)), q) for k in of] for q in of])
        may = may.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
        z, _ = model.transformer(
            everything.expand(branches, -1, -1), hidden.expand(branches, -1), *tables, text, mask=may
        )
        return z[: step.branches, -tokens:], []

    past: list[KeyValue] | None = None
    order = x = masked = torch.zeros(0)
    for step in clip.steps:
        f = step.frame
        if step.index == 0:
            layout, current = torch.arange(tokens), FrameKeyValues(tokens)
        if step.index == 0 and f >= given:
            x, masked = torch.zeros(tokens, t.token_channels), torch.ones(tokens, dtype=torch.bool)
            order = torch.from_numpy(arrange(noise.order(f, tokens), sampling.order, w).copy())
            layout = order if clip.ordered(f) else layout
        if step.predicted:
            z, _ = run(step, x, masked, past)
            predict = order[step.slots]
            start, each = step.drawn
            drawn = sample_tokens(
                model,
                z[:, predict],
                step.guidance,
                each,
                clip.schedules[step.diffusion],
                noise.initial(f, step.index, (step.predicted, t.token_channels)) * np.float32(start),
                noise.steps(f, step.index, (step.head_steps, step.predicted, t.token_channels)),
            )
            if step.token_clip is not None:
                drawn = drawn.clamp(-step.token_clip, step.token_clip)
            x[predict], masked[predict] = drawn, False
            if step.finishes:
                done.append(x)
        elif cache:  # the pass is there for its K/V
            _, past = run(step, done[f], torch.zeros(tokens, dtype=torch.bool), past)
        progress(step)

    latents = torch.stack([d.T.unflatten(1, (h, w)) for d in done], dim=1)[None]
    return latents, model.video_tokenizer.decode(latents).clamp(-1, 1)


class FrameKeyValues:
    """K/V of the current frame's positions, whichever pass computed them; what a pass over a part of them sees."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._layers: list[KeyValue] = []

    def before(self, past: list[KeyValue] | None, first: int, computed: int, branches: int) -> list[KeyValue] | None:
        """K/V for a pass over `computed` positions from `first` on: of finished frames and the other positions."""
        if computed == self._tokens:
            return past and [(k[:branches], v[:branches]) for k, v in past]
        others = [self._others(kv, branches, first, computed) for kv in self._layers]
        if past is None:
            return others
        return [
            (torch.cat([k[:branches], more_k], 2), torch.cat([v[:branches], more_v], 2))
            for (k, v), (more_k, more_v) in zip(past, others, strict=True)
        ]

    @staticmethod
    def _others(kv: KeyValue, branches: int, first: int, computed: int) -> KeyValue:
        key, value = (torch.cat([t[:branches, :, :first], t[:branches, :, first + computed :]], dim=2) for t in kv)
        return key, value

    def take(self, key_values: list[KeyValue], first: int, computed: int) -> None:
        """Remember what a pass computed, the last positions of its K/V."""
        for i, kv in enumerate(key_values):
            if i == len(self._layers):
                self._layers.append(tuple(torch.zeros(*t.shape[:2], self._tokens, t.shape[3]) for t in kv))
            self._layers[i] = tuple(self._put(o, t, first, computed) for o, t in zip(self._layers[i], kv, strict=True))

    def _put(self, old: Tensor, made: Tensor, first: int, computed: int) -> Tensor:
        if made.shape[0] > old.shape[0]:  # a branch that was left out so far
            old = torch.cat([old, torch.zeros_like(old)])
        old[: made.shape[0], :, first : first + computed] = made[:, :, -computed:]
        return old


def sample_tokens(
    model: VideoMAR,
    z: Tensor,
    guidance: float,
    temperature: float,
    schedule: DiffusionSchedule,
    initial: np.ndarray,
    draws: np.ndarray,
) -> Tensor:
    """Sample token vectors under conditions z [branches, N, W] (text, then `fake_latent`): [N, C] float32."""
    branches = z.shape[0]
    x = torch.from_numpy(initial)
    last = len(schedule.timesteps) - 1
    for i, (step, coefficients) in enumerate(zip(schedule.timesteps, schedule.coefficients, strict=True)):
        both = x.expand(branches, -1, -1).flatten(0, 1).to(z.dtype)
        time = torch.full((len(both),), float(step))
        eps, variance = model.diffusion_head(both, time, z.flatten(0, 1))
        eps, variance = eps.float().unflatten(0, (branches, -1)), variance.float().unflatten(0, (branches, -1))
        guided = eps[-1] + guidance * (eps[0] - eps[-1])
        draw = torch.from_numpy(draws[i]) * (temperature if i < last else 0.0)
        x = ancestral_step(x, guided, variance[0], torch.from_numpy(coefficients), draw)
    return x
