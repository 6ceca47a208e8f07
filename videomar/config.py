"""What a model is (ModelConfig) and how it is sampled (SamplingConfig): frozen data, JSON both ways, presets.

Knows nothing of torch, of files, or of how anything is run.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from videomar.bounds import check_bounds, check_parts, check_words
from videomar.errors import ConfigError
from videomar.fields import FieldError, parse

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")
MOST = 1_000_000  # of any count or number that a generation is asked for
FITS = ("crop", "stretch")  # how a picture of another shape becomes the clip's
ORDERS = ("random", "structure", "spread")  # in which a frame's positions are predicted (orders.py)
# From noise to token: the paper's sampler, which draws at every step, or a deterministic one that bears few steps.
ANCESTRAL, DDIM = SOLVERS = ("ancestral", "ddim")
ANNEALS = ("linear", "cosine", "two-stage")  # how the diffusion steps go down over a frame's mask steps
# What trades quality for time, each off by default (docs/quality.md). A file that does not name one has it off.
DIALS = (
    "order", "detail_steps", "head_solver", "head_steps_end", "head_anneal", "guidance_start", "guidance_end",
    "refresh_every", "known_share",
)  # fmt: skip
LATER = (*DIALS, "from_text")  # fields that older files lack: they mean the default


@dataclass(frozen=True)
class TokenizerConfig:
    """The Cosmos video tokenizer; names as in `diffusers.AutoencoderKLCosmos`."""

    encoder_channels: tuple[int, ...] = (128, 256, 512, 512)
    decoder_channels: tuple[int, ...] = (256, 512, 512, 512)
    layers_per_block: int = 2
    attention_resolutions: tuple[int, ...] = (32,)
    resolution: int = 1024
    patch_size: int = 4
    patch_type: str = "haar"
    latent_channels: int = 16
    spatial_stride: int = 16
    temporal_stride: int = 8
    latent_scale: float = 0.5  # the transformer sees latents times this; the decoder gets tokens divided by it


@dataclass(frozen=True)
class TextConfig:
    """A Qwen2-family text encoder; names as in `transformers.Qwen2Config`."""

    vocab_size: int = 151936
    width: int = 1536
    depth: int = 28
    heads: int = 12
    kv_heads: int = 2
    mlp_width: int = 8960
    rope_theta: float = 1e6
    max_positions: int = 32768
    max_tokens: int = 300  # of the prompt; the system prompt comes on top
    system_prompt: str = ""  # put in front of the prompt; its positions are dropped from the result
    system_tokens: int = 0  # of the system prompt
    # Prompts were padded to max_tokens in training. Padding is masked, so it is never computed here; what is left of
    # it is which rows of `fake_latent` a prompt's tokens meet (the first on "right", the last on "left") and, on the
    # left, whether its positions are counted too ("padded") or not ("masked").
    padding_side: str = "right"
    positions: str = "padded"

    def __post_init__(self) -> None:
        for name, choices in (("padding_side", ("right", "left")), ("positions", ("padded", "masked"))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"text {name} is {getattr(self, name)!r:.60}, expected {' or '.join(choices)}")

    def gap(self, tokens: int) -> int:
        """Positions between the system prompt and a prompt of so many tokens."""
        left, padded = self.padding_side == "left", self.positions == "padded"
        return self.max_tokens - tokens if left and padded else 0

    def first_row(self, tokens: int) -> int:
        """The first of the rows of `fake_latent` that stand for a prompt of so many tokens."""
        return self.max_tokens - tokens if self.padding_side == "left" else 0


@dataclass(frozen=True)
class TransformerConfig:
    """The step-wise transformer (model.md: width, depth, heads of head_dim)."""

    width: int = 1536
    depth: int = 36
    heads: int = 24
    head_dim: int = 64
    token_channels: int = 16
    mlp_ratio: int = 4
    rope_split: tuple[int, int, int] = (32, 16, 16)  # head channels for frame, row, column
    rope_theta: float = 10000.0


@dataclass(frozen=True)
class HeadConfig:
    """The diffusion head: an MLP with adaptive LayerNorm, and the diffusion process it was trained for."""

    width: int = 1024
    depth: int = 3
    time_features: int = 256
    train_steps: int = 1000


class SamplingOptions(TypedDict, total=False):
    """What a caller may say of one generation; the fields of SamplingConfig, all of them optional."""

    frames: int
    height: int
    width: int
    mask_steps: int
    head_steps: int
    guidance_scale: float
    guidance_ramp: bool
    guidance_passes: int | None
    temperature: float | None
    token_clip: float | None
    kv_window: int | None
    max_beta: float
    fit: str
    fps: float
    order: str
    detail_steps: int | None
    head_solver: str
    head_steps_end: int | None
    head_anneal: str
    guidance_start: float
    guidance_end: float
    refresh_every: int
    known_share: float


@dataclass(frozen=True)
class SamplingConfig:
    """Every option of one generation, checked once; the defaults are the paper's."""

    frames: int = 25  # pixel frames in all, 1 + 8k
    height: int = 480
    width: int = 768
    mask_steps: int = 64
    head_steps: int = 100
    guidance_scale: float = 3.0
    guidance_ramp: bool = True  # the scale grows from 1 as tokens become known
    guidance_passes: int | None = None  # 2: one branch after the other; None: 1, or 2 where only that fits the memory
    temperature: float | None = None  # None: progressive over generated frames, 0.9 + 10^-(t+1)
    token_clip: float | None = 2.0  # bound on sampled tokens of every frame after the first generated one; None: none
    kv_window: int | None = None  # latent frames that a frame sees besides the first and itself; None: all
    # Cap on the diffusion betas that the head's steps are derived from. The paper's 0.999 multiplies the head's error
    # at the noisiest step by 20,000, which only a head trained for long can bear.
    max_beta: float = 0.999
    # crop: the centre, for people; stretch: all of it, squeezed, as the authors' image to video does.
    fit: str = "crop"
    fps: float = 12.0  # frames a second of the clip that is written; the authors'
    # The dials; what each of them costs and saves: docs/quality.md.
    order: str = "random"  # the paper's; structure: one colour of a checkerboard first; spread: low discrepancy
    detail_steps: int | None = None  # of the mask steps, those for the checkerboard's other colour; None: as they come
    head_solver: str = ANCESTRAL  # the paper's; ddim: draws where the diffusion starts and nowhere else
    head_steps_end: int | None = None  # diffusion steps of a frame's last mask step; None: head_steps in all of them
    head_anneal: str = "linear"
    guidance_start: float = 0.0  # guidance in mask steps from this share of a frame's on,
    guidance_end: float = 1.0  # up to this one; the others compute one branch
    # Only every so many mask steps compute the whole frame. Those between compute what was predicted last and what is
    # predicted now, beside the K/V that all others have from before. 1: every step is whole.
    refresh_every: int = 1
    known_share: float = 0.0  # between: of the positions known longer, the share computed too, latest first

    def __post_init__(self) -> None:
        for name in ("frames", "height", "width", "mask_steps", "head_steps"):
            _check_count(name, getattr(self, name))
        _check_number("guidance scale", self.guidance_scale, lambda s: s >= 0, "0 or more (1: no guidance)")
        if not isinstance(self.guidance_ramp, bool):
            raise ConfigError(f"guidance ramp is {self.guidance_ramp!r}, expected True or False")
        if self.guidance_passes not in (None, 1, 2) or isinstance(self.guidance_passes, bool):
            raise ConfigError(f"guidance passes is {self.guidance_passes!r}, expected 1 or 2; change --guidance-passes")
        if self.temperature is not None:
            _check_number("temperature", self.temperature, lambda t: t >= 0, "0 or more, or None for the paper's")
        if self.token_clip is not None:
            _check_number("token clip", self.token_clip, lambda c: c > 0, "a positive bound, or None for none")
        if self.kv_window is not None:
            _check_count("K/V window", self.kv_window, "at least 1 latent frame; change --kv-window")
        _check_number("max_beta", self.max_beta, lambda b: 0 < b < 1, "more than 0 and less than 1")
        if not isinstance(self.fit, str) or self.fit not in FITS:
            raise ConfigError(f"fit is {_shown(self.fit)}, expected {' or '.join(FITS)}; change --fit")
        _check_number("frames a second (fps)", self.fps, lambda f: 0.1 <= f <= 1000, "0.1 to 1000; change --fps")
        self._check_dials()

    def _check_dials(self) -> None:
        of_names = (
            ("order", self.order, ORDERS),
            ("head solver", self.head_solver, SOLVERS),
            ("head anneal", self.head_anneal, ANNEALS),
        )
        for name, value, known in of_names:
            if not isinstance(value, str) or value not in known:
                option = name.replace(" ", "-")
                raise ConfigError(f"{name} is {_shown(value)}, expected one of {', '.join(known)}; change --{option}")
        if self.detail_steps is not None:
            _check_count("detail steps", self.detail_steps, "a whole number of at least 1; change --detail-steps")
            if self.order != "structure":
                raise ConfigError(
                    f"detail steps is {self.detail_steps} with the order {self.order}, which has no details; add "
                    "--order structure or leave --detail-steps out"
                )
            if self.detail_steps >= self.mask_steps:
                raise ConfigError(
                    f"detail steps is {self.detail_steps} of {self.mask_steps} mask steps, expected fewer, so that "
                    "some are left for the structure; change --detail-steps or --mask-steps"
                )
        if self.head_steps_end is not None:
            _check_count("head steps end", self.head_steps_end, "a whole number of at least 1; change --head-steps-end")
            if self.head_steps_end > self.head_steps:
                raise ConfigError(
                    f"head steps end is {self.head_steps_end}, expected at most the {self.head_steps} head steps that "
                    "a frame begins with; change --head-steps-end or --head-steps"
                )
        for name, share in (("guidance start", self.guidance_start), ("guidance end", self.guidance_end)):
            _check_number(name, share, lambda s: 0 <= s <= 1, f"0 to 1; change --{name.replace(' ', '-')}")
        if self.guidance_scale != 1 and not any(map(self.guided, range(self.mask_steps))):
            raise ConfigError(
                f"guidance from {self.guidance_start:g} to {self.guidance_end:g} of a frame holds none of its "
                f"{self.mask_steps} mask steps; widen --guidance-start and --guidance-end, or give --guidance-scale 1"
            )
        _check_count("refresh every", self.refresh_every, "at least 1 mask step; change --refresh-every")
        _check_number("known share", self.known_share, lambda s: 0 <= s <= 1, "0 to 1; change --known-share")
        if self.known_share and self.refresh_every == 1:
            raise ConfigError(
                f"known share is {self.known_share:g}, but every mask step computes the whole frame; add "
                "--refresh-every or leave --known-share out"
            )

    def guided(self, index: int) -> bool:
        """Whether a frame's mask step has guidance: one that lies whole inside the interval, as diffusers counts it."""
        inside = index / self.mask_steps >= self.guidance_start and (index + 1) / self.mask_steps <= self.guidance_end
        return self.guidance_scale != 1 and inside

    @property
    def dials(self) -> dict[str, Any]:
        """Those that are not off, by name."""
        of_dials = (f for f in dataclasses.fields(self) if f.name in DIALS)
        return {f.name: value for f in of_dials if (value := getattr(self, f.name)) != f.default}

    @property
    def branches(self) -> int:
        """Of guidance: 2 with it, 1 without."""
        return 1 if self.guidance_scale == 1 else 2

    @property
    def passes(self) -> int:
        """Calls of the transformer in a step: 2 where the branches go one after the other."""
        return self.branches if self.guidance_passes == 2 else 1

    def but(self, **options: Unpack[SamplingOptions]) -> SamplingConfig:
        """The same with other options; raises ConfigError for an unknown name or a value that cannot be."""
        known = [f.name for f in dataclasses.fields(SamplingConfig)]
        if unknown := sorted(set(options) - set(known)):
            near = difflib.get_close_matches(unknown[0], known, 1)
            meant = f", did you mean {near[0]}?" if near else ";"
            raise ConfigError(f"there is no option {unknown[0]!r}{meant} there are: {', '.join(known)}")
        return dataclasses.replace(self, **options)


@dataclass(frozen=True)
class ModelConfig:
    """One VideoMAR model, whole."""

    name: str = "custom"
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    text: TextConfig = field(default_factory=TextConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    from_text: bool = False  # trained for clips without a picture, whose first latent frame is generated too

    def __post_init__(self) -> None:
        check_words("name", self.name)
        for part in ("tokenizer", "text", "transformer", "head"):
            check_bounds(part, getattr(self, part))
        check_parts(self)

    def to_json(self) -> str:
        """The config as JSON text; `from_json` reads it back to an equal object."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str | bytes) -> ModelConfig:
        """Read a config; raises ConfigError naming the first unknown, missing or ill-typed key."""
        try:
            data = parse(text)
        except FieldError as error:
            raise ConfigError(f"config is {error}; restore the file or import the checkpoint again") from None
        return from_dict(ModelConfig, data, "config")


def _check_count(name: str, value: Any, expected: str = "a whole number of at least 1") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
        most = f" and at most {MOST}" if isinstance(value, int) and value > MOST else ""
        raise ConfigError(f"{name.replace('_', ' ')} is {_shown(value)}, expected {expected}{most}")


def _check_number(name: str, value: Any, good: Callable[[float], bool], expected: str) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not abs(value) <= MOST or not good(value):  # no number is as large as NaN
        raise ConfigError(f"{name} is {_shown(value)}, expected {expected}")


def _shown(value: Any) -> str:
    """A value of any kind in a line of text: no dump of an array."""
    return f"{value!r:.60}" if isinstance(value, (int, float, str, type(None))) else f"a {type(value).__name__}"


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "int | None": (int, type(None)),
    "float | None": (int, float, type(None)),
}


def from_dict(cls: type[T], data: Any, where: str) -> T:
    """Plain data as one of the classes here; raises ConfigError naming the first unknown, missing or ill-typed key."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where} is {type(data).__name__}, expected an object with keys")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - set(fields)):
        raise ConfigError(f"{where} has an unknown key {unknown[0]!r:.60}; known: {', '.join(fields)}")
    if missing := sorted(set(fields) - set(data) - set(LATER)):
        raise ConfigError(f"{where} lacks the key {missing[0]!r}")
    values: dict[str, Any] = {}
    for name, f in fields.items():
        default = _default(f)
        value = data.get(name, default)
        if dataclasses.is_dataclass(default):
            value = from_dict(type(default), value, f"{where}.{name}")
        elif isinstance(default, tuple):
            if not isinstance(value, list) or not all(isinstance(v, int) for v in value):
                raise ConfigError(f"{where}.{name} is {value!r:.60}, expected a list of whole numbers")
            value = tuple(value)
        else:
            kinds = _KINDS[str(f.type)]
            if not isinstance(value, kinds) or isinstance(value, bool) != (bool in kinds):
                raise ConfigError(f"{where}.{name} is {value!r:.60}, expected {f.type}")
        values[name] = value
    return cls(**values)


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


# The authors' figures of image to video were made with fit="stretch", those of video to video with "crop".
VIDEOMAR_1_4B = ModelConfig(name="videomar-1.4b")

DEMO = ModelConfig(
    name="demo",
    tokenizer=TokenizerConfig(
        encoder_channels=(32, 64, 64, 64),
        decoder_channels=(32, 64, 64, 64),
        layers_per_block=1,
        attention_resolutions=(),
        resolution=64,
        spatial_stride=8,
        latent_scale=1.004,
    ),
    text=TextConfig(
        vocab_size=32,
        width=128,
        depth=2,
        heads=2,
        kv_heads=1,
        mlp_width=256,
        rope_theta=1e4,
        max_positions=64,
        max_tokens=16,
    ),
    transformer=TransformerConfig(width=192, depth=4, heads=3, head_dim=64),
    head=HeadConfig(width=256, depth=3),
    # Its tokens have unit variance and longer tails than the official ones: 2 would cut them.
    sampling=SamplingConfig(
        frames=17, height=64, width=64, mask_steps=24, head_steps=25, token_clip=10.0, max_beta=0.05, fps=24.0
    ),
)

PRESETS: dict[str, ModelConfig] = {"demo": DEMO, "videomar-1.4b": VIDEOMAR_1_4B}
