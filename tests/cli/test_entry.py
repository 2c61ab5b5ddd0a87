"""What every command line does alike: exit codes, errors of one line, help, the version."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from shims.cli import cache, guest
from shims.cli.cache import void_cache
from shims.cli.entry import run_command
from shims.cli.guest import void_guest
from shims.cli.main import cli
from shims.core.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Callable

    import click

ROOT = Path(__file__).resolve().parents[2]
COMMANDS: dict[str, click.Group] = {
    "void-shim": cli,
    "void-guest": void_guest,
    "void-cache": void_cache,
}
every_command = pytest.mark.parametrize("name", COMMANDS)


@every_command
def test_a_bare_command_shows_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(COMMANDS[name], name, []) == 2
    out, err = capsys.readouterr()
    assert (out + err).startswith(f"Usage: {name} ")
    assert "Examples:" in out + err
    assert "hint:" not in out + err


@every_command
def test_a_wrong_command_line_is_one_line_and_a_hint(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(COMMANDS[name], name, ["--non\x1bsense"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: No such option")
    assert r"--non\x1bsense" in first
    assert first.isprintable()
    assert second == f"hint: try '{name} --help'"


@every_command
def test_the_version(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(COMMANDS[name], name, ["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"{name} ")


@pytest.mark.parametrize(
    ("name", "command"),
    [(name, each) for name in list(COMMANDS)[1:] for each in COMMANDS[name].commands],
)
def test_every_subcommand_has_examples_and_the_same_outputs(
    name: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(COMMANDS[name], name, [command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"{name} {command}" in out[out.index("Examples:") :]
    assert "[table|json]" in out


def _raise(error: BaseException) -> Callable[..., NoReturn]:
    def fail(*_: object) -> NoReturn:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, ""),
        (
            NotFound("no such\nimage", hint="build\x07 it"),
            4,
            "error: no such image\nhint: build\\x07 it\n",
        ),
    ],
)
def test_errors_of_all_commands_end_alike(
    error: BaseException,
    code: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cache, "_images", _raise(error))
    monkeypatch.setattr(guest, "_find", _raise(error))
    for name in ("void-guest", "void-cache"):
        assert run_command(COMMANDS[name], name, ["show"]) == code
        assert capsys.readouterr().err.lstrip("\n") == told  # click ends the line of a ^C


def test_an_image_that_goes_while_it_is_listed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VOID_SHIMS_STATE", str(tmp_path))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "gone.image").symlink_to("nowhere")
    assert run_command(void_cache, "void-cache", ["show"]) == 0
    assert capsys.readouterr().out.startswith("0 images, ")


def _in_a_process(*arguments: str | bytes) -> subprocess.CompletedProcess[bytes]:
    program = "from shims.cli.main import main; main()"
    environ = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = [sys.executable, "-c", program, *arguments]
    return subprocess.run(
        words, cwd=ROOT, env=environ, capture_output=True, check=False, timeout=60
    )


def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\x1b.yaml"
    Path(os.fsdecode(path)).write_text("kind: sandbox\nname: \u00e4\n\u00e4: 1\n", "utf-8")
    done = _in_a_process("validate", path)
    assert done.returncode == 0
    assert rb"\udcff\x1b.yaml:3:1: " in done.stderr
    assert b"valid: " in done.stdout
    assert b'"name": "\\u00e4"' in _in_a_process("validate", "-o", "json", path).stdout


def test_a_closed_standard_input_is_told() -> None:
    script = '"$0" -c "from shims.cli.main import main; main()" validate - <&-'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (5, "error: -: standard input is closed\n")
