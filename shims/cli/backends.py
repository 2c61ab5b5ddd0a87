"""``void-shim backends``: which targets are there?"""

from __future__ import annotations

import click

from shims.cli.output import OUTPUT_OPTION, print_json, print_table


@click.command()
@OUTPUT_OPTION
def backends(output: str) -> None:
    """List the installed backends, what each can do, and why one cannot be used.

    A backend is a target that runs RunSpecs. Any Python package adds one by the entry point
    group void_shims.backends; see the module shims.core.backends.

    \b
    Examples:
      void-shim backends
      void-shim backends -o json
    """
    from shims.core.backends import ENTRY_POINT_GROUP, list_backends

    found = list_backends()
    if output == "json":
        print_json(
            [
                {
                    "name": each.name,
                    "origin": each.origin,
                    "usable": each.type is not None,
                    "capabilities": sorted(each.type.capabilities) if each.type else [],
                    "summary": each.type.summary if each.type else each.problem,
                }
                for each in found
            ]
        )
        return
    if not found:
        click.echo(f"no backend is installed (none has the entry point {ENTRY_POINT_GROUP})")
        return
    rows = [
        [
            each.name,
            "yes" if each.type else "no",
            ", ".join(sorted(each.type.capabilities)) or "-" if each.type else "-",
            each.origin,
            each.type.summary if each.type else each.problem,
        ]
        for each in found
    ]
    print_table(["name", "usable", "capabilities", "from", "summary"], rows)
