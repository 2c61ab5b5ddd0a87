"""One process that containerd knows: a container's first one, or an exec.

The record lives on the host, so that State, Wait and Kill of an exited process never need the
guest. Its life::

    CREATED ──start──▶ RUNNING ──exit──▶ STOPPED ──delete──▶ forgotten
       └──────────── exit before start ────▶┘

An exit passes through two moments. ``died`` is set as soon as the guest says so: from then on there
is nothing to signal. ``ended`` is set when the output is drained, the exit is in the journal and
the event is on its way: only then may a waiter know, because its next call may be Delete.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from shims.core.errors import Conflict

if TYPE_CHECKING:
    from protos.gen.voidbox.guest.v1 import guest_pb2
    from shims.containerd.shim.copying import Copies

__all__ = ["Exit", "Phase", "Process", "StdioUris"]


class Phase(Enum):
    """Where a process is in its life."""

    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"


class Exit(NamedTuple):
    """How a process ended: 0-255 or 128 + signal, and the host's time in nanoseconds."""

    status: int
    at_ns: int


@dataclass(frozen=True)
class StdioUris:
    """Where Create or Exec asked the three streams to go; empty is nowhere."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class Process:
    """The host's record of one process, and those who wait for it.

    ``plan`` is what the guest is asked to run; for an exec it is sent at Start, so that a terminal
    size that arrives before is part of it.
    """

    def __init__(
        self, container_id: str, exec_id: str, uris: StdioUris, plan: guest_pb2.ProcessPlan
    ) -> None:
        self.container_id = container_id
        self.exec_id = exec_id
        self.uris = uris
        self.plan = plan
        self.pid = 0
        """A live pid of the host while the process runs: QEMU's."""
        self.guest_pid = 0
        self.copies: Copies | None = None
        self.starting = asyncio.Lock()
        """Held from the decision to start until the start event is on its way."""
        self.died = asyncio.Event()
        self.deletion: asyncio.Task[Exit] | None = None
        self.killing: asyncio.Task[None] | None = None
        """The end of an exec of which the guest did not say whether it was started."""
        self.known_to_guest = False
        self.start_failed = False
        self._phase = Phase.CREATED
        self._exit: Exit | None = None
        self._ended = asyncio.Event()

    @property
    def name(self) -> str:
        """What messages call it."""
        kind = f"exec {self.exec_id} of " if self.exec_id else ""
        return f"{kind}container {self.container_id}"

    @property
    def phase(self) -> Phase:
        """Where it is in its life, as containerd sees it."""
        return self._phase

    @property
    def exit(self) -> Exit | None:
        """How it ended; None while it may still run."""
        return self._exit

    @property
    def may_signal(self) -> bool:
        """Whether there is still something that a signal could reach."""
        return self._phase is not Phase.STOPPED and not self.died.is_set()

    def require(self, *phases: Phase, verb: str) -> None:
        """Raise ``Conflict`` unless the process is in one of ``phases``."""
        if self._phase not in phases:
            raise Conflict(f"cannot {verb} {self.name}: it is {self._phase.value}")

    def mark_running(self) -> None:
        """Note that it was started."""
        self.require(Phase.CREATED, verb="start")
        self._phase = Phase.RUNNING

    def mark_stopped(self, ended: Exit) -> None:
        """Note how it ended and wake everybody who waits. Only the first call counts."""
        if self._phase is Phase.STOPPED:
            return
        self._phase = Phase.STOPPED
        self._exit = ended
        self.died.set()
        self._ended.set()

    async def wait(self) -> Exit:
        """Return how it ended, as soon as that is known. May be called at any time, by many."""
        await self._ended.wait()
        assert self._exit is not None
        return self._exit
