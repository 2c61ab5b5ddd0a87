"""Entry point of ``void-shim``: the command tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import click

from shims.cli.entry import main_of, run_command, version_option
from shims.core.errors import ShimError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["cli", "main", "run"]

_NAME = "void-shim"
_COMMANDS = {
    "validate": "shims.cli.validate:validate",
    "backends": "shims.cli.backends:backends",
    "doctor": "shims.cli.doctor:doctor",
    "completion": "shims.cli.completion:completion",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used.

    Besides the fixed commands there is one group per registered backend, under its name.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        from shims.core.backends import list_names

        return [*_COMMANDS, *list_names()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if place := _COMMANDS.get(cmd_name):
            from importlib import import_module

            module, _, attribute = place.partition(":")
            command = getattr(import_module(module), attribute)
            assert isinstance(command, click.Command)
            return command
        from shims.core.backends import list_names

        if cmd_name not in list_names():
            return None
        from shims.cli.runs import make_backend_group

        try:
            return make_backend_group(cmd_name)
        except ShimError as error:
            return _make_broken(cmd_name, error)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            near = get_close_matches(args[0], self.list_commands(ctx), 1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise click.UsageError(f"{error.message}{hint}", ctx) from error


def _make_broken(name: str, error: ShimError) -> click.Command:
    """Return a command that stands for a backend that cannot be used, and says why."""

    @click.command(name, short_help=str(error), context_settings={"ignore_unknown_options": True})
    @click.argument("rest", nargs=-1)
    def broken(rest: tuple[str, ...]) -> None:
        raise error

    return broken


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@version_option(_NAME)
def cli() -> None:
    """Run void-box RunSpecs on targets that know only containers, Jobs or domains.

    \b
    Examples:
      void-shim doctor                     can this host start microVMs, and if not, why?
      void-shim validate spec.yaml         is this RunSpec sound?
      void-shim validate -o json specs/*   the same for programs
      void-shim backends                   which targets can run it?

    Containers need none of this: once containerd-shim-voidbox-v2 is on containerd's PATH,
    `ctr run --runtime io.containerd.voidbox.v2 IMAGE ID` starts one in its own microVM.

    \b
    Exit codes:
      0 done, or the run succeeded      5 target unreachable
      1 the run, or void-shim, failed   6 not supported by this target
      2 bad input                     124 timeout
      3 already exists                130 interrupted
      4 not found
    """


def run(argv: Sequence[str] | None = None) -> int:
    """Carry out one command line and return its exit code. Prints errors, raises none of ours."""
    return run_command(cli, _NAME, argv)


def main() -> NoReturn:
    """Run ``void-shim`` and exit with the code of ``shims.core.errors.ExitCode``."""
    main_of(cli, _NAME)
