"""Scalars of a document, typed by the field that reads them.

void-box reads YAML with a typed decoder: an unquoted ``8080`` is the text "8080" where a field
holds text and a number where it holds a number, and ``yes`` is never a truth value. PyYAML alone
would decide before it knows the field, after YAML 1.1's rules. So the document keeps an unquoted
scalar as ``PlainScalar``, and the types below decide. Quoted scalars and JSON values have their
type already: they are taken as they are.

Rules of the core schema as void-box's decoder has them (serde_yaml 0.9): null is ``null``,
``Null``, ``NULL``, ``~`` or nothing; truth values are ``true`` and ``false`` in three spellings;
integers may be signed and have a 0x, 0o or 0b prefix; digits after a leading zero are text.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field

__all__ = [
    "Count",
    "Flag",
    "Listing",
    "Maybe",
    "PlainScalar",
    "Table",
    "Text",
    "resolve",
    "to_mapping",
]

U64_MAX = 2**64 - 1


class PlainScalar(str):
    """A YAML scalar that stood without quotes: its source text."""

    __slots__ = ()


_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_TRUTHS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z", re.ASCII)
_PREFIXED = re.compile(r"([-+]?)0(?:x([0-9a-fA-F]+)|o([0-7]+)|b([01]+))\Z", re.ASCII)
_FLOAT = re.compile(
    r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\Z", re.ASCII
)
_SPECIAL_FLOAT = re.compile(r"(?:([-+]?)\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z", re.ASCII)
_LONGEST_NUMBER = 64


def resolve(value: object) -> object:
    """Return ``value`` with every plain scalar in it typed by its looks (lists, mappings too)."""
    if isinstance(value, PlainScalar):
        return _resolve_scalar(str(value))
    if isinstance(value, dict):
        return {key: resolve(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [resolve(item) for item in value]
    return value


def _resolve_scalar(text: str) -> object:
    if text in _NULLS:
        return None
    if text in _TRUTHS:
        return _TRUTHS[text]
    if len(text) > _LONGEST_NUMBER:
        return text
    if _INTEGER.match(text):
        return int(text)
    if found := _PREFIXED.match(text):
        sign, *digits = found.groups()
        base, number = next((b, d) for b, d in zip((16, 8, 2), digits, strict=True) if d)
        return int(sign + number, base)
    return _resolve_float(text)


def _resolve_float(text: str) -> object:
    if found := _SPECIAL_FLOAT.match(text):
        if found[1] is None:
            return math.nan
        return -math.inf if found[1] == "-" else math.inf
    return float(text) if _FLOAT.match(text) else text


def _to_text(value: Any) -> Any:
    return str(value) if isinstance(value, PlainScalar) else value


def _to_value(value: Any) -> Any:
    return _resolve_scalar(str(value)) if isinstance(value, PlainScalar) else value


def _to_optional(value: Any) -> Any:
    return None if isinstance(value, PlainScalar) and value in _NULLS else value


def _to_tuple(value: Any) -> Any:
    # A key with nothing behind it is an empty list; ``null`` written out is not.
    if isinstance(value, PlainScalar) and value == "":
        return ()
    return tuple(value) if isinstance(value, list) else value


def to_mapping(value: Any) -> Any:
    """Return an empty mapping for a key with nothing behind it, everything else unchanged."""
    return {} if isinstance(value, PlainScalar) and value == "" else value


T = TypeVar("T")

Text = Annotated[str, BeforeValidator(_to_text)]
"""Text; an unquoted number or truth value is taken as it is written."""

Count = Annotated[int, BeforeValidator(_to_value), Field(ge=0, le=U64_MAX)]
"""A whole number of 64 bits, not negative."""

Flag = Annotated[bool, BeforeValidator(_to_value)]
"""``true`` or ``false``."""

Maybe = Annotated[T | None, BeforeValidator(_to_optional)]
"""A value that may be null or left empty."""

Listing = Annotated[tuple[T, ...], BeforeValidator(_to_tuple)]
"""A list, kept as a tuple."""

Table = Annotated[dict[Text, T], BeforeValidator(to_mapping)]
"""A mapping from text."""
