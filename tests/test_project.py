"""The project file says what is true: dependencies and their reasons, commands, generated code."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = {"pyyaml": "yaml", "qemu-qmp": "qemu", "protobuf": "google"}
"""Import names that differ from the distribution's name."""


def _normalised(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def _imports(*folders: str) -> set[str]:
    """Return the first part of every module that the code in ``folders`` imports."""
    found = set()
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found.add(node.module.partition(".")[0])
    return found


def test_every_dependency_is_imported() -> None:
    declared = {_normalised(each) for each in PROJECT["project"]["dependencies"]}
    used = _imports("shims", "protos")
    assert {name for name in declared if MODULES.get(name, name) not in used} == set()


def test_every_import_is_declared() -> None:
    groups = [PROJECT["project"]["dependencies"]]
    groups += PROJECT["project"]["optional-dependencies"].values()
    declared = {_normalised(each) for group in groups for each in group}
    known = {MODULES.get(name, name).replace("-", "_") for name in declared}
    own = {"shims", "protos", "tests", "libvirt_adapter", "k8s", "conftest"}
    # grpcio's modules are named grpc and grpc_tools; pytest-asyncio's are not imported.
    known |= {"grpc", "grpc_tools", "pydantic_core"}
    used = _imports("shims", "protos", "tests") - set(sys.stdlib_module_names)
    private = {name for name in used if name.startswith("_")}  # the interpreter's own
    assert used - known - own - private == set()


def test_every_dependency_has_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    block = text[text.index("dependencies = [") : text.index("[project.optional-dependencies]")]
    lines = [line for line in block.splitlines()[1:] if line.strip().startswith('"')]
    assert len(lines) == len(PROJECT["project"]["dependencies"])
    assert all("  # " in line for line in lines)


@pytest.mark.parametrize("command", sorted(PROJECT["project"]["scripts"]))
def test_every_command_exists(command: str) -> None:
    module, _, function = PROJECT["project"]["scripts"][command].partition(":")
    program = (
        f"from {module} import {function}; import sys; sys.argv = ['x', '--help']; {function}()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage:" in done.stdout


@pytest.mark.parametrize("script", PROJECT["tool"]["setuptools"]["script-files"])
def test_every_script_is_executable(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    assert path.read_bytes().startswith(b"#!/bin/sh\n")


def test_generated_protos_are_current() -> None:
    done = subprocess.run(
        [sys.executable, "protos/generate.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_protobuf_is_as_new_as_the_generated_code() -> None:
    """Generated code refuses a runtime that is older than the compiler that made it."""
    headers = [path.read_text()[:400] for path in (ROOT / "protos" / "gen").rglob("*_pb2.py")]
    versions = {re.search(r"Protobuf Python Version: ([\d.]+)", text) for text in headers}
    (declared,) = [
        each for each in PROJECT["project"]["dependencies"] if each.startswith("protobuf>=")
    ]
    assert {found[1] for found in versions if found} == {declared.removeprefix("protobuf>=")}


def test_make_lists_every_target() -> None:
    done = subprocess.run(
        ["make"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    )
    for target in ("demo", "test", "lint", "bench", "guest", "clean", "help"):
        assert re.search(rf"^  make {target} +\S", done.stdout, re.MULTILINE)


def test_make_completes_an_interrupted_environment(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "setup.py"):
        (tmp_path / name).touch()
    # A python that makes the environment's pip, which does nothing: what counts is who is called.
    scripts = {
        "packaging/install-deps.sh": "exit 0",
        ".venv/bin/python": "exit 0",
        "python": '[ "$2" != venv ] || cp .venv/bin/python .venv/bin/pip',
    }
    for name, text in scripts.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    done = subprocess.run(
        ["make", ".venv/.runtime", "PYTHON=./python"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / ".venv" / "bin" / "pip").exists()


def test_the_shim_process_carries_no_heavy_library() -> None:
    program = (
        "import sys, shims.containerd.shim.daemon; "
        "print(*[n for n in ('pydantic', 'grpc', 'click', 'rich', 'yaml') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == []
