"""The tree of errors: exit codes, one line each, and the drawing of it."""

from __future__ import annotations

import re

import pytest

from shims.core import errors
from shims.core.errors import Described, InputError, ShimError, show_value


def _all_errors(root: type[ShimError] = ShimError) -> list[type[ShimError]]:
    own = [kind for kind in root.__subclasses__() if kind.__module__ == errors.__name__]
    return [root, *(found for kind in own for found in _all_errors(kind))]


def test_the_drawing_shows_the_tree() -> None:
    assert errors.__doc__ is not None
    drawn = re.findall(r"(\w+) +(\d+) {2,}", errors.__doc__ + "  ")
    drawn += [("ShimError", "1")]
    real = {(kind.__name__, str(int(kind.exit_code))) for kind in _all_errors()}
    assert set(drawn) == real


def test_a_hint_follows_the_message() -> None:
    assert str(ShimError("it broke")) == "it broke"
    assert str(ShimError("it broke", hint="mend it")) == "it broke; mend it"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "nothing"),
        (True, "true"),
        (3, "3"),
        ("a b", "'a b'"),
        ("two\nlines", r"'two\nlines'"),
        ({"a": 1}, "a mapping of 1"),
        ([1, 2], "a list of 2"),
        (Described("a second key"), "a second key"),
        ("x" * 200, "'" + "x" * 78 + "…"),
        (Described("a\x1bb"), r"a\x1bb"),
        ("\x9b\u202e\ud800", r"'\x9b\u202e\ud800'"),
    ],
)
def test_values_are_shown_on_one_short_line(value: object, shown: str) -> None:
    assert show_value(value) == shown
    error = InputError("a.b", value, "this, that")
    assert str(error) == f"a.b: got {shown}; allowed: this, that"
    assert "\n" not in str(error)
