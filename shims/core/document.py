"""Reading a YAML or JSON document that nobody vouches for.

Bytes go in; a tree of dicts, lists and scalars comes out, with the line and column of every value.
Whatever a hostile or broken file may hold ends in one ``DocumentError``: too many bytes, no UTF-8,
too deep, a small file whose aliases expand to a huge one, a key that stands twice, two documents.
No object is ever constructed from a tag.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shims.core.errors import Described
from shims.core.json_text import parse_json
from shims.core.places import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_VALUES,
    DocumentError,
    Mark,
    Marks,
    Path,
    format_path,
)
from shims.core.yaml_text import parse_yaml

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_VALUES",
    "Document",
    "DocumentError",
    "Mark",
    "Path",
    "Syntax",
    "format_path",
    "read_document",
]

Syntax = Literal["yaml", "json"]


@dataclass(frozen=True)
class Document:
    """What a text says, and where it says it."""

    data: object
    """Dicts with text keys, lists, and scalars (``PlainScalar`` where YAML had no quotes)."""
    text: str
    syntax: Syntax
    _marks: Marks

    def find_mark(self, path: Path, *, of_key: bool = False) -> Mark | None:
        """Return where the value at ``path`` stands, or its nearest parent; None if unknown.

        ``of_key`` asks for the key in front of the value instead.
        """
        if of_key and (mark := self._marks.keys.get(path)):
            return mark
        for length in range(len(path), -1, -1):
            if mark := self._marks.values.get(path[:length]):
                return mark
        return None


def read_document(source: bytes, syntax: Syntax) -> Document:
    """Return the document that ``source`` holds. Raises ``DocumentError``; does no I/O."""
    if len(source) > MAX_BYTES:
        raise DocumentError(Described(f"{len(source)} bytes"), f"at most {MAX_BYTES} bytes")
    try:
        text = source.decode("utf-8")
    except UnicodeDecodeError as error:
        line = source.count(b"\n", 0, error.start) + 1
        column = error.start - (source.rfind(b"\n", 0, error.start) + 1) + 1
        got = Described(f"byte 0x{source[error.start]:02x}")
        raise DocumentError(got, "text in UTF-8", mark=Mark(line, column)) from error
    marks = Marks({}, {})
    parse = parse_json if syntax == "json" else parse_yaml
    return Document(parse(text, marks), text, syntax, marks)
