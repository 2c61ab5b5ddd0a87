"""The sweep: what nobody will ever delete goes, and nothing else."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from subprocess import PIPE
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from shims.containerd.shim import daemon, nurse
from shims.containerd.shim import sweep as module
from shims.containerd.shim.config import Settings
from shims.containerd.shim.invocation import parse_invocation
from shims.containerd.shim.processes import start_time
from shims.containerd.shim.resources import Resources
from shims.containerd.shim.shared import Shared
from shims.containerd.shim.state import State
from shims.containerd.shim.sweep import sweep
from tests.containerd.shim.fast.conftest import NAMESPACE, is_alive, kill

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from shims.containerd.shim.invocation import Invocation
    from tests.containerd.shim.fast.conftest import Node


def call_of(node: Node) -> Invocation:
    """Return the call of a daemon of this node."""
    environ = os.environ | node.environ
    return parse_invocation(["-namespace", NAMESPACE, "-id", "sweeper", "daemon"], environ, "/")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def test_nothing_to_do(node: Node) -> None:
    assert sweep(call_of(node)) == []
    assert not node.run.exists()


def test_a_shim_that_was_killed_and_never_deleted(node: Node, tmp_path: Path) -> None:
    bundle = node.bundle("c1")
    folder = tmp_path / "held"
    folder.mkdir()
    address = node.start("c1", FAKE_HOLD=str(folder))
    about = node.ask(address)
    kill(about["pid"])
    assert sweep(call_of(node)) == [], "the bundle is there: containerd may come yet"
    assert is_alive(about["held"]["child"])

    bundle.rename(bundle.with_name(".c1"))
    assert sweep(call_of(node)) == [f"swept the remains of {NAMESPACE}/c1"]
    assert not is_alive(about["held"]["child"])
    assert not (folder / "tree").exists()
    assert node.state_files() == []


def test_a_shim_that_lives_is_left_alone(node: Node) -> None:
    bundle = node.bundle("c1")
    address = node.start("c1")
    bundle.rename(bundle.with_name(".c1"))  # its own lease ends it
    assert sweep(call_of(node)) == []
    assert node.ask(address)["pid"]


def test_what_somebody_works_on_is_left_alone(node: Node) -> None:
    with State(NAMESPACE, "c1", node.environ).lock(time.monotonic() + 5) as state:
        began = time.monotonic()
        assert sweep(call_of(node)) == []
        assert time.monotonic() - began < 1
        assert state.exists
    assert sweep(call_of(node)) == [f"swept the remains of {NAMESPACE}/c1"]


def test_a_living_members_bundle_keeps_the_group(node: Node) -> None:
    pod = {"io.kubernetes.cri.sandbox-id": "pod"}
    for name in ("pod", "c1"):
        node.bundle(name, pod)
    address = node.start("pod")
    node.start("c1")
    kill(node.ask(address)["pid"])
    bundle = node.directory / "bundles" / "pod"
    bundle.rename(bundle.with_name(".pod"))
    assert sweep(call_of(node)) == []
    assert State(NAMESPACE, "pod", node.environ).exists


def test_events_go_to_the_containerd_of_that_shim(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = node.bundle("c1")
    address = node.start("c1", TTRPC_ADDRESS="unix:///run/another one.ttrpc")
    kill(node.ask(address)["pid"])
    state = State(NAMESPACE, "c1", node.environ)
    state.write("events.jsonl", "{}\n")
    bundle.rename(bundle.with_name(".c1"))
    sent: list[tuple[str, str]] = []

    def forward(_: Invocation, dead: State, address: str) -> list[str]:
        sent.append((dead.group, address))
        return []

    monkeypatch.setattr(module, "forward_events", forward)
    sweep(call_of(node))
    assert sent == [("c1", "/run/another one.ttrpc")]


def test_what_does_not_let_go_is_tried_again(node: Node) -> None:
    state = State(NAMESPACE, "c1", node.environ).lock(time.monotonic() + 5)
    resources = Resources(state.directory)
    resources.add_path("/proc/self/stat")  # nobody can remove that
    resources.close()
    state.unlock()
    for _ in range(2):
        lines = sweep(call_of(node))
        assert len(lines) == 2
        assert "path /proc/self/stat" in lines[1]
    assert state.exists


def test_directories_of_machines(node: Node) -> None:
    """Only one that is old, on nobody's record and in no command line belongs to nobody."""
    folder = node.run / "vm"
    for name in ("new", "recorded", "running", "left-template"):
        (folder / name).mkdir(parents=True)
        (folder / name / "link.sock").touch()
        if name != "new":
            os.utime(folder / name, (0, 0))
    node.bundle("c1")
    with State(NAMESPACE, "c1", node.environ).lock(time.monotonic() + 5) as state:
        resources = Resources(state.directory)
        resources.add_path(str(folder / "recorded"))
        resources.close()
        words = ["sh", "-c", "echo up; read line", "-name", "running"]
        with subprocess.Popen(words, stdin=PIPE, stdout=PIPE) as machine:
            assert machine.stdout is not None
            machine.stdout.readline()  # its command line is empty for a moment
            assert sweep(call_of(node)) == ["swept the directory of VM left-template"]
            machine.kill()
    assert sorted(path.name for path in folder.iterdir()) == ["new", "recorded", "running"]


@pytest.mark.parametrize("how", ["launched", "from the nursery"])
async def test_a_launched_daemon_sweeps(
    node: Node, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """One that the nursery made does not: its nursery's first daemon did."""
    if how == "launched":
        monkeypatch.delitem(sys.modules, "shims.containerd.shim.nurse", raising=False)
    else:
        monkeypatch.setitem(sys.modules, "shims.containerd.shim.nurse", nurse)
    with State(NAMESPACE, "c1", node.environ).lock(time.monotonic() + 5):
        pass
    node.environ["VOID_SHIMS_NURSERY"] = "off"
    lines: list[str] = []
    reporter = SimpleNamespace(log=lines.append)
    shared = Shared(cast("Any", None), cast("Any", reporter), Settings(), lambda _: None)
    group = SimpleNamespace(on_started=None, shared=shared, reporter=reporter)
    daemon._look_after_others(cast("Any", group), call_of(node))
    await asyncio.gather(*shared.tasks)
    assert lines == ([f"swept the remains of {NAMESPACE}/c1"] if how == "launched" else [])
    assert group.on_started is not None, "it is called again by the next container"


def test_a_pid_that_was_reused_is_not_the_daemon(
    node: Node, child: subprocess.Popen[bytes]
) -> None:
    with State(NAMESPACE, "c1", node.environ).lock(time.monotonic() + 5) as state:
        started = start_time(child.pid)
        assert started is not None
        state.set_daemon(f"{child.pid} {started - 1} /run/x", "", "c1", "/no/such/bundle")
        assert state.events_address() == "/run/x"
    assert sweep(call_of(node)) == [f"swept the remains of {NAMESPACE}/c1"]
    assert child.poll() is None
