"""How large every dynamic axis of the engines may be: optimization profiles from the contract's axis names.

Knows nothing of TensorRT. Shapes are what the TensorRT backend binds: predicted positions padded to the most that one
mask step predicts, finished K/V of 0 to frames - 1 latent frames (portable) or a fixed cache with a `reach` (native).
A pass may compute a part of a frame, which finds the K/V of the frame's other positions among the finished ones, and
the first branch by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from videomar.carried import decoder_axes
from videomar.config import ModelConfig
from videomar.errors import InputError
from videomar.graphs import (
    HEAD_CONDITION,
    HEAD_STEP,
    TEXT_ENCODER,
    TEXT_KEY_VALUES,
    TOKENIZER_DECODER,
    TOKENIZER_ENCODER,
    TRANSFORMER_STEP,
    GraphSpec,
    require_engine_width,
)
from videomar.schedule import masked_after_steps
from videomar.steps import PARTS

# What the TensorRT backend runs. Not diffusion_head: it captures the loop itself, from the head's two parts.
ENGINES = (
    TEXT_ENCODER,
    TEXT_KEY_VALUES,
    TOKENIZER_ENCODER,
    TOKENIZER_DECODER,
    TRANSFORMER_STEP,
    HEAD_CONDITION,
    HEAD_STEP,
)

Range = tuple[int, int, int]  # least, what kernels are tuned for, most
Profile = dict[str, list[list[int]]]  # tensor -> its least, tuned and largest shape


@dataclass(frozen=True)
class Sizes:
    """The largest clip that engines serve."""

    frames: int  # pixel frames
    height: int
    width: int
    mask_steps: int  # the fewest; fewer steps predict more tokens in one
    branches: int = 2
    passes: int = 1  # 2: the branches go through the transformer one after the other
    max_text: int = 0
    static: bool = False  # this picture size only; otherwise down to half of it both ways
    window: int | None = None  # finished latent frames seen besides the first; all if None

    @staticmethod
    def of(
        config: ModelConfig,
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        mask_steps: int | None = None,
        branches: int = 2,
        passes: int = 1,
        max_text: int | None = None,
        static: bool = False,
        window: int | None = None,
    ) -> Sizes:
        """The model's defaults where nothing is given; raises InputError naming the option that does not fit."""
        s = config.sampling
        sizes = Sizes(
            frames or s.frames,
            height or s.height,
            width or s.width,
            mask_steps or s.mask_steps,
            branches,
            passes,
            max_text or config.text.max_tokens,
            static,
            window,
        )
        if passes > branches:
            raise InputError(
                f"guidance passes are {passes} of {branches} branch; --guidance-passes 2 needs --branches 2"
            )
        time, space = config.tokenizer.temporal_stride, config.tokenizer.spatial_stride
        if sizes.frames <= 1 or (sizes.frames - 1) % time:
            raise InputError(f"frames is {sizes.frames}, expected 1 + {time}k, such as {1 + time}; change --frames")
        for name in ("height", "width"):
            if (value := getattr(sizes, name)) % space:
                near = max(1, round(value / space)) * space
                raise InputError(f"{name} is {value}, expected a multiple of {space}, such as {near}; change --{name}")
        if sizes.max_text > config.text.max_tokens:
            raise InputError(
                f"text tokens are {sizes.max_text}, the model takes at most {config.text.max_tokens}; change --max-text"
            )
        return sizes


def axis_ranges(config: ModelConfig, sizes: Sizes, prefix: int, cache_tokens: int | None) -> dict[str, Range]:
    """Every dynamic axis of the contract; `prefix` is the number of ids of the system prompt.

    Raises InputError when the clip does not fit a cache of `cache_tokens`, or has more mask steps than tokens.
    """
    require_engine_width(config.head)
    space = config.tokenizer.spatial_stride
    frames = 1 + (sizes.frames - 1) // config.tokenizer.temporal_stride
    h, w = sizes.height // space, sizes.width // space
    least_h, least_w = (h, w) if sizes.static else (-(-h // 2), -(-w // 2))
    tokens, least = h * w, least_h * least_w
    seen = frames - 1 if sizes.window is None else min(frames - 1, 1 + sizes.window)  # of the finished frames
    if cache_tokens is not None and (need := (seen + 1) * tokens) > cache_tokens:
        raise InputError(
            f"the clip needs K/V of {need} tokens, these artifacts hold {cache_tokens}; "
            f"lower --frames, --height, --width or --kv-window, or export with --cache-tokens {need}"
        )
    smallest, largest = (decoder_axes(config.tokenizer, *of) for of in ((1, least_h, least_w), (frames, h, w)))
    left = masked_after_steps(tokens, sizes.mask_steps)
    most = max(a - b for a, b in zip([tokens, *left[:-1]], left, strict=True))
    usual_text = max(1, sizes.max_text // 2)
    # Half way through the clip; with a window, most frames see as many as they may.
    finished = (frames // 2 if sizes.window is None else min(frames // 2, seen)) * tokens
    return {
        "branches": (1, sizes.branches, sizes.branches),
        "prompt": (prefix + 1, prefix + usual_text, prefix + sizes.max_text),
        "text": (1, usual_text, sizes.max_text),
        "frames": (1, 1, sizes.frames),  # the encoder's: most clips start from one picture
        **{axis: (smallest[axis], size, size) for axis, size in largest.items()},
        "tokens": (-(-least // PARTS), tokens, tokens),
        "past": (0, finished, (seen + 1) * tokens - -(-tokens // PARTS)),
        "total": (least, min(finished, seen * tokens) + tokens, (seen + 1) * tokens),
        "predicted": (1, most, most),
        "steps": (1, config.sampling.head_steps, config.head.train_steps),
    }


def profiles(specs: dict[str, GraphSpec], ranges: dict[str, Range], passes: int) -> dict[str, Profile]:
    """The profile of every engine; in two passes the transformer gets one branch at a time, the head both."""
    at_once = ranges["branches"][2] // passes
    step = ranges | {"branches": (1, at_once, at_once)}
    return {name: _profile(specs[name], step if name == TRANSFORMER_STEP else ranges) for name in ENGINES}


def _profile(spec: GraphSpec, ranges: dict[str, Range]) -> Profile:
    """Least, tuned and largest shape of every input that has a dynamic axis."""
    return {
        tensor.name: [[ranges[a][i] if isinstance(a, str) else a for a in tensor.axes] for i in range(3)]
        for tensor in spec.inputs
        if any(isinstance(a, str) for a in tensor.axes)
    }
