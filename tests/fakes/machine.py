"""A machine without QEMU: a fake guest, and the devices that were plugged into it."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shims.core.errors import Unreachable
from tests.fakes.guest import FakeGuest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass(frozen=True)
class FakeConfig:
    """As much of a machine's configuration as the shim looks at."""

    name: str
    memory_mib: int
    shares: bool = False
    netns: str = ""


@dataclass
class FakeExit:
    """How a fake machine ended."""

    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class FakeMachine:
    """One running fake."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.link = FakeGuest()
        self.pid = os.getpid()
        self.disks: set[str] = set()
        self.exited: asyncio.Future[FakeExit] = asyncio.get_running_loop().create_future()
        self.stopped = False
        self.unplug_fails = False

    def die(self, reason: str = "killed", detail: str = "signal 9") -> None:
        """End as a killed QEMU does: link first, then the process."""
        self.link.die()
        if not self.exited.done():
            self.exited.set_result(FakeExit(reason, detail))

    async def insert_disk(
        self, fd: int, serial: str, *, readonly: bool, keep_flushes: bool = True
    ) -> str:
        self.disks.add(serial)
        return serial

    async def detach_disk(self, serial: str) -> None:
        if self.unplug_fails:
            raise Unreachable("the fake's monitor is gone")
        self.disks.discard(serial)

    async def stop(self, grace: float) -> None:
        self.stopped = True
        self.die("stopped", "as asked")


class FakeEngine:
    """Starts fake machines; ``machines`` keeps them all, ``refuse`` makes the next start fail."""

    def __init__(self) -> None:
        self.machines: list[FakeMachine] = []
        self.refuse = ""
        self.gate: asyncio.Event | None = None
        self.called = asyncio.Event()

    @property
    def last(self) -> FakeMachine:
        """The machine that was started last."""
        return self.machines[-1]

    @asynccontextmanager
    async def start(self, config: Any) -> AsyncIterator[Any]:
        """Stand in for ``shims.microvm.machine.start_machine``."""
        self.called.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.refuse:
            raise Unreachable(self.refuse)
        machine = FakeMachine(config)
        self.machines.append(machine)
        try:
            yield machine
        finally:
            machine.die("stopped", "left")
