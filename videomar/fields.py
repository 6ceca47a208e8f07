"""What a file says, field by field: each is checked for type and range when it is asked for. Knows no file.

Whoever reads a file knows its path and what mends it, and turns a FieldError into its own message.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from typing import Any

from videomar.errors import ArtifactError

MOST = 2**53  # whole numbers beyond are no counts


class FieldError(ArtifactError):
    """A field is missing, of another type or out of range; says which, what was got and what was expected."""


def parse(text: str | bytes) -> Any:
    """JSON as plain data; raises FieldError for anything else, whatever it would do to a parser or a terminal."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:  # not UTF-8 and numbers of too many digits are ValueErrors too
        raise FieldError(f"not JSON, so truncated or altered ({error!s:.80})") from None
    return data


def shown(value: Any) -> str:
    """A value in a line of text."""
    text = repr(value) if isinstance(value, (int, float, str, type(None))) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


class Fields:
    """An object with keys; `where` is its path in the file, for messages."""

    def __init__(self, data: Any, where: str = "") -> None:
        if not isinstance(data, dict):
            raise FieldError(f"{where or 'the whole'} is {shown(data)}, expected an object with keys")
        self._data, self._where = data, where

    def __contains__(self, key: str) -> bool:
        return key in self._data

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def _path(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key

    def plain(self, key: str) -> Any:
        """Whatever is there."""
        if key not in self._data:
            raise FieldError(f"lacks the key '{self._path(key)}'")
        return self._data[key]

    def _bad(self, key: str, expected: str) -> FieldError:
        return FieldError(f"'{self._path(key)}' is {shown(self._data[key])}, expected {expected}")

    def whole(self, key: str, least: int = 0, most: int = MOST) -> int:
        """A whole number."""
        value = self.plain(key)
        if type(value) is not int or not least <= value <= most:
            raise self._bad(key, f"a whole number, {least} to {most}")
        return value

    def number(self, key: str, least: float = -math.inf, most: float = math.inf, finite: bool = True) -> float:
        """A number that float64 holds; with `finite` neither NaN nor infinite."""
        value = self.plain(key)
        if type(value) is float and not finite:
            return value
        if type(value) not in (int, float) or not abs(value) <= sys.float_info.max or not least <= value <= most:
            bounds = "" if (least, most) == (-math.inf, math.inf) else f", {least:g} to {most:g}"
            raise self._bad(key, f"a finite number{bounds}")
        return float(value)

    def text(self, key: str, choices: tuple[str, ...] = ()) -> str:
        """Text, one of the choices if there are any."""
        value = self.plain(key)
        if choices and value not in choices:
            raise self._bad(key, f"one of {', '.join(choices)}")
        if not isinstance(value, str) or any("\ud800" <= c <= "\udfff" for c in value):  # they cannot be printed
            raise self._bad(key, "text")
        return value

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self.plain(key)
        if not isinstance(value, bool):
            raise self._bad(key, "true or false")
        return value

    def fields(self, key: str) -> Fields:
        """An object inside."""
        return Fields(self.plain(key), self._path(key))

    def items(self, key: str) -> list[Any]:
        """A list of whatever."""
        value = self.plain(key)
        if not isinstance(value, list):
            raise self._bad(key, "a list")
        return value

    def rows(self, key: str) -> list[Fields]:
        """A list of objects."""
        return [Fields(row, f"{self._path(key)}[{i}]") for i, row in enumerate(self.items(key))]

    def wholes(self, key: str) -> list[int]:
        """A list of whole numbers, 0 or more."""
        row = Fields({str(i): value for i, value in enumerate(self.items(key))}, self._path(key))
        return [row.whole(i) for i in row]

    def texts(self, key: str) -> list[str]:
        """A list of texts."""
        row = Fields({str(i): value for i, value in enumerate(self.items(key))}, self._path(key))
        return [row.text(i) for i in row]
