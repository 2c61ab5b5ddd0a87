"""How the commands print: tables for people, JSON for programs, one line per error."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shims.core.errors import ShimError
    from shims.core.findings import Finding

__all__ = [
    "OUTPUT_OPTION",
    "print_error",
    "print_finding",
    "print_json",
    "print_table",
]

OUTPUT_OPTION = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="For people, or for programs.",
)

_COLOURS = {"error": "red", "fail": "red", "warning": "yellow", "warn": "yellow", "ok": "green"}


def colour(word: str) -> str:
    """Return ``word`` in its colour; click removes it where no terminal looks."""
    return click.style(word, fg=_COLOURS.get(word), bold=word in ("error", "fail"))


def print_json(value: Any) -> None:
    """Print ``value`` as indented JSON on standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns on standard output; the last one is as wide as it wants to be."""
    lines = [[heading.upper() for heading in headings], *rows]
    widths = [max(len(click.unstyle(line[i])) for line in lines) for i in range(len(headings))]
    for line in lines:
        cells = [
            cell + " " * (width - len(click.unstyle(cell)))
            for cell, width in zip(line, widths, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def print_error(error: ShimError) -> None:
    """Print ``error: MESSAGE`` and, on a line of its own, what to do about it."""
    click.echo(f"{colour('error')}: {_one_line(error.message)}", err=True)
    if error.hint:
        click.echo(f"hint: {_one_line(error.hint)}", err=True)


def print_finding(finding: Finding, origin: str) -> None:
    """Print ``error: FILE:LINE:COLUMN: FIELD: got …; allowed: …`` on standard error."""
    place = origin
    if finding.mark is not None:
        place += f":{finding.mark.line}:{finding.mark.column}"
    click.echo(f"{colour(str(finding.severity))}: {place}: {finding.text}", err=True)


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())
