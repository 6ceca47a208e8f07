"""The whole sampling loop once more, in NumPy float64 and as naively as it can be said: a second opinion for the tests.

Written from the description of the model alone and reading the official checkpoint layout (names, per-head packing).
No cache: every pass recomputes all frames; the diffusion head sees one token at a time; rotary positions are complex
numbers. Shares no function with the package, and knows nothing of the video tokenizer, the text encoder or torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, Array]


def random_weights(
    rng: np.random.Generator,
    depth: int,
    heads: int,
    head_dim: int,
    channels: int,
    text_width: int,
    text_tokens: int,
    head_width: int,
    head_depth: int,
    mlp_ratio: int = 4,
    time_features: int = 256,
) -> dict[str, Array]:
    """Random weights in the official layout, of a size that keeps activations and samples near one.

    The head is random around "the noise is x itself", which is what a trained one says of pure noise: sampling
    starts by dividing by the signal power (1e-9), so any other head would return numbers of 1e4 and beyond.
    """
    w: dict[str, Array] = {}
    width = heads * head_dim

    def put(name: str, *shape: int, size: float | None = None, around: float = 0.0) -> None:
        size = shape[-1] ** -0.5 if size is None else size
        w[name] = around + size * rng.standard_normal(shape)

    def linear(name: str, out: int, inp: int, size: float = 1.0) -> None:
        put(f"{name}.weight", out, inp, size=size * inp**-0.5)
        put(f"{name}.bias", out, size=0.1 * size)

    def norm(name: str, length: int) -> None:
        put(f"{name}.weight", length, size=0.2, around=1.0)
        put(f"{name}.bias", length, size=0.2)

    linear("context_embed", width, text_width)
    put("fake_latent", 1, text_tokens, width, size=1.0)
    linear("z_proj", width, channels, size=2.0)
    put("mask_token", 1, 1, width, size=1.0)
    norm("decoder_norm", width)
    for i in range(depth):
        block = f"decoder_blocks.{i}"
        norm(f"{block}.norm1", width)
        norm(f"{block}.norm2", width)
        put(f"{block}.attn1.wqkv.weight", 3 * width, width)
        put(f"{block}.attn2.wq.weight", width, width)
        put(f"{block}.attn2.wkv.weight", 2 * width, width)
        for attention in ("attn1", "attn2"):
            put(f"{block}.{attention}.wo.weight", width, width)
            put(f"{block}.{attention}.q_norm.weight", head_dim, size=0.3, around=1.0)
            put(f"{block}.{attention}.k_norm.weight", head_dim, size=0.3, around=1.0)
        put(f"{block}.ff.net.0.proj.weight", mlp_ratio * width, width)
        put(f"{block}.ff.net.2.weight", width, mlp_ratio * width)
        put(f"{block}.scale_shift_table", 6, width)
    net = "diffloss.net"
    linear(f"{net}.time_embed.mlp.0", head_width, time_features)
    linear(f"{net}.time_embed.mlp.2", head_width, head_width, size=0.5)
    linear(f"{net}.cond_embed", head_width, width)
    linear(f"{net}.input_proj", head_width, channels, size=0.2)
    for j in range(head_depth):
        block = f"{net}.res_blocks.{j}"
        norm(f"{block}.in_ln", head_width)
        linear(f"{block}.mlp.0", head_width, head_width)
        linear(f"{block}.mlp.2", head_width, head_width, size=0.1)
        linear(f"{block}.adaLN_modulation.1", 3 * head_width, head_width, size=0.3)
    linear(f"{net}.final_layer.linear", 2 * channels, head_width, size=0.01)
    linear(f"{net}.final_layer.adaLN_modulation.1", 2 * head_width, head_width, size=1e-4)
    # x itself through the head: a large constant beside it makes the last LayerNorm a division by a constant.
    large, rest = 30.0, head_width - channels
    w[f"{net}.input_proj.weight"][:channels] = np.eye(channels)
    w[f"{net}.input_proj.bias"][channels:] += large * (-1.0) ** np.arange(rest)
    for i in range(channels):
        w[f"{net}.final_layer.linear.weight"][i, i] += large * math.sqrt(rest / head_width)
    w[f"{net}.final_layer.linear.weight"][channels:, :channels] *= 30 * large  # the variance may vary
    return w


# ---- the transformer


def linear(w: Weights, name: str, x: Array) -> Array:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def layer_norm(x: Array, eps: float) -> Array:
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + eps)


def affine_norm(w: Weights, name: str, x: Array, eps: float) -> Array:
    return layer_norm(x, eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def rms_norm(w: Weights, name: str, x: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w[f"{name}.weight"]


def turn(x: Array, places: Array, split: tuple[int, int, int]) -> Array:
    """3D rotary positions: x [..., D] at places [..., 3], pairs of channels as complex numbers."""
    parts, start = [], 0
    for axis, part in enumerate(split):
        half = part // 2
        pairs = x[..., start : start + half] + 1j * x[..., start + half : start + part]
        turned = pairs * np.exp(1j * places[..., axis, None] * 10000.0 ** (-2.0 * np.arange(half) / part))
        parts += [turned.real, turned.imag]
        start += part
    return np.concatenate(parts, axis=-1)


def attend(q: Array, k: Array, v: Array) -> Array:
    score = q @ k.T / math.sqrt(q.shape[-1])
    share = np.exp(score - score.max(-1, keepdims=True))
    return share / share.sum(-1, keepdims=True) @ v


def transformer(
    w: Weights,
    tokens: Array,
    masked: NDArray[np.bool_],
    columns: int,
    context: Array,
    split: tuple[int, int, int],
    window: int = 10**9,
) -> Array:
    """tokens [F, S, C] of all frames, masked [F, S], context [L, W] -> z [F, S, W]; window: earlier frames seen."""
    frames, size, _ = tokens.shape
    dim = sum(split)
    x = linear(w, "z_proj", tokens)
    x[masked] = w["mask_token"][0, 0]
    places = np.array([[(f, i // columns, i % columns) for i in range(size)] for f in range(frames)], float)
    block = 0
    while f"decoder_blocks.{block}.norm1.weight" in w:
        name = f"decoder_blocks.{block}"
        packed = linear(w, f"{name}.attn1.wqkv", affine_norm(w, f"{name}.norm1", x, 1e-5))
        y = np.zeros_like(x)
        for n in range(x.shape[-1] // dim):
            q, k, v = (packed[..., (3 * n + j) * dim : (3 * n + j + 1) * dim] for j in range(3))
            q = turn(rms_norm(w, f"{name}.attn1.q_norm", q), places, split)
            k = turn(rms_norm(w, f"{name}.attn1.k_norm", k), places, split)
            for f in range(frames):  # a frame sees itself, the first and the latest before it, nothing after it
                seen = [g for g in range(f + 1) if g == 0 or f - g <= window]
                seen_k, seen_v = np.concatenate([k[g] for g in seen]), np.concatenate([v[g] for g in seen])
                y[f, :, n * dim : (n + 1) * dim] = attend(q[f], seen_k, seen_v)
        x = x + linear(w, f"{name}.attn1.wo", y)
        queries, packed = linear(w, f"{name}.attn2.wq", x), linear(w, f"{name}.attn2.wkv", context)
        y = np.zeros_like(x)
        for n in range(x.shape[-1] // dim):
            q = rms_norm(w, f"{name}.attn2.q_norm", queries[..., n * dim : (n + 1) * dim])
            k = rms_norm(w, f"{name}.attn2.k_norm", packed[:, 2 * n * dim : (2 * n + 1) * dim])
            v = packed[:, (2 * n + 1) * dim : (2 * n + 2) * dim]
            for f in range(frames):
                y[f, :, n * dim : (n + 1) * dim] = attend(q[f], k, v)
        x = x + linear(w, f"{name}.attn2.wo", y)
        h = linear(w, f"{name}.ff.net.0.proj", affine_norm(w, f"{name}.norm2", x, 1e-5))
        h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + linear(w, f"{name}.ff.net.2", h)
        block += 1
    return affine_norm(w, "decoder_norm", x, 1e-6)


# ---- the diffusion head


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def time_features(step: float, count: int) -> Array:
    angles = step * 10000.0 ** (-np.arange(count // 2) / (count // 2))
    return np.concatenate([np.cos(angles), np.sin(angles)])


def head(w: Weights, x: Array, step: float, z: Array, features: Array | None = None) -> tuple[Array, Array]:
    """One token x [C], its condition z [W] -> (noise [C], variance fraction [C])."""
    net = "diffloss.net"
    if features is None:
        features = time_features(step, w[f"{net}.time_embed.mlp.0.weight"].shape[1])
    y = linear(w, f"{net}.time_embed.mlp.2", silu(linear(w, f"{net}.time_embed.mlp.0", features)))
    y = y + linear(w, f"{net}.cond_embed", z)
    h = linear(w, f"{net}.input_proj", x)
    size, j = len(h), 0
    while f"{net}.res_blocks.{j}.in_ln.weight" in w:
        block = f"{net}.res_blocks.{j}"
        m = linear(w, f"{block}.adaLN_modulation.1", silu(y))
        shift, scale, gate = m[:size], m[size : 2 * size], m[2 * size :]
        inner = affine_norm(w, f"{block}.in_ln", h, 1e-6) * (1 + scale) + shift
        h = h + gate * linear(w, f"{block}.mlp.2", silu(linear(w, f"{block}.mlp.0", inner)))
        j += 1
    m = linear(w, f"{net}.final_layer.adaLN_modulation.1", silu(y))
    out = linear(w, f"{net}.final_layer.linear", layer_norm(h, 1e-6) * (1 + m[size:]) + m[:size])
    return out[: len(x)], out[len(x) :]


# ---- the sampling loop


def signal_power(train_steps: int) -> list[float]:
    """What is left of the signal after each training step, under cosine betas of at most 0.999."""

    def f(t: float) -> float:
        return math.cos((t / train_steps + 0.008) / 1.008 * math.pi / 2) ** 2

    power, now = [], 1.0
    for step in range(train_steps):
        now *= 1 - min(1 - f(step + 1) / f(step), 0.999)
        power.append(now)
    return power


def kept_steps(train_steps: int, steps: int) -> list[int]:
    """Evenly spread, first and last included; a running sum, so that ties round as in the original."""
    kept, at = [], 0.0
    for _ in range(steps):
        kept.append(round(at))
        at += (train_steps - 1) / (steps - 1) if steps > 1 else 1.0
    return kept


def still_masked(size: int, steps: int) -> list[int]:
    left, now = [], size
    for s in range(steps):
        now = 0 if s == steps - 1 else min(now - 1, max(1, math.floor(size * math.cos(math.pi / 2 * (s + 1) / steps))))
        left.append(now)
    return left


def sample_token(
    w: Weights, z: Array, z_none: Array, guidance: float, temperature: float, x: Array, draws: Array, train_steps: int
) -> Array:
    """One token's vector from its starting noise x [C]; draws [head steps, C], noisiest step first."""
    kept, power = kept_steps(train_steps, len(draws)), signal_power(train_steps)
    for i in reversed(range(len(kept))):
        bar, before = power[kept[i]], power[kept[i - 1]] if i else 1.0
        beta = 1 - bar / before
        noise, fraction = head(w, x, kept[i], z)
        noise_none, _ = head(w, x, kept[i], z_none)
        noise = noise_none + guidance * (noise - noise_none)
        start = (x - math.sqrt(1 - bar) * noise) / math.sqrt(bar)
        mean = (beta * math.sqrt(before) * start + (1 - before) * math.sqrt(1 - beta) * x) / (1 - bar)
        if i == 0:
            return mean
        smallest = beta * (1 - before) / (1 - bar)
        fraction = (fraction + 1) / 2
        deviation = np.exp(0.5 * (fraction * math.log(beta) + (1 - fraction) * math.log(smallest)))
        x = mean + deviation * temperature * draws[len(kept) - 1 - i]
    raise AssertionError("no steps")


def sample_token_ddim(
    w: Weights, z: Array, z_none: Array, guidance: float, x: Array, steps: int, train_steps: int
) -> Array:
    """The same by the deterministic sampler: no noise is added, and what is removed was predicted."""
    power = signal_power(train_steps)
    for i in reversed(range(steps)):
        now = round((i + 1) * train_steps / steps) - 1
        bar, before = power[now], power[round(i * train_steps / steps) - 1] if i else 1.0
        noise, noise_none = head(w, x, now, z)[0], head(w, x, now, z_none)[0]
        noise = noise_none + guidance * (noise - noise_none)
        start = (x - math.sqrt(1 - bar) * noise) / math.sqrt(bar)
        x = math.sqrt(before) * start + math.sqrt(1 - before) * noise
    return x


def generate(
    w: Weights,
    latents: Array,
    states: Array,
    noise: Any,  # videomar.schedule.Noise, which this module does not import
    split: tuple[int, int, int],
    frames: int,
    mask_steps: int,
    head_steps: int,
    guidance_scale: float,
    temperature: float | None = None,
    clip: float | None = 2.0,
    train_steps: int = 1000,
    window: int = 10**9,
    padding_side: str = "right",
    solver: str = "ancestral",
) -> Array:
    """Given latents [C, given, rows, columns], text states [L, text width] -> latents [C, frames, rows, columns].

    padding_side: where the prompt was padded to the rows of `fake_latent`; one mask serves both branches.
    """
    channels, given, rows, columns = latents.shape
    size = rows * columns
    clip_tokens = np.zeros((frames, size, channels))
    for f in range(given):
        clip_tokens[f] = latents[:, f].reshape(channels, size).T
    context = linear(w, "context_embed", states)
    place = np.arange(w["fake_latent"].shape[1])
    real = place < len(states) if padding_side == "right" else place >= len(place) - len(states)
    nothing = w["fake_latent"][0][real]
    left = still_masked(size, mask_steps)
    for f in range(given, frames):
        order = list(noise.order(f, size))
        masked = np.zeros((f + 1, size), bool)
        masked[f] = True
        factor = 0.9 + 10.0 ** -(f - given + 1) if temperature is None else temperature
        for s in range(mask_steps):
            z = transformer(w, clip_tokens[: f + 1], masked, columns, context, split, window)[f]
            z_none = transformer(w, clip_tokens[: f + 1], masked, columns, nothing, split, window)[f]
            stay = order[size - left[s] :]
            now = [i for i in order if masked[f, i] and i not in stay]
            counted = left[s] if s < mask_steps - 1 else 1  # the authors' mask never empties before the scale is taken
            guidance = 1 + (guidance_scale - 1) * (size - counted) / size
            start = noise.initial(f, s, (len(now), channels)).astype(float)
            draws = noise.steps(f, s, (head_steps, len(now), channels)).astype(float)
            for n, i in enumerate(now):
                if solver == "ddim":
                    x = sample_token_ddim(w, z[i], z_none[i], guidance, factor * start[n], head_steps, train_steps)
                else:
                    x = sample_token(w, z[i], z_none[i], guidance, factor, start[n], draws[:, n], train_steps)
                if f > given and clip is not None:
                    x = np.clip(x, -clip, clip)
                clip_tokens[f, i], masked[f, i] = x, False
    return clip_tokens.transpose(2, 0, 1).reshape(channels, frames, rows, columns)
