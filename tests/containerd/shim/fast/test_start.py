"""``start``: one daemon per group, the right answer for each containerd, nothing left open."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from protos.gen.containerd.runtime.bootstrap.v1.bootstrap_pb2 import (
    BootstrapParams,
    BootstrapResult,
    Extension,
    LogLevel,
)
from protos.gen.runtimeoptions.v1.options_pb2 import Options
from shims.containerd.shim.exits import Exit, ExitJournal
from shims.containerd.shim.resources import Resources
from shims.containerd.shim.state import State
from tests.containerd.shim.fast.conftest import NAMESPACE, Node, is_alive, kill

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = AnyMessage(
    type_url="runtimeoptions.v1.Options", value=Options(config_path="/x").SerializeToString()
).SerializeToString()


def test_plain_address_for_1_6(node: Node) -> None:
    bundle = node.bundle("c1")
    address = node.start("c1")
    assert address.startswith(f"unix://{node.run}/s/")
    assert (bundle / "address").read_text() == address
    assert stat.S_IMODE((bundle / "address").stat().st_mode) == 0o600
    socket_mode = os.stat(address.removeprefix("unix://")).st_mode
    assert stat.S_ISSOCK(socket_mode)
    assert stat.S_IMODE(socket_mode) == 0o600
    assert stat.S_IMODE((node.run / "s").stat().st_mode) == 0o700
    assert stat.S_IMODE((node.run / "shim" / NAMESPACE / "c1").stat().st_mode) == 0o700


def test_json_for_1_7_to_2_2(node: Node) -> None:
    bundle = node.bundle("c1")
    done = node.call("start", "c1", data=OPTIONS, MAX_SHIM_VERSION="2")
    assert done.stderr == b""
    answer = json.loads(done.stdout)
    address = (bundle / "address").read_text()
    assert answer == {"version": 2, "address": address, "protocol": "ttrpc"}
    assert node.ask(address)["options"] == OPTIONS.hex()


def test_protobuf_for_2_3(node: Node, tmp_path: Path) -> None:
    node.bundle("c1")
    sockets = tmp_path / "sockets"
    params = BootstrapParams(
        instance_id="c1",
        namespace=NAMESPACE,
        log_level=LogLevel.LOG_LEVEL_DEBUG,
        containerd_version="2.3.4",
        containerd_ttrpc_address="/run/other.ttrpc",
        containerd_grpc_address="/run/other",
        extensions=[Extension(value=AnyMessage.FromString(OPTIONS))],
        socket_dir=str(sockets),
    )
    done = node.call("start", "c1", data=params.SerializeToString(), MAX_SHIM_VERSION="2")
    assert done.stderr == b""
    result = BootstrapResult.FromString(done.stdout)
    assert (result.version, result.protocol) == (3, "ttrpc")
    assert result.address.startswith(f"unix://{sockets}/")
    about = node.ask(result.address)
    assert about["options"] == OPTIONS.hex()
    assert "-debug" in about["arguments"]


def test_ttrpc_address_of_the_parameters(node: Node) -> None:
    node.bundle("c1")
    del node.environ["TTRPC_ADDRESS"]
    params = BootstrapParams(
        instance_id="c1", namespace=NAMESPACE, containerd_ttrpc_address="/run/x"
    )
    done = node.call("start", "c1", data=params.SerializeToString())
    assert node.ask(BootstrapResult.FromString(done.stdout).address)["ttrpc"] == "/run/x"


def test_parameters_of_somebody_else_are_options(node: Node) -> None:
    node.bundle("c1")
    params = BootstrapParams(instance_id="c2", namespace=NAMESPACE)
    done = node.call("start", "c1", data=params.SerializeToString())
    assert done.stdout.startswith(b"unix://")


def test_the_daemon_stands_alone(node: Node) -> None:
    node.bundle("c1")
    about = node.ask(node.start("c1"))
    fds = about["fds"]
    assert {fds["0"], fds["1"]} == {"/dev/null"}
    assert fds["2"].endswith("/state/log/default/c1.log")
    assert fds["3"].startswith("socket:")
    # Beyond them only what it opened itself: the connection, the listing.
    assert not [target for target in fds.values() if "pipe" in target or "shim/default" in target]
    assert about["cwd"] == "/"
    assert about["sid"] == about["pid"]


def test_a_group_shares_one_daemon(node: Node) -> None:
    node.bundle("pod", {"io.kubernetes.cri.sandbox-id": "pod"})
    node.bundle("c1", {"io.kubernetes.cri.sandbox-id": "pod"})
    node.bundle("c2", {"io.containerd.runc.v2.group": "pod", "io.kubernetes.cri.sandbox-id": "x"})
    node.bundle("alone")
    addresses = {name: node.start(name) for name in ("pod", "c1", "c2", "alone")}
    assert len(set(addresses.values())) == 2
    assert addresses["pod"] == addresses["c1"] == addresses["c2"]
    assert len(node.daemons()) == 2


def test_a_bundle_without_config(node: Node) -> None:
    bundle = node.bundle("c1")
    (bundle / "config.json").unlink()
    assert node.ask(node.start("c1"))["arguments"][-1] == "c1"


def test_a_group_name_that_is_no_name(node: Node) -> None:
    node.bundle("c1", {"io.kubernetes.cri.sandbox-id": "../../etc"})
    done = node.call("start", "c1")
    assert done.returncode == 1
    assert b"annotations.io.kubernetes.cri.sandbox-id: got '../../etc'" in done.stderr
    assert node.daemons() == []


@pytest.mark.parametrize("flags", [["-id", "../x"], ["-namespace", ""], ["-namespace", "a/b"]])
def test_names_are_checked(node: Node, flags: list[str]) -> None:
    node.bundle("c1")
    done = node.call("start", "c1", *flags)
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.count(b"\n") == 1


def test_starts_at_once_agree(node: Node) -> None:
    for number in range(8):
        node.bundle(f"c{number}", {"io.kubernetes.cri.sandbox-id": "c0"})
    starts = [node.popen("start", f"c{number}") for number in range(8)]
    answers = {start.communicate(timeout=20) for start in starts}
    assert len(answers) == 1
    assert len(node.daemons()) == 1


def test_a_dead_daemons_socket_is_replaced(node: Node) -> None:
    node.bundle("c1")
    address = node.start("c1")
    first = node.ask(address)["pid"]
    kill(first)
    assert node.start("c1") == address
    assert node.ask(address)["pid"] != first


def test_a_daemon_without_its_socket_is_replaced(node: Node) -> None:
    """As after Shutdown, when the old daemon is on its way out: it must not be joined."""
    node.bundle("c1")
    address = node.start("c1")
    first = node.ask(address)["pid"]
    os.unlink(address.removeprefix("unix://"))
    assert node.start("c1") == address
    assert not is_alive(first)
    assert node.ask(address)["pid"] != first


def test_a_stopped_daemon_is_still_a_daemon(node: Node) -> None:
    node.bundle("c1")
    address = node.start("c1")
    pid = node.ask(address)["pid"]
    os.kill(pid, signal.SIGSTOP)
    assert node.start("c1") == address
    assert node.daemons() == [pid]


def test_what_a_dead_daemon_still_owed_is_kept(node: Node) -> None:
    """Events that containerd did not take, exits of other members, and what did not let go."""
    pod = {"io.kubernetes.cri.sandbox-id": "pod"}
    for name in ("pod", "c1", "c2"):
        node.bundle(name, pod)
    address = node.start("pod", FAKE_EXIT="7")
    kill(node.ask(address)["pid"])
    state = State(NAMESPACE, "pod", node.environ)
    with ExitJournal(state.directory) as journal:
        journal.record(Exit("c1", "", 5, 1, 1))
    state.write("events.jsonl", "an event\n")
    resources = Resources(state.directory)
    resources.add_path("/proc/self/stat")  # nobody can remove that
    resources.close()

    assert node.start("c1") == address
    assert state.read("events.jsonl") == "an event\n"
    exits = ExitJournal(state.directory)
    kept = exits.find("pod")
    assert kept is not None
    assert kept.status == 7
    assert exits.find("c1") is None, "the id is used anew"
    assert set(state.members()) == {"pod", "c1"}
    assert [name for _, name, _ in Resources(state.directory).held()] == ["/proc/self/stat"]


def test_something_else_at_the_sockets_path(node: Node) -> None:
    node.bundle("c1")
    address = node.start("c1")
    kill(node.ask(address)["pid"])
    path = address.removeprefix("unix://")
    os.unlink(path)
    with open(path, "w") as file:
        file.write("not a socket")
    assert node.start("c1") == address
    assert stat.S_ISSOCK(os.stat(path).st_mode)


def test_a_directory_too_deep_for_sockets(node: Node, tmp_path: Path) -> None:
    node.bundle("c1")
    deep = tmp_path / ("d" * 100)
    done = node.call("start", "c1", VOID_SHIMS_RUN=str(deep))
    assert done.returncode == 1
    assert b"too long a path for sockets" in done.stderr


def test_a_daemon_that_cannot_start_says_why_in_its_log(node: Node, tmp_path: Path) -> None:
    node.bundle("c1")
    address = node.start("c1", FAKE_EXIT="not a number")
    (pid,) = node.daemons() or [0]
    if pid:
        kill(pid, 0)
    path = address.removeprefix("unix://")
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(path)
    log = tmp_path / "state" / "log" / NAMESPACE / "c1.log"
    assert "ValueError" in log.read_text()


def test_input_has_a_limit(node: Node) -> None:
    node.bundle("c1")
    done = node.call("start", "c1", data=b"\x0a" * (11 << 20))
    assert done.returncode == 1
    assert b"standard input" in done.stderr


def test_nothing_slow_is_imported(launcher: Path) -> None:
    """The start path is quick because of what it does not import."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from shims.containerd.shim import entry, start, delete, info, bootstrap\n"
        "print(*sorted(sys.modules))"
    )
    done = subprocess.run(
        [os.path.realpath(launcher.parents[2] / ".venv/bin/python3"), "-I", "-S", "-c", code,
         str(launcher.parents[2])],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    slow = {"asyncio", "collections", "enum", "google", "json", "pathlib", "pydantic", "re",
            "socket", "subprocess", "tempfile", "typing",
            "shims.containerd.shim.courier"}  # fmt: skip
    assert slow & set(done.stdout.split()) == set()


def test_a_name_that_lives_under_another_containerd(
    node: Node, launcher: Path, tmp_path: Path
) -> None:
    node.bundle("c1")
    address = node.start("c1")
    before = node.ask(address)["pid"]
    other = Node(launcher, tmp_path / "other")
    other.containerd = "/run/other/containerd.sock"
    other.environ = node.environ
    other.bundle("c1")
    refused = other.call("start", "c1")
    assert refused.returncode == 1
    assert b"under another containerd" in refused.stderr
    # What follows a start that failed must not reach the other's container either.
    assert other.call("delete", "c1").returncode == 0
    assert node.ask(address)["pid"] == before
    assert node.call("delete", "c1").returncode == 0
    assert not is_alive(before)
    other.start("c1")
