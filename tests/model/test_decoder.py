"""The decoder of one latent frame against diffusers' decode of whole clips, in float64, without tracing."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from videomar.carried import Carried, decoder_axes
from videomar.config import ModelConfig, TokenizerConfig
from videomar.graphs import TOKENIZER_DECODER, contract
from videomar.model.decoder import DecodeFrame
from videomar.model.tokenizer import VideoTokenizer

SMALL = TokenizerConfig(
    encoder_channels=(4, 4, 4, 4),
    decoder_channels=(4, 6, 8, 8),
    layers_per_block=0,
    attention_resolutions=(),
    resolution=64,
    spatial_stride=8,
    latent_scale=0.5,
)


@st.composite
def tokenizers(draw: st.DrawFn) -> TokenizerConfig:
    patch = draw(st.sampled_from((2, 4)))
    time = patch * draw(st.sampled_from((1, 2)))  # four channels leave room for two upsamplings, one of them in time
    return dataclasses.replace(
        SMALL,
        layers_per_block=draw(st.integers(0, 1)),
        patch_size=patch,
        patch_type=draw(st.sampled_from(("haar", "rearrange"))),
        temporal_stride=time,
        spatial_stride=max(time, patch * draw(st.sampled_from((1, 2, 4)))),
        attention_resolutions=tuple(64 // patch // n for n in (4, 2, 1) if draw(st.booleans())),
    )


def random_tokenizer(config: TokenizerConfig, seed: int) -> VideoTokenizer:
    torch.manual_seed(seed)
    tokenizer = VideoTokenizer(config).eval().double()
    for p in tokenizer.parameters():
        p.data.add_(0.1 * torch.randn_like(p))  # norms and biases start at ones and zeros, which hide mistakes
    for p in tokenizer.vae.decoder.conv_out.conv_t.parameters():
        p.data.mul_(0.2)  # or most pixels are cut at -1 and 1
    return tokenizer


def streamed(tokenizer: VideoTokenizer, latents: Tensor, clip: int | None = None) -> Tensor:
    """Frame by frame, with NaN wherever nothing may be read."""
    decode, carried = DecodeFrame(tokenizer), Carried.of(tokenizer.config)
    t, h, w = latents.shape[2:]
    nan = latents.new_full((), torch.nan)
    frames = [nan.expand(1, p.channels, 2, h * p.scale, w * p.scale) for p in carried.convolutions]
    key_values = [
        nan.expand(1, p.channels, (clip or t) * p.frames, h * p.scale, w * p.scale)
        for p in carried.attentions
        for _ in "kv"
    ]
    pixels = []
    for i in range(t):
        made, *rest = decode(latents[:, :, i : i + 1], torch.tensor([i]), frames, key_values)
        shapes = [x.shape for x in (*frames, *key_values)]
        assert [x.shape for x in rest] == shapes
        frames, key_values = rest[: len(frames)], rest[len(frames) :]
        pixels.append(made if i else made[:, :, -1:])
    return torch.cat(pixels, dim=2)


@settings(max_examples=25, deadline=None)
@given(
    config=tokenizers(),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    length=st.integers(1, 4),
    room=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_frame_by_frame_is_the_whole_decode(
    config: TokenizerConfig, grid: tuple[int, int], length: int, room: int, seed: int
) -> None:
    tokenizer = random_tokenizer(config, seed)
    latents = torch.randn(1, config.latent_channels, length, *grid).double()
    with torch.inference_mode():
        whole = tokenizer.decode(latents).clamp(-1, 1)
        got = streamed(tokenizer, latents, length + room)
    sizes = 1 + (length - 1) * config.temporal_stride, *(config.spatial_stride * side for side in grid)
    assert got.shape == whole.shape == (1, 3, *sizes)
    assert whole.std() > 1e-3
    assert (got - whole).abs().max() <= 2e-7  # pixels are float32


def test_later_frames_depend_on_earlier_ones() -> None:
    # So that agreement above says something about what is carried.
    tokenizer = random_tokenizer(SMALL, 0)
    one, other = torch.randn(2, 1, 16, 3, 2, 2).double()
    other[:, :, 1:] = one[:, :, 1:]
    with torch.inference_mode():
        a, b = streamed(tokenizer, one), streamed(tokenizer, other)
    assert all((a[:, :, i] - b[:, :, i]).abs().max() > 1e-3 for i in (0, 1, 8, 9, 16))


def test_the_tokenizer_it_is_made_of_is_left_alone_and_lends_its_weights() -> None:
    tokenizer = random_tokenizer(SMALL, 1)
    latents = torch.randn(1, 16, 2, 2, 2).double()
    with torch.inference_mode():
        before = tokenizer.decode(latents)
        streamed(tokenizer, latents)
        torch.testing.assert_close(tokenizer.decode(latents), before, rtol=0, atol=0)
    ours = {p.data_ptr() for p in DecodeFrame(tokenizer).parameters()}
    theirs = {n: p.data_ptr() for n, p in tokenizer.vae.decoder.named_parameters()}
    own = {n for n, address in theirs.items() if address not in ours}
    assert own == {"conv_out.conv_t.weight", "conv_out.conv_t.bias"}  # into which unpatching goes


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_is_carried_has_the_contracts_shapes(precision: str) -> None:
    config = dataclasses.replace(SMALL, attention_resolutions=(4, 16), layers_per_block=1)
    dtype = torch.float16 if precision == "fp16" else torch.float32
    tokenizer, axes = VideoTokenizer(config).eval().to(dtype), decoder_axes(config, 3, 2, 3)
    spec = contract(ModelConfig(name="small", tokenizer=config), precision, False)[TOKENIZER_DECODER]
    given, made = (
        [(tuple(axes[a] if isinstance(a, str) else a for a in t.axes), t.dtype) for t in tensors]
        for tensors in (spec.inputs, spec.outputs)
    )
    split = 2 + len(Carried.of(config).convolutions)
    inputs = [torch.zeros(shape, dtype=getattr(torch, dtype)) for shape, dtype in given]
    with torch.inference_mode():
        outputs = DecodeFrame(tokenizer)(*inputs[:2], inputs[2:split], inputs[split:])
    assert [(tuple(x.shape), str(x.dtype).removeprefix("torch.")) for x in outputs] == made
