from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from videomar.config import ModelConfig
from videomar.demo.words import write_tokenizer
from videomar.errors import InputError
from videomar.model.videomar import PARTS, VideoMAR, load_checkpoint, save_checkpoint
from videomar.training.recipe import Recipe, Stage
from videomar.training.transformer import change_words, choose_layers, initialize


def ids(file: Path) -> dict[str, int]:
    return json.loads(file.read_text())["model"]["vocab"]


@pytest.fixture
def before(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that knows fewer words than the world has now, under other ids."""
    directory = tmp_path / "before"
    save_checkpoint(load_checkpoint(tiny_checkpoint), directory)
    tokenizer = json.loads((tiny_checkpoint / "tokenizer.json").read_text())
    kept = [word for word in tokenizer["model"]["vocab"] if word not in ("drifts", "or", "away")]
    tokenizer["model"]["vocab"] = {word: i for i, word in enumerate([kept[0], *reversed(kept[1:])])}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    return directory


def test_words_keep_their_embeddings_under_new_ids_and_new_words_start_small(before: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer.json")
    old, new = ids(before / "tokenizer.json"), ids(tmp_path / "tokenizer.json")
    was = load_checkpoint(before).text_encoder.llm.embed_tokens.weight
    model = load_checkpoint(before)
    change_words(model, (before / "tokenizer.json").read_bytes(), (tmp_path / "tokenizer.json").read_bytes())
    now = model.text_encoder.llm.embed_tokens.weight
    assert old != {word: new[word] for word in old} and set(new) - set(old) == {"drifts", "or", "away"}
    for word, i in new.items():
        if word in old:
            assert torch.equal(now[i], was[old[word]])
        else:
            assert 0 < now[i].abs().max() < 0.1


def trained_of(model: VideoMAR) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


STAGES = (Stage(9, 32, 32, steps=1),)
OWN = {"clips": "folder", "captions": "file"}


def test_what_is_trained_follows_where_it_starts_from(tiny_model: VideoMAR) -> None:
    model = copy.deepcopy(tiny_model)
    names = {name for name, _ in model.named_parameters()}
    of = {part: {n for n in names if n.startswith(f"{part}.")} for part in PARTS}
    assert choose_layers(model, Recipe(STAGES)) == ("text_encoder", "transformer", "diffusion_head")
    assert trained_of(model) == names - of["video_tokenizer"]
    assert choose_layers(model, Recipe(STAGES, start="it", **OWN)) == ("transformer", "diffusion_head")
    assert trained_of(model) == of["transformer"] | of["diffusion_head"]
    assert choose_layers(model, Recipe(STAGES, start="it", layers=("diffusion_head.*", "*mask_token"), **OWN)) == (
        "transformer",
        "diffusion_head",
    )
    assert trained_of(model) == of["diffusion_head"] | {"transformer.mask_token"}
    assert choose_layers(model, Recipe(STAGES, start="it", layers=("text_encoder.*",), **OWN)) == ("text_encoder",)


@pytest.mark.parametrize("pattern", ["video_tokenizer.*", "transformr.*"])
def test_layers_that_are_not_trained_or_not_there_are_refused(pattern: str, tiny_model: VideoMAR) -> None:
    with pytest.raises(InputError, match=r"matches no parameter, expected a pattern within .*'transformer\.\*'"):
        choose_layers(copy.deepcopy(tiny_model), Recipe(STAGES, layers=(pattern,)))


def test_a_head_that_is_fresh_predicts_nothing(tiny_config: ModelConfig) -> None:
    model = VideoMAR(tiny_config)
    initialize(model)
    t = tiny_config.transformer
    noise, variance = model.diffusion_head(
        torch.randn(3, t.token_channels), torch.tensor([1, 50, 99]), torch.randn(3, t.width)
    )
    assert not noise.any() and not variance.any()
