"""Fields of a file are what they are said to be, or named with what was got and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from videomar.fields import FieldError, Fields, parse

DATA = {"n": 3, "x": 0.5, "t": "word", "b": True, "o": {"n": -1, "l": [1, 2]}, "l": ["a", "b"], "r": [{"n": 1}, 2]}


def test_what_is_right_is_given_back() -> None:
    fields = Fields(DATA)
    assert fields.whole("n") == 3 and fields.number("x") == 0.5 and fields.number("n") == 3.0
    assert fields.text("t") == "word" and fields.text("t", ("word", "other")) == "word" and fields.flag("b") is True
    assert fields.fields("o").whole("n", -1) == -1 and fields.fields("o").wholes("l") == [1, 2]
    assert fields.texts("l") == ["a", "b"] and list(fields) == list(DATA) and "n" in fields and "m" not in fields


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda f: f.whole("m"), "lacks the key 'm'"),
        (lambda f: f.fields("o").whole("m"), r"lacks the key 'o\.m'"),
        (lambda f: f.fields("o").whole("n"), r"'o\.n' is -1, expected a whole number, 0 to"),
        (lambda f: f.whole("n", 4, 9), "'n' is 3, expected a whole number, 4 to 9"),
        (lambda f: f.whole("b"), "'b' is True"),
        (lambda f: f.whole("x"), "'x' is 0.5"),
        (lambda f: f.number("t"), "'t' is 'word', expected a finite number"),
        (lambda f: f.number("x", 1, 2), "'x' is 0.5, expected a finite number, 1 to 2"),
        (lambda f: f.number("b"), "'b' is True"),
        (lambda f: f.text("n"), "'n' is 3, expected text"),
        (lambda f: f.text("t", ("a", "b")), "'t' is 'word', expected one of a, b"),
        (lambda f: f.flag("n"), "'n' is 3, expected true or false"),
        (lambda f: f.fields("l"), "l is a list, expected an object"),
        (lambda f: f.items("o"), "'o' is a dict, expected a list"),
        (lambda f: f.rows("r"), r"r\[1\] is 2, expected an object"),
        (lambda f: f.texts("r"), r"'r\.0' is a dict, expected text"),
        (lambda f: f.fields("o").texts("l"), r"'o\.l\.0' is 1"),
        (lambda f: f.wholes("l"), r"'l\.0' is 'a'"),
        (lambda f: Fields([1]), "the whole is a list, expected an object with keys"),
        (lambda f: Fields({"s": "\ud800"}).text("s"), "'s' is .*, expected text"),
    ],
)
def test_what_is_wrong_is_named(ask: Callable[[Fields], Any], message: str) -> None:
    with pytest.raises(FieldError, match=message) as caught:
        ask(Fields(DATA))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 10**400])
def test_what_float64_does_not_hold_is_no_finite_number(value: float) -> None:
    with pytest.raises(FieldError, match="finite"):
        Fields({"x": value}).number("x")


def test_infinity_is_a_number_where_it_may_be() -> None:
    assert Fields({"x": float("inf")}).number("x", finite=False) == float("inf")


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b"\xff", b"1" * 5000, "nul", b'{"a": }'])
def test_what_is_no_json_is_one_error(text: bytes) -> None:
    with pytest.raises(FieldError, match="not JSON, so truncated or altered"):
        parse(text)


def test_json_is_read() -> None:
    assert parse(b'{"a": [1, "\\ud83d\\ude00"]}') == {"a": [1, "\U0001f600"]}
