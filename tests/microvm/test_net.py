"""Tap devices, and a VM behind one."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from protos.gen.voidbox.guest.v1 import guest_pb2
from shims.core.errors import TargetError
from shims.microvm.machine import start_machine
from shims.microvm.net import open_tap
from shims.microvm.plan import NETWORK_MAC

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.microvm.conftest import Host

pytestmark = [pytest.mark.root, pytest.mark.timeout(90)]

TIMEOUT = 20.0


async def test_a_tap_of_its_own_namespace() -> None:
    tap = await open_tap(None)
    assert "tap0" in Path(f"/proc/self/fdinfo/{tap}").read_text()
    assert not os.get_inheritable(tap)
    assert "tap0" not in Path("/proc/net/dev").read_text()
    os.close(tap)


async def test_a_namespace_that_is_not_there() -> None:
    with pytest.raises(TargetError, match="No such file"):
        await open_tap("/no/such/netns")
    with pytest.raises(TargetError, match="longer"):
        await open_tap(None, "a-name-that-is-too-long")


@pytest.fixture
def namespace() -> Iterator[str]:
    """A named network namespace, as a pod's."""
    if shutil.which("ip") is None or shutil.which("busybox") is None:
        pytest.skip("needs ip (iproute2) and busybox")
    name = f"void-test-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.mark.qemu
async def test_a_clone_is_reached_through_its_own_tap(host: Host, namespace: str) -> None:
    tap = await open_tap(f"/run/netns/{namespace}", "tap0")
    address = ["ip", "-n", namespace, "address", "add", "10.9.8.1/24", "dev", "tap0"]
    await run(*address)
    async with start_machine(host.config(tap=tap)) as machine:
        os.close(tap)
        assert machine.started_as == "clone"
        link = guest_pb2.Link(
            match_mac=bytes.fromhex(NETWORK_MAC.replace(":", "")),
            name="eth0",
            mac=bytes.fromhex("02aabbccddee"),
            mtu=1400,
            up=True,
            addresses=[guest_pb2.IpAddress(address=bytes((10, 9, 8, 7)), prefix=24)],
        )
        await machine.link.configure_network(guest_pb2.NetworkPlan(links=[link]))
        await run("ip", "netns", "exec", namespace, "busybox", "ping", "-c1", "-w9", "10.9.8.7")
        neighbours = await run("ip", "-n", namespace, "neighbour")
        assert "02:aa:bb:cc:dd:ee" in neighbours


async def run(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    output, _ = await asyncio.wait_for(process.communicate(), TIMEOUT)
    assert process.returncode == 0, f"{' '.join(command)}: {output.decode()}"
    return output.decode()
