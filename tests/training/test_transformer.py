from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from videomar.demo.words import write_tokenizer
from videomar.model.videomar import load_checkpoint, save_checkpoint
from videomar.training.transformer import resume


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
    model = resume(before, tmp_path / "tokenizer.json")
    now = model.text_encoder.llm.embed_tokens.weight
    assert old != {word: new[word] for word in old} and set(new) - set(old) == {"drifts", "or", "away"}
    for word, i in new.items():
        if word in old:
            assert torch.equal(now[i], was[old[word]])
        else:
            assert 0 < now[i].abs().max() < 0.1
    assert all(p.requires_grad for p in model.parameters()) and model.training
