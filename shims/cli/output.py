"""How the commands print: tables for people, JSON for programs, one line per error."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from shims.core.errors import make_printable
from shims.core.findings import Severity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shims.core.errors import ShimError
    from shims.core.findings import Finding

__all__ = [
    "OUTPUT_OPTION",
    "choose_findings",
    "colour",
    "one_line",
    "print_error",
    "print_findings",
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
    """Print ``value`` as indented JSON on standard output; as ASCII, which any encoding bears."""
    click.echo(json.dumps(value, indent=2))


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
    click.echo(f"{colour('error')}: {one_line(error.message)}", err=True)
    if error.hint:
        click.echo(f"hint: {one_line(error.hint)}", err=True)


_MOST_FINDINGS = 100


def choose_findings(findings: Sequence[Finding]) -> tuple[Sequence[Finding], int]:
    """Return the findings to show, and how many are left out; of too many, errors come first."""
    if len(findings) <= _MOST_FINDINGS:
        return findings, 0
    ranked = sorted(findings, key=lambda finding: finding.severity is not Severity.ERROR)
    return ranked[:_MOST_FINDINGS], len(findings) - _MOST_FINDINGS


def print_findings(findings: Sequence[Finding], origin: str) -> None:
    """Print ``error: FILE:LINE:COLUMN: FIELD: got …; allowed: …`` lines on standard error."""
    shown, hidden = choose_findings(findings)
    for finding in shown:
        place = one_line(origin)
        if finding.mark is not None:
            place += f":{finding.mark.line}:{finding.mark.column}"
        click.echo(f"{colour(str(finding.severity))}: {place}: {finding.text}", err=True)
    if hidden:
        click.echo(f"{one_line(origin)}: {hidden} more findings are not shown", err=True)


def one_line(text: str) -> str:
    """Return ``text`` as one line that a terminal only shows."""
    return make_printable(" ".join(text.splitlines()))
