"""The launcher finds its Python and its package, wherever they were installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.containerd.shim.fast.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

NAME = "containerd-shim-voidbox-v2"
LAUNCHER = ROOT / "packaging" / "bin" / NAME


def version_of(launcher: Path) -> str:
    done = subprocess.run(
        [launcher, "-v"],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
        cwd="/",
    )
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A virtual environment into which pip has installed us, as far as the launcher can tell."""
    venv = tmp_path / "a venv"
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    site = venv / "lib" / version / "site-packages"
    (venv / "bin").mkdir(parents=True)
    for name in ("shims/core", "shims/containerd"):
        shutil.copytree(ROOT / name, site / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "shims" / "__init__.py", site / "shims")
    shutil.copy(LAUNCHER, venv / "bin")
    (venv / "bin" / "python3").symlink_to(os.path.realpath(sys.executable))
    return venv


def test_in_a_venv(venv: Path) -> None:
    assert version_of(venv / "bin" / NAME).startswith("io.containerd.voidbox.v2")


def test_in_a_venv_that_names_its_interpreter(venv: Path) -> None:
    program = os.path.realpath(sys.executable)
    (venv / "pyvenv.cfg").write_text(f"home = /x\nexecutable = {program}\n")
    (venv / "bin" / "python3").unlink()
    assert version_of(venv / "bin" / NAME).startswith("io.containerd.voidbox.v2")


def test_in_a_venv_whose_interpreter_moved(venv: Path) -> None:
    (venv / "pyvenv.cfg").write_text("home = /x\nexecutable = /no/such/python\n")
    assert version_of(venv / "bin" / NAME).startswith("io.containerd.voidbox.v2")


def test_through_a_link_as_pipx_makes_it(venv: Path, tmp_path: Path) -> None:
    link = tmp_path / "bin" / NAME
    link.parent.mkdir()
    link.symlink_to(venv / "bin" / NAME)
    assert version_of(link).startswith("io.containerd.voidbox.v2")


def test_for_the_whole_system(venv: Path, tmp_path: Path) -> None:
    """As pip of a distribution installs: no Python beside the script, dist-packages."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    (venv / "lib" / version / "site-packages").rename(venv / "lib" / version / "dist-packages")
    (venv / "bin" / "python3").unlink()
    program = tmp_path / "path" / version
    program.parent.mkdir()
    program.symlink_to(os.path.realpath(sys.executable))
    done = subprocess.run(
        [venv / "bin" / NAME, "-v"],
        env={"PATH": f"{program.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert done.stdout.startswith("io.containerd.voidbox.v2")


def test_in_a_checkout(launcher: Path) -> None:
    assert version_of(launcher).startswith("io.containerd.voidbox.v2")


def test_shell(launcher: Path) -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run([shellcheck, LAUNCHER], check=True, timeout=20)


def test_compiled_modules_are_cached(venv: Path) -> None:
    """Without the cache each start would compile the modules anew."""
    version_of(venv / "bin" / NAME)
    cached = list(venv.rglob("__pycache__/entry.*.pyc"))
    assert len(cached) == 1


def test_in_a_checkout_without_a_venv(launcher: Path, tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    ignore = shutil.ignore_patterns(".venv")
    shutil.copytree(launcher.parents[2], root, ignore=ignore)
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "python3").symlink_to(os.path.realpath(sys.executable))
    done = subprocess.run(
        [root / "packaging" / "bin" / NAME, "-v"],
        env={"PATH": f"{bin_}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert done.stdout.startswith("io.containerd.voidbox.v2")
