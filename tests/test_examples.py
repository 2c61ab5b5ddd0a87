"""Every example is numbered, explained and sound, and it is the command that says so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from shims.cli.main import run

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*"))
SPECS = [path for path in EXAMPLES if path.suffix in (".yaml", ".json")]


def test_examples_are_numbered_without_gaps() -> None:
    numbers = [path.name.partition("-")[0] for path in EXAMPLES]
    assert numbers == [f"{i + 1:02}" for i in range(len(EXAMPLES))]


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.name)
def test_an_example_is_valid_and_strict(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "--strict", "-o", "json", str(path)]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["valid"]
    assert report["findings"] == []


def test_every_kind_of_run_has_an_example() -> None:
    kinds = {re.search(r'"?kind"?: "?(\w+)', path.read_text()) for path in SPECS}
    assert {found[1] for found in kinds if found} == {"agent", "pipeline", "workflow", "sandbox"}
