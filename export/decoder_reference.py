"""One latent frame of PyTorch's whole decode: what its parts held before and after, where the decoder graph carries it.

Read off diffusers' own modules with hooks while they decode a whole clip. Knows nothing of the graph's modules.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_cosmos import CosmosCausalConv3d
from torch import Tensor

from videomar.carried import CONTEXT, Carried
from videomar.model.tokenizer import VideoTokenizer

RUBBISH = 7.0  # in whatever must not be read

Arrays = dict[str, np.ndarray]


def frame_of_whole(tokenizer: VideoTokenizer, latents: Tensor) -> tuple[Arrays, Arrays]:
    """(feeds, expected) of the graph for the last of the latents [1, channels, t, h, w], in a clip of one more."""
    frames: list[Tensor] = []  # what every convolution over time was given, [1, C, frames, H, W] of the whole clip
    key_values: list[Tensor] = []
    patches: list[Tensor] = []
    with ExitStack() as stack:
        for name, part in tokenizer.vae.decoder.named_modules():
            if isinstance(part, CosmosCausalConv3d) and part.temporal_pad:
                hook = part.register_forward_pre_hook(lambda _, given: frames.append(given[0]))
            elif ".temp_attentions." in name and name.endswith((".to_k", ".to_v")):
                hook = part.register_forward_hook(lambda _, given, made: key_values.append(made))
            elif name == "unpatch_embed":
                hook = part.register_forward_pre_hook(lambda _, given: patches.append(given[0]))
            else:
                continue
            stack.callback(hook.remove)
        pixels = tokenizer.decode(latents)[:, :, -tokenizer.config.temporal_stride :]
    last = latents.shape[2] - 1
    if not last:  # the graph makes as many frames of it as of any other: those of the same patch again and again
        again = 1 + tokenizer.config.temporal_stride // tokenizer.config.patch_size
        pixels = tokenizer.vae.decoder.unpatch_embed(torch.cat(patches * again, dim=2))[:, :, 1:]

    def context(x: Tensor, at: int) -> Tensor:
        """The last CONTEXT frames after latent frame `at`; before the first of a clip stands the first."""
        if at < 0:
            return torch.full_like(x[:, :, :1].expand(-1, -1, CONTEXT, -1, -1), RUBBISH)
        end = at * ((x.shape[2] - 1) // max(last, 1))
        return x[:, :, [max(end - back, 0) for back in reversed(range(CONTEXT))]]

    def room(x: Tensor, at: int, each: int) -> Tensor:
        """Keys or values after latent frame `at`, `each` a latent frame; the graph fills up with the newest."""
        x = torch.cat([*[x[:, :, :1]] * (each - 1), x], dim=2)
        fill = x[:, :, -each:] if at == last else torch.full_like(x[:, :, :each], RUBBISH)
        return torch.cat([x[:, :, : (at + 1) * each], *[fill] * (last + 1 - at)], dim=2)

    states: list[Arrays] = []
    for prefix, at in (("past", last - 1), ("present", last)):
        tensors = {f"{prefix}_frames_{i}": context(x, at) for i, x in enumerate(frames)}
        for i, place in enumerate(Carried.of(tokenizer.config).attentions):
            for kind, x in zip(("key", "value"), key_values[2 * i : 2 * i + 2], strict=True):
                tensors[f"{prefix}_{kind}_{i}"] = room(x, at, place.frames)
        states.append({name: x.numpy() for name, x in tensors.items()})
    feeds = {"latents": latents[:, :, -1:].numpy(), "done": np.array([last])} | states[0]
    return feeds, {"pixels": pixels.clamp(-1, 1).numpy()} | states[1]
