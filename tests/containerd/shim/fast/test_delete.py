"""``delete``: nothing is left, whatever became of the daemon, and the exit code is the true one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from protos.gen.containerd.task.v2.task_pb2 import DeleteResponse
from shims.containerd.shim.processes import start_time
from shims.containerd.shim.removal import mounts_below
from shims.containerd.shim.resources import Resources
from shims.containerd.shim.state import State, private_directory
from tests.containerd.shim.fast.conftest import NAMESPACE, elapsed, is_alive, kill

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.containerd.shim.fast.conftest import Node

CGROUPS = [Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")]


@pytest.fixture
def cgroup() -> Iterator[str]:
    """Return the path of a cgroup that does not exist yet; empty where we may not make one."""
    base = next((path for path in CGROUPS if (path / "cgroup.procs").exists()), None)
    if os.geteuid() != 0 or base is None or not os.access(base, os.W_OK):
        yield ""
        return
    path = base / f"void-shims-test-{os.getpid()}"
    yield str(path)
    assert not path.exists()


def delete(node: Node, name: str) -> DeleteResponse:
    begun = time.monotonic()
    done = node.call("delete", name)
    assert elapsed(begun) < 5
    assert (done.returncode, done.stderr) == (0, b"")
    return DeleteResponse.FromString(done.stdout)


def test_after_a_crash_nothing_is_left(node: Node, tmp_path: Path, cgroup: str) -> None:
    bundle = node.bundle("c1")
    folder = tmp_path / "held"
    folder.mkdir()
    (folder / "not ours").touch()
    address = node.start("c1", FAKE_HOLD=str(folder), FAKE_CGROUP=cgroup, FAKE_EXIT="7")
    about = node.ask(address)
    held = about["held"]
    kill(about["pid"])
    assert is_alive(held["child"])

    before = len(os.listdir("/proc/self/fd"))
    answer = delete(node, "c1")
    assert (answer.pid, answer.exit_status) == (4242, 7)
    assert answer.exited_at.ToNanoseconds() == 1_700_000_000_000_000_123
    assert not is_alive(held["child"])
    assert "other" not in held or not is_alive(held["other"])
    assert node.state_files() == []
    assert (folder / "not ours").exists()
    assert not (folder / "tree").exists()
    if "mount" in held:
        assert mounts_below(str(folder)) == []
    assert mounts_below(str(bundle)) == []
    assert node.daemons() == []
    assert len(os.listdir("/proc/self/fd")) == before

    again = delete(node, "c1")
    assert again.exit_status == 137


def test_without_a_record_it_was_killed(node: Node) -> None:
    node.bundle("c1")
    kill(node.ask(node.start("c1"))["pid"])
    answer = delete(node, "c1")
    assert answer.exit_status == 137
    assert abs(answer.exited_at.ToSeconds() - time.time()) < 10


def test_of_something_that_never_was(node: Node) -> None:
    node.bundle("c1")
    assert delete(node, "c1").exit_status == 137
    assert node.state_files() == []


def test_ends_a_daemon_that_lives(node: Node) -> None:
    node.bundle("c1")
    pid = node.ask(node.start("c1"))["pid"]
    delete(node, "c1")
    assert not is_alive(pid)
    assert node.state_files() == []


@pytest.mark.parametrize("how", ["deaf", "stopped"])
def test_ends_a_daemon_that_hangs(node: Node, how: str) -> None:
    node.bundle("c1")
    pid = node.ask(node.start("c1", **({"FAKE_DEAF": "1"} if how == "deaf" else {})))["pid"]
    if how == "stopped":
        os.kill(pid, signal.SIGSTOP)
    delete(node, "c1")
    assert not is_alive(pid)
    assert node.state_files() == []


def test_many_at_once(node: Node, tmp_path: Path) -> None:
    node.bundle("c1")
    folder = tmp_path / "held"
    folder.mkdir()
    about = node.ask(node.start("c1", FAKE_HOLD=str(folder), FAKE_EXIT="3"))
    kill(about["pid"])
    deletes = [node.popen("delete", "c1") for _ in range(6)]
    for process in deletes:
        out, err = process.communicate(timeout=10)
        assert (process.returncode, err) == (0, b"")
        assert DeleteResponse.FromString(out).exit_status in (3, 137)
    assert not is_alive(about["held"]["child"])
    assert node.state_files() == []


def test_a_member_leaves_its_group_alone(node: Node) -> None:
    pod = {"io.kubernetes.cri.sandbox-id": "pod"}
    for name in ("pod", "c1", "c2"):
        node.bundle(name, pod)
    address = node.start("pod", FAKE_EXIT="0")
    assert {node.start("c1"), node.start("c2")} == {address}
    pid = node.ask(address)["pid"]

    delete(node, "c1")
    assert is_alive(pid)
    kill(pid)
    # The group is dead: whichever delete comes first releases everything, and the journal stays
    # until the last one has read it.
    assert delete(node, "c2").exit_status == 137
    assert delete(node, "pod").exit_status == 0
    assert node.state_files() == []


def test_a_forgotten_member_does_not_keep_the_state(node: Node) -> None:
    pod = {"io.kubernetes.cri.sandbox-id": "pod"}
    for name in ("pod", "c1"):
        node.bundle(name, pod)
    pid = node.ask(node.start("pod"))["pid"]
    node.start("c1")
    kill(pid)
    bundle = node.directory / "bundles" / "c1"
    bundle.rename(bundle.with_name(".c1"))
    delete(node, "pod")
    assert node.state_files() == []


def test_logs_do_not_pile_up(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "state" / "log" / NAMESPACE
    folder.mkdir(parents=True)
    for number in range(100):
        (folder / f"old{number}.log").write_text("x")
        os.utime(folder / f"old{number}.log", (number, number))
    for name in ("busy.log", "busy.log.1"):
        (folder / name).write_text("of a shim that runs and has long had nothing to say")
        os.utime(folder / name, (0, 0))
    state = State(NAMESPACE, "busy", node.environ)
    private_directory(state.directory)
    node.bundle("c1")
    node.start("c1")
    delete(node, "c1")
    left = sorted(path.name for path in folder.iterdir())
    assert len(left) == 34
    assert "c1.log" not in left
    assert {"busy.log", "busy.log.1"} <= set(left)
    assert "old99.log" in left


def test_start_after_delete(node: Node) -> None:
    node.bundle("c1")
    for _ in range(3):
        address = node.start("c1")
        node.ask(address)
        delete(node, "c1")
    assert node.state_files() == []


@pytest.mark.parametrize("name", ["c1", "pod"])
def test_a_daemon_that_came_while_delete_waited_is_spared(node: Node, name: str) -> None:
    """After a crash containerd deletes member for member, and starts may come in between."""
    pod = {"io.kubernetes.cri.sandbox-id": "pod"}
    for member in ("pod", "c1", "c2"):
        node.bundle(member, pod)
    address = node.start("pod")
    node.start("c1")
    kill(node.ask(address)["pid"])
    state = State(NAMESPACE, "pod", node.environ).lock(time.monotonic() + 5)
    waiting = node.popen("delete", name)
    try:
        _await_waiter(waiting.pid, state.directory)
        with (
            subprocess.Popen(["sleep", "1000"]) as daemon,
            subprocess.Popen(["sleep", "1000"]) as machine,
        ):
            state.set_daemon(f"{daemon.pid} {start_time(daemon.pid)}", "/no", "c2", "/")
            resources = Resources(state.directory)
            resources.add_process(machine.pid, "qemu")
            resources.close()
            state.unlock()
            _, err = waiting.communicate(timeout=10)
            alive = is_alive(daemon.pid), is_alive(machine.pid)
            daemon.kill()
            machine.kill()
    finally:
        state.unlock()
    assert (waiting.returncode, err) == (0, b"")
    assert alive == (True, True)
    assert os.path.exists(address.removeprefix("unix://"))
    assert "c1" not in state.members() or name == "pod"


def _await_waiter(pid: int, directory: str) -> None:
    """Return when the process has opened the directory, to lock it."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{name}") == directory:
                    return
        os.sched_yield()
    raise AssertionError("delete does not wait for the lock")


def test_what_the_daemon_recorded_while_it_was_ended(node: Node) -> None:
    node.bundle("c1")
    node.ask(node.start("c1", FAKE_LAST="9"))
    assert delete(node, "c1").exit_status == 9
