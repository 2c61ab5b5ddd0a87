"""QMP, QEMU's monitor: newline-separated JSON over a socket that was connected before QEMU began.

Why not the qemu.qmp library: a clone's start is a race of milliseconds. The library waits for the
greeting, then for each answer (0.4 ms a command here, and 6 ms to import); this client writes the
whole conversation into the socket before QEMU has been executed, and hands descriptors over in the
same breath. The protocol: https://www.qemu.org/docs/master/interop/qmp-spec.html.
"""

from __future__ import annotations

import array
import asyncio
import json
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shims.core.errors import TargetError, Unreachable

__all__ = ["Command", "Monitor", "QmpError"]

_READ_SIZE = 64 * 1024
_LARGEST_MESSAGE = 4 * 1024 * 1024
_MOST_WAITING = 256
"""Commands without an answer; a start and its disks send a score."""

EventHandler = Callable[[str, dict[str, Any]], None]


class QmpError(TargetError):
    """QEMU refused a command. ``command`` and QEMU's words (``description``, ``kind``)."""

    def __init__(self, command: str, description: str, kind: str) -> None:
        super().__init__(f"QEMU refused {command}: {description}")
        self.command = command
        self.description = description
        self.kind = kind


@dataclass(frozen=True)
class Command:
    """One command, with at most one descriptor to hand over."""

    name: str
    arguments: dict[str, Any]
    fd: int | None = None


class Monitor:
    """A QMP connection. Commands are answered in the order in which they were sent.

    ``on_event(name, data)`` is called in the loop for every event. Owns ``sock``. After ``close``,
    or when QEMU hangs up or talks nonsense, waiting callers get ``Unreachable``.
    """

    def __init__(self, sock: socket.socket, on_event: EventHandler) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[str, asyncio.Future[Any]]] = deque()
        self._input = bytearray()
        self._outgoing: deque[tuple[memoryview, int | None]] = deque()
        self._closed = False
        self.greeted: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        """QEMU's greeting; its time is when QEMU could first be spoken to."""
        self._loop.add_reader(sock.fileno(), self._readable)

    def send(self, command: Command) -> asyncio.Future[Any]:
        """Send a command at once and return the future of what it returns.

        The caller may close ``command.fd`` when the future is done.
        """
        answer: asyncio.Future[Any] = self._loop.create_future()
        answer.add_done_callback(_mark_retrieved)
        if len(self._waiting) >= _MOST_WAITING:
            self.close()  # a QEMU that does not answer must not fill our memory
        if self._closed:
            answer.set_exception(Unreachable("QEMU's monitor is closed"))
            return answer
        self._waiting.append((command.name, answer))
        message = json.dumps({"execute": command.name, "arguments": command.arguments})
        self._outgoing.append((memoryview(message.encode() + b"\n"), command.fd))
        self._flush()
        return answer

    async def execute(
        self, name: str, *, timeout: float, fd: int | None = None, **args: Any
    ) -> Any:
        """Send one command and return its result.

        Argument names are written with underscores for dashes. Raises ``QmpError`` when QEMU
        refuses, ``Unreachable`` when it hung up, ``TimeoutError`` after ``timeout`` seconds.
        """
        arguments = {key.replace("_", "-"): value for key, value in args.items()}
        return await asyncio.wait_for(self.send(Command(name, arguments, fd)), timeout)

    async def execute_all(self, commands: Sequence[Command], *, timeout: float) -> list[Any]:
        """Send commands in one go; return all results, or raise the first refusal.

        QEMU carries out the later ones even when an earlier one was refused.
        """
        answers = [self.send(command) for command in commands]
        async with asyncio.timeout(timeout):
            return [await answer for answer in answers]

    def drain(self) -> None:
        """Take what has arrived until now, without waiting: the last events of a dead QEMU."""
        while not self._closed and self._read():
            pass

    def close(self) -> None:
        """Close the connection. May be repeated."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._outgoing.clear()
        gone = Unreachable("QEMU hung up its monitor")
        self.greeted.cancel()
        while self._waiting:
            _, answer = self._waiting.popleft()
            if not answer.done():
                answer.set_exception(gone)

    def _flush(self) -> None:
        while self._outgoing:
            data, fd = self._outgoing[0]
            rights = [] if fd is None else [_rights(fd)]
            try:
                sent = self._sock.sendmsg([data], rights)
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._flush)
                return
            except OSError:
                self.close()
                return
            if sent == len(data):
                self._outgoing.popleft()
            else:
                self._outgoing[0] = (data[sent:], None)  # the descriptor went with the first bytes
        self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        self._read()

    def _read(self) -> bool:
        try:
            data = self._sock.recv(_READ_SIZE)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data or len(self._input) > _LARGEST_MESSAGE:
            self.close()
            return False
        self._input += data
        *lines, rest = self._input.split(b"\n")
        self._input = bytearray(rest)
        try:
            for line in lines:
                if line.strip():
                    self._dispatch(json.loads(line))
        except Exception:
            # A guest that has taken QEMU over may say anything here: then nobody listens any more.
            # Nothing may get past: whoever drains the monitor is about to announce QEMU's end.
            self.close()
            return False
        return True

    def _dispatch(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self._on_event(message["event"], message.get("data", {}))
        elif "QMP" in message:
            if not self.greeted.done():
                self.greeted.set_result(message["QMP"])
        elif self._waiting:
            name, answer = self._waiting[0]
            refusal, result = None, message.get("return")
            if "error" in message:
                error = message["error"]
                refusal = QmpError(name, error["desc"], error["class"])
            self._waiting.popleft()  # not before: an answer that makes no sense is none
            if answer.done():
                return
            if refusal:
                answer.set_exception(refusal)
            else:
                answer.set_result(result)


def _rights(fd: int) -> tuple[int, int, array.array[int]]:
    return (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))


def _mark_retrieved(answer: asyncio.Future[Any]) -> None:
    # A pipelined command's failure is reported once, by whoever waits for the first of them.
    if not answer.cancelled():
        answer.exception()
