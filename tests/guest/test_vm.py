"""void-init where it belongs: PID 1 of a VM, with the kernel features that a test host may lack."""

from __future__ import annotations

import asyncio
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from protos.gen.voidbox.guest.v1 import guest_pb2 as pb
from shims.microvm.machine import start_machine
from shims.ttrpc.codes import Code
from shims.ttrpc.errors import RpcError
from tests.guest.init.harness import DEADLINE, container_plan, next_exits
from tests.microvm.conftest import guest_image, host

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shims.guest.link import GuestLink
    from tests.microvm.conftest import Host

__all__ = ["guest_image", "host"]

_BUSYBOX = shutil.which("busybox") or ""
_TOOL = "/run/void/bin/busybox"

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.timeout(90),
    pytest.mark.skipif(not _BUSYBOX, reason="not installed: busybox-static"),
]


@pytest.fixture
async def vm(host: Host) -> AsyncIterator[GuestLink]:
    """The link to a VM that has busybox to run."""
    async with start_machine(host.config()) as machine:
        tool = await asyncio.to_thread(Path(_BUSYBOX).read_bytes)
        await machine.link.write_file(_TOOL, tool, mode=0o755)
        yield machine.link


async def _run(link: GuestLink, name: str, *args: str, **limits: str) -> None:
    plan = container_plan(name, _TOOL, *args)
    for file, value in limits.items():
        plan.cgroup.writes.add(file=file.replace("_", ".", 1), value=value)
    await link.create_container(plan)
    await link.start_process(name)


async def test_an_oom_kill_comes_before_the_exit_that_it_caused(vm: GuestLink) -> None:
    await _run(vm, "c", "tail", "/dev/zero", memory_max=str(8 << 20))
    kinds = []
    async with asyncio.timeout(DEADLINE):
        async for event in vm.events():
            kind = event.WhichOneof("kind")
            if kind == "disk":  # the template's slots, found at its boot
                continue
            kinds.append(kind)
            if kind == "exited":
                assert event.exited.exit_status == 128 + signal.SIGKILL
                break
    assert kinds == ["oom", "exited"]


async def test_all_controllers_reach_a_container(vm: GuestLink) -> None:
    await _run(vm, "c", "sleep", "1000", pids_max="50", cpu_max="50000 100000")
    files = {file.name: file.content for file in (await vm.stats("c")).files}
    assert files["pids.max"] == b"50\n"
    assert {"cpu.stat", "memory.current", "memory.events", "io.stat"} <= files.keys()
    await vm.update_cgroup("c", [pb.CgroupWrite(file="pids.max", value="60")])
    files = {file.name: file.content for file in (await vm.stats("c")).files}
    assert files["pids.max"] == b"60\n"


async def test_a_spinning_container_freezes_and_thaws(vm: GuestLink) -> None:
    await _run(vm, "c", "yes")
    await vm.freeze("c", True)
    await vm.freeze("c", False)
    await vm.signal_process("c", signal=signal.SIGKILL)
    assert (await next_exits(vm, 1))[0].exited.exit_status == 128 + signal.SIGKILL
    await vm.delete_process("c")


async def test_the_network_is_as_the_plan_says(vm: GuestLink) -> None:
    with pytest.raises(RpcError) as caught:
        await vm.configure_network(pb.NetworkPlan(links=[pb.Link(name="eth7", up=True)]))
    assert caught.value.code == Code.NOT_FOUND
    loopback = pb.Link(name="lo", up=True, mtu=9000)
    loopback.addresses.add(address=bytes([10, 9, 8, 7]), prefix=32)
    loopback.addresses.add(address=bytes(15) + b"\x09", prefix=128)
    route = pb.Route(destination=bytes([10, 9, 0, 0]), prefix=16, interface="lo", metric=5)
    await vm.configure_network(pb.NetworkPlan(links=[loopback], routes=[route]))
    await vm.configure_network(pb.NetworkPlan(links=[loopback], routes=[route]))
    await _run(vm, "c", "ip", "address", "show", "lo")
    shown, _ = await vm.read_stdio("c", "", pb.STREAM_STDOUT)
    assert b"inet 10.9.8.7/32" in shown
    assert b"mtu 9000" in shown
    await _run(vm, "d", "ip", "route")
    shown, _ = await vm.read_stdio("d", "", pb.STREAM_STDOUT)
    assert b"10.9.0.0/16 dev lo" in shown


async def test_metrics_and_routes_to_nowhere_are_made(vm: GuestLink) -> None:
    routes = [
        pb.Route(destination=bytes([10, 66, 0, 0]), prefix=16, kind=6),
        pb.Route(destination=bytes([10, 67, 0, 0]), prefix=16, kind=7),
        pb.Route(destination=bytes([0xFD, 0x66]) + bytes(14), prefix=16, kind=8, ipv6=True),
        pb.Route(
            destination=bytes([10, 68, 0, 0]), prefix=16, interface="lo",
            mtu=1400, advmss=1360, locked=1 << 2,
        ),
    ]  # fmt: skip
    for _ in range(2):
        await vm.configure_network(pb.NetworkPlan(routes=routes))
    await _run(vm, "c", "ip", "route")
    shown, _ = await vm.read_stdio("c", "", pb.STREAM_STDOUT)
    assert b"blackhole 10.66.0.0/16" in shown
    assert b"unreachable 10.67.0.0/16" in shown
    table = (await vm.read_file("/proc/net/route")).decode().splitlines()
    fields = next(line.split() for line in table if "0000440A" in line)
    assert int(fields[8]) == 1360 + 40  # what the kernel shows as MTU follows from advmss
    assert "fd660000" in (await vm.read_file("/proc/net/ipv6_route")).decode()
    bad = pb.Route(destination=bytes([10, 69, 0, 0]), prefix=16, kind=9)
    with pytest.raises(RpcError) as caught:
        await vm.configure_network(pb.NetworkPlan(routes=[bad]))
    assert caught.value.code == Code.INVALID_ARGUMENT


async def test_void_init_is_small(vm: GuestLink) -> None:
    status = (await vm.read_file("/proc/1/status")).decode()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    assert fields["Name"].strip() in {"init", "void-init"}
    assert int(fields["VmRSS"].split()[0]) < 6 << 10
    assert int(fields["Threads"]) == 1
