"""What the decoder carries, against values worked out by hand from diffusers' source."""

from __future__ import annotations

import dataclasses

import numpy as np

from videomar.carried import Carried, Place, decoder_axes, scaled
from videomar.config import DEMO, VIDEOMAR_1_4B, TokenizerConfig
from videomar.graphs import TOKENIZER_DECODER, contract


def test_the_published_tokenizer_carries_25_convolutions_and_one_attention() -> None:
    carried = Carried.of(VIDEOMAR_1_4B.tokenizer)
    # conv_in and two blocks in the middle; three layers up at the latent's size, three at twice it and their
    # upsampler over time; three at four times with half the channels; the 3 * 4^3 channels of a patch.
    low, middle, high, last = Place(512, 1), Place(512, 2), Place(256, 4, 2), Place(192, 4, 2)
    assert carried.convolutions == (*[low] * 11, *[middle] * 6, Place(512, 2, 2), *[high] * 6, last)
    assert carried.attentions == (low,)


def test_the_demo_tokenizer_upsamples_space_and_time_together() -> None:
    # Strides 8 and 8, patch 4: nothing in the first block, both in the second.
    carried = Carried.of(DEMO.tokenizer)
    low, high, last = Place(64, 1), Place(32, 2, 2), Place(192, 2, 2)
    assert carried.convolutions == (*[low] * 13, Place(64, 1, 2), *[high] * 4, last)


def test_attention_in_a_block_is_carried_for_every_layer_and_every_frame() -> None:
    config = dataclasses.replace(DEMO.tokenizer, attention_resolutions=(8, 16), resolution=64)  # 64/4/4, then twice
    low, high = Place(64, 1), Place(32, 2, 2)
    assert Carried.of(config).attentions == (low, low, low, high, high)


def test_axes_are_multiples_of_the_latents() -> None:
    assert [scaled("h", n) for n in (1, 2, 4)] == ["h", "2h", "4h"]
    assert decoder_axes(TokenizerConfig(), clip=4, h=30, w=48) == {
        **{"h": 30, "2h": 60, "4h": 120, "w": 48, "2w": 96, "4w": 192},
        **{"clip": 4, "2clip": 8, "height": 480, "width": 768},
    }


def test_bytes_carried_at_full_size() -> None:
    """What docs/runtime.md says: FP16, 480x768, a clip of 4 latent frames."""
    spec, axes = contract(VIDEOMAR_1_4B, "fp16", False)[TOKENIZER_DECODER], decoder_axes(TokenizerConfig(), 4, 30, 48)
    size = {t.name: 2 * int(np.prod([axes[a] if isinstance(a, str) else a for a in t.axes])) for t in spec.inputs[2:]}
    grid = 30 * 48
    frames = 2 * 2 * grid * (11 * 512 + 4 * 7 * 512 + 16 * (6 * 256 + 192))
    assert sum(n for name, n in size.items() if "frames" in name) == frames == 274_268_160
    assert sum(n for name, n in size.items() if "frames" not in name) == 4 * 2 * 2 * grid * 512
