"""Reading JSON: Python's own parser for what it says, one walk for where, and for what it allows.

Python's parser is quick and tells no places. The walk goes over the same text, token by token,
once it is known to be sound: it notes the places, and refuses with one what Python accepts and
void-box does not, keys that stand twice, numbers out of range and halves of characters.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from typing import TYPE_CHECKING

from shims.core.errors import Described
from shims.core.places import (
    MAX_DEPTH,
    MAX_VALUES,
    DocumentError,
    Mark,
    Marks,
    Path,
    broken,
    duplicate,
    too_deep,
    too_many,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["parse_json"]


def parse_json(text: str, marks: Marks) -> object:
    """Return what ``text`` says, and note in ``marks`` where. Raises ``DocumentError``."""
    try:
        data: object = json.loads(text)
    except json.JSONDecodeError as error:
        mark = Mark(error.lineno, error.colno)
        raise DocumentError(broken(error.msg), "JSON", mark=mark) from error
    except RecursionError as error:
        raise too_deep(()) from error
    except ValueError as error:  # an integer with more digits than Python converts
        raise DocumentError(Described("a number of thousands of digits"), "JSON") from error
    _Walk(text, marks).visit_all()
    return data


# Of a sound text: what is skipped in between are spaces, commas and colons. The quantifiers are
# possessive, because going back never helps and remembering how would cost more than the text.
_TOKEN = re.compile(r'[{}\[\]]|"(?:[^"\\]++|\\.)*+"|[^\s{}\[\],:"]++')
_FRACTION = re.compile(r"-?[0-9]+[.eE]")
_CONSTANTS = frozenset({"NaN", "Infinity", "-Infinity"})


class _Walk:
    """One walk over a text that is sound JSON."""

    def __init__(self, text: str, marks: Marks) -> None:
        self._tokens: Iterator[re.Match[str]] = _TOKEN.finditer(text)
        self._lines = [0, *(found.end() for found in re.finditer("\n", text))]
        self._marks = marks

    def visit_all(self) -> None:
        self._visit(next(self._tokens), (), 0)

    def _visit(self, token: re.Match[str], path: Path, depth: int) -> None:
        mark = self._mark(token)
        if len(self._marks.values) >= MAX_VALUES:
            raise too_many()
        if depth > MAX_DEPTH:
            raise too_deep(path, mark)
        self._marks.values[path] = mark
        if token[0] == "[":
            for i, item in enumerate(self._until("]")):
                self._visit(item, (*path, i), depth + 1)
        elif token[0] == "{":
            self._visit_members(path, depth)
        else:
            _check_scalar(token[0], path, mark)

    def _visit_members(self, path: Path, depth: int) -> None:
        seen: set[str] = set()
        for token in self._until("}"):
            mark = self._mark(token)
            _check_scalar(token[0], path, mark)
            key: str = json.loads(token[0])
            if key in seen:
                raise duplicate(key, path, mark)
            seen.add(key)
            place = (*path, key)
            self._marks.keys[place] = mark
            self._visit(next(self._tokens), place, depth + 1)

    def _until(self, end: str) -> Iterator[re.Match[str]]:
        while (token := next(self._tokens))[0] != end:
            yield token

    def _mark(self, token: re.Match[str]) -> Mark:
        line = bisect_right(self._lines, token.start())
        return Mark(line, token.start() - self._lines[line - 1] + 1)


def _check_scalar(token: str, path: Path, mark: Mark) -> None:
    """Raise when a scalar is one that Python reads and JSON or void-box does not."""
    if token.startswith('"'):
        if "\\u" in token and not _is_text(json.loads(token)):
            got = Described("half of a character (a lone surrogate)")
            raise DocumentError(got, "text in Unicode", path=path, mark=mark)
    elif token in _CONSTANTS:
        allowed = "JSON, which knows finite numbers only"
        raise DocumentError(Described(token), allowed, path=path, mark=mark)
    elif _FRACTION.match(token) and not math.isfinite(float(token)):
        got = Described("a number out of range")
        raise DocumentError(got, "finite numbers", path=path, mark=mark)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
