"""One container: its first process, its execs, and the order in which their ends become known.

The order is the contract (containerd ``core/runtime/v2/README.md``): start before exit, the exits
of all execs before that of the first process, an out-of-memory event before its exit, delete last.
All of it is kept here, by two rules: a start holds the process's ``starting`` lock until its event
is on its way, and an exit is told only after that lock, after the output, and, for the first
process, after the execs.

No call here waits for the guest without a deadline, and none holds a lock that another container
needs.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from shims.containerd.shim.announce import Announcer
from shims.containerd.shim.killing import SIGKILL, kill_hard
from shims.containerd.shim.network import refuse_late_network
from shims.containerd.shim.process import Exit, Phase, Process
from shims.core.errors import AlreadyExists, Conflict, NotFound, ShimError
from shims.ttrpc.codes import Code
from shims.ttrpc.errors import RpcError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from protos.gen.io.containerd.cgroups.v2 import metrics_pb2
    from shims.containerd.shim.shared import Shared
    from shims.containerd.shim.vm import VmDeath

__all__ = ["Container"]

_KILLED = 128 + SIGKILL
_NOT_EXECUTABLE = 126
_NOT_FOUND = 127
_LATE_OUTPUT = 2.0
"""What Delete waits for output that a slow reader has not taken yet, on top of the exit's wait."""
_EXEC_ENDS = 3.0
"""How long after the first process the guest may take to report the execs that died with it."""


class Container:
    """A created container. What it ``adopt``s undoes everything that Create made on the host."""

    def __init__(
        self,
        shared: Shared,
        init: Process,
        *,
        bundle: str,
        spec: Mapping[str, Any],
        needs_flush: bool,
    ) -> None:
        self.id = init.container_id
        self.bundle = bundle
        self.spec = spec
        self.init = init
        self.execs: dict[str, Process] = {}
        self.paused = False
        self.last_stats: metrics_pb2.Metrics | None = None
        self.needs_flush = needs_flush
        """Whether the guest may hold data that belongs on the host (shares, host disks)."""
        self.flushed = False
        self.shared = shared
        self.vm = shared.vm
        self.log = shared.reporter.log
        self.announce = Announcer(shared.reporter, self.id)
        self._owned = AsyncExitStack()

    def adopt(self, owned: AsyncExitStack) -> None:
        """Own what ``owned`` holds, until Delete."""
        self._owned = owned.pop_all()

    # ---- finding -------------------------------------------------------------------------------

    def process(self, exec_id: str) -> Process:
        """Return the first process (empty id) or an exec. Raises ``NotFound``."""
        if not exec_id:
            return self.init
        try:
            return self.execs[exec_id]
        except KeyError:
            raise NotFound(f"no exec {exec_id} in container {self.id}") from None

    def all_processes(self) -> list[Process]:
        """Return the first process and every exec."""
        return [self.init, *self.execs.values()]

    def require_alive(self, verb: str) -> None:
        """Raise ``Conflict`` unless the first process runs and nothing is paused."""
        self.init.require(Phase.RUNNING, verb=f"{verb} in")
        if self.init.died.is_set():
            raise Conflict(f"cannot {verb} in container {self.id}: it has stopped")
        if self.paused:
            raise Conflict(f"cannot {verb} in container {self.id}: it is paused")

    # ---- life ----------------------------------------------------------------------------------

    def add_exec(self, process: Process) -> None:
        """Take a new exec in and say so."""
        if process.exec_id in self.execs:
            raise AlreadyExists(f"exec {process.exec_id} exists in container {self.id}")
        self.require_alive("exec")
        self.execs[process.exec_id] = process
        self.announce.exec_added(process.exec_id)

    async def start(self, exec_id: str) -> int:
        """Let the process run; return the host's pid for it."""
        process = self.process(exec_id)
        async with process.starting:
            process.require(Phase.CREATED, verb="start")
            if exec_id:
                self.require_alive("start an exec")
            if process.died.is_set() or process.start_failed:
                raise Conflict(f"cannot start {process.name}: it has failed")
            try:
                await self._start_in_guest(process)
            except ShimError as error:
                self._start_failed(process, error)
                raise _start_error(error) from error
            process.pid = self.vm.pid
            process.mark_running()
            self.announce.started(process)
        return process.pid

    async def _start_in_guest(self, process: Process) -> None:
        timeout = self.shared.settings.guest_timeout
        if not process.exec_id:
            refuse_late_network(self.vm.pid)
        else:
            await self.vm.ask(
                f"add {process.name}",
                lambda guest: guest.add_process(
                    self.id, process.exec_id, process.plan, timeout=timeout
                ),
            )
            process.known_to_guest = True
        if process.copies is not None:
            process.copies.begin()
        process.guest_pid = await self.vm.ask(
            f"start {process.name}",
            lambda guest: guest.start_process(self.id, process.exec_id, timeout=timeout),
        )

    def _start_failed(self, process: Process, error: ShimError) -> None:
        process.start_failed = True
        self.log(f"start of {process.name}: {error}")
        if process.exec_id:
            # It stays as it is until Delete, which wakes its waiters. If the guest was silent, it
            # may have started or may still start it: what nobody knows of must not run on.
            if not isinstance(error, RpcError):
                process.known_to_guest = True
                process.killing = self.shared.track(
                    kill_hard(self, process.exec_id), f"kill {process.name}"
                )
            return
        # The client will kill, wait and delete: the wait must end, with what a shell would say.
        if isinstance(error, RpcError):
            refused = error.code == Code.PERMISSION_DENIED
            self.note_exit("", _NOT_EXECUTABLE if refused else _NOT_FOUND)
        else:  # whether it runs is unknown; a dead VM has its own way of ending it
            self.shared.spawn(kill_hard(self, "", everything=True), f"kill {process.name}")

    # ---- ends ----------------------------------------------------------------------------------

    def note_exit(self, exec_id: str, status: int) -> None:
        """Take in that a process is dead, from the guest or because its VM is. First one counts.

        The time is the host's: the guest's clock is whatever the guest made of it.
        """
        process = self.init if not exec_id else self.execs.get(exec_id)
        if process is None or process.died.is_set():
            return
        process.died.set()
        ended = Exit(status & 0xFF, time.time_ns())
        self.shared.spawn(self._finish(process, ended), f"exit of {process.name}")

    def note_death(self, death: VmDeath) -> None:
        """Take in that the VM is gone, and everything in it."""
        if death.out_of_memory:
            self.note_oom()
        for process in [*self.execs.values(), self.init]:
            if process.known_to_guest:
                self.note_exit(process.exec_id, death.status)

    def note_oom(self) -> None:
        """Take in that the kernel killed something for the container's memory limit."""
        if self.init.exit is None:
            self.announce.out_of_memory()

    async def _finish(self, process: Process, ended: Exit) -> None:
        """Tell an exit, once everything that must come before it did."""
        async with process.starting:
            pass  # the start event comes first
        if process.exec_id and process.start_failed:
            return  # it never ran, and nobody was told that it did
        try:
            await self._settle(process)
        except Exception as error:  # whatever it is, a process that is dead must be seen to be
            self.log(f"exit of {process.name}: {type(error).__name__}: {error}")
        self._tell_exit(process, ended)
        if process is self.init:
            self.shared.on_stopped(self)

    async def _settle(self, process: Process) -> None:
        """Do what must come before the exit is told, as far as its time allows."""
        if process is self.init:
            await self._finish_execs()
        if process.copies is not None:
            await process.copies.drain(self.shared.settings.drain_timeout)
        if process is self.init:
            await self.sample_stats(timeout=1.0)
            if process.copies is None or not process.copies.stalled:
                await self._flush()  # it would take along what a slow reader has not read yet

    def _tell_exit(self, process: Process, ended: Exit) -> None:
        if process.phase is Phase.STOPPED:
            return
        process.pid = process.pid or self.vm.pid
        try:
            self.announce.exited(process, ended)
        except OSError as error:  # a report that fails must not make the container immortal
            self.log(f"exit of {process.name} is not reported: {error}")
        finally:
            process.mark_stopped(ended)

    async def settle_late(self) -> None:
        """Return when the guest has nothing left that a reader may still take.

        A reader that is slow at the exit holds up the VM, not the exit itself: what it has not
        taken yet lies in the guest's pipes. Ends at the latest with Delete, which closes the loops.
        """
        copies = [process.copies for process in self.all_processes() if process.copies]
        await asyncio.gather(*(each.taken(self.shared.settings.drain_timeout) for each in copies))
        await self._flush()

    async def _finish_execs(self) -> None:
        """Wait for the execs, which die with the first process; give up on those that hang."""
        running = [
            process
            for process in self.execs.values()
            if process.phase is Phase.RUNNING or process.starting.locked()
        ]
        if not running:
            return
        waits = [asyncio.create_task(_end_of(process)) for process in running]
        bound = _EXEC_ENDS + self.shared.settings.drain_timeout
        await asyncio.wait(waits, timeout=bound)
        for task, process in zip(waits, running, strict=True):
            if not task.done():
                task.cancel()
                process.died.set()
                if process.phase is Phase.RUNNING:
                    self._tell_exit(process, Exit(_KILLED, time.time_ns()))
        await asyncio.gather(*waits, return_exceptions=True)

    async def sample_stats(self, *, timeout: float) -> metrics_pb2.Metrics:
        """Return fresh statistics, or the last ones when the guest does not give any.

        Of a container whose VM went before anybody had looked, only its end is known: zeros.
        """
        from shims.containerd.shim.stats import UNKNOWN, metrics_of, with_oom_kill

        if self.vm.alive and not self.flushed:
            try:
                reply = await self.vm.ask(
                    "read statistics", lambda guest: guest.stats(self.id, timeout=timeout)
                )
                self.last_stats = metrics_of(reply)
            except ShimError as error:
                self.log(f"statistics of {self.id}: {error}")
        found = self.last_stats or UNKNOWN
        if (death := self.vm.death) is not None and death.out_of_memory:
            found = with_oom_kill(found)
        return found

    async def _flush(self) -> None:
        """Bring data of shared volumes to the host before anybody is told of the end.

        A guest that takes longer than an exit may wait goes on with it while the VM is stopped.
        """
        if self.needs_flush and self.vm.alive:
            await self._forget_in_guest(self.init, self.shared.settings.drain_timeout)

    # ---- delete --------------------------------------------------------------------------------

    async def delete(self, exec_id: str) -> Exit:
        """Forget a process that is not running, and with the first one the container.

        Runs to its end even when the caller gives up; a second call joins the first.
        """
        process = self.process(exec_id)
        process.require(Phase.CREATED, Phase.STOPPED, verb="delete")
        if process.deletion is None:
            work = self._delete_exec(process) if exec_id else self._delete_container()
            process.deletion = self.shared.track(work, f"delete {process.name}")
        return await asyncio.shield(process.deletion)

    async def _delete_exec(self, process: Process) -> Exit:
        if process.starting.locked():
            await self._end_start(process)
        await self._close_process(process)
        self.execs.pop(process.exec_id, None)
        assert process.exit is not None
        return process.exit

    async def _end_start(self, process: Process) -> None:
        """Let a start that is under way come to its end, and end what it started.

        Whoever asked for it has given up and deletes: nothing may run on that nobody knows of.
        """
        async with process.starting:
            pass
        if process.phase is Phase.RUNNING:
            await kill_hard(self, process.exec_id)
            await self._until_told(process)

    async def _until_told(self, process: Process) -> None:
        """Wait for the exit of a process that is dead, or about to be, to be told."""
        bound = self.shared.settings.drain_timeout + _EXEC_ENDS
        try:
            await asyncio.wait_for(process.wait(), bound)
        except TimeoutError:
            self._tell_exit(process, Exit(_KILLED, time.time_ns()))

    async def _delete_container(self) -> Exit:
        init = self.init
        if init.phase is Phase.CREATED:
            if init.died.is_set():  # it could not be started, and why is on its way
                await self._until_told(init)
            else:
                await kill_hard(self, "", everything=True)
        # Together: each may wait for a reader that has stalled.
        await asyncio.gather(*(self._close_process(each) for each in self.execs.values()))
        await self._close_process(init)
        self.execs.clear()
        try:
            await self._owned.aclose()
        except (ShimError, OSError) as error:
            # Everything else on the stack was undone all the same. The container is gone: an error
            # would make containerd try again, and there is nothing left to try.
            self.log(f"delete of {self.id} left something behind: {error}")
        assert init.exit is not None
        self.announce.deleted(init, init.exit)
        return init.exit

    async def _close_process(self, process: Process) -> None:
        """End the copying, let the guest forget the process, and wake whoever still waits."""
        if process.copies is not None:
            if process.phase is Phase.STOPPED:
                await process.copies.drain(_LATE_OUTPUT)
            await process.copies.close()
        if process.killing is not None:
            await asyncio.wait([process.killing])
        await self._forget_in_guest(process, self.shared.settings.guest_timeout)
        process.mark_stopped(Exit(_KILLED, time.time_ns()))

    async def _forget_in_guest(self, process: Process, timeout: float) -> None:
        if not process.known_to_guest or not self.vm.alive:
            return
        process.known_to_guest = False
        if process is self.init:
            self.flushed = True
        try:
            await self.vm.ask(
                f"delete {process.name}",
                lambda guest: guest.delete_process(self.id, process.exec_id, timeout=timeout),
            )
        except ShimError as error:
            self.log(f"delete {process.name} in the guest: {error}")


async def _end_of(process: Process) -> None:
    """Return when an exec that runs, or is being started, has ended or failed to start."""
    async with process.starting:
        pass
    if process.phase is Phase.RUNNING:
        await process.wait()


def _start_error(error: ShimError) -> ShimError:
    """Make a start's failure the caller's, when the guest says that the program is the reason.

    NotFound must not reach containerd: it would read it as "no such task".
    """
    program_faults = (Code.NOT_FOUND, Code.PERMISSION_DENIED, Code.INVALID_ARGUMENT)
    if isinstance(error, RpcError) and error.code in program_faults:
        return RpcError(Code.INVALID_ARGUMENT, error.message)
    return error
