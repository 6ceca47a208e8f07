"""The reference model against tests/naive.py (its second, naive implementation), with a cache and without, and the
prefix causality that the temporal cache and the text encoder stand on."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from videomar.config import HeadConfig, ModelConfig, SamplingConfig, TextConfig, TokenizerConfig, TransformerConfig
from videomar.model.generate import generate
from videomar.model.text import TextEncoder
from videomar.model.tokenizer import VideoTokenizer
from videomar.model.videomar import VideoMAR
from videomar.schedule import SeededNoise

torch.set_num_threads(1)


def load_naive() -> ModuleType:
    spec = importlib.util.spec_from_file_location("naive", Path(__file__).parents[1] / "naive.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


naive = load_naive()

TOKENIZER = TokenizerConfig(
    encoder_channels=(4, 8), decoder_channels=(4, 8), layers_per_block=1, attention_resolutions=(), resolution=16,
    patch_size=2, latent_channels=4, spatial_stride=2, temporal_stride=2,
    latent_scale=4.0,  # random latents are small
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One model and one clip; lengths in latent frames, grid in tokens."""

    depth: int = 2
    heads: int = 2
    split: tuple[int, int, int] = (8, 4, 4)
    mlp_ratio: int = 4
    channels: int = 4
    text_width: int = 24
    text_tokens: int = 6
    prefix: int = 0
    head_width: int = 32
    head_depth: int = 2
    time_features: int = 256
    train_steps: int = 20
    grid: tuple[int, int] = (2, 3)
    given: int = 1
    frames: int = 3
    mask_steps: int = 3
    head_steps: int = 10
    solver: str = "ancestral"
    guidance: float = 3.0
    temperature: float | None = None
    clip: float | None = 2.0
    window: int | None = None

    @property
    def config(self) -> ModelConfig:
        dim = sum(self.split)
        return ModelConfig(
            tokenizer=TokenizerConfig(**{**vars(TOKENIZER), "latent_channels": self.channels}),
            text=TextConfig(
                vocab_size=40, width=self.text_width, depth=1, heads=2, kv_heads=1, mlp_width=32, rope_theta=1e4,
                max_positions=32, max_tokens=8,
            ),
            transformer=TransformerConfig(
                width=self.heads * dim, depth=self.depth, heads=self.heads, head_dim=dim,
                token_channels=self.channels, mlp_ratio=self.mlp_ratio, rope_split=self.split,
            ),
            head=HeadConfig(self.head_width, self.head_depth, self.time_features, self.train_steps),
            from_text=self.given == 0,
        )  # fmt: skip

    @property
    def sampling(self) -> SamplingConfig:
        stride = TOKENIZER.spatial_stride
        return SamplingConfig(
            frames=1 + (self.frames - 1) * TOKENIZER.temporal_stride, height=stride * self.grid[0],
            width=stride * self.grid[1], mask_steps=self.mask_steps, head_steps=self.head_steps,
            guidance_scale=self.guidance, temperature=self.temperature, token_clip=self.clip, kv_window=self.window,
            head_solver=self.solver,
        )  # fmt: skip


def build(case: Case, seed: int) -> tuple[VideoMAR, dict[str, np.ndarray]]:
    """A model that holds random weights of the official layout, and these weights."""
    t, h = case.config.transformer, case.config.head
    weights = naive.random_weights(
        np.random.default_rng(seed), t.depth, t.heads, t.head_dim, t.token_channels, case.text_width,
        case.config.text.max_tokens, h.width, h.depth, t.mlp_ratio, h.time_features,
    )  # fmt: skip
    weights = {name: value.astype(np.float32).astype(np.float64) for name, value in weights.items()}
    model = VideoMAR(case.config).randomize(seed).eval().requires_grad_(False)
    tensors = {name: torch.from_numpy(value) for name, value in weights.items() if "scale_shift" not in name}
    prefix = "diffloss.net."
    head = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    model.transformer.load_state_dict({n: tensor for n, tensor in tensors.items() if not n.startswith(prefix)})
    model.diffusion_head.load_state_dict(head)
    return model, weights


def inputs(case: Case, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    stride, frames = TOKENIZER.spatial_stride, max(0, 1 + (case.given - 1) * TOKENIZER.temporal_stride)
    pixels = torch.rand(1, 3, frames, stride * case.grid[0], stride * case.grid[1], generator=generator) * 2 - 1
    return pixels, torch.randint(40, (1, case.prefix + case.text_tokens), generator=generator)


def farthest(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest deviation anywhere in a clip, in units of the clip's root mean square."""
    return float(np.abs(got - expected).max() / np.sqrt((expected**2).mean()))


CASES = {
    "image to video": Case(),
    "one block, one head, one token a step": Case(
        depth=1, heads=1, split=(4, 2, 2), head_depth=1, text_tokens=1, grid=(3, 2), frames=2, mask_steps=6
    ),
    "three given frames, wide grid, all tokens at once": Case(
        depth=3, heads=3, split=(4, 4, 4), grid=(1, 5), given=3, frames=5, mask_steps=1, head_steps=12, prefix=3
    ),
    "two given frames, no guidance, no clipping": Case(
        given=2, frames=4, guidance=1.0, clip=None, channels=6, mlp_ratio=2, head_depth=3, text_width=16
    ),
    "the sentence alone": Case(given=0),
    "a picture of the sentence, no guidance": Case(given=0, frames=1, guidance=1.0),
    "the sentence alone, a window of one frame, no clipping": Case(
        given=0, frames=4, window=1, mask_steps=2, head_steps=4, clip=None
    ),
    "deterministic diffusion": Case(solver="ddim", head_steps=7, given=2, frames=4, temperature=0.6, clip=None),
    "weak guidance, fixed temperature, all text tokens": Case(
        guidance=0.5,
        temperature=0.7,
        text_tokens=8,
        grid=(4, 3),
        frames=2,
        mask_steps=5,
        train_steps=50,
        head_steps=17,
        heads=1,
    ),
    "no randomness in the diffusion, other time features": Case(
        temperature=0.0, time_features=64, grid=(2, 2), frames=4, mask_steps=3, prefix=2, clip=None
    ),
    "a window of one frame besides the first": Case(
        window=1, frames=5, mask_steps=2, head_steps=4, grid=(1, 3), clip=None
    ),
    "a window of two frames, three given": Case(
        window=2, given=3, frames=6, mask_steps=2, head_steps=4, grid=(2, 1), guidance=1.0, clip=None
    ),
    "a window longer than the clip": Case(window=9, frames=3, mask_steps=2, grid=(1, 3)),
    "a thousand trained steps, two hundred kept": Case(
        depth=1, train_steps=1000, head_steps=200, grid=(1, 2), frames=3, mask_steps=2
    ),
}


# ---- the two networks alone, in float64


def tables(frames: int, grid: tuple[int, int], split: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """RoPE tables in float64 (those of videomar.schedule are float32)."""
    places = [(f, row, column) for f in range(frames) for row in range(grid[0]) for column in range(grid[1])]
    angles = [
        [place[axis] / 10000 ** (2 * (i % (part // 2)) / part) for axis, part in enumerate(split) for i in range(part)]
        for place in places
    ]
    angle = torch.tensor(angles, dtype=torch.float64)
    return angle.cos(), angle.sin()


@pytest.mark.parametrize(
    "case",
    [
        Case(depth=3, heads=3, frames=3),
        Case(depth=1, heads=1, split=(32, 16, 16), grid=(1, 7), frames=1, text_tokens=1),
        Case(depth=2, heads=2, split=(2, 6, 4), grid=(5, 2), frames=4, mlp_ratio=3, channels=7),
    ],
    ids=["three blocks", "one frame, heads of 64", "odd splits"],
)
def test_the_transformer_in_float64_equals_the_naive_one(case: Case) -> None:
    model, weights = build(case, seed=11)
    transformer = model.transformer.double()
    rng = np.random.default_rng(0)
    size = case.grid[0] * case.grid[1]
    tokens = rng.standard_normal((case.frames, size, case.channels))
    masked = rng.random((case.frames, size)) < 0.4
    states = rng.standard_normal((case.text_tokens, case.text_width))
    of = torch.arange(case.frames).repeat_interleave(size)
    context = transformer.text_context(torch.from_numpy(states)[None])
    got, _ = transformer(
        torch.from_numpy(tokens).flatten(0, 1)[None], torch.from_numpy(masked).flatten()[None],
        *tables(case.frames, case.grid, case.split), transformer.text_key_values(context), mask=of[:, None] >= of,
    )  # fmt: skip
    context = naive.linear(weights, "context_embed", states)
    expected = naive.transformer(weights, tokens, masked, case.grid[1], context, case.split)
    assert np.abs(got[0].numpy().reshape(expected.shape) - expected).max() < 1e-9


@pytest.mark.parametrize(
    "case",
    [Case(head_depth=3), Case(head_width=20, head_depth=1, channels=7, time_features=32)],
    ids=["deep", "narrow"],
)
@pytest.mark.parametrize("step", [0, 1, 37, 999])
def test_the_diffusion_head_in_float64_equals_the_naive_one(case: Case, step: int) -> None:
    model, weights = build(case, seed=12)
    head = model.diffusion_head.double()
    seen: list[np.ndarray] = []
    head.time_embed.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].numpy()))
    rng = np.random.default_rng(step)
    x, z = rng.standard_normal((5, case.channels)), rng.standard_normal((5, model.config.transformer.width))
    noise, variance = head(torch.from_numpy(x), torch.full((5,), float(step)), torch.from_numpy(z))
    # Sines and cosines of up to 999 are taken in float32, as in the original; from there on all is float64.
    assert np.abs(seen[0] - naive.time_features(step, case.time_features)).max() < 1e-4
    for i in range(5):
        expected = naive.head(weights, x[i], step, z[i], features=seen[0][i])
        assert np.abs(noise[i].numpy() - expected[0]).max() < 1e-9
        assert np.abs(variance[i].numpy() - expected[1]).max() < 1e-9


# ---- the whole loop


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_generation_with_and_without_a_cache_equals_the_naive_one(case: Case) -> None:
    model, weights = build(case, seed=len(repr(case)))
    pixels, ids = inputs(case, seed=1)
    noise = SeededNoise(5)
    cached, shown = generate(model, pixels, ids, case.prefix, case.sampling, noise)
    recomputed, _ = generate(model, pixels, ids, case.prefix, case.sampling, noise, cache=False)
    with torch.no_grad():
        nothing = torch.zeros(case.channels, 0, *case.grid)
        latents = model.video_tokenizer.encode(pixels)[0] if case.given else nothing
        states = model.text_encoder(ids)[0, case.prefix :]
    expected = naive.generate(
        weights, latents.double().numpy(), states.double().numpy(), noise, case.split, case.frames, case.mask_steps,
        case.head_steps, case.guidance, case.temperature, case.clip, case.train_steps,
        10**9 if case.window is None else case.window, solver=case.solver,
    )  # fmt: skip
    assert cached.shape == (1, case.channels, case.frames, *case.grid) and cached.dtype == torch.float32
    assert shown.shape == (1, 3, case.sampling.frames, case.sampling.height, case.sampling.width)
    made = expected[:, case.given :]
    assert 0.1 < np.abs(made).mean() < 30  # neither dead nor run away
    if case.clip is not None and case.frames > case.given + 1:  # and clipping does not hide what is compared
        assert (np.abs(expected[:, case.given + 1 :]) < case.clip).mean() > 0.3
    assert farthest(cached[0].double().numpy(), expected) < 1e-4
    assert farthest(recomputed[0].double().numpy(), expected) < 1e-4
    assert farthest(cached[0].double().numpy(), recomputed[0].double().numpy()) < 1e-4


# ---- causality of what surrounds the transformer


@pytest.mark.parametrize(
    ("strides", "channels", "attention"),
    [((8, 8), (4, 8, 8, 8), ()), ((16, 8), (4, 8, 12, 8), (2, 8)), ((4, 4), (4, 8), (8,)), ((8, 4), (4, 4, 8), (4,))],
)
def test_a_prefix_of_a_clip_encodes_and_decodes_to_the_prefix(
    strides: tuple[int, int], channels: tuple[int, ...], attention: tuple[int, ...]
) -> None:
    config = TokenizerConfig(
        encoder_channels=channels, decoder_channels=channels, layers_per_block=1, attention_resolutions=attention,
        resolution=32, patch_size=4, latent_channels=4, spatial_stride=strides[0], temporal_stride=strides[1],
    )  # fmt: skip
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(config).double().eval().requires_grad_(False)
    for p in tokenizer.parameters():
        p.add_(0.05 * torch.randn_like(p))  # biases and gains start at 0 and 1
    pixels = torch.randn(1, 3, 1 + 3 * strides[1], 2 * strides[0], strides[0], dtype=torch.float64)
    latents = tokenizer.encode(pixels)
    assert latents.shape == (1, 4, 4, 2, 1)
    decoded = tokenizer.decode(latents)
    assert decoded.shape == pixels.shape
    for k in range(1, 4):
        frames = 1 + (k - 1) * strides[1]
        torch.testing.assert_close(tokenizer.encode(pixels[:, :, :frames]), latents[:, :, :k], rtol=0, atol=1e-9)
        torch.testing.assert_close(tokenizer.decode(latents[:, :, :k]), decoded[:, :, :frames], rtol=0, atol=1e-9)
        changed = tokenizer.encode(torch.cat([pixels[:, :, :frames], -pixels[:, :, frames:]], 2))
        assert (changed[:, :, k:] - latents[:, :, k:]).abs().amax((0, 1, 3, 4)).min() > 1e-6  # and later ones do see it


@pytest.fixture(scope="module")
def text_encoder() -> TextEncoder:
    torch.manual_seed(0)
    encoder = TextEncoder(TextConfig(50, 32, 3, 4, 2, 48, 1e4, 64, 16)).double().eval().requires_grad_(False)
    for p in encoder.parameters():
        p.add_(0.2 * torch.randn_like(p))
    return encoder


def test_text_states_do_not_change_with_padding_on_the_right(text_encoder: TextEncoder) -> None:
    ids = torch.randint(50, (1, 7))
    alone = text_encoder(ids)
    for filler in (0, 13):
        padded = torch.cat([ids, torch.full((1, 9), filler)], 1)
        mask = (torch.arange(16) < 7).long()[None]
        torch.testing.assert_close(text_encoder(padded, mask)[:, :7], alone, rtol=0, atol=1e-9)
        torch.testing.assert_close(text_encoder(padded)[:, :7], alone, rtol=0, atol=1e-9)


def test_text_states_depend_on_all_tokens_before_and_on_none_after(text_encoder: TextEncoder) -> None:
    ids = torch.randint(50, (1, 8))
    states = text_encoder(ids)
    for at in range(8):
        other = ids.clone()
        other[0, at] = (ids[0, at] + 1) % 50
        moved = (text_encoder(other) - states).abs().amax(-1)[0]
        assert bool((moved[:at] < 1e-9).all())
        assert bool((moved[at:] > 1e-6).all())
