"""Where state lives, and that nobody else can put a directory in its place."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from shims.core import paths
from shims.core.errors import Conflict

if TYPE_CHECKING:
    from pathlib import Path


def test_root_has_the_system_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    environ = {"XDG_RUNTIME_DIR": "/run/user/0", "XDG_STATE_HOME": "/root/state"}
    assert str(paths.runtime_dir(environ)) == "/run/void-shims"
    assert str(paths.state_dir(environ)) == "/var/lib/void-shims"
    assert paths.runtime_path("shim", "ns", environ=environ) == "/run/void-shims/shim/ns"


def test_others_have_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    environ = {"XDG_RUNTIME_DIR": "/run/user/1000", "XDG_STATE_HOME": "/home/a/state"}
    assert str(paths.runtime_dir(environ)) == "/run/user/1000/void-shims"
    assert str(paths.state_dir(environ)) == "/home/a/state/void-shims"
    assert str(paths.runtime_dir({})) == "/tmp/void-shims-1000"
    assert paths.state_path("a", environ={}).endswith("/.local/state/void-shims/a")


def test_the_environment_may_choose() -> None:
    environ = {"VOID_SHIMS_RUN": "/a/../b", "VOID_SHIMS_STATE": "/c"}
    assert (paths.runtime_path(environ=environ), paths.state_path(environ=environ)) == ("/b", "/c")


def test_a_private_directory_is_made_once_and_kept_private(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    for _ in range(2):
        paths.ensure_private_dir(target)
        assert stat.S_IMODE(target.stat().st_mode) == 0o700
    target.chmod(0o755)
    paths.ensure_private_dir(target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o700


def test_what_is_no_directory_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(Conflict, match="not a directory"):
            paths.ensure_private_dir(tmp_path / name)


@pytest.mark.root
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    with pytest.raises(Conflict, match="belongs to user 12345"):
        paths.ensure_private_dir(theirs)


@pytest.mark.root
@pytest.mark.parametrize("variable", ["VOID_SHIMS_RUN", "VOID_SHIMS_STATE"])
@pytest.mark.parametrize("theirs", ["root", "root/a", "root/a/b"])
def test_nothing_is_made_below_a_directory_of_somebody_else(
    variable: str, theirs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "root"))
    (tmp_path / theirs).mkdir(parents=True)
    (tmp_path / theirs).chmod(0o777)
    os.chown(tmp_path / theirs, 12345, 12345)
    with pytest.raises(Conflict, match=f"{theirs} belongs to user 12345"):
        paths.ensure_private_dir(tmp_path / "root" / "a" / "b" / "c")
    assert not list((tmp_path / theirs).iterdir())


@pytest.mark.root
def test_a_link_of_somebody_else_is_refused_and_one_of_ours_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    root = tmp_path / "root"
    root.symlink_to("elsewhere")
    monkeypatch.setenv("VOID_SHIMS_RUN", str(root))
    paths.ensure_private_dir(root / "a")
    assert (tmp_path / "elsewhere" / "a").is_dir()
    os.chown(root, 12345, 12345, follow_symlinks=False)
    with pytest.raises(Conflict, match="root belongs to user 12345"):
        paths.ensure_private_dir(root / "b")


def test_levels_of_ours_are_made_private_and_kept_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOID_SHIMS_STATE", str(tmp_path / "root"))
    paths.ensure_private_dir(tmp_path / "root" / "a" / "b")
    for level in ("root", "root/a"):
        assert stat.S_IMODE((tmp_path / level).stat().st_mode) == 0o700
        (tmp_path / level).chmod(0o777)
    paths.ensure_private_dir(tmp_path / "root" / "a" / "b")
    for level in ("root", "root/a"):
        assert stat.S_IMODE((tmp_path / level).stat().st_mode) == 0o755
    (tmp_path / "root" / "file").touch()
    with pytest.raises(Conflict, match="file is not a directory"):
        paths.ensure_private_dir(tmp_path / "root" / "file" / "a")


@pytest.mark.root
@pytest.mark.parametrize(
    ("mode", "problem"),
    # Sticky: nobody can move ours away. The test runs as root, so what it makes is not its user's.
    [(0o1777, "vm belongs to user 0, not to 12345"), (0o777, "can be changed by other users")],
)
def test_a_directory_of_the_system_is_left_as_it_is(
    mode: int, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(mode)
    monkeypatch.setenv("VOID_SHIMS_RUN", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(Conflict, match=problem):
        paths.ensure_private_dir(tmp_path / "vm")
    assert stat.S_IMODE(tmp_path.stat().st_mode) == mode
