"""A namespace's network: read, taken over by a VM, and given back."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from shims.core.errors import Conflict, InputError, NotSupported, TargetError
from shims.microvm.launcher import fork_task
from shims.microvm.links import NetworkLink, _is_made, left_out
from shims.microvm.machine import start_machine
from shims.microvm.netns import TAP_NAME, is_host_network, release_network
from shims.microvm.network import Network, join_network
from shims.microvm.plan import NETWORK_MAC
from tests.microvm.nets import PEER, PEER6, POD, POD6, Pair, make_pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.microvm.conftest import Host

pytestmark = [pytest.mark.root, pytest.mark.timeout(90)]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with make_pair() as made:
        yield made


async def join(pair: Pair) -> Network:
    """Join, leave again, and return what was there."""
    async with join_network(pair.path) as network:
        assert network is not None
        return network


def shown(address: bytes, prefix: int) -> str:
    return f"{ipaddress.ip_address(address)}/{prefix}" if address else "default"


def routes(network: Network) -> list[tuple[str, str]]:
    """Return destination and gateway of each route, in order."""
    return [
        (
            shown(route.destination, route.prefix),
            str(ipaddress.ip_address(route.gateway)) if route.gateway else "",
        )
        for route in network.plan.routes
    ]


def links(pair: Pair) -> set[str]:
    listed = pair.in_pod("-o", "link").splitlines()
    return {line.split(":")[1].split("@")[0].strip() for line in listed}


# ------------------------------------------------------------------------------------- reading
async def test_the_link_is_read_as_cni_left_it(pair: Pair) -> None:
    pair.in_pod("neighbour", "add", "10.97.8.9", "lladdr", "02:00:00:00:00:09", "dev", "eth0")
    pair.in_pod("route", "add", "10.50.0.0/16", "via", PEER, "metric", "7", "src", POD)
    network = await join(pair)
    (link,) = network.plan.links
    address = pair.in_pod("-o", "link", "show", "eth0").split("link/ether ")[1][:17]
    mac = bytes.fromhex(address.replace(":", ""))
    assert (link.name, link.mac, link.mtu, link.up) == ("eth0", mac, 1440, True)
    assert link.match_mac == bytes.fromhex(NETWORK_MAC.replace(":", ""))
    # Link-local and connected routes are the guest kernel's to make.
    assert [shown(a.address, a.prefix) for a in link.addresses] == [f"{POD}/24", f"{POD6}/64"]
    assert link.addresses[0].broadcast == ipaddress.ip_address("10.97.8.255").packed
    assert sorted(routes(network)) == [
        ("10.50.0.0/16", PEER), ("default", PEER), ("default", PEER6),
    ]  # fmt: skip
    special = next(route for route in network.plan.routes if route.prefix == 16)
    assert (special.metric, special.source) == (7, ipaddress.ip_address(POD).packed)
    (neighbour,) = network.plan.neighbours
    assert neighbour.mac == bytes.fromhex("020000000009")
    assert neighbour.interface == "eth0"


async def test_metrics_and_routes_to_nowhere_come_along(pair: Pair) -> None:
    pair.in_pod("route", "replace", "default", "via", PEER, "mtu", "1400", "advmss", "1360")
    pair.in_pod("route", "add", "10.60.0.0/16", "via", PEER, "mtu", "lock", "1300")
    for kind, network in (("blackhole", "10.66"), ("unreachable", "10.67"), ("prohibit", "10.68")):
        pair.in_pod("route", "add", kind, f"{network}.0.0/16")
    pair.in_pod("-6", "route", "add", "unreachable", "fd66::/16", "metric", "5")
    plan = (await join(pair)).plan
    found = {shown(route.destination, route.prefix): route for route in plan.routes if route.prefix}
    default = next(route for route in plan.routes if not route.destination and not route.ipv6)
    assert (default.mtu, default.advmss, default.locked, default.kind) == (1400, 1360, 0, 0)
    locked = found["10.60.0.0/16"]
    assert (locked.mtu, locked.advmss, locked.locked) == (1300, 0, 1 << 2)  # RTAX_MTU
    kinds = {name: (route.kind, route.interface) for name, route in found.items() if route.kind}
    assert kinds == {
        "10.66.0.0/16": (6, ""),
        "10.67.0.0/16": (7, ""),
        "10.68.0.0/16": (8, ""),
        "fd66::/16": (7, ""),
    }
    assert found["fd66::/16"].metric == 5


async def test_link_local_addresses_that_somebody_chose_come_along(pair: Pair) -> None:
    assert "fe80" in pair.in_pod("-6", "address", "show", "dev", "eth0")  # the kernel's own
    pair.in_pod("address", "add", "fe80::1234/64", "dev", "eth0", "nodad")
    addresses = (await join(pair)).plan.links[0].addresses
    assert [shown(a.address, a.prefix) for a in addresses if a.scope == 253] == ["fe80::1234/64"]


@pytest.mark.parametrize(
    ("have", "made"),
    [
        ({}, {"fe80::7ff:fe00:1": True, "fe80::2": False}),  # by its looks, on older kernels
        ({8: b"\0\x08\0\0"}, {"fe80::1": True}),  # stable privacy
        ({11: b"\3"}, {"fe80::1": True}),
        ({11: b"\0"}, {"fe80::7ff:fe00:1": False}),
    ],
)
def test_whose_a_link_local_address_is(have: dict[int, bytes], made: dict[str, bool]) -> None:
    link = NetworkLink(1, "eth0", bytes.fromhex("020007000001"), 1500, True)
    for address, verdict in made.items():
        assert _is_made(link, ipaddress.ip_address(address).packed, have) is verdict


async def test_what_a_vm_cannot_carry_is_logged_once(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    await join(pair)
    assert caplog.messages == []
    pair.in_pod("rule", "add", "from", "10.9.9.9", "lookup", "100", "priority", "77")
    pair.in_pod("-6", "rule", "add", "from", "fd09::/16", "lookup", "101", "priority", "78")
    await join(pair)
    (message,) = caplog.messages
    assert "policy rule 77 (table 100), policy rule 78 (table 101)" in message


def test_a_kernel_without_policy_routing_has_no_rules() -> None:
    class Refusing:
        def dump(self, kind: int, _: bytes) -> list[bytes]:
            raise OSError(95, "Operation not supported")

    assert left_out(Refusing()) == []  # type: ignore[arg-type]


async def test_an_mtu_that_no_tap_has_is_lowered(caplog: pytest.LogCaptureFixture) -> None:
    with make_pair(mtu=65535) as pair:
        async with join_network(pair.path) as network:
            assert network is not None
            assert network.plan.links[0].mtu == 65521
            assert "mtu 65521" in pair.in_pod("link", "show", TAP_NAME)
    assert "MTU 65535" in caplog.text


async def test_a_gateway_comes_after_the_route_to_it(pair: Pair) -> None:
    """As some plugins do it: an address of its own, and a gateway beyond any connected network."""
    pair.in_pod("address", "flush", "dev", "eth0")
    pair.in_pod("-6", "route", "flush", "default")
    pair.in_pod("address", "add", "10.200.0.7/32", "dev", "eth0")
    pair.in_pod("route", "add", "169.254.1.1", "dev", "eth0", "scope", "link")
    pair.in_pod("route", "add", "default", "via", "169.254.1.1", "dev", "eth0")
    assert routes(await join(pair)) == [("169.254.1.1/32", ""), ("default", "169.254.1.1")]


async def test_the_other_end_of_a_point_to_point_address_is_a_route(pair: Pair) -> None:
    pair.in_pod("address", "flush", "dev", "eth0")
    pair.in_pod("-6", "route", "flush", "default")
    pair.in_pod("address", "add", "10.1.1.1", "peer", "10.2.2.2/32", "dev", "eth0")
    network = await join(pair)
    assert [shown(a.address, a.prefix) for a in network.plan.links[0].addresses] == ["10.1.1.1/32"]
    assert routes(network) == [("10.2.2.2/32", "")]


async def test_of_several_links_the_one_with_the_default_route(pair: Pair) -> None:
    pair.in_pod("link", "add", "name", "aaa0", "type", "veth", "peer", "name", "aaa1")
    pair.in_pod("link", "set", "aaa0", "up")
    assert (await join(pair)).plan.links[0].name == "eth0"
    pair.in_pod("route", "delete", "default")
    pair.in_pod("-6", "route", "delete", "default")
    with pytest.raises(NotSupported, match=r"several links .*no default route"):
        await join(pair)
    assert TAP_NAME not in links(pair)


async def test_links_that_are_down_do_not_count(pair: Pair) -> None:
    pair.in_pod("link", "set", "eth0", "down")
    async with join_network(pair.path) as network:
        assert network is None
        assert TAP_NAME not in links(pair)


# ----------------------------------------------------------------------- joining and giving back
async def test_leaving_undoes_everything(
    pair: Pair, host_directory: Path, no_leaks: Callable[[Path], Any]
) -> None:
    before = pair.filters("qdisc"), links(pair)
    async with no_leaks(host_directory):
        for _ in range(3):
            async with join_network(pair.path):
                assert "Redirect to device eth0" in ingress(pair, TAP_NAME)
                assert f"Redirect to device {TAP_NAME}" in ingress(pair, "eth0")
                assert "inet6" not in pair.in_pod("address", "show", "dev", TAP_NAME)
            assert (pair.filters("qdisc"), links(pair)) == before


@pytest.fixture
def host_directory(tmp_path: Path) -> Path:
    return tmp_path


def ingress(pair: Pair, link: str) -> str:
    return pair.filters("filter", "show", "dev", link, "parent", "ffff:")


async def test_only_one_vm_has_a_network(pair: Pair) -> None:
    async with join_network(pair.path):
        with pytest.raises(TargetError, match="another VM has this network"):
            await join(pair)
        release_network(pair.path)  # by somebody who thinks that it is a dead one's
        assert TAP_NAME in ingress(pair, "eth0")


async def test_a_link_with_the_taps_name_is_named(pair: Pair) -> None:
    pair.in_pod("link", "set", "eth0", "down")
    pair.in_pod("link", "set", "eth0", "name", TAP_NAME)
    pair.in_pod("link", "set", TAP_NAME, "up")
    with pytest.raises(TargetError, match=f"no tap is called {TAP_NAME}"):
        await join(pair)


async def test_what_a_killed_shim_left_is_removed(pair: Pair) -> None:
    for clean_up in (True, False):
        await leave_a_redirect(pair)
        if clean_up:
            release_network(pair.path)
            assert "ingress" not in pair.filters("qdisc")
            release_network(pair.path)  # repeated, it has nothing to do
    await join(pair)  # the next VM does without a clean-up
    assert "ingress" not in pair.filters("qdisc")


async def leave_a_redirect(pair: Pair) -> None:
    """Let a process join the network and be killed there."""
    ready, tell = os.pipe()

    async def hold() -> None:
        async with join_network(pair.path):
            os.write(tell, b"!")
            await asyncio.Event().wait()

    child = fork_task(lambda: _run_apart(hold), None)
    try:
        await asyncio.wait_for(asyncio.to_thread(os.read, ready, 1), 20)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        await asyncio.wait_for(child.exited, 10)
        os.close(ready)
        os.close(tell)
    assert TAP_NAME not in links(pair)
    assert "ingress" in pair.filters("qdisc", "show", "dev", "eth0")


def _run_apart(task: Callable[[], Any]) -> None:
    asyncio.events._set_running_loop(None)  # the fork's parent has one
    asyncio.run(task())


async def test_somebody_elses_filter_is_respected(pair: Pair) -> None:
    pair.filters("qdisc", "add", "dev", "eth0", "ingress")
    to_lo = ("u32", "match", "u32", "0", "0", "action", "mirred", "egress", "mirror", "dev", "lo")
    pair.filters("filter", "add", "dev", "eth0", "parent", "ffff:", "protocol", "all", *to_lo)
    with pytest.raises(Conflict, match="somebody else"):
        await join(pair)
    release_network(pair.path)
    assert "Mirror to device lo" in ingress(pair, "eth0")


@pytest.mark.parametrize("queue", ["ingress", "clsact"])
async def test_a_queue_without_filters_is_no_obstacle(pair: Pair, queue: str) -> None:
    pair.filters("qdisc", "add", "dev", "eth0", queue)
    await join(pair)


async def test_half_a_redirect_is_released(pair: Pair) -> None:
    pair.filters("qdisc", "add", "dev", "eth0", "ingress")
    release_network(pair.path)
    assert "ingress" not in pair.filters("qdisc")


@pytest.mark.parametrize("direction", ["ingress", "egress"])
async def test_a_filter_on_either_side_is_respected(pair: Pair, direction: str) -> None:
    pair.filters("qdisc", "add", "dev", "eth0", "clsact")
    to_lo = ("u32", "match", "u32", "0", "0", "action", "mirred", "egress", "mirror", "dev", "lo")
    pair.filters("filter", "add", "dev", "eth0", direction, "protocol", "all", *to_lo)
    with pytest.raises(Conflict, match="somebody else"):
        await join(pair)
    assert "Mirror to device lo" in pair.filters("filter", "show", "dev", "eth0", direction)


async def test_what_is_no_namespace_to_take(tmp_path: Path) -> None:
    for path, error, words in (
        ("/no/such/namespace", InputError, "No such file"),
        ("/proc/self/ns/net", NotSupported, "the host's own"),
        (str(tmp_path), TargetError, "Invalid argument"),
    ):
        with pytest.raises(error, match=words):
            async with join_network(path):
                pass
    assert is_host_network(f"/proc/{os.getpid()}/ns/net")
    assert not is_host_network("/no/such/namespace")
    release_network("/no/such/namespace")


# ------------------------------------------------------------------------------------- with a VM
@pytest.mark.qemu
@pytest.mark.parametrize("machine_type", ["microvm", "q35"])
async def test_a_clone_takes_the_links_place(host: Host, pair: Pair, machine_type: str) -> None:
    config = host.config(netns=pair.path, machine=machine_type)
    for _ in range(2):  # the second joins what the first has left
        async with start_machine(config) as machine:
            assert machine.started_as == "clone"
            for address in (POD, POD6):
                await asyncio.to_thread(pair.at_peer, "busybox", "ping", "-c1", "-w9", address)
        assert "ingress" not in pair.filters("qdisc")
        assert TAP_NAME not in links(pair)


@pytest.mark.qemu
async def test_a_vm_in_an_empty_namespace_has_no_nic(host: Host, pair: Pair) -> None:
    pair.in_pod("link", "delete", "eth0")
    async with start_machine(host.config(netns=pair.path)) as machine:
        arguments = Path(f"/proc/{machine.pid}/cmdline").read_bytes()
        assert b"virtio-net" not in arguments
