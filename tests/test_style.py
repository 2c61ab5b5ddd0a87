"""Style as tests: linters, types, layers and ceilings, each under its own name."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULE_CEILING = 420
FUNCTION_CEILING = 60


BUILT = {".git", ".venv", "build", "dist", "__pycache__", ".hypothesis"}


@cache
def _tracked() -> tuple[Path, ...]:
    """Return the files of the project: those that git knows or would add."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        # An unpacked archive, or a checkout of another user, which git refuses to look at.
        paths = [path for path in ROOT.rglob("*") if not BUILT & {*path.relative_to(ROOT).parts}]
    return tuple(path for path in sorted(paths) if path.is_file())


def _sources(*suffixes: str) -> list[Path]:
    generated = ROOT / "protos" / "gen"
    return [
        path for path in _tracked() if path.suffix in suffixes and generated not in path.parents
    ]


def _run_tool(*command: str) -> None:
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600
    )
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}{done.stderr}", pytrace=False)


def test_ruff_finds_nothing() -> None:
    _run_tool(sys.executable, "-m", "ruff", "check", ".")


def test_ruff_would_format_nothing() -> None:
    _run_tool(sys.executable, "-m", "ruff", "format", "--check", ".")


@pytest.mark.timeout(600)
def test_mypy_agrees_with_every_type() -> None:
    _run_tool(sys.executable, "-m", "mypy", "shims", "protos/generate.py", "tests")


def test_imports_point_down() -> None:
    _run_tool(str(Path(sys.executable).parent / "lint-imports"), "--no-cache")


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="not installed: shellcheck")
def test_shellcheck_finds_nothing() -> None:
    scripts = [path for path in _tracked() if _is_shell(path)]
    assert scripts
    _run_tool("shellcheck", *map(str, scripts))


def _is_shell(path: Path) -> bool:
    if path.suffix == ".sh":
        return True
    with path.open("rb") as file:
        return re.match(rb"#!.*\b(?:sh|bash|dash)\n", file.readline(80)) is not None


@pytest.mark.parametrize(
    "path", _sources(".py", ".c", ".h", ".sh"), ids=lambda path: str(path.relative_to(ROOT))
)
def test_files_have_one_noun(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MODULE_CEILING, f"{lines} lines; split it by noun"


def test_python_functions_fit_on_a_screen() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines"
        for path in _sources(".py")
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_CEILING
    ]
    assert not long


def _long_c_functions(text: str, ceiling: int) -> list[str]:
    """Return the first lines of functions of more than ``ceiling`` lines.

    A function begins with an unindented line that is no comment and no directive, and ends with
    the next ``}`` in the first column; types end with ``};`` or with their name.
    """
    long, start, first = [], 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if line == "}":
            if start and number - start + 1 > ceiling:
                long.append(first)
            start = 0
        elif line.endswith(";") and not line.startswith((" ", "\t")):
            start = 0
        elif not start and line[:1].isalpha():
            start, first = number, line
    return long


def test_c_functions_fit_on_a_screen() -> None:
    files = _sources(".c")
    assert files
    found = {path.name: _long_c_functions(path.read_text(), FUNCTION_CEILING) for path in files}
    assert not {name: long for name, long in found.items() if long}


def test_a_long_c_function_is_seen() -> None:
    body = "    step();\n" * 9
    text = (
        f"struct a {{\n{body}}};\n/* text\nof two lines */\nint x;\n"
        f"static int one(int a,\n               int b) {{\n{body}}}\n"
        f"int two(void)\n{{\n{body}}}\nint three(void) {{\n    step();\n}}\n"
    )
    assert _long_c_functions(text, 11) == ["static int one(int a,", "int two(void)"]
    assert not _long_c_functions(text, 12)


def test_nothing_is_left_for_later() -> None:
    words = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in _sources(".py", ".c", ".h", ".sh", ".proto", ".md", ".toml")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if words.search(line)
    ]
    assert not found


MAY_SLEEP = {
    "shims/containerd/shim/removal.py": "cgroup version 1 does not tell when it has become empty",
    "shims/containerd/shim/state.py": "the kernel offers no lock with a deadline",
}


def test_nobody_waits_by_sleeping() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in _sources(".py")
        if str(path.relative_to(ROOT)) not in MAY_SLEEP
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep")
    ]
    assert not found, "wait for an event, with a deadline"


def test_the_project_names_no_machine_and_no_registry() -> None:
    """The path of a checkout and hosts of package registries have no place in the project."""
    hosts = re.compile(r"https?://")
    built = re.compile(r"(?:Makefile|\.toml|\.sh)\Z|\A(?:\.ci|packaging)/")
    found = []
    for path in _tracked():
        name = str(path.relative_to(ROOT))
        if path.suffix in (".bin", ".png") or name == "LICENSE":
            continue
        text = path.read_bytes().decode("utf-8", "replace")
        if f"{ROOT}/" in text:
            found.append(f"{name}: {ROOT}")
        if built.search(name) and hosts.search(text):
            found.append(f"{name}: a URL")
    assert not found
