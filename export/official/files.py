"""The files of the authors' layout: what torch.save, diffusers and transformers would have written.

Names of tensors come from layout.py, names in config files from the models. Knows nothing of the order of work.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from tokenizers import Tokenizer
from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from videomar.config import TextConfig, TokenizerConfig, TransformerConfig
from videomar.export.importing.layout import BLOCKS, EMA, MODEL, PLACES, SHIFTS, TOLD
from videomar.export.importing.qwen import RELEASED, VISION
from videomar.export.importing.reading import Tensors
from videomar.export.importing.writing import save_float32
from videomar.model.text import NAMES as OF_QWEN
from videomar.model.tokenizer import VideoTokenizer

COSMOS_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
QWEN_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
FILES = {  # all that is written, by path
    PLACES["transformer"].path,
    TOLD,
    *(f"{PLACES['video_tokenizer'].path}/{file}" for file in COSMOS_FILES),
    *(f"{PLACES['text_encoder'].path}/{file}" for file in QWEN_FILES),
}
PADDING = ("<|endoftext|>", "<pad>", "[PAD]")  # padding is masked: which token it is changes nothing
Wrote = Callable[[int], None]  # is told of bytes


def write_videomar(file: Path, state: Tensors, config: TransformerConfig, wrote: Wrote) -> None:
    """Transformer and head as the authors' script saves them; both entries are the same memory, written once.

    Each block gets the `scale_shift_table` that their module has and never uses, so that it loads strictly.
    """
    unused = {f"{BLOCKS}{i}.{SHIFTS}": torch.zeros(6, config.width) for i in range(config.depth)}
    state = {**state, **unused}
    with open(file, "wb") as out:
        told = _Told(out, wrote)
        try:
            torch.save({MODEL: state, EMA: state}, told)
        except RuntimeError:  # what PyTorch's writer makes of a disk that is full
            if told.error is None:
                raise
            raise told.error from None


def write_cosmos(directory: Path, tensors: Tensors, config: TokenizerConfig, wrote: Wrote) -> None:
    """A directory of `diffusers.AutoencoderKLCosmos`."""
    with torch.device("meta"):
        said = VideoTokenizer(config).vae.to_json_string()
    directory.mkdir()
    (directory / COSMOS_FILES[0]).write_text(said)
    for written in save_float32(tensors, directory / COSMOS_FILES[1]):
        wrote(written)


def write_qwen(directory: Path, tensors: Tensors, words: bytes, config: TextConfig, wrote: Wrote) -> None:
    """A Qwen2-VL repository in the published form, flat, which every version of transformers reads.

    Its vision tower, which VideoMAR does not use and a checkpoint does not hold, has no layers, and zeros elsewhere.
    """
    said = _qwen_config(config)
    with torch.device("meta"):
        tower = Qwen2VisionTransformerPretrainedModel(Qwen2VLConfig.from_dict(said).vision_config).state_dict()
    vision = {VISION[0] + name: torch.zeros(tensor.shape) for name, tensor in tower.items()}
    vocabulary = Tokenizer.from_str(words.decode()).get_vocab()
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(said, indent=2) + "\n")
    (directory / "tokenizer.json").write_bytes(words)
    named = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is
        "padding_side": config.padding_side,
        "pad_token": next((t for t in PADDING if t in vocabulary), min(vocabulary, key=vocabulary.__getitem__)),
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(named, indent=2) + "\n")
    for written in save_float32(tensors | vision, directory / "model.safetensors"):
        wrote(written)


def _qwen_config(config: TextConfig) -> dict[str, Any]:
    half = config.width // config.heads // 2  # the angles of a head, in three sections: all turn alike for text
    side = 3 * half // 8
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": RELEASED,
        **{theirs: getattr(config, ours) for ours, theirs in OF_QWEN.items()},
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": config.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": [half - 2 * side, side, side]},
        "use_sliding_window": False,
        "tie_word_embeddings": True,  # so there is no head for words to miss
        "bos_token_id": None,
        "eos_token_id": None,
        "torch_dtype": "float32",
        "vision_config": {"depth": 0, "embed_dim": 16, "hidden_size": config.width, "num_heads": 1},
    }


class _Told:
    """A file that tells of its bytes, and remembers why it could not take them."""

    def __init__(self, file: IO[bytes], wrote: Wrote) -> None:
        self._file, self._wrote = file, wrote
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            count = self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self._wrote(count)
        return count

    def flush(self) -> None:
        self._file.flush()
