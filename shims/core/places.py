"""Places in a text, and the one error that a text may end in.

What ``shims.core.document`` and its two readers, of YAML and of JSON, have in common: how places
are named and numbered, how large a document may be, and the words for what is wrong with one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from shims.core.errors import Described, InputError

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_VALUES",
    "DocumentError",
    "Mark",
    "Marks",
    "Path",
    "broken",
    "duplicate",
    "format_path",
    "too_deep",
    "too_many",
]

MAX_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 100
MAX_VALUES = 100_000

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a text; line and column count from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Marks:
    """Where everything stands in one text."""

    values: dict[Path, Mark]
    keys: dict[Path, Mark]


class DocumentError(InputError):
    """A text that is no usable document; ``mark`` says where, when that is known."""

    def __init__(
        self, value: object, allowed: str, *, path: Path = (), mark: Mark | None = None
    ) -> None:
        super().__init__(format_path(path) or "document", value, allowed)
        self.path = path
        self.mark = mark


def format_path(path: Path) -> str:
    """Return ``path`` as people write it: ``workflow.steps[2].env["a.b"]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.replace("-", "_").isidentifier():
            text += f".{part}" if text else part
        else:
            text += f"[{json.dumps(part, ensure_ascii=False)}]"
    return text


def broken(problem: str) -> Described:
    """Return the value of an error about syntax, from what a parser said."""
    return Described(f"broken syntax ({problem[:1].lower()}{problem[1:]})")


def duplicate(key: str, path: Path, mark: Mark | None = None) -> DocumentError:
    """Return the error for a key that stands a second time in the mapping at ``path``."""
    got = Described("the same key a second time")
    return DocumentError(got, "each key once", path=(*path, key), mark=mark)


def too_deep(path: Path, mark: Mark | None = None) -> DocumentError:
    """Return the error for a document with more than ``MAX_DEPTH`` levels."""
    got = Described(f"more than {MAX_DEPTH} levels")
    return DocumentError(got, f"at most {MAX_DEPTH} levels of nesting", path=path[:3], mark=mark)


def too_many() -> DocumentError:
    """Return the error for a document with more than ``MAX_VALUES`` values."""
    got = Described(f"more than {MAX_VALUES} values")
    return DocumentError(got, f"at most {MAX_VALUES} values, aliases expanded")
