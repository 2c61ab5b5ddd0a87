"""``void-shim doctor``: can this host start microVMs, and if not, what is missing?"""

from __future__ import annotations

import asyncio
import dataclasses

import click

from shims.cli.output import OUTPUT_OPTION, colour, print_json, print_table
from shims.core.errors import ExitCode


@click.command()
@OUTPUT_OPTION
def doctor(output: str) -> int:
    """Look at everything that starting a microVM needs, and explain the verdict.

    Every check says what it found; one that did not pass says what to do about it. Nothing is
    changed and nothing is started that stays.

    \b
    Examples:
      void-shim doctor
      void-shim doctor -o json | jq '.[] | select(.verdict == "fail")'

    Exits with 0 when microVMs can start (warnings included), else with 1.
    """
    from shims.microvm.doctor import collect

    checks = asyncio.run(collect())
    if output == "json":
        print_json([dataclasses.asdict(check) for check in checks])
    else:
        print_table(
            ["verdict", "check", "detail"],
            [[colour(check.verdict), check.name, check.detail] for check in checks],
        )
        for check in checks:
            if check.verdict != "ok" and check.fix:
                click.echo(
                    f"\n{colour(check.verdict)}: {check.name}: {check.detail}\n  {check.fix}"
                )
    failed = any(check.verdict == "fail" for check in checks)
    return ExitCode.FAILED if failed else ExitCode.OK
