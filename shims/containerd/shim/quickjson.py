"""JSON for the start path: the standard library's parser without the import of ``json``.

``json`` imports ``re``, and together they take as long as the rest of a start. The C scanner
behind it needs neither; where an interpreter does not have it, ``json`` is used after all.
"""

from __future__ import annotations

__all__ = ["dump_flat", "load"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

_make_scanner: Callable[[Any], Callable[[str, int], tuple[Any, int]]] | None
try:
    from _json import encode_basestring_ascii
    from _json import make_scanner as _make_scanner
except ImportError:
    _make_scanner = None


class _Settings:
    """What the scanner reads of a decoder."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: dict[str, str] = {}  # noqa: RUF012  the scanner's own cache of keys


def load(text: str) -> Any:
    """Return the value in ``text``; raise ValueError when it is no JSON."""
    if _make_scanner is None:
        import json

        return json.loads(text)
    text = text.strip(" \t\n\r")
    try:
        value, end = _make_scanner(_Settings)(text, 0)
    # SystemError: the scanner wants to raise json's error class, which nobody imported.
    except (StopIteration, SystemError, RecursionError) as error:
        raise ValueError("not JSON") from error
    if end != len(text):
        raise ValueError("something follows the JSON value")
    return value


def dump_flat(fields: Mapping[str, str | int]) -> str:
    """Return an object of strings and integers as one line of JSON."""
    if _make_scanner is None:
        import json

        return json.dumps(fields)
    pairs = (
        f"{encode_basestring_ascii(key)}: "
        f"{encode_basestring_ascii(value) if isinstance(value, str) else int(value)}"
        for key, value in fields.items()
    )
    return "{" + ", ".join(pairs) + "}"
