"""argparse as this command wants it: errors in one line, what was probably meant, paths that are none told as such."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """The whole command line; its sub-commands are of this class, too."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} -h`\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but a mistyped word is told before what it makes missing."""
        words = list(sys.argv[1:] if args is None else args)
        commands = next((a.choices for a in self._actions if isinstance(a, argparse._SubParsersAction)), None)
        if commands and words and not words[0].startswith("-"):
            if words[0] not in commands:
                self.error(f"unknown command {words[0]!r}{_meant(words[0], commands)}")
            commands[words[0]].check_options(words[1:])
        return super().parse_args(words, namespace)

    def check_options(self, words: Sequence[str]) -> None:
        """Refuse the first option that is none."""
        known = self._option_string_actions
        for word in words:
            name = word.partition("=")[0]
            if word == "--":
                return
            if re.match("--[a-z]", word) and not any(option.startswith(name) for option in known):
                self.error(f"unknown option {name}{_meant(name, [o for o in known if o.startswith('--')])}")


def _meant(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""


class Version(argparse.Action):
    """--version: read only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"videomar {version('videomar')}")
        parser.exit()


class Completion(argparse.Action):
    """--print-completion: what a shell evaluates to complete commands and options."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, shell: Any, option_string: Any = None
    ) -> NoReturn:
        try:
            import shtab
        except ModuleNotFoundError:
            parser.error("--print-completion needs shtab, which is not installed; pip install 'videomar[completion]'")
        print(shtab.complete(parser, shell))
        parser.exit()


def path(text: str) -> Path:
    """A path; an address is none."""
    if re.match("[a-zA-Z][a-zA-Z0-9+.-]+://", text):
        raise argparse.ArgumentTypeError(f"is {text}, a URL, expected a path; download it and give the file")
    return Path(text)


def output(text: str) -> Path:
    """A place to write; - is none."""
    if text == "-":
        raise argparse.ArgumentTypeError("is -, expected a path: only `videomar generate` writes to standard output")
    return path(text)
