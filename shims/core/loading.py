"""From bytes to a RunSpec: read, decode, check, and keep the original.

``load_spec`` and ``parse_spec`` either return a ``LoadedSpec``, warnings included, or raise
``SpecError`` with every error of the document at once.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from shims.core.document import MAX_BYTES, DocumentError, read_document
from shims.core.errors import Described, NotFound, Unreachable
from shims.core.findings import Finding, Severity, SpecError, by_place
from shims.core.rules import review
from shims.core.runspec import RunSpec
from shims.core.unknown import explain_missing, find_unknown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import BinaryIO

    from pydantic_core import ErrorDetails

    from shims.core.document import Document, Path, Syntax

__all__ = ["LoadedSpec", "load_spec", "parse_spec"]


@dataclass(frozen=True)
class LoadedSpec:
    """A RunSpec that may run, and the document that it came from."""

    spec: RunSpec
    source: bytes
    """The document byte for byte: what is handed to void-box is this, never a rendering."""
    syntax: Syntax
    origin: str
    """Where it came from: a path, or ``-`` for standard input."""
    findings: tuple[Finding, ...]
    """Warnings, in the order of the document."""


def load_spec(path: str, *, strict: bool = False) -> LoadedSpec:
    """Read ``path`` (``-``: standard input) and return the spec.

    ``.yaml`` and ``.yml`` are YAML, every other name is JSON, as void-box has it; standard input
    is JSON when it begins with a brace. Raises ``NotFound``, ``Unreachable`` (cannot be read) and
    ``SpecError``; ``strict`` makes unknown keys errors.
    """
    try:
        if path == "-":
            source = _read(_standard_input())
            syntax: Syntax = "json" if source.lstrip().startswith(b"{") else "yaml"
        else:
            with open(path, "rb") as file:
                source = _read(file)
            syntax = "yaml" if FilePath(path).suffix.lower() in (".yaml", ".yml") else "json"
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such file") from error
    except OSError as error:
        raise Unreachable(f"{path}: {error.strerror}") from error
    return parse_spec(source, syntax, origin=path, strict=strict)


def _standard_input() -> BinaryIO:
    # Python has none at all when the caller closed it.
    found: BinaryIO | None = getattr(sys.stdin, "buffer", None)
    if found is None:
        raise Unreachable("-: standard input is closed")
    return found


def _read(file: BinaryIO) -> bytes:
    # One byte more than allowed tells a file that is too long from one that fits, and a device
    # or a pipe that never ends cannot fill the memory.
    return file.read(MAX_BYTES + 1)


def parse_spec(
    source: bytes, syntax: Syntax = "yaml", *, origin: str = "spec", strict: bool = False
) -> LoadedSpec:
    """Return the spec that ``source`` holds. Does no I/O. Raises ``SpecError``."""
    try:
        document = read_document(source, syntax)
    except DocumentError as error:
        finding = Finding(Severity.ERROR, error.path, error.value, error.allowed, mark=error.mark)
        raise SpecError([finding], origin) from error
    spec, said = _check(document.data)
    unknown = list(find_unknown(document.data))
    if strict:
        unknown = [replace(finding, severity=Severity.ERROR) for finding in unknown]
    findings = _place(explain_missing(said, unknown), document)
    errors = [finding for finding in findings if finding.severity is Severity.ERROR]
    warnings = [finding for finding in findings if finding.severity is Severity.WARNING]
    if errors or spec is None:
        raise SpecError(errors, origin, warnings)
    return LoadedSpec(spec, source, syntax, origin, tuple(warnings))


def _check(data: object) -> tuple[RunSpec | None, list[Finding]]:
    """Return the spec, if ``data`` has the shape of one, and what is wrong with it or odd."""
    try:
        spec = RunSpec.model_validate(data)
    except ValidationError as error:
        return None, [_translate(detail, data) for detail in error.errors(include_url=False)]
    return spec, review(spec)


def _place(findings: list[Finding], document: Document) -> list[Finding]:
    """Return ``findings`` with line and column, sorted by them."""
    placed = [
        replace(finding, mark=document.find_mark(finding.path, of_key=finding.about_key))
        for finding in findings
    ]
    return sorted(placed, key=by_place)


# --------------------------------------------------------------------- pydantic's errors, ours

_ALLOWED = {
    "string_type": "text",
    "int_type": "a whole number, 0 or more",
    "int_parsing": "a whole number, 0 or more",
    "int_from_float": "a whole number, 0 or more",
    "int_parsing_size": "a whole number of 64 bits",
    "greater_than_equal": "a whole number, 0 or more",
    "less_than_equal": "a whole number of 64 bits",
    "bool_type": "true, false",
    "bool_parsing": "true, false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "missing": "a value, this key is required",
}


def _translate(detail: ErrorDetails, data: object) -> Finding:
    """Return pydantic's complaint as one of ours."""
    path = _real_path(detail["loc"], data, missing=detail["type"] == "missing")
    if detail["type"] == "missing":
        return Finding(Severity.ERROR, path, None, _ALLOWED["missing"])
    if detail["type"].startswith("union_tag"):
        path = (*path, "type")
        allowed = "box, fan_out"
        value = _look_up(data, path)
    else:
        context: Mapping[str, Any] = detail.get("ctx", {})
        expected = str(context.get("expected", "")).replace("'", "").replace(" or ", ", ")
        allowed = expected or _ALLOWED.get(detail["type"], detail["msg"])
        value = detail["input"]
    if "env" in path:
        value = Described("a value that is not shown")
    return Finding(Severity.ERROR, path, value, allowed)


def _real_path(loc: tuple[str | int, ...], data: object, *, missing: bool) -> Path:
    """Return ``loc`` without the names of union members, which pydantic puts between keys."""
    path: list[str | int] = []
    last = len(loc) - 1
    for i, part in enumerate(loc):
        if _holds(data, part):
            data = _look_up(data, (part,))
        elif not (missing and i == last):
            continue
        path.append(part)
    return tuple(path)


def _holds(data: object, part: str | int) -> bool:
    if isinstance(data, dict):
        return part in data
    return isinstance(data, list) and isinstance(part, int) and part < len(data)


def _look_up(data: object, path: Path) -> object:
    for part in path:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int):
            data = data[part]
    return data
