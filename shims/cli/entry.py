"""What the command lines have in common: exit codes, how errors are told, the version."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from shims.core.errors import ExitCode, ShimError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["main_of", "run_command", "version_option"]

_BROKEN_PIPE = 128 + 13
# click 8.2 and later raise this for a bare group; older ones print the help themselves.
_NO_ARGUMENTS: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())


def version_option(name: str) -> Callable[[Any], Any]:
    """Return the option ``--version`` of the command called ``name``."""

    def show(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
        if not wanted:
            return
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"{name} {version('void-shims')}")
        except PackageNotFoundError:
            click.echo(f"{name} from a source checkout that is not installed")
        ctx.exit()

    return click.option(
        "--version",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=show,
        help="Show the version and exit.",
    )


def run_command(command: click.Command, name: str, argv: Sequence[str] | None = None) -> int:
    """Carry out one command line and return its exit code. Prints errors, raises none of ours.

    ``argv`` is what follows the name; absent, that of this process.
    """
    try:
        arguments = sys.argv[1:] if argv is None else list(argv)
        result = command.main(args=arguments, prog_name=name, standalone_mode=False)
        click.echo(nl=False)  # flushes, so that a broken pipe is noticed here and not at exit
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except (click.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    except _NO_ARGUMENTS as error:
        click.echo(error.format_message(), err=True)
        return ExitCode.BAD_INPUT
    except click.ClickException as error:
        _print_usage_error(error)
        return ExitCode.BAD_INPUT
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except ShimError as error:
        from shims.cli.output import print_error

        print_error(error)
        return error.exit_code
    return result if isinstance(result, int) else ExitCode.OK


def _print_usage_error(error: click.ClickException) -> None:
    from shims.cli.output import one_line

    click.echo(f"error: {one_line(error.format_message())}", err=True)
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        click.echo(f"hint: try '{context.command_path} --help'", err=True)


def main_of(command: click.Command, name: str) -> NoReturn:
    """Run the command line of this process and exit."""
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal's encoding lacks is shown with escapes; it is no reason to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run_command(command, name))
