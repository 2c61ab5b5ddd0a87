"""One table: what was measured, ours beside the peer's, their ratio, and the budget."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Row", "Table", "median"]

_HEADER = ("what", "ours", "peer", "ratio", "budget", "")


@dataclass(frozen=True)
class Row:
    """One line. ``ours`` and ``peer`` have the same unit and come from the same run.

    ``limit`` judges ``ratio`` if there is a peer, else ``ours``; ``at_least`` turns it round.
    """

    what: str
    ours: float
    unit: str
    peer: float | None = None
    limit: float | None = None
    at_least: bool = False
    judge_ours: bool = False

    @property
    def ratio(self) -> float | None:
        return self.ours / self.peer if self.peer else None

    @property
    def met(self) -> bool | None:
        """Whether the budget is met; None without one."""
        if self.limit is None:
            return None
        value = self.ours if self.judge_ours or self.ratio is None else self.ratio
        return value >= self.limit if self.at_least else value <= self.limit

    def cells(self) -> tuple[str, ...]:
        budget = ""
        if self.limit is not None:
            unit = f" {self.unit}" if self.judge_ours or self.ratio is None else "x"
            budget = f"{'>=' if self.at_least else '<='} {self.limit:g}{unit}"
        return (
            self.what,
            _amount(self.ours, self.unit),
            "" if self.peer is None else _amount(self.peer, self.unit),
            "" if self.ratio is None else f"{self.ratio:.2f}x",
            budget,
            {None: "", True: "met", False: "MISSED"}[self.met],
        )


class Table:
    """Sections of rows, printed with columns that fit them all."""

    def __init__(self) -> None:
        self.sections: list[tuple[str, str, list[Row]]] = []

    def section(self, title: str, peer: str, rows: Sequence[Row]) -> None:
        """Add a section; ``peer`` says what the column of that name means in it."""
        self.sections.append((title, peer, list(rows)))

    def render(self) -> str:
        cells = [
            ("  " + first, *rest)
            for _, _, rows in self.sections
            for first, *rest in (row.cells() for row in rows)
        ]
        widths = [max(len(line[i]) for line in [_HEADER, *cells]) for i in range(len(_HEADER))]

        def line(columns: Sequence[str]) -> str:
            first = columns[0].ljust(widths[0])
            rest = [
                text.rjust(width) for text, width in zip(columns[1:5], widths[1:5], strict=True)
            ]
            return "  ".join([first, *rest, columns[5]]).rstrip()

        out = [line(_HEADER), "-" * (sum(widths) + 2 * len(widths))]
        indented = iter(cells)
        for title, peer, rows in self.sections:
            out.append(f"{title}  [peer: {peer}]" if peer else title)
            out.extend(line(next(indented)) for _ in rows)
        return "\n".join(out)


def median(measure: Callable[[], float], repeat: int) -> float:
    """Return the median of several measurements."""
    return statistics.median(measure() for _ in range(repeat))


def _amount(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"
    return f"{value:.1f} {unit}"
