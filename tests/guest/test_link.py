"""The host end of the guest link, against the real void-init."""

from __future__ import annotations

import asyncio
import inspect
import socket
from typing import TYPE_CHECKING

import pytest

from protos.gen.voidbox.guest.v1 import guest_pb2 as pb
from shims.core.errors import DeadlineExceeded, Unreachable
from shims.guest.hello import WELL_KNOWN_TOKEN, Hello, wait_ready
from shims.guest.link import SERVICE, GuestLink
from shims.ttrpc.errors import LinkClosed, RpcError
from tests.guest.init.conftest import binary, build_folder, guest, link
from tests.guest.init.harness import DEADLINE, next_exits, run_container

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.guest.init.harness import Guest

__all__ = ["binary", "build_folder", "guest", "link"]

pytestmark = pytest.mark.root


class Port:
    """A virtio-serial port in the hands of QEMU: guests keep one stream, hosts come and go."""

    def __init__(self, guest_end: socket.socket) -> None:
        self._guest = guest_end
        self._guest.setblocking(False)
        self._host: socket.socket | None = None
        self._pumps: list[asyncio.Task[None]] = []

    async def connect(self) -> socket.socket:
        """A new host; the last one is gone, what it had in flight is lost."""
        await self.disconnect()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._host = ours
        loop = asyncio.get_running_loop()
        self._pumps = [
            loop.create_task(_pump(ours, self._guest)),
            loop.create_task(_pump(self._guest, ours)),
        ]
        return theirs

    async def disconnect(self) -> None:
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        self._pumps = []
        if self._host is not None:
            self._host.close()


async def _pump(source: socket.socket, sink: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, 1 << 16):
        await loop.sock_sendall(sink, data)


@pytest.fixture
async def port(guest: Guest) -> AsyncIterator[Port]:
    """The running void-init behind a port."""
    port = Port(guest.socket)
    yield port
    await port.disconnect()


async def test_hello_is_answered_with_what_the_guest_is(link: GuestLink) -> None:
    assert link.info.protocol == 1
    assert link.info.architecture
    assert not link.info.containers
    assert not link.closed.done()


async def test_a_host_that_comes_back_finds_everything_as_it_was(port: Port) -> None:
    first = Hello()
    async with await GuestLink.connect(await port.connect(), first, timeout=DEADLINE) as one:
        pid = await run_container(one, "c", "sh", "-c", "read line; echo got $line; exit 6")
    second = Hello()
    two = await GuestLink.connect(
        await port.connect(), second, token=first.resync_token, timeout=DEADLINE
    )
    async with two:
        (container,) = two.info.containers
        (process,) = container.processes
        assert (container.container_id, process.pid) == ("c", pid)
        assert process.phase == pb.PROCESS_PHASE_RUNNING
        reading = asyncio.create_task(two.read_stdio("c", "", pb.STREAM_STDOUT))
        await two.telemetry()
        await port.disconnect()
        with pytest.raises(LinkClosed):
            await reading
        await asyncio.wait_for(two.closed, DEADLINE)
    async with await GuestLink.connect(
        await port.connect(), Hello(), token=second.resync_token, timeout=DEADLINE
    ) as three:
        await three.write_stdio("c", "", b"hello\n")
        data, _ = await three.read_stdio("c", "", pb.STREAM_STDOUT)  # the end may come with it
        assert data == b"got hello\n"
        (event,) = await next_exits(three, 1)
        assert event.exited.exit_status == 6


async def test_events_of_a_lost_connection_come_again(port: Port) -> None:
    hello = Hello()
    one = await GuestLink.connect(await port.connect(), hello, timeout=DEADLINE)
    await run_container(one, "c", "true")
    seen = await next_exits(one, 1)
    await one.close()
    async with await GuestLink.connect(
        await port.connect(), Hello(), token=hello.resync_token, timeout=DEADLINE
    ) as two:
        assert two.info.last_event == 1
        assert await next_exits(two, 1) == seen


async def _read_for_ever(reading: asyncio.Task[tuple[bytes, bool]], link: GuestLink) -> None:
    await reading
    while True:
        await link.read_stdio("c", "", pb.STREAM_STDOUT)


async def test_a_flood_that_was_cut_does_not_confuse_the_next_host(port: Port) -> None:
    hello = Hello()
    one = await GuestLink.connect(await port.connect(), hello, timeout=DEADLINE)
    await run_container(one, "c", "cat", "/dev/zero")
    reading = asyncio.create_task(one.read_stdio("c", "", pb.STREAM_STDOUT))
    await one.telemetry()
    await port.disconnect()
    with pytest.raises(LinkClosed):
        await _read_for_ever(reading, one)
    await one.close()
    async with await GuestLink.connect(
        await port.connect(), Hello(), token=hello.resync_token, timeout=DEADLINE
    ) as two:
        data, _ = await two.read_stdio("c", "", pb.STREAM_STDOUT)
        assert data == bytes(len(data))


async def test_the_same_token_may_be_kept(port: Port) -> None:
    hello = Hello()
    await (await GuestLink.connect(await port.connect(), hello, timeout=DEADLINE)).close()
    for _ in range(2):
        again = await GuestLink.connect(
            await port.connect(), hello, token=hello.resync_token, timeout=DEADLINE
        )
        await again.close()


async def test_readiness_says_nothing_about_the_vm(port: Port) -> None:
    with await port.connect() as sock:
        await wait_ready(sock, timeout=DEADLINE)
    async with await GuestLink.connect(
        await port.connect(), Hello(), token=WELL_KNOWN_TOKEN, timeout=DEADLINE
    ) as link:
        assert link.info.last_event == 0


async def test_a_wrong_token_is_met_with_silence(port: Port) -> None:
    with pytest.raises(DeadlineExceeded):
        await GuestLink.connect(await port.connect(), Hello(), token=bytes(16), timeout=0.2)


async def test_a_guest_that_is_gone_is_unreachable() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with pytest.raises(Unreachable):
        await GuestLink.connect(ours, Hello(), timeout=DEADLINE)


async def test_a_hello_that_is_refused_closes_the_link(guest: Guest) -> None:
    with pytest.raises(RpcError, match="machine_id"):
        await guest.connect(machine_id="short")


async def test_power_off_answers_before_the_end(guest: Guest) -> None:
    link = await guest.connect()
    await run_container(link, "c", "sleep", "1000")
    await link.power_off()
    await asyncio.wait_for(link.closed, DEADLINE)
    assert await asyncio.to_thread(guest.process.wait, DEADLINE) == 0


async def test_calls_after_the_end_fail_as_such(guest: Guest) -> None:
    link = await guest.connect()
    reading = asyncio.create_task(next_exits(link, 1))
    await link.telemetry()
    guest.process.kill()
    with pytest.raises(LinkClosed):
        await reading
    with pytest.raises(LinkClosed):
        await link.telemetry()


def test_every_method_of_the_contract_has_its_call() -> None:
    service = pb.DESCRIPTOR.services_by_name["Guest"]
    assert service.full_name == SERVICE
    text = inspect.getsource(GuestLink)
    assert [method.name for method in service.methods if f'"{method.name}"' not in text] == []
