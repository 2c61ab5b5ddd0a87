"""The courier: what a dead daemon had to tell arrives, or is given up, and nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from protos.gen.containerd.events import task_pb2 as events
from shims.containerd.shim import courier
from shims.containerd.shim.courier import deliver, hand_over, sweep_letters
from shims.containerd.shim.events import Publisher
from shims.containerd.shim.invocation import parse_invocation
from shims.containerd.shim.state import State
from tests.containerd.shim.fast.conftest import NAMESPACE, kill
from tests.containerd.shim.fast.test_events import Containerd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shims.containerd.shim.invocation import Invocation
    from tests.containerd.shim.fast.conftest import Node


@pytest.fixture
async def containerd(tmp_path: Path) -> AsyncIterator[Containerd]:
    containerd = Containerd(tmp_path / "containerd.ttrpc", NAMESPACE)
    yield containerd
    await containerd.stop()


async def until(condition: object, seconds: float = 20) -> None:
    """Wait until a callable returns something true."""
    assert callable(condition)
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  other processes do not set our events
            await asyncio.sleep(0.01)


async def leave_events(directory: str, *names: str) -> None:
    """Journal what a daemon could not deliver."""
    async with Publisher(directory, NAMESPACE, ttrpc_address="/nobody/there") as publisher:
        for name in names:
            publisher.publish("/tasks/exit", events.TaskExit(container_id=name))


async def test_a_killed_daemons_events_arrive_when_containerd_comes_back(
    node: Node, containerd: Containerd
) -> None:
    node.environ["TTRPC_ADDRESS"] = str(containerd.path)
    node.bundle("c1")
    address = node.start("c1")
    state = State(NAMESPACE, "c1", node.environ)
    kill(node.ask(address)["pid"])
    await leave_events(state.directory, "c1", "c2")

    done = node.call("delete", "c1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert not state.exists
    assert len(node.daemons()) == 1
    assert containerd.ids() == []

    containerd.start()
    await until(lambda: node.daemons() == [])
    assert containerd.ids() == ["c1", "c2"]
    assert node.state_files() == []


async def test_without_events_there_is_no_courier(node: Node) -> None:
    node.bundle("c1")
    kill(node.ask(node.start("c1"))["pid"])
    Path(State(NAMESPACE, "c1", node.environ).directory, "events.jsonl").touch()
    assert node.call("delete", "c1").stderr == b""
    assert node.daemons() == []
    assert node.state_files() == []


@pytest.fixture
def call(tmp_path: Path) -> Invocation:
    environ = os.environ | {"VOID_SHIMS_RUN": str(tmp_path / "run")}
    return parse_invocation(["-namespace", NAMESPACE, "-id", "c1", "delete"], environ, "/")


async def test_it_gives_up_and_leaves_nothing(call: Invocation, tmp_path: Path) -> None:
    with State(NAMESPACE, "c1", call.environ).lock(time.monotonic() + 5) as state:
        await leave_events(state.directory, "c1")
        hand_over(state, call, "/nobody/there", 0.3)
        assert os.listdir(state.directory) == []
    assert (tmp_path / "run" / "courier").exists()
    await until(lambda: not (tmp_path / "run" / "courier").exists())


async def test_it_may_be_ended(call: Invocation, tmp_path: Path) -> None:
    with State(NAMESPACE, "c1", call.environ).lock(time.monotonic() + 5) as state:
        await leave_events(state.directory, "c1")
        hand_over(state, call, "/nobody/there")
    (directory,) = (tmp_path / "run" / "courier").iterdir()
    found: list[int] = []

    def runs() -> bool:
        """Whether it has its signal handler, which it sets right before it begins."""
        found[:] = [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdecimal() and str(directory).encode() in command_line(entry)
        ]
        return len(found) == 1 and bool(caught(found[0]) & 1 << (signal.SIGTERM - 1))

    await until(runs)
    os.kill(found[0], signal.SIGTERM)
    await until(lambda: not (tmp_path / "run" / "courier").exists())


def command_line(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""


def caught(pid: int) -> int:
    """Return the set of signals that a process handles."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return int(line.split()[1], 16)
    return 0


async def test_without_a_process_the_journal_stays(
    call: Invocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise BlockingIOError(11, "no more processes")

    monkeypatch.setattr(os, "posix_spawnp", refuse)
    with State(NAMESPACE, "c1", call.environ).lock(time.monotonic() + 5) as state:
        await leave_events(state.directory, "c1")
        with pytest.raises(BlockingIOError):
            hand_over(state, call, "/nobody/there")
        assert os.listdir(state.directory) == ["events.jsonl"]


async def test_what_a_killed_courier_left_goes_when_it_is_old(
    call: Invocation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run" / "courier"
    sweep_letters(call.environ)
    for name in ("new", "old"):
        (folder / name).mkdir(parents=True)
        (folder / name / "events.jsonl").touch()
    os.utime(folder / "old", (0, 0))
    sweep_letters(call.environ)
    assert [path.name for path in folder.iterdir()] == ["new"]
    monkeypatch.setattr(courier, "_FORGOTTEN_SECONDS", -1.0)
    sweep_letters(call.environ)
    assert not folder.exists()


def test_delivered_at_once(tmp_path: Path) -> None:
    """Everything in the journal was taken, only the note of it came too late to empty it."""
    directory = tmp_path / "courier" / "x"
    directory.mkdir(parents=True)
    (directory / "events.jsonl").write_text('{"taken": 3}\n')
    assert deliver([str(directory), "5", NAMESPACE, "/nobody/there", "", ""]) == 0
    assert not (tmp_path / "courier").exists()
