"""Journals of exits and resources, and the removal of what they name."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from shims.containerd.shim.exits import Exit, ExitJournal
from shims.containerd.shim.journal import Journal
from shims.containerd.shim.processes import SIGTERM, Process, end_processes, find_process
from shims.containerd.shim.removal import mounts_below, remove_tree, unmount_below
from shims.containerd.shim.resources import Resources
from shims.containerd.shim.state import State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def soon() -> float:
    return time.monotonic() + 5


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def test_exits(tmp_path: Path) -> None:
    with ExitJournal(str(tmp_path)) as journal:
        assert journal.find("c1") is None
        journal.record(Exit("c1", "", 10, 3, 99))
        journal.record(Exit("c1", "exec", 11, 4, 100))
        journal.record(Exit("c2", "", 12, 5, 101))
    other = ExitJournal(str(tmp_path))
    found = other.find("c1")
    assert found is not None
    assert (found.pid, found.status, found.at_ns) == (10, 3, 99)
    of_exec = other.find("c1", "exec")
    assert of_exec is not None
    assert of_exec.status == 4
    assert other.find("c1", "other") is None
    assert (tmp_path / "exits.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_line_that_a_crash_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "exits.jsonl"
    with ExitJournal(str(tmp_path)) as journal:
        journal.record(Exit("c1", "", 10, 3, 99))
    with path.open("a") as file:
        file.write('{"container": "c1", "exec": "", "pid": 1')
    with ExitJournal(str(tmp_path)) as journal:
        found = journal.find("c1")
        assert found is not None
        assert found.status == 3
        journal.record(Exit("c2", "", 1, 7, 9))
        after = journal.find("c2")
    assert after is not None
    assert after.status == 7


def test_journals_are_not_written_through_links(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "exits.jsonl").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic"):
        ExitJournal(str(tmp_path)).record(Exit("c", "", 1, 1, 1))


@pytest.mark.parametrize("line", ["[]", "1", '{"container": 3}', '{"container": "c", "exec": ""}'])
def test_odd_lines_are_skipped(tmp_path: Path, line: str) -> None:
    (tmp_path / "exits.jsonl").write_text(line + "\n")
    assert ExitJournal(str(tmp_path)).find("c") is None


def test_resources_come_back_newest_first(tmp_path: Path) -> None:
    resources = Resources(str(tmp_path))
    resources.add_path("/a")
    resources.add_mount("/b")
    resources.add_cgroup("/c")
    resources.drop("/b")
    resources.close()
    assert [name for _, name, _ in Resources(str(tmp_path)).held()] == ["/c", "/a"]


def test_a_process_is_ended(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    resources = Resources(str(tmp_path))
    resources.add_process(child.pid, "qemu")
    assert resources.release_all(soon()) == []
    assert child.wait(5) == -9
    assert resources.release_all(soon()) == []


def test_a_reused_pid_is_spared(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    resources = Resources(str(tmp_path))
    known = find_process(child.pid)
    assert known is not None
    resources.record("process", str(child.pid), started=known.started - 1)
    assert resources.release_all(soon()) == []
    assert child.poll() is None


def test_a_dropped_process_is_spared(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    resources = Resources(str(tmp_path))
    resources.add_process(child.pid, "qemu")
    resources.drop_process(child.pid)
    resources.release_all(soon())
    assert child.poll() is None


def test_a_process_that_does_not_end_is_reported() -> None:
    code = "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as deaf:
        assert deaf.stdout is not None
        deaf.stdout.readline()
        known = find_process(deaf.pid)
        assert known is not None
        assert end_processes([known], SIGTERM, time.monotonic() + 0.05) == [known]
        deaf.kill()


def test_no_such_process() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert find_process(gone.pid) is None
    assert not Process(gone.pid, 1).is_alive()
    assert end_processes([Process(gone.pid, 1)], SIGTERM, soon()) == []


def test_trees_are_removed_without_following_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").touch()
    (tree / "a" / "link").symlink_to(outside)
    (tree / "link").symlink_to(outside / "kept")
    remove_tree(str(tree))
    assert not tree.exists()
    assert (outside / "kept").exists()
    remove_tree(str(tree))
    remove_tree(str(tmp_path / "no" / "such"))
    (tmp_path / "alias").symlink_to(outside)
    remove_tree(str(tmp_path / "alias"))
    assert (outside / "kept").exists()


@pytest.mark.root
def test_unmount_below(tmp_path: Path) -> None:
    base = tmp_path / "base dir"
    (base / "x").mkdir(parents=True)
    inner = base / "x" / "back\\slash"
    for path in (base, base / "x", inner):
        path.mkdir(exist_ok=True, parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
        (base / "x").mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", base], check=True)  # twice on one point
    busy = os.open(base, os.O_RDONLY)
    try:
        unmount_below(str(base))
        assert mounts_below(str(base)) == []
        unmount_below(str(base))
    finally:
        os.close(busy)


def test_the_lock_of_a_removed_directory_is_not_the_lock(tmp_path: Path) -> None:
    environ = {"VOID_SHIMS_RUN": str(tmp_path)}
    first = State("n", "g", environ).lock(soon())
    with pytest.raises(TimeoutError):
        State("n", "g", environ).lock(time.monotonic() + 0.02)
    first.remove()
    first.unlock()
    with pytest.raises(FileNotFoundError):
        State("n", "g", environ).lock(soon(), create=False)
    with State("n", "g", environ).lock(soon()) as again:
        assert again.exists


def test_a_journal_starts_a_new_line(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_text("half")
    journal = Journal(str(path))
    journal.append({"a": 1})
    journal.close()
    assert list(Journal(str(path)).read()) == [{"a": 1}]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="names a system call by its number")
def test_a_process_whose_first_thread_ended_is_not_gone() -> None:
    """As QEMU's when it is killed: the leader is a zombie while others give memory back."""
    code = (
        "import ctypes, sys, threading\n"
        "threading.Thread(target=sys.stdin.read).start()\n"
        "print('up', flush=True)\n"
        "ctypes.CDLL(None).syscall(60, 0)\n"  # exit of this thread alone
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        deadline = soon()
        stat = ""
        while stat.rpartition(")")[2].split()[:1] != ["Z"] and time.monotonic() < deadline:
            with open(f"/proc/{process.pid}/stat") as file:
                stat = file.read()
        known = find_process(process.pid)
        assert known is not None
        assert end_processes([known], SIGTERM, soon()) == []
        assert find_process(process.pid) is None
