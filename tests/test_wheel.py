"""What a release ships: the wheel holds everything, and its commands work where nothing else is."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILT = (
    "build",
    "dist",
    ".git",
    ".venv",
    "*.egg-info",
    "__pycache__",
    "*.o",
    "void-init",
    ".*_cache",
)


def _run(*command: str | Path, cwd: Path | None = None, expect: int = 0) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def _build(kind: str, source: Path, place: Path) -> None:
    """Build a ``wheel`` or an ``sdist`` of ``source`` into ``place``, without a network."""
    build = (sys.executable, "-m", "build", f"--{kind}", "--no-isolation")
    _run(*build, "--outdir", place, cwd=source)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the tree without what was built in it."""
    if not shutil.which("make"):
        pytest.skip("not installed: make")
    found = tmp_path_factory.mktemp("source") / "source"
    shutil.copytree(ROOT, found, ignore=shutil.ignore_patterns(*BUILT), symlinks=True)
    return found


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    _build("wheel", source, place)
    (found,) = place.glob("*.whl")
    return found


@pytest.mark.timeout(300)
def test_the_wheel_is_complete(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        members = {member.filename: member for member in archive.infolist()}
        init = members["shims/guest/init/void-init"]
        program = archive.read(init)
    assert wheel.name.split("-")[2:4] == ["py3", "none"]
    assert wheel.name.endswith("linux_x86_64.whl")
    assert program.startswith(b"\x7fELF")
    assert stat.S_IMODE(init.external_attr >> 16) == 0o755
    assert "protos/gen/voidbox/guest/v1/guest_pb2.py" in members
    assert "shims/py.typed" in members
    launchers = [name for name in members if name.endswith("/scripts/containerd-shim-voidbox-v2")]
    assert len(launchers) == 1
    assert not [name for name in members if name.startswith(("tests", "packaging", "examples"))]


@pytest.mark.timeout(300)
def test_the_archive_of_sources_builds_the_same_wheel(
    source: Path, wheel: Path, tmp_path: Path
) -> None:
    init = Path("shims/guest/init")
    for name in ("void-init", "left.o"):
        (source / init / name).write_text("left behind by an earlier build")
    try:
        _build("sdist", source, tmp_path)
    finally:
        for name in ("void-init", "left.o"):
            (source / init / name).unlink()
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    assert not [name for name in ("void-init", "left.o") if (unpacked / init / name).exists()]
    assert (unpacked / "tests" / "core" / "test_errors.py").exists()
    _build("wheel", unpacked, tmp_path)
    (ours,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(ours) as built, zipfile.ZipFile(wheel) as expected:
        assert sorted(built.namelist()) == sorted(expected.namelist())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel as pipx would, and return the directory of its commands.

    The dependencies come from the environment of the tests: what is under test is the wheel.
    """
    place = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(place, with_pip=True, symlinks=True)
    (site,) = place.glob("lib/python3.*/site-packages")
    theirs = Path(pytest.__file__).resolve().parents[1]
    (site / "dependencies.pth").write_text(f"{theirs}\n")
    _run(place / "bin" / "pip", "install", "--no-deps", "--no-index", wheel)
    return place / "bin"


@pytest.mark.timeout(300)
def test_the_installed_commands_work(installed: Path, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("kind: sandbox\nname: x\n")
    assert "valid: " in _run(installed / "void-shim", "validate", spec, cwd=tmp_path)
    assert "void-shim 0." in _run(installed / "void-shim", "--version", cwd=tmp_path)
    for command in ("void-guest", "void-cache"):
        assert f"{command} 0." in _run(installed / command, "--version", cwd=tmp_path)


@pytest.mark.timeout(300)
def test_the_installed_shim_tells_its_version_through_a_link(
    installed: Path, tmp_path: Path
) -> None:
    # pipx puts a link to the launcher on PATH.
    link = tmp_path / "containerd-shim-voidbox-v2"
    link.symlink_to(installed / "containerd-shim-voidbox-v2")
    assert "voidbox" in _run(link, "-v", cwd=tmp_path)


def test_a_missing_compiler_is_one_line(tmp_path: Path) -> None:
    program = "import setup; setup.compile_init(setup.ROOT / 'nowhere', setup.ROOT / 'nowhere')"
    script = f"import setuptools; setuptools.setup = lambda **_: None; {program}"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: void-init needs a C compiler and make; install musl-tools, gcc and make"
    ]
