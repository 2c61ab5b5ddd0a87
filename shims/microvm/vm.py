"""One QEMU process with its sockets, and the judgement of how it ended.

This module knows how to realise a plan; what to plan (clone, cold boot, which accelerator) is
``machine``'s business. Everything a VM holds is registered on the caller's exit stack before the
next step is taken, so a failure half-way undoes what was done.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from shims.core.errors import TargetError, Unreachable
from shims.microvm.config import ExitReason, MachineExit, StartFailed
from shims.microvm.console import Console
from shims.microvm.launcher import Launcher, Order
from shims.microvm.plan import Fd, Plan
from shims.microvm.qmp import Command, Monitor

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence
    from contextlib import AsyncExitStack
    from pathlib import Path

    from shims.microvm.cgroup import Cgroup
    from shims.microvm.process import Process

__all__ = ["Vm", "VmSetup", "judge"]

T = TypeVar("T")

_KILL_TIMEOUT = 10.0
_LAST_WORDS_TIMEOUT = 2.0
_LINK_BACKLOG = 4
_STDERR = 2
_CRASHES = frozenset(
    {
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGSEGV,
        signal.SIGSYS,
        signal.SIGTRAP,
    }
)
"""Signals that a program brings on itself."""
_PANIC = "Kernel panic - not syncing"
_DEADLOCKED = ("deadlocked on memory", "no killable processes")


@dataclass(frozen=True)
class VmSetup:
    """What ``Vm.spawn`` needs beside the plan."""

    plan: Plan
    qemu: str
    directory: Path
    """The VM's own, existing directory: the guest link's socket is made there."""
    fds: Mapping[Fd, int]
    """Memory, kernel, initramfs, state and tap, as far as the plan asks. Stay the caller's."""
    cgroup: Cgroup | None = None
    ids: tuple[int, int] | None = None
    groups: tuple[int, ...] = ()
    oom_score_adj: int | None = None
    first_commands: tuple[Command, ...] = ()
    """QMP commands that wait in the socket when QEMU begins."""


@dataclass
class _Evidence:
    """What is known about an end, collected while it happens."""

    ending: tuple[ExitReason, str] | None = None
    """Why we ended it ourselves."""
    shutdown: str = ""
    """Reason of QMP's SHUTDOWN event."""
    failure: str = ""
    """Why QEMU never ran."""
    oom_kills: int = 0
    console: list[str] = field(default_factory=list)


class Vm:
    """A QEMU process. Created by ``spawn``; ended by the exit stack it was given."""

    pid: int
    monitor: Monitor
    console: Console
    exited: asyncio.Future[MachineExit]
    """How it ended, once it has. Shield it when waiting; it is shared."""
    marks: dict[str, float]
    """Moments of the start, as of ``time.monotonic()``."""
    _process: Process

    def __init__(self, setup: VmSetup) -> None:
        self._setup = setup
        self._loop = asyncio.get_running_loop()
        self._evidence = _Evidence()
        self._saving = False
        self._status: asyncio.Future[Any] | None = None
        self._migrated: asyncio.Future[str] = self._loop.create_future()
        self._deleted: dict[str, asyncio.Future[None]] = {}
        self.marks = {}
        self.console = Console()
        self.exited = self._loop.create_future()

    @classmethod
    async def spawn(cls, setup: VmSetup, launcher: Launcher, stack: AsyncExitStack) -> Vm:
        """Start QEMU through ``launcher``; returns before QEMU has said anything."""
        self = cls(setup)
        stack.callback(self.console.close)
        monitor_ours, monitor_theirs = socket.socketpair()
        console_ours, console_theirs = socket.socketpair()
        with monitor_theirs, console_theirs:
            self.console.add(console_ours.detach())
            self.monitor = Monitor(monitor_ours, self._on_event)
            stack.callback(self.monitor.close)
            self.monitor.greeted.add_done_callback(lambda _: self._mark("greeting"))
            for command in setup.first_commands:
                _ = self.monitor.send(command)
            messages, stderr = os.pipe()
            self.console.add(messages)
            try:
                with self._listen() as listener:
                    fds = {
                        **setup.fds,
                        Fd.QMP: monitor_theirs.fileno(),
                        Fd.CONSOLE: console_theirs.fileno(),
                        Fd.LINK: listener.fileno(),
                    }
                    assert fds.keys() == setup.plan.fds, "descriptors and plan disagree"
                    fds_by_number = {_STDERR: stderr, **{int(to): fd for to, fd in fds.items()}}
                    self._start(launcher, fds_by_number, stack)
            finally:
                os.close(stderr)
        return self

    async def connect_link(self) -> socket.socket:
        """Return a new connection to the guest link's chardev (QEMU serves one at a time)."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            with _ShortPath(self._setup.directory) as directory:
                await self._loop.sock_connect(sock, f"{directory}/link.sock")
        except BaseException:
            sock.close()
            raise
        return sock

    async def until_answered(self, answer: Coroutine[Any, Any, T]) -> T:
        """Await the guest's answer, or raise ``StartFailed`` with what became of the VM.

        ``answer`` raises ``ShimError`` when it does not come; the VM is ended then.
        """
        waiting = asyncio.ensure_future(answer)
        try:
            either: list[asyncio.Future[Any]] = [waiting, self.exited]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise StartFailed(self.exited.result())
            return waiting.result()
        except Unreachable:
            # QEMU hung up: it is dying, and its end says more than the link does.
            await asyncio.wait({self.exited}, timeout=_LAST_WORDS_TIMEOUT)
            raise StartFailed(await self.end(ExitReason.ERROR, "it closed the link")) from None
        except TargetError as error:
            detail = f"no hello from the guest: {error.message}"
            raise StartFailed(await self.end(ExitReason.BOOT_HANG, detail)) from error
        finally:
            waiting.cancel()

    async def save_state(self, fd: int, timeout: float) -> None:
        """Stop the VM for good and write its device state, without its RAM, to ``fd``.

        The state says that the VM was running, so that whoever loads it runs at once. Raises
        ``StartFailed`` when that is not done within ``timeout`` seconds; the VM is gone then.
        """
        self._saving = True
        commands = [
            Command("getfd", {"fdname": "state"}, fd),
            Command("migrate", {"uri": "fd:state"}),
        ]
        why = "it hung up its monitor"
        try:
            async with asyncio.timeout(timeout):
                await self.monitor.execute_all(commands, timeout=timeout)
                either: list[asyncio.Future[Any]] = [self._migrated, self.exited]
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if self._migrated.done():
                if self._migrated.result() == "completed":
                    return
                why = "it could not save its state"
        except TimeoutError:
            why = f"its state was not saved within {timeout:g} s"
        except Unreachable:
            await asyncio.wait({self.exited}, timeout=_LAST_WORDS_TIMEOUT)
        raise StartFailed(await self.end(ExitReason.ERROR, why))

    async def finish(self) -> None:
        """End QEMU for good and as intended: after ``save_state``."""
        await self.end(ExitReason.STOPPED, "its state is saved")

    async def device_deleted(self, device: str, timeout: float) -> None:
        """Wait until QEMU says that the guest let go of ``device``, whose deletion was asked."""
        async with asyncio.timeout(timeout):
            await asyncio.shield(self._deleted[device])
        del self._deleted[device]

    def expect_deletion(self, device: str) -> asyncio.Future[None]:
        """Announce that ``device`` will be deleted; call before asking QEMU to.

        The future is done when the guest has let go of it, or the VM is gone.
        """
        return self._deleted.setdefault(device, self._loop.create_future())

    async def end(self, reason: ExitReason, detail: str) -> MachineExit:
        """Kill QEMU and return the end, which is ours unless it was already over."""
        if not self.exited.done() and self._evidence.ending is None:
            self._evidence.ending = (reason, detail)
        await self._process.end(_KILL_TIMEOUT)
        return await self.exited

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _ShortPath(self._setup.directory) as directory:
                path = f"{directory}/link.sock"
                if os.path.lexists(path):
                    os.unlink(path)
                listener.bind(path)
            listener.listen(_LINK_BACKLOG)
        except BaseException:
            listener.close()
            raise
        return listener

    def _start(self, launcher: Launcher, fds: dict[int, int], stack: AsyncExitStack) -> None:
        setup = self._setup
        order = Order(
            argv=(setup.qemu, *setup.plan.arguments),
            ids=setup.ids,
            groups=setup.groups,
            oom_score_adj=setup.oom_score_adj,
        )
        self._mark("executed")
        self._process = launcher.execute(order, fds)
        self.pid = self._process.pid
        stack.push_async_callback(self.end, ExitReason.STOPPED, "its owner let go of it")
        self._process.exited.add_done_callback(self._conclude)

    def _mark(self, moment: str) -> None:
        self.marks.setdefault(moment, time.monotonic())

    def _on_event(self, name: str, data: dict[str, Any]) -> None:
        match name:
            case "SHUTDOWN":
                self._evidence.shutdown = str(data.get("reason", ""))
            case "MIGRATION" if data["status"] in ("completed", "failed"):
                self._mark("loaded")
                if not self._migrated.done():
                    self._migrated.set_result(data["status"])
            case "RESUME":
                self._mark("running")
            case "DEVICE_DELETED" if waiting := self._deleted.get(data.get("device", "")):
                if not waiting.done():
                    waiting.set_result(None)
            case "STOP" if not self._saving:
                # One question at a time, however often it stops.
                if self._status is None or self._status.done():
                    self._status = self.monitor.send(Command("query-status", {}))
                    self._status.add_done_callback(self._stopped)

    def _stopped(self, answer: asyncio.Future[Any]) -> None:
        """QEMU stopped the VM by itself: an accelerator that failed, or a guest that panicked."""
        if answer.cancelled() or answer.exception() is not None:
            return  # it is gone already, and judged by its exit
        said = answer.result()
        status = said.get("status") if isinstance(said, dict) else None
        if status in ("internal-error", "io-error", "guest-panicked"):
            self._evidence.ending = (ExitReason.ERROR, f"QEMU stopped the VM: {status}")
            self._process.kill()

    def _conclude(self, exited: asyncio.Future[int]) -> None:
        evidence = self._evidence
        evidence.failure = self._process.failure
        try:
            self.console.drain()
            self.monitor.drain()
            evidence.console = self.console.tail()
            if self._setup.cgroup is not None:
                evidence.oom_kills = self._setup.cgroup.oom_kills()
        finally:
            # Whatever its last words did to us: that it ended must be known.
            if not self.exited.done():
                self.exited.set_result(_judge(exited.result(), evidence))
            for waiting in self._deleted.values():
                if not waiting.done():
                    waiting.set_result(None)


def judge(
    code: int,
    *,
    shutdown: str = "",
    console: Sequence[str] = (),
    failure: str = "",
    oom_kills: int = 0,
) -> MachineExit:
    """Return what became of a VM that we did not end ourselves. Pure.

    ``code`` is QEMU's exit code (negative: signal), ``shutdown`` the reason in QMP's SHUTDOWN
    event, ``failure`` why QEMU could not be executed.
    """
    return _judge(
        code,
        _Evidence(shutdown=shutdown, failure=failure, oom_kills=oom_kills, console=list(console)),
    )


def _judge(code: int, evidence: _Evidence) -> MachineExit:
    console = evidence.console
    reason, detail = evidence.ending or _reason(code, evidence)
    return MachineExit(reason, detail, console, code)


def _reason(code: int, evidence: _Evidence) -> tuple[ExitReason, str]:
    if evidence.failure:
        return ExitReason.ERROR, evidence.failure
    if code == -signal.SIGKILL and evidence.oom_kills:
        return ExitReason.OOM, "the host's kernel killed QEMU: its cgroup's memory limit"
    last = evidence.console[-1] if evidence.console else "it said nothing"
    if -code in _CRASHES:
        return ExitReason.ERROR, f"QEMU crashed ({_signal_name(-code)}): {last}"
    if code < 0:
        return ExitReason.KILLED, f"QEMU was ended by {_signal_name(-code)}"
    match evidence.shutdown:
        case "guest-shutdown":
            return ExitReason.POWEROFF, "the guest powered off"
        case "guest-reset" | "guest-panic":
            # void-init never resets; the kernel does after a panic (panic=-1 reboot=t).
            return _panic(evidence.console)
        case "host-signal":
            return ExitReason.KILLED, "QEMU was asked to end by a signal"
        case _:
            pass
    return ExitReason.ERROR, f"QEMU ended with status {code}: {last}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # most real-time signals have no name


def _panic(console: Sequence[str]) -> tuple[ExitReason, str]:
    words = next((line for line in reversed(console) if _PANIC in line), "")
    said = words[words.find(_PANIC) :] if words else "the guest reset itself without a word"
    if any(mark in line for line in console for mark in _DEADLOCKED):
        return ExitReason.GUEST_OOM, said
    return ExitReason.PANIC, said


class _ShortPath:
    """A name of a directory that is short enough for a socket's address (108 bytes)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> str:
        self._fd = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._fd}"

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
