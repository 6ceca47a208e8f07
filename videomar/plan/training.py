"""Bytes that a training step needs: what lies in memory at its three largest moments, from sizes alone.

Counted on what PyTorch's autograd keeps of each operator on a CPU; kernels of a GPU that join operators keep less.
Knows nothing of PyTorch or of how a step is made beyond what is written here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from videomar import graphs
from videomar.config import ModelConfig
from videomar.errors import InputError
from videomar.plan.memory import Moment, tapes
from videomar.plan.request import Request

FLOAT = 4  # bytes; weights, gradients and what follows them stay in float32
NOISE_LEVELS = 2  # diffusion steps that are trained a token and pass
TRAINED = ("text_encoder", "transformer", "diffusion_head")  # the video tokenizer never is, beside them
GRAPHS = {
    "video_tokenizer": (graphs.TOKENIZER_ENCODER, graphs.TOKENIZER_DECODER),
    "text_encoder": (graphs.TEXT_ENCODER,),
    "transformer": (graphs.TEXT_KEY_VALUES, graphs.TRANSFORMER_STEP),
    "diffusion_head": (graphs.HEAD_CONDITION, graphs.HEAD_STEP),
}


@dataclass(frozen=True)
class Sizes:
    """One step of a stage; raises InputError for a length or size that has no whole latents.

    frames, height, width: pixels; batch: clips a step, in `accumulate` parts one after the other; text: tokens of a
    sentence, the longest where None. recompute: a block's activations are made again on the way back. trained: parts
    with gradients; lora: rank of low-rank updates of the transformer's matrices, instead of all that. activation_bytes:
    4, or 2 where products are in bfloat16.
    """

    config: ModelConfig
    frames: int
    height: int
    width: int
    batch: int
    accumulate: int = 1
    text: int | None = None
    recompute: bool = False
    trained: Collection[str] = TRAINED
    lora: int | None = None
    activation_bytes: int = 4

    def __post_init__(self) -> None:
        t = self.config.tokenizer
        if self.frames < 1 or (self.frames - 1) % t.temporal_stride:
            raise InputError(f"frames is {self.frames}, expected 1 + {t.temporal_stride}k; change --frames")
        for name in ("height", "width"):
            if getattr(self, name) < 1 or getattr(self, name) % t.spatial_stride:
                raise InputError(
                    f"{name} is {getattr(self, name)}, expected a multiple of {t.spatial_stride}; change --{name}"
                )
        if self.batch < 1 or self.accumulate < 1 or self.batch % self.accumulate:
            raise InputError(f"a batch of {self.batch} does not go in {self.accumulate} equal parts; change --batch")
        if unknown := set(self.trained) - set(TRAINED):
            raise InputError(f"{min(unknown)} is not trained beside others, expected some of {', '.join(TRAINED)}")

    @property
    def tokens(self) -> int:
        """Of one latent frame."""
        return (self.height // self.config.tokenizer.spatial_stride) * (
            self.width // self.config.tokenizer.spatial_stride
        )

    @property
    def latent_frames(self) -> int:
        return 1 + (self.frames - 1) // self.config.tokenizer.temporal_stride

    @property
    def clips(self) -> int:
        """That go through the model at once."""
        return self.batch // self.accumulate

    @property
    def text_tokens(self) -> int:
        """Of a sentence."""
        return self.config.text.max_tokens if self.text is None else self.text


def training_memory(sizes: Sizes) -> tuple[Moment, ...]:
    """Where the way back begins, where it ends, optimizer's step: part -> bytes of each; the largest total is the peak.

    Without the process itself: Python, PyTorch's code, a CUDA context.
    """
    count = parameters(sizes.config)
    matrices = _matrices(sizes.config)
    if sizes.lora:
        trained, twice = sizes.lora * _lora_sides(sizes.config), 0
    else:
        trained = sum(count[part] for part in sizes.trained)
        twice = _by_adam(sizes)
    kept = {
        "weights": FLOAT * (sum(count.values()) + (trained if sizes.lora else 0)),
        "optimizer": FLOAT * (trained + twice),  # one momentum a matrix (Muon), two numbers a weight for the rest
        "averaged weights": FLOAT * trained,
        "latents": FLOAT * sizes.batch * sizes.latent_frames * sizes.tokens * sizes.config.transformer.token_channels,
    }
    copies = {}
    if sizes.activation_bytes < FLOAT:
        copies["weights in bfloat16"] = 2 * sum(count[part] for part in TRAINED)
    if sizes.lora:  # each changed matrix is made anew in every pass
        made = matrices // sizes.config.transformer.depth if sizes.recompute else matrices
        copies["matrices with their updates"] = FLOAT * made
    gradients = {"gradients": FLOAT * trained}
    working = {"on the way back": _way_back(sizes)}
    forward = {**kept, **copies, "activations": activations(sizes), **working}
    if sizes.recompute:
        forward["a block made again"] = _block(sizes)
    if sizes.accumulate > 1:
        forward |= gradients
    back = {**kept, **copies, **gradients, "activations": _left(sizes), **working}
    step = {**kept, **gradients, "orthogonal updates": 0 if sizes.lora else _orthogonal(sizes)}
    return Moment("the way back begins", forward), Moment("the way back ends", back), Moment("optimizer's step", step)


def parameters(config: ModelConfig) -> dict[str, int]:
    """Weights of every part, counted as the plan of a generation counts them."""
    made = tapes(Request(config, config.sampling, precision="fp32"), "ort-cpu")
    return {part: sum(made[name].params for name in names) for part, names in GRAPHS.items()}


def activations(sizes: Sizes) -> int:
    """Bytes that autograd keeps from the forward pass to the way back, of a step that predicts the last frame."""
    depth = sizes.config.transformer.depth
    if sizes.recompute:
        blocks = depth * FLOAT * _rows(sizes) * sizes.config.transformer.width
    else:
        blocks = depth * _block(sizes)
    return _text(sizes) + _text_key_values(sizes) + blocks + _around(sizes) + _head(sizes)


def _rows(sizes: Sizes) -> int:
    """Tokens in the transformer at once: the predicted frame and all before it."""
    return sizes.clips * sizes.latent_frames * sizes.tokens


def _block(sizes: Sizes) -> int:
    """Of one block of the transformer.

    A row of width W in the products' type: inputs of five linears, q, k and v, both rotated and the other q, both
    attentions' results, the MLP before and after its GELU. In float32: inputs of two LayerNorms, what three RMSNorms
    normalised, and what they were given. Every head keeps sums, and attention its mask as numbers.
    """
    t, e = sizes.config.transformer, sizes.activation_bytes
    norms = FLOAT * (2 + 3 + (3 if e < FLOAT else 1))
    row = t.width * ((13 + 2 * t.mlp_ratio) * e + norms) + FLOAT * (5 * t.heads + 4)
    return _rows(sizes) * row + (sizes.latent_frames * sizes.tokens) ** 2 * e


def _around(sizes: Sizes) -> int:
    """Tokens as they come in, and the last LayerNorm's input."""
    t = sizes.config.transformer
    return _rows(sizes) * (t.token_channels * sizes.activation_bytes + t.width * FLOAT)


def _text_key_values(sizes: Sizes) -> int:
    """Every block's k and v of the text, k normalised too, and the text they are made of."""
    t, e, rows = sizes.config.transformer, sizes.activation_bytes, sizes.clips * sizes.text_tokens
    return rows * t.width * (t.depth * (3 * e + FLOAT) + e) + rows * sizes.config.text.width * e


def _text(sizes: Sizes) -> int:
    """Of the text encoder, where it is trained: a row of a layer is 9 widths, half of them float32's, and 4 MLPs'."""
    if "text_encoder" not in sizes.trained or sizes.lora:
        return 0
    x, e = sizes.config.text, sizes.activation_bytes
    rows = sizes.clips * (sizes.text_tokens + x.system_tokens)
    return rows * (x.depth * (x.width * (5 * FLOAT + 4 * e) + 4 * x.mlp_width * e) + 3 * x.width * FLOAT)


def _head(sizes: Sizes) -> int:
    """Of the diffusion head, for all tokens of the predicted frame at every noise level: eleven rows a block."""
    h, t, e = sizes.config.head, sizes.config.transformer, sizes.activation_bytes
    rows = NOISE_LEVELS * sizes.clips * sizes.tokens
    return rows * (e * ((11 * h.depth + 8) * h.width + t.width + h.time_features) + 6 * FLOAT * t.token_channels)


def _left(sizes: Sizes) -> int:
    """Activations that are left when nearly all gradients are there: the first block's and what came before it."""
    return _text(sizes) + _text_key_values(sizes) + _block(sizes)


def _way_back(sizes: Sizes) -> int:
    """Gradients of one block's activations: the MLP's two, and a few rows."""
    t = sizes.config.transformer
    return _rows(sizes) * t.width * sizes.activation_bytes * (2 * t.mlp_ratio + 4)


def _matrices(config: ModelConfig) -> int:
    """Weights of attention and MLP in all blocks."""
    t = config.transformer
    return t.depth * t.width**2 * (8 + 2 * t.mlp_ratio)


def _lora_sides(config: ModelConfig) -> int:
    """Rows and columns of those matrices, together: what a rank costs."""
    t = config.transformer
    return t.depth * t.width * ((3 + 1) + 2 + 2 + (2 + 1) + 2 + 2 * (t.mlp_ratio + 1))


def _by_adam(sizes: Sizes) -> int:
    """Weights that are no matrices to Muon, the many of them: embeddings of words, and "no text"."""
    c = sizes.config
    words = c.text.vocab_size * c.text.width if "text_encoder" in sizes.trained else 0
    return words + (c.text.max_tokens * c.transformer.width if "transformer" in sizes.trained else 0)


def _orthogonal(sizes: Sizes) -> int:
    """Muon's largest group of equal matrices: gradients and what is made of them, twice each, and three squares."""
    t, x, e = sizes.config.transformer, sizes.config.text, sizes.activation_bytes
    groups = [(0, 1)]
    if "transformer" in sizes.trained:
        groups.append((t.depth * t.mlp_ratio * t.width**2, t.mlp_ratio))
    if "text_encoder" in sizes.trained:
        groups.append((2 * x.depth * x.mlp_width * x.width, max(1, x.mlp_width // x.width)))
    group, ratio = max(groups)
    return group * (2 * FLOAT + 2 * e) + 3 * e * group // ratio
