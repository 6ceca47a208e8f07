"""What the tokenizer's decoder carries from one latent frame to the next, from its config alone.

A causal convolution over time needs the last CONTEXT frames of its input, an attention over time the keys and values
of every frame so far. Mirrors how diffusers' CosmosDecoder3d is put together; knows nothing of torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log2

from videomar.config import TokenizerConfig
from videomar.errors import ConfigError

CONTEXT = 2  # frames before the current ones that a convolution of 3 over time sees


@dataclass(frozen=True)
class Place:
    """Where something is carried: channels, multiples of the latent's height and width, frames a latent frame."""

    channels: int
    scale: int
    frames: int = 1


@dataclass(frozen=True)
class Carried:
    """The decoder's places in the order in which it comes to them."""

    convolutions: tuple[Place, ...]
    attentions: tuple[Place, ...]

    @staticmethod
    def of(config: TokenizerConfig) -> Carried:
        """What this decoder carries; raises ConfigError for levels that do not make its strides."""
        channels = config.decoder_channels[::-1]
        blocks = len(channels) - 1
        space = int(log2(config.spatial_stride)) - int(log2(config.patch_size))
        time = int(log2(config.temporal_stride)) - int(log2(config.patch_size))
        resolution, scale, frames = config.resolution // config.patch_size // 2 ** (blocks - 1), 1, 1
        convolutions, attentions = [Place(channels[0], 1)] * 5, [Place(channels[0], 1)]  # conv_in and mid_block
        for i in range(blocks):
            here = Place(channels[i + 1], scale, frames)
            layers = config.layers_per_block + 1
            convolutions += [here] * 2 * layers
            if resolution in config.attention_resolutions:
                attentions += [here] * layers
            if i < blocks - 1:
                temporal = 0 < i <= time
                if temporal:
                    frames *= 2
                    convolutions.append(replace(here, frames=frames))
                if temporal or (i < space and space > time):
                    scale *= 2
                resolution *= 2
        convolutions.append(Place(3 * config.patch_size**3, scale, frames))
        got = scale * config.patch_size, frames * config.patch_size
        if got != (config.spatial_stride, config.temporal_stride):
            raise ConfigError(
                f"tokenizer: {blocks} levels behind patches of {config.patch_size} make strides {got[0]} in space and "
                f"{got[1]} in time, expected {config.spatial_stride} and {config.temporal_stride}"
            )
        return Carried(tuple(convolutions), tuple(attentions))


def decoder_axes(config: TokenizerConfig, clip: int, h: int, w: int) -> dict[str, int]:
    """Sizes of the decoder graph's axes for a clip of so many latent frames of h x w."""
    sizes = {"height": h * config.spatial_stride, "width": w * config.spatial_stride}
    for place in Carried.of(config).convolutions:  # they are wherever attention is
        sizes |= {scaled("clip", place.frames): place.frames * clip}
        sizes |= {scaled(axis, place.scale): place.scale * size for axis, size in (("h", h), ("w", w))}
    return sizes


def scaled(axis: str, scale: int) -> str:
    """Name of an axis of the latent (`h`), or of the clip, where the decoder has made it longer: `2h`."""
    return axis if scale == 1 else f"{scale}{axis}"
