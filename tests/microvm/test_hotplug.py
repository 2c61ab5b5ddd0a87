"""What a failed or late plug gives back: the disk's place, its descriptor set, the share's port."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Any, cast

import pytest

from shims.core.errors import Conflict, DeadlineExceeded
from shims.microvm import hotplug
from shims.microvm.hotplug import HotPlug
from shims.microvm.plan import SHARE_PORTS
from shims.microvm.qmp import Command, QmpError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shims.microvm.vm import Vm


class FakeMonitor:
    """QEMU's side: refuses or swallows commands by name."""

    def __init__(self) -> None:
        self.refused: dict[str, str] = {}
        self.silent: set[str] = set()
        self.sent: list[str] = []

    def send(self, command: Command) -> asyncio.Future[Any]:
        self.sent.append(command.name)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        if command.name in self.refused:
            answer.set_exception(QmpError(command.name, "no", self.refused[command.name]))
        elif command.name not in self.silent:
            answer.set_result({})
        return answer

    async def execute_all(self, commands: Sequence[Command], *, timeout: float) -> None:
        answers = [self.send(command) for command in commands]
        async with asyncio.timeout(timeout):
            for answer in answers:
                await answer

    async def execute(self, name: str, *, timeout: float, **arguments: Any) -> None:
        await self.execute_all([Command(name, arguments)], timeout=timeout)


class FakeVm:
    """A VM that is nothing but its monitor."""

    def __init__(self) -> None:
        self.monitor = FakeMonitor()
        self.gone: dict[str, asyncio.Future[None]] = {}

    def expect_deletion(self, device: str) -> asyncio.Future[None]:
        return self.gone.setdefault(device, asyncio.get_running_loop().create_future())

    async def device_deleted(self, device: str, timeout: float) -> None:
        async with asyncio.timeout(timeout):
            await asyncio.shield(self.gone[device])


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(hotplug, "_TIMEOUT", 0.05)
    monkeypatch.setattr(hotplug, "_UNPLUG_TIMEOUT", 0.05)
    monkeypatch.setattr(hotplug, "_MOST_DISKS", 1)
    fd = os.memfd_create("disk")
    yield fd
    os.close(fd)


def plugs(shares: bool = False) -> tuple[HotPlug, FakeVm]:
    vm = FakeVm()
    return HotPlug(cast("Vm", vm), shares=shares), vm


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.mark.parametrize("silent", [False, True])
async def test_a_disk_that_does_not_get_into_its_slot(disk: int, silent: bool) -> None:
    vm = FakeVm()
    plug = HotPlug(cast("Vm", vm), shares=False, slots=True)
    if silent:
        vm.monitor.silent.add("blockdev-add")
    else:
        vm.monitor.refused["blockdev-add"] = "GenericError"
    with pytest.raises(DeadlineExceeded if silent else QmpError):
        await plug.insert_disk(disk, "one", readonly=False)
    assert vm.monitor.sent[-3:] == ["blockdev-reopen", "blockdev-del", "remove-fd"]
    vm.monitor.silent.clear()
    vm.monitor.refused.clear()
    assert await plug.insert_disk(disk, "one", readonly=False)  # in another slot, or plugged in
    await plug.detach_disk("one")


async def test_a_refused_disk_leaves_its_place(disk: int) -> None:
    plug, vm = plugs()
    vm.monitor.refused["blockdev-add"] = "GenericError"
    with pytest.raises(QmpError):
        await plug.attach_disk(disk, "one", readonly=False)
    assert vm.monitor.sent[-2:] == ["blockdev-del", "remove-fd"]
    vm.monitor.refused.clear()
    await plug.attach_disk(disk, "two", readonly=False)


@pytest.mark.parametrize("came", [False, True])
async def test_a_disk_that_nobody_answers_for(disk: int, came: bool) -> None:
    """Its place is free once QEMU says that there is no such device, or the guest let go."""
    plug, vm = plugs()
    vm.monitor.silent.add("device_add")
    if not came:
        vm.monitor.refused["device_del"] = "DeviceNotFound"
    with pytest.raises(DeadlineExceeded, match="disk one"):
        await plug.attach_disk(disk, "one", readonly=False)
    vm.monitor.silent.clear()
    if came:
        with pytest.raises(Conflict):
            await plug.attach_disk(disk, "two", readonly=False)
        vm.gone["disk-one"].set_result(None)
    await settle()
    assert vm.monitor.sent[-2:] == ["blockdev-del", "remove-fd"]
    await plug.attach_disk(disk, "two", readonly=False)


async def test_a_guest_that_lets_go_late(disk: int) -> None:
    plug, vm = plugs()
    await plug.attach_disk(disk, "one", readonly=False)
    with pytest.raises(DeadlineExceeded, match="the guest did not let go"):
        await plug.detach_disk("one")
    with pytest.raises(Conflict):
        await plug.attach_disk(disk, "two", readonly=False)
    vm.gone["disk-one"].set_result(None)
    await settle()
    await plug.attach_disk(disk, "two", readonly=False)


@pytest.mark.parametrize("silent", [False, True])
async def test_a_share_that_fails_leaves_its_port(disk: int, silent: bool) -> None:
    plug, vm = plugs(shares=True)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for number in range(len(SHARE_PORTS) + 1):
            if silent:
                vm.monitor.silent.add("device_add")
                vm.monitor.refused["device_del"] = "DeviceNotFound"
            else:
                vm.monitor.refused["device_add"] = "GenericError"
            with pytest.raises((QmpError, DeadlineExceeded)):
                await plug.attach_share(f"tag-{number}", ours)
            await settle()
        vm.monitor.silent.clear()
        vm.monitor.refused.clear()
        await plug.attach_share("tag-0", ours)


async def test_one_share_too_many_is_refused_with_a_way_out() -> None:
    plug, _ = plugs(shares=True)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for number in range(8):
            await plug.attach_share(f"tag-{number}", ours)
        with pytest.raises(Conflict, match="8 shared directories") as refused:
            await plug.attach_share("tag-8", ours)
        assert refused.value.hint == "mount one directory that holds several of them"
        without, _ = plugs()
        with pytest.raises(Conflict, match="no port"):
            await without.attach_share("tag-0", ours)
