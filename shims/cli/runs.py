"""``void-shim BACKEND …``: the contract of ``ShimCore`` as commands, once for every backend."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shims.cli.output import OUTPUT_OPTION, one_line, print_findings, print_json, print_table
from shims.core.backends import find_backend
from shims.core.errors import ExitCode
from shims.core.findings import SpecError
from shims.core.loading import LoadedSpec, load_spec
from shims.core.records import to_json
from shims.core.runs import RunRef, RunStatus, check_run_id
from shims.core.shimcore import Capability, RunOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from shims.core.shimcore import ShimCore

__all__ = ["make_backend_group"]

T = TypeVar("T")


def make_backend_group(name: str) -> click.Group:
    """Return the command group of the backend called ``name``. Raises what find_backend does."""
    backend = find_backend(name)
    group = click.Group(name, help=_help(name, backend.summary), short_help=backend.summary)
    commands: list[click.Command] = [_render, _run, _status, _list, _logs, _events, _wait, _remove]
    if Capability.CANCEL in backend.capabilities:
        commands.append(_cancel)
    if Capability.SUSPEND in backend.capabilities:
        commands += [_suspend, _resume]
    for command in commands:
        group.add_command(command)
    group.context_settings = {"obj": backend}
    return group


def _help(name: str, summary: str) -> str:
    return f"""Run RunSpecs on this target: {summary}.

    \b
    Examples:
      void-shim {name} render spec.yaml        what would be created
      void-shim {name} run spec.yaml           start it and print its name
      void-shim {name} run --wait spec.yaml    and show its output until it ends
      void-shim {name} logs -f NAME
      void-shim {name} rm --force NAME
    """


_REF = click.argument("name")
_SPEC = click.argument("file", type=click.Path())


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--id", "run_id", default="", help="Name of the run; else derived from it."),
        click.option("--input", "input_", help="Text that the first agent gets."),
        click.option("--label", "labels", multiple=True, metavar="KEY=VALUE"),
        click.option("--strict", is_flag=True, help="Unknown keys are errors."),
    ):
        command = option(command)
    return command


def _read(
    file: str, run_id: str, input_: str | None, labels: tuple[str, ...], strict: bool
) -> tuple[LoadedSpec, RunOptions]:
    pairs = [label.partition("=") for label in labels]
    if bad := [label for label, (_, sign, _) in zip(labels, pairs, strict=True) if not sign]:
        raise click.BadParameter(f"{bad[0]!r} is not KEY=VALUE", param_hint="--label")
    try:
        loaded = load_spec(file, strict=strict)
    except SpecError as error:
        print_findings(error.in_order, file)
        raise click.exceptions.Exit(error.exit_code) from error
    print_findings(loaded.findings, file)
    table = {key: value for key, _, value in pairs}
    return loaded, RunOptions(run_id=run_id, input=input_, labels=table)


def _parse_ref(backend: type[ShimCore], name: str) -> RunRef:
    """Return the run that ``name`` means: ID, SCOPE/ID, or the whole reference."""
    if ":" in name:
        return RunRef.parse(name)
    scope, _, run_id = name.rpartition("/")
    return RunRef(backend.name, check_run_id(run_id), scope)


def _with(backend: type[ShimCore], work: Callable[[ShimCore], Coroutine[Any, Any, T]]) -> T:
    async def connected() -> T:
        async with backend() as connection:
            return await work(connection)

    return asyncio.run(connected())


def _show(status: RunStatus, output: str) -> None:
    if output == "json":
        print_json({**to_json(status), "ref": str(status.ref)})
        return
    click.echo(_tell(status))
    if status.hint:
        click.echo(f"hint: {one_line(status.hint)}", err=True)


def _tell(status: RunStatus) -> str:
    return one_line(f"{status.ref}: {status.state} ({status.reason}) {status.message}").rstrip()


@click.command("render")
@_SPEC
@_options
@click.pass_obj
def _render(backend: type[ShimCore], /, file: str, **options: Any) -> None:
    """Print what `run` would create, without touching the target."""
    spec, chosen = _read(file, **options)
    for document in backend().render(spec, chosen):
        click.echo(f"# {document.name}\n{document.text.rstrip()}")


@click.command("run")
@_SPEC
@_options
@click.option("--wait", is_flag=True, help="Show its output, and exit as it does.")
@click.pass_obj
def _run(backend: type[ShimCore], /, file: str, wait: bool, **options: Any) -> int:
    """Start a run and print its name."""
    spec, chosen = _read(file, **options)

    async def start(target: ShimCore) -> int:
        ref = await target.run(spec, chosen)
        click.echo(str(ref), err=wait)
        if not wait:
            return ExitCode.OK
        await _print_logs(target, ref, follow=True)
        status = await target.wait(ref)
        click.echo(_tell(status), err=True)
        return status.command_exit_code

    return _with(backend, start)


async def _print_logs(target: ShimCore, ref: RunRef, *, follow: bool) -> None:
    async with aclosing(target.logs(ref, follow=follow)) as pieces:
        async for piece in pieces:
            click.echo(piece, nl=False)


@click.command("status")
@_REF
@OUTPUT_OPTION
@click.pass_obj
def _status(backend: type[ShimCore], /, name: str, output: str) -> None:
    """Say where a run stands, and why."""
    _show(_with(backend, lambda target: target.status(_parse_ref(backend, name))), output)


@click.command("list")
@OUTPUT_OPTION
@click.pass_obj
def _list(backend: type[ShimCore], /, output: str) -> None:
    """List the runs of this target."""

    async def fetch(target: ShimCore) -> list[RunStatus]:
        return [*await target.list()]

    found = _with(backend, fetch)
    if output == "json":
        print_json([{**to_json(status), "ref": str(status.ref)} for status in found])
        return
    rows = [
        [one_line(str(each.ref)), each.state, each.reason, one_line(each.message)] for each in found
    ]
    print_table(["run", "state", "reason", "message"], rows)


@click.command("logs")
@_REF
@click.option("-f", "--follow", is_flag=True, help="Go on until the run is over.")
@click.pass_obj
def _logs(backend: type[ShimCore], /, name: str, follow: bool) -> None:
    """Print what a run printed."""
    ref = _parse_ref(backend, name)
    _with(backend, lambda target: _print_logs(target, ref, follow=follow))


@click.command("events")
@_REF
@click.option("-f", "--follow", is_flag=True, help="Go on until the run is over.")
@click.option("--after", default=-1, help="Only events with a higher number.")
@click.pass_obj
def _events(backend: type[ShimCore], /, name: str, follow: bool, after: int) -> None:
    """Print a run's events, one JSON object per line."""
    import json

    ref = _parse_ref(backend, name)

    async def show(target: ShimCore) -> None:
        async with aclosing(target.events(ref, after=after, follow=follow)) as events:
            async for event in events:
                click.echo(json.dumps(to_json(event)))

    _with(backend, show)


@click.command("wait")
@_REF
@click.option("--timeout", type=float, help="Seconds; absent: no limit.")
@OUTPUT_OPTION
@click.pass_obj
def _wait(backend: type[ShimCore], /, name: str, timeout: float | None, output: str) -> int:
    """Wait until a run is over, and exit with 0 if it succeeded."""
    ref = _parse_ref(backend, name)
    status = _with(backend, lambda target: target.wait(ref, timeout=timeout))
    _show(status, output)
    return status.command_exit_code


@click.command("rm")
@click.argument("names", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Also when it is not over yet.")
@click.pass_obj
def _remove(backend: type[ShimCore], /, names: tuple[str, ...], force: bool) -> None:
    """Delete runs and all that belongs to them. Removing what is not there succeeds."""
    refs = [_parse_ref(backend, name) for name in names]

    async def remove(target: ShimCore) -> None:
        for ref in refs:
            await target.remove(ref, force=force)

    _with(backend, remove)


@click.command("cancel")
@_REF
@click.option("--reason", default="", help="Kept with the run.")
@click.pass_obj
def _cancel(backend: type[ShimCore], /, name: str, reason: str) -> None:
    """End a run and keep its records."""
    ref = _parse_ref(backend, name)
    _with(backend, lambda target: target.cancel(ref, reason=reason))


@click.command("suspend")
@_REF
@click.pass_obj
def _suspend(backend: type[ShimCore], /, name: str) -> None:
    """Stop a run so that it can go on later."""
    _with(backend, lambda target: target.suspend(_parse_ref(backend, name)))


@click.command("resume")
@_REF
@click.pass_obj
def _resume(backend: type[ShimCore], /, name: str) -> None:
    """Let a suspended run go on."""
    _with(backend, lambda target: target.resume(_parse_ref(backend, name)))
