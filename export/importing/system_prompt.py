"""The words in front of every prompt: whether they are there, and whether they are the authors'.

The authors' words are not repeated here; length and hash tell whether a file holds them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from videomar.errors import InputError
from videomar.files import regular

LENGTH = 726  # characters, the last a newline
SHA256 = "0383c612a9c86a037cd9b1059062717e834b7f079b04ab3c9a236452dd83243d"


def read_system_prompt(file: Path) -> str:
    """The words of a file, byte for byte; raises InputError for one that is missing, empty or no UTF-8."""
    try:
        words = regular(file).read_bytes().decode("utf-8")  # read_text would turn line ends into others
    except OSError as error:
        raise InputError(
            f"{file} cannot be read ({error.strerror}), expected the system prompt; change --system-prompt-file"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    if not words:
        raise InputError(f"{file} is empty, expected the system prompt; put its words there, or --no-system-prompt")
    return words


def check_given(words: str | None, released: bool) -> None:
    """Raise InputError for a model of the released sizes without a system prompt."""
    if words is None and released:
        raise InputError(
            f"no system prompt, expected the authors' ({LENGTH} characters, SHA-256 {SHA256:.12}...), which stood in "
            "front of every prompt in training; give --system-prompt-file FILE, or --no-system-prompt to do without"
        )


def note_on(words: str | None, tokens: int) -> str:
    """What a user should know of the system prompt that was imported."""
    if words is None:
        return "no system prompt: VideoMAR was trained with one; give its words with --system-prompt-file"
    got = hashlib.sha256(words.encode()).hexdigest()
    if got == SHA256:
        return f"system prompt: {tokens} tokens, the authors' words (SHA-256 {SHA256:.12}...)"
    return (
        f"WARNING: the system prompt ({len(words)} characters, {tokens} tokens) is not the authors': its SHA-256 is "
        f"{got:.12}..., expected {SHA256:.12}... of {LENGTH} characters; a missing last newline is enough"
    )
