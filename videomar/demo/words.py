"""The demo's word-level tokenizer, made from the words that it has to know with the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from videomar.demo.world import vocabulary

NORMAL = normalizers.Sequence(
    [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"[.,;:!?]"), " ")]
)


def _words(sentence: str) -> list[str]:
    return str(NORMAL.normalize_str(sentence)).split()


def write_tokenizer(file: Path) -> None:
    """Write the tokenizer.json of the demo world."""
    file.write_text(word_tokenizer(), encoding="utf-8")


def word_tokenizer(sentences: Iterable[str] | None = None) -> str:
    """A tokenizer.json: lower case, punctuation dropped, one id a word, [UNK] for the rest.

    The words are those of the sentences, or of the demo world.
    """
    known = vocabulary() if sentences is None else sorted({word for s in sentences for word in _words(s)})
    words = ["[UNK]", *known]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = NORMAL
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return str(tokenizer.to_str(pretty=True))
