"""The TorchScript archives NVIDIA publishes of its Cosmos tokenizers -> diffusers' config and names.

Restates how two public codes call the same things: NVIDIA's Cosmos-Tokenizer and diffusers' AutoencoderKLCosmos.
docs/import.md says what of this could be checked. Knows nothing of how an archive is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from videomar.config import TokenizerConfig
from videomar.errors import ArtifactError, InputError
from videomar.export.importing.reading import Tensors, count, shape
from videomar.export.importing.torchscript import read_torchscript

Strides = tuple[int, int]  # in space and time
RELEASED: Strides = (16, 8)
BUFFERS = ("wavelets", "_arange", "patch_size_buffer")  # constants of the Haar transform
RENAMES = [  # NVIDIA's name, diffusers' name; the numbers of `up` are turned round before
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.0\.", ".mid_block.attentions.0."),
    (r"\.mid\.attn_1\.1\.", ".mid_block.temp_attentions.0."),
    (r"\.(down|up)\.(\d+)\.block\.(\d+)\.", r".\1_blocks.\2.resnets.\3."),
    (r"\.(down|up)\.(\d+)\.attn\.(\d+)\.0\.", r".\1_blocks.\2.attentions.\3."),
    (r"\.(down|up)\.(\d+)\.attn\.(\d+)\.1\.", r".\1_blocks.\2.temp_attentions.\3."),
    (r"\.(down|up)\.(\d+)\.(down|up)sample\.", r".\1_blocks.\2.\3samplers.0."),
    (r"\.(conv_in|conv_out|conv1|conv2)\.0\.conv3d\.", r".\1.conv_s."),
    (r"\.(conv_in|conv_out|conv1|conv2)\.1\.conv3d\.", r".\1.conv_t."),
    (r"\.nin_shortcut\.conv3d\.", ".conv_shortcut."),
    (r"\.([qkv])\.conv3d\.", r".to_\1."),
    (r"\.proj_out\.conv3d\.", ".to_out.0."),
    (r"(conv[123]|quant_conv)\.conv3d\.", r"\1."),
]


def find_archives(directory: Path) -> list[Path]:
    """The archives that make a whole tokenizer, or none; raises ArtifactError when half of one is there."""
    whole, halves = directory / "autoencoder.jit", [directory / "encoder.jit", directory / "decoder.jit"]
    if all(half.exists() for half in halves):
        return halves
    if whole.exists():
        return [whole]
    for half in halves:
        if halves[0].exists() != halves[1].exists() and not half.exists():
            raise ArtifactError(f"{half} is missing, expected it beside the other half; get both or autoencoder.jit")
    return []


def read_archives(archives: list[Path], strides: Strides | None) -> tuple[TokenizerConfig, Tensors, str]:
    """Config, weights under diffusers' names, and a note; raises ArtifactError or InputError."""
    theirs: Tensors = {}
    flags: dict[str, bool] = {}
    for path in archives:
        tensors, told = read_torchscript(path)
        theirs |= tensors
        flags |= told
    source = archives[0].parent
    levels = count(theirs, "decoder.up.", source)
    patch = round((shape(theirs, "encoder.conv_in.0.conv3d.weight", 5, source)[1] / 3) ** (1 / 3))
    wavelets = [tensor for name, tensor in theirs.items() if name.endswith(".wavelets")]
    strides, how = _strides(flags, levels, patch, strides, source)
    for sampler, space, time in _samplers(strides, levels, patch):
        way = "down" if sampler.startswith("encoder") else "up"
        for switch, used in ((f"{sampler}.spatial_{way}", space), (f"{sampler}.temporal_{way}", time)):
            if flags.get(switch, used) != used:
                raise ArtifactError(f"{source}: {switch} is {not used}, expected {used}; this variant is not supported")
        first, second = (space, time) if way == "down" else (time, space)
        for number, used in (("1", first), ("2", second), ("3", space or time)):
            if not used:  # NVIDIA's samplers have all three convolutions, diffusers' those that do something
                theirs.pop(f"{sampler}.conv{number}.conv3d.weight", None)
                theirs.pop(f"{sampler}.conv{number}.conv3d.bias", None)
    ours = {rename(n, levels): t for n, t in theirs.items() if n.rpartition(".")[2] not in BUFFERS}

    def channels(side: str, blocks: str) -> tuple[int, ...]:
        names = [f"{side}.conv_in", *(f"{side}.{blocks}.{i}.resnets.0.conv1" for i in range(levels))]
        return tuple(shape(ours, f"{name}.conv_s.weight", 5, source)[0] for name in names)

    resolution = TokenizerConfig.resolution
    attended = [i for i in range(levels) if f"encoder.down_blocks.{i}.attentions.0.to_q.weight" in ours]
    config = TokenizerConfig(
        encoder_channels=channels("encoder", "down_blocks"),
        decoder_channels=channels("decoder", "up_blocks")[::-1],
        layers_per_block=count(ours, "encoder.down_blocks.0.resnets.", source),
        attention_resolutions=tuple(resolution // patch // 2**i for i in attended),
        resolution=resolution,
        patch_size=patch,
        patch_type="rearrange" if wavelets and bool((wavelets[0] == 1).all()) else "haar",
        latent_channels=shape(ours, "quant_conv.weight", 5, source)[0],
        spatial_stride=strides[0],
        temporal_stride=strides[1],
    )
    words = f"strides {strides[0]} in space and {strides[1]} in time ({how})"
    return config, ours, f"tokenizer {source}: TorchScript, read without running it; {words}"


def rename(name: str, levels: int) -> str:
    """NVIDIA's name of a tensor -> diffusers'."""
    name = re.sub(r"^decoder\.up\.(\d+)\.", lambda m: f"decoder.up.{levels - 1 - int(m[1])}.", name)
    for theirs, ours in RENAMES:
        name = re.sub(theirs, ours, name)
    return name


def _strides(
    flags: dict[str, bool], levels: int, patch: int, asked: Strides | None, source: Path
) -> tuple[Strides, str]:
    """Scripted archives keep the switches of every level; traced ones keep nothing that tells the strides."""
    switches = {
        axis: [flags.get(f"encoder.down.{i}.downsample.{axis}_down") for i in range(levels - 1)]
        for axis in ("spatial", "temporal")
    }
    if levels < 2 or any(None in values for values in switches.values()):
        return (asked, "as asked") if asked else (RELEASED, "assumed: the archives do not say")
    space, time = (patch * 2 ** sum(map(bool, values)) for values in switches.values())
    if asked not in (None, (space, time)):
        raise InputError(f"{source} says strides {(space, time)}, got {asked}; leave out --tokenizer-strides")
    return (space, time), "as the archives say"


def _samplers(strides: Strides, levels: int, patch: int) -> Iterator[tuple[str, bool, bool]]:
    """Each down- and upsampler under NVIDIA's name, and whether it works in space and in time."""
    space, time = (max(stride // patch, 1).bit_length() - 1 for stride in strides)  # how many of each
    for i in range(levels - 1):
        yield f"encoder.down.{i}.downsample", i < space, i < time
        in_time = 0 < i < time + 1
        yield f"decoder.up.{levels - 1 - i}.upsample", in_time or (i < space and space > time), in_time
