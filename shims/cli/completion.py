"""``void-shim completion``: let the shell complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    Examples:
      void-shim completion bash > /etc/bash_completion.d/void-shim
      void-shim completion fish > ~/.config/fish/completions/void-shim.fish
      eval "$(void-shim completion zsh)"
    """
    from shims.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None  # click.Choice admits only shells that click knows
    click.echo(kind(cli, {}, "void-shim", "_VOID_SHIM_COMPLETE").source())
