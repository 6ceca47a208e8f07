"""The demo's word-level tokenizer, made from the world's vocabulary with the `tokenizers` library."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from videomar.demo.world import vocabulary


def write_tokenizer(file: Path) -> None:
    """Write tokenizer.json: lower case, punctuation dropped, one id a word, [UNK] for the rest."""
    words = ["[UNK]", *vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"[.,;:!?]"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(file))
