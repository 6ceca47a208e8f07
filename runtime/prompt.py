"""A sentence -> token ids, with `tokenizer.json` of the checkpoint. Knows nothing of what the ids are fed to."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer

from videomar.config import TextConfig
from videomar.errors import ArtifactError, InputError
from videomar.files import regular


class PromptCut(UserWarning):
    """A prompt was longer than the model's text tokens, and its end is not read."""


class PromptTokenizer:
    """System prompt + prompt -> ids; knows how many leading positions belong to the system prompt."""

    def __init__(self, file: Path, config: TextConfig, whole: bool = False) -> None:
        """whole: refuse a prompt that is too long, instead of cutting it as the model's authors do."""
        self._file = file
        try:
            self._tokenizer = Tokenizer.from_buffer(regular(file).read_bytes())
        except BaseException as error:
            raise self._unusable("be read", error) from None
        self._tokenizer.no_padding()  # which the file may hold; padding is never computed
        self._tokenizer.no_truncation()
        self._config, self._whole = config, whole
        # Encoded apart from the prompt, so that no merge across the seam moves the cut.
        self._system = list(self._encode(config.system_prompt).ids)
        self.prefix = len(self._system)
        if self.prefix != config.system_tokens:
            raise ArtifactError(
                f"{file}: the system prompt has {self.prefix} tokens, expected the {config.system_tokens} of the "
                "config; import the checkpoint again"
            )

    def _unusable(self, what: str, error: BaseException) -> BaseException:
        """The library raises plain Exceptions, and panics that are none."""
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            return error
        return ArtifactError(f"{self._file} cannot {what} as a tokenizer ({error!s:.200}); export the checkpoint again")

    def _encode(self, text: str) -> Encoding:
        try:
            encoding: Encoding = self._tokenizer.encode(text, add_special_tokens=False)
        except BaseException as error:
            raise self._unusable("be used", error) from None
        if (largest := max(encoding.ids, default=0)) >= self._config.vocab_size:
            raise ArtifactError(
                f"{self._file} has token {largest}, expected less than the model's {self._config.vocab_size}; export "
                "the checkpoint again"
            )
        return encoding

    def __call__(self, prompt: str) -> np.ndarray:
        """Ids of system prompt and prompt: [1, length] int64, no padding.

        A prompt of too many tokens is cut with the warning PromptCut, unless it has to be whole.
        Raises InputError for an empty prompt, one that is too long, or words the vocabulary lacks.
        """
        if not isinstance(prompt, str):
            raise InputError(f"the prompt is a {type(prompt).__name__}, expected a sentence that says what happens")
        if not prompt.strip():
            raise InputError("the prompt is empty, expected a sentence that says what happens; give --prompt")
        if any("\ud800" <= c <= "\udfff" for c in prompt):  # how Python keeps what the shell gave and is no UTF-8
            raise InputError("the prompt is not UTF-8 text, expected a sentence; give --prompt in UTF-8")
        encoding = self._encode(prompt)
        unknown = self._tokenizer.token_to_id("[UNK]")
        if unknown is not None and unknown in encoding.ids:
            words = [prompt[a:b] for i, (a, b) in zip(encoding.ids, encoding.offsets, strict=True) if i == unknown]
            known = sorted(word for word in self._tokenizer.get_vocab() if not word.startswith("["))
            raise InputError(f"the prompt has unknown words {', '.join(words)}; this model knows: {' '.join(known)}")
        count = len(encoding.ids)
        if count < 1:
            raise InputError("the prompt holds no words, expected a sentence that says what happens; give --prompt")
        most = self._config.max_tokens
        if count > most and self._whole:
            raise InputError(f"the prompt has {count} tokens, expected at most {most}; shorten it")
        if cut := self._cut(count):
            warnings.warn(cut, PromptCut, stacklevel=2)
        return np.array([self._system + encoding.ids[:most]], np.int64)

    def cut(self, prompt: str) -> str | None:
        """What PromptCut says of this prompt; None if the model reads all of it."""
        return self._cut(len(self._encode(prompt).ids))

    def _cut(self, count: int) -> str | None:
        most = self._config.max_tokens
        return f"the prompt has {count} tokens, of which the model reads {most}" if count > most else None
