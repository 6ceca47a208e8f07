"""What a model is (ModelConfig) and how it is sampled (SamplingConfig): frozen data, JSON both ways, presets.

Knows nothing of torch, of files, or of how anything is run.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, TypeVar

from videomar.errors import ConfigError

T = TypeVar("T")


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


@dataclass(frozen=True)
class SamplingConfig:
    """Knobs of one generation; the defaults are the paper's."""

    frames: int = 25  # pixel frames, 1 + 8k
    height: int = 480
    width: int = 768
    mask_steps: int = 64
    head_steps: int = 100
    guidance_scale: float = 3.0
    temperature: float | None = None  # None: progressive over generated frames, 0.9 + 10^-(t+1)
    clip: float | None = 2.0  # bound on sampled tokens of every frame after the first generated one
    # Cap on the diffusion betas that the head's steps are derived from. The paper's 0.999 multiplies the head's error
    # at the noisiest step by 20,000, which only a head trained for long can bear.
    max_beta: float = 0.999

    def __post_init__(self) -> None:
        for name in ("frames", "height", "width", "mask_steps", "head_steps"):
            _check_count(name, getattr(self, name))
        if not self.guidance_scale >= 0:
            raise ConfigError(f"guidance scale is {self.guidance_scale}, expected 0 or more (1 turns guidance off)")
        if self.temperature is not None and not self.temperature >= 0:
            raise ConfigError(f"temperature is {self.temperature}, expected 0 or more")
        if not 0 < self.max_beta < 1:
            raise ConfigError(f"max_beta is {self.max_beta}, expected more than 0 and less than 1")
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"clip is {self.clip}, expected a positive bound or none")


@dataclass(frozen=True)
class ModelConfig:
    """One VideoMAR model, whole."""

    name: str = "custom"
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    text: TextConfig = field(default_factory=TextConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        t = self.transformer
        if t.width != t.heads * t.head_dim:
            raise ConfigError(f"transformer width is {t.width}, expected heads * head_dim = {t.heads * t.head_dim}")
        if sum(t.rope_split) != t.head_dim or any(part % 2 or part <= 0 for part in t.rope_split):
            raise ConfigError(
                f"rope_split is {t.rope_split}, expected three positive even numbers that add up to {t.head_dim}"
            )
        if t.token_channels != self.tokenizer.latent_channels:
            raise ConfigError(
                f"token_channels is {t.token_channels}, expected the tokenizer's {self.tokenizer.latent_channels}"
            )

    def to_json(self) -> str:
        """The config as JSON text; `from_json` reads it back to an equal object."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> ModelConfig:
        """Read a config; raises ConfigError naming the first unknown, missing or ill-typed key."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"config is not JSON ({error}); restore the file or import the checkpoint again"
            ) from None
        return _from_dict(ModelConfig, data, "config")


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name.replace('_', ' ')} is {value}, expected a whole number of at least 1")


_KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "float | None": (int, float, type(None)),
}


def _from_dict(cls: type[T], data: Any, where: str) -> T:
    if not isinstance(data, dict):
        raise ConfigError(f"{where} is {type(data).__name__}, expected an object with keys")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - set(fields)):
        raise ConfigError(f"{where} has an unknown key {unknown[0]!r}; known: {', '.join(fields)}")
    if missing := sorted(set(fields) - set(data)):
        raise ConfigError(f"{where} lacks the key {missing[0]!r}")
    values: dict[str, Any] = {}
    for name, f in fields.items():
        value, default = data[name], _default(f)
        if dataclasses.is_dataclass(default):
            value = _from_dict(type(default), value, f"{where}.{name}")
        elif isinstance(default, tuple):
            if not isinstance(value, list) or not all(isinstance(v, int) for v in value):
                raise ConfigError(f"{where}.{name} is {value!r}, expected a list of whole numbers")
            value = tuple(value)
        else:
            kinds = _KINDS[str(f.type)]
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise ConfigError(f"{where}.{name} is {value!r}, expected {f.type}")
        values[name] = value
    return cls(**values)


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


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
    sampling=SamplingConfig(frames=17, height=64, width=64, mask_steps=8, head_steps=25, clip=10.0, max_beta=0.05),
)

PRESETS: dict[str, ModelConfig] = {"demo": DEMO, "videomar-1.4b": VIDEOMAR_1_4B}
