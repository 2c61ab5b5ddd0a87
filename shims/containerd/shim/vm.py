"""The microVM of a group: started early, asked with deadlines, watched until it is gone.

One task owns the machine from start to end, so that whatever happens the machine's own exit stack
takes everything down again. Everybody else goes through ``ask``, which turns a guest that does not
answer into an error, and, when it stays silent, into the death of the VM. A death is reported
once, with a reason; the containers make exits of it (``container.py``).
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from shims.core.errors import Conflict, DeadlineExceeded, ShimError, Unreachable
from shims.ttrpc.codes import Code
from shims.ttrpc.errors import LinkClosed, RpcError

if TYPE_CHECKING:
    import socket
    from contextlib import AbstractAsyncContextManager

    from protos.gen.voidbox.guest.v1 import guest_pb2
    from shims.guest.link import GuestLink
    from shims.microvm.config import MachineConfig
    from shims.microvm.machine import Machine

__all__ = ["StartMachine", "Vm", "VmDeath", "is_timeout"]

T = TypeVar("T")

_KILLED = 137
_UNKNOWN = 255
_MEMORY_REASONS = frozenset({"oom", "guest_oom"})
_KILLED_REASONS = frozenset({"killed", "stopped"}) | _MEMORY_REASONS
_EXIT_GRACE = 2.0
"""How long after the link broke QEMU's own end, which knows the reason, is waited for."""
_MISSES = 2
"""A guest that is slow once, on a busy host or after a suspend, is not dead."""
_GUEST_TIMEOUT = 30.0
_HEARTBEAT = 20.0
"""Seconds between two looks at a guest that nobody talks to."""
_STOP_GRACE = 3.0
_STOP_BOUND = 20.0
"""How long the end of a VM, or of a start that is cancelled, may take at all."""


class VmDeath(NamedTuple):
    """Why the VM is gone, and the exit status for those who were in it."""

    status: int
    reason: str
    out_of_memory: bool = False
    """Whether it went for want of memory, its own or its cgroup's on the host."""


StartMachine = Callable[["MachineConfig"], "AbstractAsyncContextManager[Machine]"]


class Vm:
    """Owns at most one machine at a time."""

    def __init__(self, start: StartMachine, *, report: Callable[[str], None]) -> None:
        self._start = start
        self.report = report
        """Takes lines for the log."""
        self.on_event: Callable[[guest_pb2.Event], None] = _ignore
        """Takes the guest's events in order. There are none before the first container."""
        self.on_death: Callable[[VmDeath], None] = _ignore
        """Takes the end of a VM that we did not stop ourselves."""
        self.on_beat: Callable[[], Awaitable[None]] = _do_nothing
        """Called when the guest has answered a heartbeat."""
        self.guest_timeout = _GUEST_TIMEOUT
        """Seconds without an answer after which the guest is asked whether it is there at all."""
        self._heartbeat = _HEARTBEAT
        self._task: asyncio.Task[None] | None = None
        self._config: MachineConfig | None = None
        self._machine: asyncio.Future[Machine] | None = None
        self._starting: asyncio.Task[Any] | None = None
        """Who starts the machine, until it runs: a stop cancels it."""
        self._stop = asyncio.Event()
        self._graceful = True
        self._verdict: VmDeath | None = None
        self._probe: asyncio.Task[None] | None = None
        self._disks: dict[str, int] = {}
        self._plugging = asyncio.Lock()
        self.guest_serials: dict[str, str] = {}
        """What the guest calls a disk, by the serial that it was attached under."""
        self.pid = 0
        """QEMU's, once it runs; kept after its end, because exited processes still have a pid."""
        self.death: VmDeath | None = None

    # ---- life ----------------------------------------------------------------------------------

    @property
    def config(self) -> MachineConfig | None:
        """What the current machine was started with."""
        return self._config

    @property
    def alive(self) -> bool:
        """Whether a machine is up, and neither dead nor being stopped."""
        machine = self._machine
        return (
            machine is not None
            and machine.done()
            and not machine.cancelled()
            and machine.exception() is None
            and self.death is None
            and not self._stop.is_set()
        )

    def begin(self, config: MachineConfig) -> None:
        """Start a machine in the background; ``ready`` waits for it."""
        if self._task is not None and not self._task.done():
            raise Conflict("the VM of this group is already there")
        self._config = config
        self._stop = asyncio.Event()
        self._graceful = True
        self._verdict = None
        self.death = None
        self._disks = {}
        self.guest_serials = {}
        self._machine = asyncio.get_running_loop().create_future()
        # Nobody may ask for the machine of a failed early start: that is no fault of its own.
        self._machine.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._task = asyncio.create_task(self._run(config, self._machine), name="vm")

    async def ready(self) -> Machine:
        """Return the machine when the guest has said hello. Raises what its start raised."""
        if self._machine is None:
            raise Conflict("no VM was started")
        return await asyncio.shield(self._machine)

    async def stop(self, *, graceful: bool = True) -> None:
        """Stop the machine and return when nothing is left of it. May be repeated.

        A start that is under way is cancelled. Bounded: what does not end by then is reported.
        """
        self._graceful = self._graceful and graceful
        self._end()
        if self._task is not None:
            _, late = await asyncio.wait([self._task], timeout=_STOP_BOUND)
            if late:
                self.report(f"the VM did not end within {_STOP_BOUND:g} s")

    def _end(self) -> None:
        """Let the machine end, or its start, which is cancelled only once: it cleans up."""
        self._stop.set()
        starting, self._starting = self._starting, None
        if starting is not None:
            starting.cancel()

    def condemn(self, reason: str, status: int = _KILLED) -> None:
        """Kill a VM that does not do what it must; everything in it ends with ``status``."""
        if self._verdict is None and self.death is None:
            self.report(f"killing the VM: {reason}")
            self._verdict = VmDeath(status, reason)
            self._end()

    async def _run(self, config: MachineConfig, promise: asyncio.Future[Machine]) -> None:
        death: VmDeath | None = None
        failure: Exception = Unreachable("the VM was stopped while it started")
        try:
            if not self._stop.is_set():
                self._starting = asyncio.current_task()
                async with self._start(config) as machine:
                    self._starting = None
                    self.pid = machine.pid
                    promise.set_result(machine)
                    death = await self._watch(machine)
        except asyncio.CancelledError:
            if not self._stop.is_set():
                raise
        except (ShimError, OSError) as error:
            death, failure = VmDeath(_UNKNOWN, str(error)), error
        except Exception as error:  # the edge of the task: nobody else would see what it was
            self.report(f"the VM failed:\n{traceback.format_exc()}")
            failure = ShimError(f"the VM failed: {type(error).__name__}: {error}")
            death = VmDeath(_UNKNOWN, str(failure))
        finally:
            self._starting = None
            death = self._verdict or death
            if death is not None and (self._verdict or not self._stop.is_set()):
                self.death = death
                self.report(f"the VM is gone: {death.reason}")
                self.on_death(death)
            else:
                self.death = VmDeath(_KILLED, "the VM was stopped")
            if not promise.done():
                promise.set_exception(failure)

    async def _watch(self, machine: Machine) -> VmDeath | None:
        """Return when the machine is over: why, or None when we stopped it."""
        pump = asyncio.create_task(self._pump(machine.link), name="guest events")
        beat = asyncio.create_task(self._beat(), name="guest heartbeat")
        stop = asyncio.create_task(self._stop.wait())
        try:
            ends: set[asyncio.Future[Any]] = {stop, machine.exited, machine.link.closed}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not stop.done() and not machine.exited.done():
                await asyncio.wait([machine.exited], timeout=_EXIT_GRACE)
            if stop.done() and not machine.exited.done():
                grace = _STOP_GRACE if self._graceful and self._verdict is None else 0.0
                await machine.stop(grace)
                return None
            return _death_of(machine)
        finally:
            for task in (pump, beat, stop):
                task.cancel()
            await asyncio.gather(pump, beat, stop, return_exceptions=True)

    async def _pump(self, link: GuestLink) -> None:
        try:
            async for event in link.events():
                self.on_event(event)
        except ShimError as error:
            # With the link gone _watch knows better than this task what happened.
            if not link.closed.done():
                self.condemn(f"no more events from the guest: {error}", _UNKNOWN)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat)
            await self._check_pulse("a heartbeat")
            if self.alive:
                await self.on_beat()

    # ---- asking --------------------------------------------------------------------------------

    async def ask(self, what: str, call: Callable[[GuestLink], Awaitable[T]]) -> T:
        """Return the guest's answer to ``call``, which must have a deadline of its own.

        Raises ``Unreachable`` when the VM is gone, ``DeadlineExceeded`` when the guest is silent;
        errors that the guest answered with are passed on as they are.
        """
        machine = await self.ready()
        if self.death is not None:
            raise Unreachable(f"cannot {what}: {self.death.reason}")
        clock = asyncio.get_running_loop().time
        asked = clock()
        try:
            return await call(machine.link)
        except LinkClosed as error:
            raise Unreachable(f"cannot {what}: the VM is gone") from error
        except (RpcError, DeadlineExceeded) as error:
            if not is_timeout(error):
                raise
            self._suspect(what, patient=clock() - asked >= self.guest_timeout)
            raise DeadlineExceeded(f"the guest did not {what} in time") from error

    async def read_stdio(
        self, container: str, exec_id: str, stream: guest_pb2.Stream, limit: int
    ) -> tuple[bytes, bool]:
        """Read output; waits as long as there is none."""
        return await (await self.ready()).link.read_stdio(container, exec_id, stream, limit)

    async def write_stdio(
        self, container: str, exec_id: str, data: bytes, *, end: bool = False
    ) -> None:
        """Write input; waits as long as the process does not read."""
        await (await self.ready()).link.write_stdio(container, exec_id, data, end=end)

    def _suspect(self, what: str, *, patient: bool) -> None:
        """Find out whether a guest that missed a deadline still answers at all.

        ``patient``: the deadline was no shorter than that of a probe, so it counts like one.
        """
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(
                self._check_pulse(what, misses=int(patient)), name="guest probe"
            )

    async def _check_pulse(self, what: str, *, misses: int = 0) -> None:
        while self.alive:
            machine = await self.ready()
            try:
                await machine.link.telemetry(timeout=self.guest_timeout)
            except ShimError as error:
                if not is_timeout(error):
                    return  # it answered, or its link is gone, which _watch has seen
                misses += 1
                if misses >= _MISSES:
                    self.condemn(f"the guest is silent since {what}", _UNKNOWN)
            else:
                return

    # ---- devices -------------------------------------------------------------------------------

    async def attach_disk(
        self, fd: int, serial: str, *, readonly: bool, keep_flushes: bool = True
    ) -> None:
        """Plug a disk in, or count one more user of a read-only one that is there."""
        async with self._plugging:
            if serial not in self._disks:
                machine = await self.ready()
                self.guest_serials[serial] = await machine.insert_disk(
                    fd, serial, readonly=readonly, keep_flushes=keep_flushes
                )
            self._disks[serial] = self._disks.get(serial, 0) + 1

    async def detach_disk(self, serial: str) -> None:
        """Forget one user of a disk; unplug it after the last, when the VM lives on."""
        users = self._disks.get(serial, 0) - 1
        if users > 0:
            self._disks[serial] = users
            return
        self._disks.pop(serial, None)
        self.guest_serials.pop(serial, None)
        if not self.alive:
            return
        try:
            await (await self.ready()).detach_disk(serial)
        except ShimError as error:
            # Most likely the VM is being stopped just now. If it lives, the disk only stays unused.
            self.report(f"unplug disk {serial}: {error}")

    async def attach_share(self, tag: str, connection: socket.socket) -> None:
        """Plug a shared directory in."""
        await (await self.ready()).attach_share(tag, connection)


def _ignore(_: object) -> None:
    """Stand in for a listener that is not there yet."""


async def _do_nothing() -> None:
    """Stand in for a listener that is not there yet."""


def is_timeout(error: ShimError) -> bool:
    """Whether ``error`` says that nobody answered in time, wherever it was noticed."""
    if isinstance(error, RpcError):
        return error.code == Code.DEADLINE_EXCEEDED
    return isinstance(error, DeadlineExceeded)


def _death_of(machine: Machine) -> VmDeath:
    if not machine.exited.done():
        return VmDeath(_UNKNOWN, "the connection to the guest broke")
    ended = machine.exited.result()
    reason = str(ended.reason)
    status = _KILLED if reason in _KILLED_REASONS else _UNKNOWN
    return VmDeath(status, str(ended), reason in _MEMORY_REASONS)
