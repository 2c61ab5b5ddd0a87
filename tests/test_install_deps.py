"""packaging/install-deps.sh: installs what is missing and nothing else, and asks root for it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "packaging" / "install-deps.sh"


class Host:
    """A PATH with nothing on it but what the script itself needs, and a package database."""

    def __init__(self, place: Path, uid: int) -> None:
        self._bin = place / "bin"
        self._bin.mkdir()
        self._calls = place / "calls"
        self._calls.touch()
        self.add("dpkg-query", "")
        self.add("id", f"echo {uid}")
        self.add("apt-get", f'echo "$*" >>{self._calls}')
        self.add("python3", "exit 1")

    def add(self, name: str, body: str) -> None:
        """Put a program on the PATH that does ``body``."""
        (self._bin / name).write_text(f"#!/bin/sh\n{body}\n")
        (self._bin / name).chmod(0o755)

    def install(self, what: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", SCRIPT, what],
            env={"PATH": str(self._bin)},
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines()


def test_root_gets_exactly_what_is_missing(tmp_path: Path) -> None:
    host = Host(tmp_path, uid=0)
    # A containerd from elsewhere is used as it is: Debian's package would remove that one.
    for present in ("containerd", "runc", "make", "gcc", "mke2fs", "ip", "mkfs.erofs"):
        host.add(present, "")
    host.add("dpkg-query", '[ "$4" = libseccomp2 ] && printf installed; exit 0')
    done = host.install("runtime")
    assert done.returncode == 0, done.stderr
    update, install = host.calls()
    assert update.endswith(" update")
    packages = install.partition("--no-install-recommends ")[2].split()
    assert {"python3-venv", "qemu-system-x86", "musl-tools", "busybox-static"} <= set(packages)
    assert not {"containerd", "runc", "make", "gcc", "erofs-utils", "libseccomp2"} & set(packages)
    for package in packages:
        assert f"  {package} " in done.stdout


def test_others_are_told_what_to_run(tmp_path: Path) -> None:
    host = Host(tmp_path, uid=1000)
    done = host.install("test")
    assert done.returncode == 1
    assert host.calls() == []
    last = done.stderr.splitlines()[-1]
    assert last.startswith("  sudo apt-get install --no-install-recommends ")
    assert {"clang", "shellcheck", "qemu-system-x86"} <= set(last.split())


def test_nothing_missing_is_nothing_done(tmp_path: Path) -> None:
    host = Host(tmp_path, uid=0)
    host.add("dpkg-query", "printf installed")
    host.add("python3", "")
    for what in ("runtime", "test"):
        done = host.install(what)
        assert (done.returncode, host.calls()) == (0, [])
        assert "all present" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["everything"], ["runtime", "test"]])
def test_a_wrong_word_is_refused(arguments: list[str]) -> None:
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage:" in done.stderr


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="not a Debian system")
def test_a_system_without_dpkg_is_told_so(tmp_path: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", SCRIPT, "runtime"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "no Debian system" in done.stderr
