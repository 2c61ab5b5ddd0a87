"""A guest without a VM: the guest link's interface over ordinary processes of this host.

It runs what a launch plan says, with real pipes, terminals, signals and exit codes, and no
isolation at all. What it adds are the faults that a real guest shows only by accident: each method
can be silent, fail, or be held back, and events can be told earlier than they should be.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import signal as signals
import struct
import subprocess
import termios
from typing import TYPE_CHECKING, Any

from protos.gen.voidbox.guest.v1 import guest_pb2
from shims.ttrpc.codes import Code
from shims.ttrpc.errors import LinkClosed, RpcError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Key = tuple[str, str]


class _Process:
    def __init__(self, plan: guest_pb2.ProcessPlan, pid: int) -> None:
        self.plan = plan
        self.pid = pid
        self.child: subprocess.Popen[bytes] | None = None
        self.exited = False
        self.fds: dict[str, int] = {}

    def close(self) -> None:
        for fd in self.fds.values():
            os.close(fd)
        self.fds = {}


class FakeGuest:
    """What ``GuestLink`` offers, as far as a shim uses it."""

    def __init__(self) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.calls: list[str] = []
        self.plans: dict[str, guest_pb2.LaunchPlan] = {}
        self.silent: set[str] = set()
        """Methods that never answer; ``all`` for a guest that hangs."""
        self.errors: dict[str, RpcError] = {}
        self.gates: dict[str, asyncio.Event] = {}
        """Methods that answer once their event is set; they do their work before."""
        self.stats_reply = guest_pb2.StatsReply(
            files=[guest_pb2.CgroupFile(name="pids.current", content=b"3\n")]
        )
        self.updates: list[dict[str, str]] = []
        self.lose_exits = False
        self._called = asyncio.Event()
        self._processes: dict[Key, _Process] = {}
        self._children: list[subprocess.Popen[bytes]] = []
        self._pids = itertools.count(100)
        self._sequence = itertools.count(1)
        self._queue: asyncio.Queue[guest_pb2.Event] = asyncio.Queue()

    # ---- faults --------------------------------------------------------------------------------

    async def _enter(self, method: str, timeout: float | None) -> None:
        self.calls.append(method)
        self._called.set()
        if self.closed.done():
            raise LinkClosed("the fake guest is gone")
        if method in self.silent or "all" in self.silent:
            await self._until(asyncio.get_running_loop().create_future(), timeout)
        if error := self.errors.get(method):
            raise error

    async def called(self, method: str) -> None:
        """Wait until ``method`` was called."""
        while method not in self.calls:
            self._called.clear()
            await self._called.wait()

    async def _leave(self, method: str, timeout: float | None) -> None:
        if gate := self.gates.get(method):
            await self._until(asyncio.ensure_future(gate.wait()), timeout)

    async def _until(self, what: asyncio.Future[Any], timeout: float | None) -> None:
        """Wait for ``what``, for the deadline, or for the end of the link."""
        ends: set[asyncio.Future[Any]] = {what, self.closed}
        try:
            await asyncio.wait(ends, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            done = what.done()
        finally:
            what.cancel()
        if self.closed.done():
            raise LinkClosed("the fake guest is gone")
        if not done:
            raise RpcError(Code.DEADLINE_EXCEEDED, "the fake guest is silent")

    def emit(self, **kind: Any) -> None:
        """Queue an event."""
        self._queue.put_nowait(guest_pb2.Event(sequence=next(self._sequence), **kind))

    def die(self) -> None:
        """Break the link and end everything, as a killed QEMU does."""
        if not self.closed.done():
            self.closed.set_result(None)
        for process in self._processes.values():
            process.close()
        for child in self._children:
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signals.SIGKILL)
                child.wait()

    # ---- containers and processes --------------------------------------------------------------

    async def create_container(self, plan: guest_pb2.LaunchPlan, *, timeout: float) -> int:
        await self._enter("create_container", timeout)
        self.plans[plan.container_id] = plan
        process = _Process(plan.process, next(self._pids))
        self._processes[plan.container_id, ""] = process
        self._open(process)
        await self._leave("create_container", timeout)
        return process.pid

    async def add_process(
        self, container: str, exec_id: str, plan: guest_pb2.ProcessPlan, *, timeout: float
    ) -> None:
        await self._enter("add_process", timeout)
        if (container, exec_id) in self._processes:
            raise RpcError(Code.ALREADY_EXISTS, f"exec {exec_id} exists")
        process = _Process(plan, next(self._pids))
        self._processes[container, exec_id] = process
        self._open(process)

    async def start_process(self, container: str, exec_id: str = "", *, timeout: float) -> int:
        await self._enter("start_process", timeout)
        process = self._find(container, exec_id)
        try:
            self._spawn(process)
        except OSError as error:
            code = Code.NOT_FOUND if isinstance(error, FileNotFoundError) else Code.INTERNAL
            raise RpcError(code, f"execve {process.plan.args[0]!r}: {error.strerror}") from error
        self._watch((container, exec_id), process)
        await self._leave("start_process", timeout)
        return process.pid

    async def signal_process(
        self, container: str, exec_id: str = "", *, signal: int, everyone: bool = False,
        timeout: float,
    ) -> None:  # fmt: skip
        number = signal
        await self._enter("signal_process", timeout)
        process = self._find(container, exec_id)
        if process.exited:
            raise RpcError(Code.NOT_FOUND, "the process has ended")
        if process.child is None:
            if number == signals.SIGKILL:
                self._ended((container, exec_id), process, 128 + number)
            return
        for (owner, _), other in list(self._processes.items()):
            chosen = other is process or (everyone and owner == container)
            if chosen and other.child and not other.exited:
                os.killpg(other.child.pid, number)
        await self._leave("signal_process", timeout)

    async def delete_process(self, container: str, exec_id: str = "", *, timeout: float) -> None:
        await self._enter("delete_process", timeout)
        process = self._processes.pop((container, exec_id), None)
        if process is not None:
            process.close()

    async def list_processes(
        self, container: str, *, timeout: float
    ) -> list[guest_pb2.ProcessInfo]:
        await self._enter("list_processes", timeout)
        return [
            guest_pb2.ProcessInfo(pid=process.pid, exec_id=exec_id, declared=True)
            for (owner, exec_id), process in self._processes.items()
            if owner == container and process.child and not process.exited
        ]

    async def freeze(self, container: str, frozen: bool, *, timeout: float) -> None:
        await self._enter("freeze", timeout)
        for (owner, _), process in self._processes.items():
            if owner == container and process.child and not process.exited:
                os.killpg(process.child.pid, signals.SIGSTOP if frozen else signals.SIGCONT)

    async def stats(self, container: str, *, timeout: float) -> guest_pb2.StatsReply:
        await self._enter("stats", timeout)
        await self._leave("stats", timeout)
        return self.stats_reply

    async def update_cgroup(
        self, container: str, writes: list[guest_pb2.CgroupWrite], *, timeout: float
    ) -> None:
        await self._enter("update_cgroup", timeout)
        self.updates.append({write.file: write.value for write in writes})

    async def telemetry(self, *, timeout: float) -> guest_pb2.TelemetrySample:
        await self._enter("telemetry", timeout)
        return guest_pb2.TelemetrySample()

    async def resize_terminal(
        self, container: str, exec_id: str, rows: int, columns: int, *, timeout: float
    ) -> None:
        await self._enter("resize_terminal", timeout)
        process = self._find(container, exec_id)
        fcntl.ioctl(
            process.fds["stdout"], termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0)
        )

    async def events(self) -> AsyncIterator[guest_pb2.Event]:
        while True:
            queued = asyncio.ensure_future(self._queue.get())
            try:
                await self._until(queued, None)
            finally:
                queued.cancel()
            yield queued.result()

    # ---- streams -------------------------------------------------------------------------------

    async def read_stdio(
        self, container: str, exec_id: str, stream: guest_pb2.Stream, limit: int
    ) -> tuple[bytes, bool]:
        await self._enter("read_stdio", None)
        name = guest_pb2.Stream.Name(stream).removeprefix("STREAM_").lower()
        fd = self._find(container, exec_id).fds[name]
        while True:
            try:
                data = os.read(fd, limit)
            except BlockingIOError:
                await self._ready(fd, asyncio.get_running_loop().add_reader)
            except OSError:  # EIO: nobody has the terminal open any more
                return b"", True
            else:
                return data, not data

    async def write_stdio(
        self, container: str, exec_id: str, data: bytes, *, end: bool = False
    ) -> None:
        await self._enter("write_stdio", None)
        process = self._find(container, exec_id)
        view = memoryview(data)
        while view and "stdin" in process.fds:
            try:
                view = view[os.write(process.fds["stdin"], view) :]
            except BlockingIOError:
                await self._ready(process.fds["stdin"], asyncio.get_running_loop().add_writer)
            except BrokenPipeError:
                break
        if end and not process.plan.terminal and "stdin" in process.fds:
            os.close(process.fds.pop("stdin"))

    async def _ready(self, fd: int, watch: object) -> None:
        loop = asyncio.get_running_loop()
        copy = os.dup(fd)  # of our own: another waiter may watch the same pipe
        event = asyncio.Event()
        try:
            if watch == loop.add_reader:
                loop.add_reader(copy, event.set)
            else:
                loop.add_writer(copy, event.set)
            await self._until(asyncio.ensure_future(event.wait()), None)
        finally:
            loop.remove_reader(copy)
            loop.remove_writer(copy)
            os.close(copy)

    # ---- inside --------------------------------------------------------------------------------

    def _find(self, container: str, exec_id: str) -> _Process:
        try:
            return self._processes[container, exec_id]
        except KeyError:
            raise RpcError(Code.NOT_FOUND, f"no process {container}/{exec_id}") from None

    def _open(self, process: _Process) -> None:
        if process.plan.terminal:
            ours, child = os.openpty()
            size = struct.pack("4H", process.plan.rows, process.plan.columns, 0, 0)
            fcntl.ioctl(ours, termios.TIOCSWINSZ, size)
            os.set_blocking(ours, False)
            process.fds = {"stdout": ours, "stdin": os.dup(ours), "child": child}
            return
        for name in ("stdout", "stderr"):
            read, write = os.pipe()
            os.set_blocking(read, False)
            process.fds |= {name: read, f"child {name}": write}
        read, write = os.pipe()
        os.set_blocking(write, False)
        process.fds |= {"stdin": write, "child stdin": read}

    def _spawn(self, process: _Process) -> None:
        plan, fds = process.plan, process.fds
        environ = dict(pair.decode().partition("=")[::2] for pair in plan.env)
        terminal = plan.terminal

        def own_terminal() -> None:
            os.setsid()
            if terminal:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        def stream(name: str, wanted: bool) -> int:
            if terminal:
                return fds["child"]
            return fds[f"child {name}"] if wanted else subprocess.DEVNULL

        process.child = subprocess.Popen(
            [os.fsdecode(word) for word in plan.args],
            env=environ,
            stdin=stream("stdin", plan.stdin),
            stdout=stream("stdout", plan.stdout),
            stderr=stream("stderr", plan.stderr),
            preexec_fn=own_terminal,
        )
        self._children.append(process.child)
        for name in [name for name in fds if name.startswith("child")]:
            os.close(fds.pop(name))

    def _watch(self, key: Key, process: _Process) -> None:
        assert process.child is not None
        loop = asyncio.get_running_loop()
        pidfd = os.pidfd_open(process.child.pid)

        def on_end() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            assert process.child is not None
            code = process.child.wait()
            self._ended(key, process, code if code >= 0 else 128 - code)

        loop.add_reader(pidfd, on_end)

    def _ended(self, key: Key, process: _Process, status: int) -> None:
        process.exited = True
        for name in [name for name in process.fds if name.startswith("child")]:
            os.close(process.fds.pop(name))
        container, exec_id = key
        if not exec_id:  # as the kernel does when a pid namespace ends
            for (owner, _), other in self._processes.items():
                if owner == container and other.child and not other.exited:
                    os.killpg(other.child.pid, signals.SIGKILL)
        if not self.lose_exits:
            self.emit(
                exited=guest_pb2.ProcessExited(
                    container_id=container, exec_id=exec_id, pid=process.pid, exit_status=status
                )
            )
