"""The language model of a Qwen2-VL repository (a transformers directory) -> our config and weights.

Accepts what `videomar.model.text` can compute and nothing else: for text alone Qwen2-VL's three rotary sections turn by
the same position, so it is a Qwen2 model with other weights. Knows nothing of the other parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import Qwen2Config, Qwen2VLConfig

from videomar.config import TextConfig
from videomar.errors import ArtifactError
from videomar.export.importing.reading import Tensors, one_line, read_json, read_shards
from videomar.model.text import NAMES

RELEASED = "qwen2_vl"  # the model_type of what the authors load
PLAIN = "qwen2"  # Qwen2 and Qwen2.5 text models: the same names and sizes, other numbers
# Where the language model lies in a file, depending on who saved it; the first that fits.
PLACES = ("model.language_model.", "language_model.model.", "language_model.", "model.", "")
VISION = ("visual.", "model.visual.")
HEADS = ("lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight")  # the encoder stops before it


@dataclass(frozen=True)
class LanguageModel:
    """Weights under the file's names: those of `transformers.Qwen2Model` with `place` in front."""

    config: TextConfig
    tensors: Tensors
    place: str
    notes: tuple[str, ...]


def read_qwen(directory: Path, max_tokens: int, plain: bool = False) -> LanguageModel:
    """Read the language model, leaving out the vision tower and the words' head.

    max_tokens: of the prompt. plain: take a plain Qwen2 or Qwen2.5 text model too.
    Raises ArtifactError for another architecture, a feature that our encoder lacks, quantised or missing files.
    """
    if not directory.is_dir():
        raise ArtifactError(f"{directory} is no directory, expected a transformers one; check the path")
    source = directory / "config.json"
    data = read_json(source)
    kind = data.get("model_type")
    if kind == PLAIN and not plain:
        raise ArtifactError(
            f"{source}: model_type is {PLAIN!r}, expected {RELEASED!r}: a text model of the same names and sizes is "
            "not what the release was trained with; give a Qwen2-VL repository, or --plain-qwen2 to take it anyway"
        )
    if kind not in (PLAIN, RELEASED):
        raise ArtifactError(
            f"{source}: model_type is {kind!r:.60}, expected {RELEASED!r}; give a Qwen2-VL repository, such as "
            "mit-han-lab/Qwen2-VL-1.5B-Instruct"
        )
    config = _config(source, data, max_tokens)
    found = read_shards(directory, "model")
    place = next((p for p in PLACES if f"{p}embed_tokens.weight" in found), "model.")
    vision = [name for name in found if kind == RELEASED and name.startswith(VISION)]
    left_out = {*vision, *HEADS}
    tensors = {name: tensor for name, tensor in found.items() if name not in left_out}
    for name in tensors:
        if not name.startswith(place):
            raise ArtifactError(f"{directory} has an unknown tensor {name!r}; it is of another model or version")
    notes = [f"language model of {directory}: {len(tensors)} tensors at {place!r}"]
    if vision:
        notes[0] += f", {len(vision)} of the vision tower left out ({vision[0].split('visual.')[0]}visual.*)"
    if kind == PLAIN:
        notes.append(
            f"WARNING: {directory} is a plain text model ({PLAIN}), not the {RELEASED} that the release was trained "
            "with: the released weights will not understand its states"
        )
    return LanguageModel(config, tensors, place, tuple(notes))


def _config(source: Path, data: dict[str, Any], max_tokens: int) -> TextConfig:
    if data.get("quantization_config"):
        raise ArtifactError(f"{source} is of quantised weights, expected float ones; get the original model")
    try:
        # transformers fills in what the file leaves to its defaults.
        config = (
            Qwen2Config.from_dict(data) if data["model_type"] == PLAIN else Qwen2VLConfig.from_dict(data).text_config
        )
        rope: dict[str, Any] = dict(config.rope_parameters or {})
        sizes = {ours: getattr(config, theirs) for ours, theirs in NAMES.items()}
        sizes["kv_heads"] = sizes["kv_heads"] or sizes["heads"]
        text = TextConfig(**sizes, rope_theta=float(rope["rope_theta"]), max_tokens=max_tokens)
        size = text.width // text.heads
        only = {
            "hidden_act": (config.hidden_act, "silu"),
            "rms_norm_eps": (config.rms_norm_eps, 1e-6),
            "rope_type": (rope.get("rope_type", "default"), "default"),
            "use_sliding_window": (bool(config.use_sliding_window), False),
            "head_dim": (getattr(config, "head_dim", None) or size, size),
            "width left over by the heads": (text.width % text.heads, 0),
            "heads left over by the key heads": (text.heads % text.kv_heads, 0),
            "the sum of mrope_section": (sum(rope.get("mrope_section", [size // 2])), size // 2),
        }
    except Exception as error:  # each version of transformers has its own
        raise ArtifactError(
            f"{source} is no whole {data['model_type']} config ({one_line(error)}); get it again"
        ) from None
    for name, (got, expected) in only.items():
        if got != expected:
            raise ArtifactError(
                f"{source}: {name} is {got!r}, expected {expected!r}; give the language model that the release has"
            )
    return text
