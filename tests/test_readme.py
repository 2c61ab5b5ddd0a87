"""The README is held to the code: links, settings, commands, exit codes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shims.cli.main import run
from shims.containerd.shim.config import SETTINGS
from shims.core.errors import ExitCode

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:shims|packaging)/[\w./-]+)`", README)))
)
def test_named_files_exist(path: str) -> None:
    assert (ROOT / path).exists()


def test_every_setting_is_described_and_no_other() -> None:
    table = README[README.index("## Settings") : README.index("## How files get")]
    rows = re.findall(r"^\| `([\w-]+)` \|.*\| (yes|no) \|$", table, re.MULTILINE)
    assert rows == [(each.name, "yes" if each.annotation else "no") for each in SETTINGS]


def test_every_exit_code_is_named() -> None:
    sentence = README[README.index("Exit codes of every command") :].split(".\n")[0]
    numbers = {int(number) for number in re.findall(r"\b\d+\b", sentence)}
    assert numbers == {value for name, value in vars(ExitCode).items() if name.isupper()}


@pytest.mark.parametrize("command", sorted(set(re.findall(r"void-shim ([a-z]+)", README))))
def test_named_commands_exist(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert "Usage: void-shim" in capsys.readouterr().out


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`?make ([a-z]+)", README))))
def test_named_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
