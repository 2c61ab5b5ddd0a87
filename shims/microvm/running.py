"""A running VM as its user sees it: the guest link, devices, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Literal

from shims.core.errors import ShimError, Unreachable
from shims.guest.hello import WELL_KNOWN_TOKEN, Hello
from shims.microvm.config import ExitReason, MachineConfig, MachineExit
from shims.microvm.hotplug import HotPlug

if TYPE_CHECKING:
    import socket

    from shims.guest.link import GuestLink
    from shims.microvm.vm import Vm

__all__ = ["Machine", "StartedAs"]

_POWER_OFF_TIMEOUT = 5.0

StartedAs = Literal["clone", "copy", "cold"]


class Machine:
    """A running VM whose guest has said hello. Made by ``start_machine``, which also ends it."""

    def __init__(self, vm: Vm, config: MachineConfig, started_as: StartedAs) -> None:
        self._vm = vm
        self._config = config
        self._token = WELL_KNOWN_TOKEN
        self._devices = HotPlug(vm, shares=config.shares, slots=started_as != "cold")
        self._link: GuestLink | None = None
        self.started_as = started_as
        self.accelerator_reason = ""
        self.timings: dict[str, float] = {}
        """Seconds since the start was asked for: template, executed, greeting, loaded, running,
        hello; those that apply."""

    @property
    def link(self) -> GuestLink:
        """The guest link; ``connect`` replaces it."""
        if self._link is None:
            raise Unreachable("the guest link is not connected")
        return self._link

    @property
    def pid(self) -> int:
        """Process id of QEMU."""
        return self._vm.pid

    @property
    def exited(self) -> asyncio.Future[MachineExit]:
        """Done when QEMU is gone; shield it, and do not cancel it."""
        return self._vm.exited

    @property
    def marks(self) -> dict[str, float]:
        """Moments of QEMU's start, as of ``time.monotonic()``."""
        return self._vm.marks

    def console_tail(self) -> list[str]:
        """Return the last lines of the guest's console and of QEMU's messages."""
        return self._vm.console.tail()

    async def attach_disk(
        self, fd: int, serial: str, *, readonly: bool, keep_flushes: bool = True
    ) -> None:
        """Plug in a disk; see ``HotPlug.attach_disk``."""
        await self._devices.attach_disk(fd, serial, readonly=readonly, keep_flushes=keep_flushes)

    async def insert_disk(
        self, fd: int, serial: str, *, readonly: bool, keep_flushes: bool = True
    ) -> str:
        """Plug in a disk, and return its serial in the guest; see ``HotPlug.insert_disk``."""
        return await self._devices.insert_disk(
            fd, serial, readonly=readonly, keep_flushes=keep_flushes
        )

    async def detach_disk(self, serial: str) -> None:
        """Unplug a disk; see ``HotPlug.detach_disk``."""
        await self._devices.detach_disk(serial)

    async def attach_share(self, tag: str, sock: socket.socket) -> None:
        """Plug in a virtiofs daemon; see ``HotPlug.attach_share``."""
        await self._devices.attach_share(tag, sock)

    async def connect(self, timeout: float) -> GuestLink:
        """Connect the guest link (again), say hello, and make it ``link``.

        What an earlier connection left half-said is dropped on both sides. Raises ``StartFailed``
        when the VM ended or did not answer within ``timeout`` seconds; the VM is gone then.
        """
        from shims.guest.link import GuestLink

        next_token = os.urandom(16)
        hello = Hello(
            hostname=self._config.hostname,
            machine_id=self._config.machine_id,
            resync_token=next_token,
            lonely_poweroff_ms=self._config.lonely_poweroff_ms,
        )
        sock = await self._vm.connect_link()
        await self.disconnect()
        self._link = await self._vm.until_answered(
            GuestLink.connect(sock, hello, token=self._token, timeout=timeout)
        )
        self._token = next_token
        return self._link

    async def disconnect(self) -> None:
        """Hang up the guest link, if there is one; the VM lives on. May be repeated."""
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    async def stop(self, grace: float) -> MachineExit:
        """Let the guest power off within ``grace`` seconds, then end it. May be repeated."""
        if grace > 0 and not self.exited.done():
            with contextlib.suppress(TimeoutError, ShimError):
                async with asyncio.timeout(grace):
                    await self.link.power_off(timeout=min(grace, _POWER_OFF_TIMEOUT))
                    await asyncio.shield(self.exited)
        return await self._vm.end(ExitReason.STOPPED, f"ended after {grace:g} s of grace")
