"""Keys that no section knows: where they stand, and what was probably meant.

void-box ignores them, so they are warnings; a key that is required and missing may be one of them.
The document is searched, not the spec that it became, so that they are found when it became none.
"""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any

from shims.core.errors import Described
from shims.core.findings import Finding, Severity
from shims.core.runspec import RunSpec, Section, choose_form, keys_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from shims.core.places import Path

__all__ = ["explain_missing", "find_unknown"]

_MOST_SUGGESTIONS = 1000  # comparing takes time, and nobody reads more
_MOST_SIBLINGS = 20


def find_unknown(data: object) -> Iterator[Finding]:
    """Yield a warning for every key in ``data`` that void-box ignores. Pure."""
    for count, (path, model) in enumerate(_walk(data, (RunSpec,), ())):
        got = Described("an unknown key")
        hint = _suggest(str(path[-1]), model) if count < _MOST_SUGGESTIONS else ""
        yield Finding(Severity.WARNING, path, got, "", hint, about_key=True)


def _walk(
    data: object, forms: Sequence[type[Section]], path: Path
) -> Iterator[tuple[Path, type[Section]]]:
    """Yield every unknown key, and the section in which it stands."""
    if isinstance(data, list):
        for i, item in enumerate(data):
            yield from _walk(item, forms, (*path, i))
    elif isinstance(data, dict) and forms:
        model = choose_form(forms, data)
        inner = _inner_forms(model)
        for key, value in data.items():
            if key in inner:
                yield from _walk(value, inner[key], (*path, key))
            else:
                yield (*path, key), model


@cache
def _inner_forms(model: type[Section]) -> dict[str, tuple[type[Section], ...]]:
    """Return, for every key of ``model``, the sections that may stand there."""
    fields = model.model_fields
    return {
        key: tuple(_sections_in(fields[name].annotation)) for key, name in keys_of(model).items()
    }


def _sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [part for arg in getattr(annotation, "__args__", ()) for part in _sections_in(arg)]


def _suggest(key: str, model: type[Section]) -> str:
    if key == "<<":
        return "merge keys are not applied; write the values out"
    if near := get_close_matches(key.lower(), keys_of(model), 1):
        return f"did you mean '{near[0]}'?"
    if homes := _homes().get(key):
        return f"it belongs in {' or '.join(homes)}"
    return "void-box ignores it"


@cache
def _homes() -> dict[str, list[str]]:
    """Return, for every key of the spec and its direct sections, where it belongs."""
    homes: dict[str, list[str]] = {}
    for key, forms in _inner_forms(RunSpec).items():
        homes.setdefault(key, []).append("the top level")
        for form in forms:
            for inner in keys_of(form):
                homes.setdefault(inner, []).append(key)
    return homes


def explain_missing(said: Iterable[Finding], unknown: Sequence[Finding]) -> list[Finding]:
    """Return both, with one finding where a key is missing and an unknown one resembles it."""
    siblings: dict[Path, list[str]] = {}
    for finding in unknown:
        siblings.setdefault(finding.path[:-1], []).append(str(finding.path[-1]))
    meant: set[Path] = set()
    explained = []
    for finding in said:
        if finding.value is None and finding.path:
            parent = finding.path[:-1]
            others = siblings.get(parent, [])[:_MOST_SIBLINGS]
            if near := get_close_matches(str(finding.path[-1]), others, 1):
                meant.add((*parent, near[0]))
                finding = replace(finding, hint=f"is '{near[0]}' a misspelling of it?")
        explained.append(finding)
    return [*explained, *(finding for finding in unknown if finding.path not in meant)]
