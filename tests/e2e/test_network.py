"""A container in a network namespace that somebody prepared, as CNI does: it has that network.

The namespaces, the link between them and all traffic are the test's own.
"""

from __future__ import annotations

import hashlib
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.e2e.ctr import eventually
from tests.e2e.leaks import command_line, matching
from tests.e2e.runtimes import VOIDBOX, Runtime
from tests.e2e.test_faults import kill_process
from tests.e2e.workbench import joining
from tests.microvm.nets import PEER, POD, POD6

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.workbench import Workbench
    from tests.microvm.nets import Pair

pytestmark = [
    pytest.mark.root,
    pytest.mark.containerd,
    pytest.mark.qemu,
    pytest.mark.timeout(90),
]

_PORT = "8080"


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Pair:
    """A network that outlives the test's containers, so that what they leave in it is seen."""
    name = "own_bench" if "own_bench" in request.fixturenames else "bench"
    bench: Workbench = request.getfixturevalue(name)
    return bench.add_network()


def answers(pair: Pair) -> bool:
    """Whether the container's server answers a client at the other end of the link."""
    client = ("busybox", "nc", "-w", "2", POD, _PORT)
    try:
        return pair.at_peer(*client) == "from the container\n"
    except AssertionError:
        return False


_SERVE = ("nc", "-ll", "-p", _PORT, "-e", "echo", "from the container")


def test_the_container_has_the_namespaces_network(bench: Workbench, pair: Pair) -> None:
    look = "ip -o link show eth0; ip -o address; ip route; ip -6 route"
    inside = bench.run("sh", "-c", look, options=joining(pair))
    mac = pair.in_pod("-o", "link", "show", "eth0").split("link/ether ")[1][:17]
    for words in (mac, "mtu 1440", f"{POD}/24", f"{POD6}/64", f"default via {PEER}"):
        assert words in inside


def test_traffic_both_ways(bench: Workbench, pair: Pair) -> None:
    name = bench.start(*_SERVE, options=joining(pair))
    pair.at_peer("busybox", "ping", "-c2", "-w9", POD)
    pair.at_peer("busybox", "ping", "-c2", "-w9", POD6)
    eventually(lambda: answers(pair), "an answer from the container")
    bench.exec(name, "ping", "-c2", "-w9", PEER)
    with _serving(pair, "busybox", "nc", "-l", "-p", _PORT, "-w", "20", stdin="from the peer\n"):
        assert bench.exec(name, "nc", "-w", "5", PEER, _PORT) == "from the peer\n"


@contextmanager
def _serving(pair: Pair, *server: str, stdin: str = "") -> Iterator[None]:
    """Run a server for one client at the other end of the link."""
    serving = threading.Thread(target=pair.at_peer, args=server, kwargs={"stdin": stdin})
    serving.start()
    try:
        listening = f":{int(_PORT):04X} "
        eventually(lambda: listening in pair.at_peer("cat", "/proc/net/tcp"), "a server")
        yield
    finally:
        serving.join(25)


def test_a_file_goes_through_unharmed(bench: Workbench, pair: Pair) -> None:
    """Guest and host leave checksums and segmentation to each other: large packets, both ways."""
    content = bench.site.busybox.read_bytes()
    wanted = hashlib.md5(content, usedforsecurity=False).hexdigest()
    serve = ("nc", "-ll", "-p", _PORT, "-e", "cat", "/bin/busybox")
    name = bench.start(*serve, options=joining(pair))
    fetch = f"busybox nc -w 5 {POD} {_PORT} </dev/null | md5sum"
    eventually(lambda: wanted in pair.at_peer("sh", "-c", fetch), "the whole file")
    send = ("busybox", "nc", "-l", "-p", _PORT, "-e", "cat", str(bench.site.busybox))
    with _serving(pair, *send):
        got = bench.exec(name, "sh", "-c", f"nc -w 5 {PEER} {_PORT} </dev/null | md5sum")
    assert wanted in got


def test_the_next_container_has_the_same_network(bench: Workbench, pair: Pair) -> None:
    for _ in range(2):
        assert "0% packet loss" in bench.run("ping", "-c1", "-w9", PEER, options=joining(pair))
    assert "ingress" not in pair.filters("qdisc")


def test_two_vms_cannot_have_one_network(
    bench: Workbench, pair: Pair, only: Callable[[Runtime, str], None]
) -> None:
    only(VOIDBOX, "containers of the host's kernel share a namespace")
    name = bench.start(*_SERVE, options=joining(pair))
    words = bench.site.run_words(bench.name(), "true", options=joining(pair))
    refused = bench.ctr(*words, check=False)
    assert refused.status != 0
    assert "another VM has this network" in refused.complaint
    eventually(lambda: answers(pair), "an answer from the first container")
    assert bench.ctr.state(name) == "RUNNING"


def test_an_empty_namespace_is_loopback(bench: Workbench, pair: Pair) -> None:
    pair.in_pod("link", "delete", "eth0")
    assert bench.run("ls", "/sys/class/net", options=joining(pair)).split() == ["lo"]


def test_members_of_a_group_share_the_network(
    bench: Workbench, pair: Pair, only: Callable[[Runtime, str], None]
) -> None:
    """As CRI asks for it: by the sandbox's pid, or by the namespace that the sandbox joined."""
    only(VOIDBOX, "a group is one VM")
    sandbox = bench.name("pod")
    group = ("--annotation", f"io.kubernetes.cri.sandbox-id={sandbox}")
    words = bench.site.run_words(sandbox, "sleep", "1000", options=("-d", *group, *joining(pair)))
    bench.ctr(*words)
    pid = next(row[1] for row in bench.ctr("task", "ls").rows if row[0] == sandbox)
    for path in (f"/proc/{pid}/ns/net", pair.path):
        options = (*group, "--with-ns", f"network:{path}")
        assert f"{POD}/24" in bench.run("ip", "-o", "address", options=options)


@pytest.mark.parametrize("victim", ["shim", "qemu"])
def test_a_killed_vm_gives_the_network_back(
    own_bench: Workbench, pair: Pair, only: Callable[[Runtime, str], None], victim: str
) -> None:
    only(VOIDBOX, "it has no VM")
    site = own_bench.site
    name = own_bench.start(*_SERVE, options=joining(pair))
    assert "ingress" in pair.filters("qdisc")
    if victim == "shim":
        found = site.runtime.shims(site.daemon.descendants(), name)
        pids = [pid for pid in found if not command_line(pid).endswith((" start", " delete"))]
    else:
        pids = matching(site.daemon.descendants(), "qemu-system-x86_64")
    assert pids
    for pid in pids:
        kill_process(pid)
    own_bench.await_stopped(name, 10.0)
    eventually(lambda: "ingress" not in pair.filters("qdisc"), "no redirect is left")
    assert "0% packet loss" in own_bench.run("ping", "-c1", "-w9", PEER, options=joining(pair))


def test_a_namespace_that_is_not_there(
    bench: Workbench, only: Callable[[Runtime, str], None]
) -> None:
    only(VOIDBOX, "others say it in their own words")
    words = bench.site.run_words(
        bench.name(), "true", options=("--with-ns", "network:/run/netns/void-no-such-pod")
    )
    refused = bench.ctr(*words, check=False)
    assert refused.status != 0
    assert "'/run/netns/void-no-such-pod'" in refused.complaint
    assert "No such file" in refused.complaint
