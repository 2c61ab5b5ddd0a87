"""What is wrong or odd in a RunSpec: one record per place, one line of text each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from shims.core.errors import InputError, make_printable, show_value
from shims.core.places import format_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shims.core.places import Mark, Path

__all__ = ["Finding", "Severity", "SpecError", "by_place"]


class Severity(StrEnum):
    """Whether a run is possible all the same."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to say about one field. ``allowed`` is empty for a warning that is a remark."""

    severity: Severity
    path: Path
    value: object
    allowed: str
    hint: str = ""
    mark: Mark | None = None
    about_key: bool = False
    """It is the key that is wrong, whatever its value."""

    @property
    def field(self) -> str:
        """The path as people write it."""
        return format_path(self.path) or "document"

    @property
    def text(self) -> str:
        """One line: ``FIELD: got VALUE; allowed: ALLOWED``, and the hint."""
        line = f"{self.field}: got {show_value(self.value)}"
        if self.allowed:
            line += f"; allowed: {self.allowed}"
        return make_printable(f"{line}; {self.hint}" if self.hint else line)


def by_place(finding: Finding) -> tuple[int, int]:
    """Return the key that sorts findings as the document has them."""
    return (finding.mark.line, finding.mark.column) if finding.mark else (0, 0)


class SpecError(InputError):
    """A RunSpec that cannot run; ``findings`` holds every error, in the order of the document.

    ``warnings`` holds what else there is to say, which often explains an error.
    """

    def __init__(
        self, findings: Sequence[Finding], origin: str = "", warnings: Sequence[Finding] = ()
    ) -> None:
        first = findings[0]
        super().__init__(first.field, first.value, first.allowed, hint=first.hint)
        self.findings = tuple(findings)
        self.warnings = tuple(warnings)
        self.origin = origin

    @property
    def in_order(self) -> tuple[Finding, ...]:
        """Errors and warnings, in the order of the document."""
        return tuple(sorted((*self.findings, *self.warnings), key=by_place))
