"""``void-shim validate``: are these RunSpecs sound?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from shims.cli.output import (
    OUTPUT_OPTION,
    choose_findings,
    one_line,
    print_error,
    print_findings,
    print_json,
)
from shims.core.errors import ExitCode, ShimError

if TYPE_CHECKING:
    from shims.core.findings import Finding
    from shims.core.loading import LoadedSpec


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(), metavar="FILE...")
@click.option("--strict", is_flag=True, help="Unknown keys are errors, not warnings.")
@OUTPUT_OPTION
def validate(files: tuple[str, ...], strict: bool, output: str) -> int:
    """Check RunSpecs and say what is wrong with them, and where.

    FILE is YAML when its name ends in .yaml or .yml, else JSON; - is standard input.
    Nothing is run, and nothing is fetched.

    \b
    Examples:
      void-shim validate agent.yaml
      void-shim validate --strict specs/*.yaml
      generate-spec | void-shim validate -

    \b
    What an error looks like (file, line, column, field, value, what would do):
      error: agent.yaml:9:17: agent.timeout_secs: got '5m'; allowed: a whole number, 0 or more

    Exits with 0 when all of them may run, 2 when one may not, 4 or 5 when one cannot be read.
    """
    from shims.core.findings import SpecError
    from shims.core.loading import load_spec

    worst = int(ExitCode.OK)
    reports: list[dict[str, Any]] = []
    for file in files:
        loaded: LoadedSpec | None = None
        findings: tuple[Finding, ...] = ()
        unread: ShimError | None = None
        try:
            loaded = load_spec(file, strict=strict)
            findings = loaded.findings
        except SpecError as error:
            worst = max(worst, error.exit_code)
            findings = error.in_order
        except ShimError as error:
            worst = max(worst, error.exit_code)
            unread = error
        if output == "json":
            reports.append(_report(file, loaded, findings, unread))
        elif unread is not None:
            print_error(unread)
        else:
            _show(file, loaded, findings)
    if output == "json":
        print_json(reports)
    return worst


def _show(file: str, loaded: LoadedSpec | None, findings: tuple[Finding, ...]) -> None:
    print_findings(findings, file)
    if loaded is not None:
        spec = loaded.spec
        click.echo(
            f"valid: {one_line(file)} (kind={spec.kind}, api_version={one_line(spec.api_version)})"
        )


def _report(
    file: str,
    loaded: LoadedSpec | None,
    findings: tuple[Finding, ...],
    unread: ShimError | None,
) -> dict[str, Any]:
    shown, hidden = choose_findings(findings)
    told = [_tell(finding) for finding in shown]
    if unread is not None:
        place = {"line": None, "column": None}
        told = [{"severity": "error", "field": "document", "message": str(unread), **place}]
    return {
        "file": file,
        "valid": loaded is not None,
        "kind": loaded.spec.kind if loaded else None,
        "name": loaded.spec.name if loaded else None,
        "api_version": loaded.spec.api_version if loaded else None,
        "findings": told,
        "findings_not_shown": hidden,
    }


def _tell(finding: Finding) -> dict[str, Any]:
    return {
        "severity": finding.severity.value,
        "field": finding.field,
        "message": finding.text,
        "line": finding.mark.line if finding.mark else None,
        "column": finding.mark.column if finding.mark else None,
    }
