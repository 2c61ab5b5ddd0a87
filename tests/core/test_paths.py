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
