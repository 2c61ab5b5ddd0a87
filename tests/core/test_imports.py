"""The vocabulary is cheap to import, and its names are all there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import shims.core

_HEAVY = (
    "pydantic",
    "yaml",
    "asyncio",
    "click",
    "google",
    "pathlib",
    "re",
    "dataclasses",
    "enum",
    "typing",
)


@pytest.mark.parametrize("module", ["shims.core", "shims.core.errors", "shims.core.paths"])
def test_the_start_path_pays_for_nothing_heavy(module: str) -> None:
    # -S keeps site's own imports out of the answer, -I keeps the environment out of it.
    program = (
        f"import sys; sys.path.insert(0, '.'); import {module}; "
        f"print(*[name for name in {_HEAVY} if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert found.stdout.split() == []


@pytest.mark.parametrize("name", shims.core.__all__)
def test_every_public_name_exists(name: str) -> None:
    assert getattr(shims.core, name).__module__.startswith("shims.core.")


def test_the_public_names_are_sorted_and_others_do_not_exist() -> None:
    assert sorted(shims.core.__all__) == shims.core.__all__
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = shims.core.nonsense
