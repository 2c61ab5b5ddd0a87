"""The host end of the guest link: one connection to a VM's void-init.

``GuestLink.connect`` performs the preamble (protos/guest-link.md) and Hello, after which every
method is one call of protos/voidbox/guest/v1/guest.proto. What the guest refuses arrives as
RpcError, a link that broke as LinkClosed, an answer that is late as DeadlineExceeded.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from protos.gen.voidbox.guest.v1 import guest_pb2 as pb
from shims.guest.hello import WELL_KNOWN_TOKEN, Hello, shake_hands, wait_ready
from shims.ttrpc.client import Client

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Iterable, Sequence
    from types import TracebackType

__all__ = ["WELL_KNOWN_TOKEN", "GuestLink", "Hello", "TreeEntry", "wait_ready"]

SERVICE = "voidbox.guest.v1.Guest"
PORT_NAME = "dev.void-box.guest.0"
"""Name of the virtio-serial port that carries the link."""

CALL_TIMEOUT = 10.0
LAUNCH_TIMEOUT = 60.0
_EVENT_WAIT_MS = 600_000
"""NextEvents answers empty after this long; only to find out that nobody lost the call."""
_PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class TreeEntry:
    """One entry of ``GuestLink.write_tree``."""

    path: str
    """Relative to the tree's root; empty for the root itself."""
    kind: pb.WriteFileRequest.Kind = pb.WriteFileRequest.KIND_FILE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    data: bytes = b""
    """Content of a file, target of a symbolic link."""


class GuestLink:
    """One connection. Make one with ``connect``; use it with ``async with`` or ``close`` it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.info = pb.HelloResponse()
        """What the guest said to Hello: versions, and the containers that are there already."""
        self.closed: asyncio.Future[None] = client.loop.create_future()
        """Done when the link broke or was closed."""
        self._watch = client.loop.create_task(self._wait_closed(), name="guest link closed")

    @classmethod
    async def connect(
        cls,
        sock: socket.socket,
        hello: Hello,
        *,
        token: bytes = WELL_KNOWN_TOKEN,
        timeout: float,
    ) -> Self:
        """Return the link over a connected stream socket, which it owns from here on.

        ``token`` is what the latest Hello set with ``resync_token``; a VM that never heard one
        knows the well-known token. ``timeout`` covers boot, preamble and Hello, in seconds.
        Raises DeadlineExceeded, Unreachable, or the guest's RpcError.
        """
        until = asyncio.get_running_loop().time() + timeout
        try:
            received = await shake_hands(sock, token, timeout)
            client = await Client.connect(sock, received=received)
        except BaseException:
            sock.close()
            raise
        link = cls(client)
        try:
            left = max(0.1, until - client.loop.time())
            link.info = await link._call("Hello", hello.to_message(token), pb.HelloResponse, left)
        except BaseException:
            await link.close()
            raise
        return link

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; the VM lives on. May be repeated."""
        await self._client.close()
        await self._watch

    async def _wait_closed(self) -> None:
        await self._client.closed.wait()
        if not self.closed.done():
            self.closed.set_result(None)

    async def _call(self, method: str, request: Any, answer: Any, timeout: float | None) -> Any:
        return await self._client.unary(SERVICE, method, request, answer, timeout=timeout)

    # Containers and processes.

    async def create_container(
        self, plan: pb.LaunchPlan, *, timeout: float = LAUNCH_TIMEOUT
    ) -> int:
        """Carry out the plan up to execve; return the pid of the container's first process."""
        request = pb.CreateContainerRequest(plan=plan)
        answer = await self._call("CreateContainer", request, pb.ProcessStarted, timeout)
        return int(answer.pid)

    async def add_process(
        self,
        container: str,
        exec_id: str,
        process: pb.ProcessPlan,
        *,
        timeout: float = CALL_TIMEOUT,
    ) -> None:
        """Declare an exec; nothing runs before ``start_process``."""
        request = pb.AddProcessRequest(container_id=container, exec_id=exec_id, process=process)
        await self._call("AddProcess", request, pb.Empty, timeout)

    async def start_process(
        self, container: str, exec_id: str = "", *, timeout: float = LAUNCH_TIMEOUT
    ) -> int:
        """Let a created process run; return its pid. Fails as execve does."""
        request = pb.ProcessRef(container_id=container, exec_id=exec_id)
        answer = await self._call("StartProcess", request, pb.ProcessStarted, timeout)
        return int(answer.pid)

    async def signal_process(
        self,
        container: str,
        exec_id: str = "",
        *,
        signal: int,
        everyone: bool = False,
        timeout: float = CALL_TIMEOUT,
    ) -> None:
        """Send a signal to one process, or to every process of the container."""
        request = pb.SignalProcessRequest(
            container_id=container, exec_id=exec_id, signal=signal, all=everyone
        )
        await self._call("SignalProcess", request, pb.Empty, timeout)

    async def delete_process(
        self, container: str, exec_id: str = "", *, timeout: float = CALL_TIMEOUT
    ) -> None:
        """Forget an exited exec, or the exited container with everything that belongs to it."""
        request = pb.ProcessRef(container_id=container, exec_id=exec_id)
        await self._call("DeleteProcess", request, pb.Empty, timeout)

    async def list_processes(
        self, container: str, *, timeout: float = CALL_TIMEOUT
    ) -> list[pb.ProcessInfo]:
        """Return every process in the container, children included."""
        request = pb.ContainerRef(container_id=container)
        answer = await self._call("ListProcesses", request, pb.ProcessList, timeout)
        return list(answer.processes)

    async def events(self, after: int = 0) -> AsyncIterator[pb.Event]:
        """Yield what happened after number ``after``; ends with LinkClosed.

        An event is acknowledged when the one after its batch is asked for: whoever reconnects and
        goes on after the last one that he has dealt with misses nothing.
        """
        while True:
            request = pb.NextEventsRequest(after=after, wait_ms=_EVENT_WAIT_MS)
            answer = await self._call("NextEvents", request, pb.EventList, None)
            for event in answer.events:
                yield event
                after = event.sequence

    # Standard streams.

    async def read_stdio(
        self, container: str, exec_id: str, stream: pb.Stream, limit: int = _PIECE
    ) -> tuple[bytes, bool]:
        """Return bytes and whether the stream has ended; waits for at least one of the two."""
        request = pb.ReadStdioRequest(
            container_id=container, exec_id=exec_id, stream=stream, limit=limit
        )
        answer = await self._call("ReadStdio", request, pb.StdioData, None)
        return answer.data, answer.end

    async def stream_stdio(
        self, container: str, exec_id: str, stream: pb.Stream, *, depth: int = 2
    ) -> AsyncIterator[bytes]:
        """Yield a stream's bytes to its end, with ``depth`` (1 to 4) reads under way.

        The guest works on the next piece while this one is dealt with. It stops when the consumer
        does. Closing the iterator early loses what the reads under way bring.
        """
        reads: deque[asyncio.Task[tuple[bytes, bool]]] = deque()
        end = False
        try:
            while not end:
                while len(reads) < depth:
                    read = self.read_stdio(container, exec_id, stream)
                    reads.append(asyncio.create_task(read, name="guest link stdio"))
                data, end = await reads.popleft()
                if data:
                    yield data
        finally:
            for task in reads:
                task.cancel()
            await asyncio.gather(*reads, return_exceptions=True)

    async def write_stdio(
        self, container: str, exec_id: str, data: bytes, *, end: bool = False
    ) -> None:
        """Return when the process's pipe has taken all of ``data``; ``end`` closes it after that.

        Keep ``data`` to a MiB or so; a frame holds less than 4.
        """
        request = pb.WriteStdioRequest(container_id=container, exec_id=exec_id, data=data, end=end)
        await self._call("WriteStdio", request, pb.Empty, None)

    async def resize_terminal(
        self,
        container: str,
        exec_id: str,
        rows: int,
        columns: int,
        *,
        timeout: float = CALL_TIMEOUT,
    ) -> None:
        """Set the size of a process's terminal, also before its start."""
        request = pb.ResizeTerminalRequest(
            container_id=container, exec_id=exec_id, rows=rows, columns=columns
        )
        await self._call("ResizeTerminal", request, pb.Empty, timeout)

    # Resources.

    async def freeze(
        self, container: str, frozen: bool, *, timeout: float = CALL_TIMEOUT + 5
    ) -> None:
        """Stop or resume every process of the container; returns when that is so."""
        request = pb.FreezeRequest(container_id=container, frozen=frozen)
        await self._call("Freeze", request, pb.Empty, timeout)

    async def stats(self, container: str, *, timeout: float = CALL_TIMEOUT) -> pb.StatsReply:
        """Return the container's cgroup files, unparsed, and its interfaces' counters."""
        request = pb.ContainerRef(container_id=container)
        answer: pb.StatsReply = await self._call("Stats", request, pb.StatsReply, timeout)
        return answer

    async def update_cgroup(
        self, container: str, writes: Sequence[pb.CgroupWrite], *, timeout: float = CALL_TIMEOUT
    ) -> None:
        """Carry out cgroup writes in their order; stops at the first that the kernel refuses."""
        request = pb.UpdateCgroupRequest(container_id=container, writes=writes)
        await self._call("UpdateCgroup", request, pb.Empty, timeout)

    # Files, disks, network of the VM.

    async def write_file(
        self,
        path: str,
        data: bytes,
        *,
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
        in_place: bool = False,
        timeout: float = CALL_TIMEOUT,
    ) -> None:
        """Write one file below /run/void, parents included; it appears whole, by rename.

        ``in_place`` keeps the inode instead, for a file that is bind-mounted somewhere.
        """
        for offset in range(0, max(1, len(data)), _PIECE):
            request = pb.WriteFileRequest(
                path=os.fsencode(path),
                kind=pb.WriteFileRequest.KIND_FILE,
                mode=mode,
                uid=uid,
                gid=gid,
                data=data[offset : offset + _PIECE],
                offset=offset,
                last=offset + _PIECE >= len(data),
                in_place=in_place,
            )
            await self._call("WriteFile", request, pb.Empty, timeout)

    async def write_tree(
        self, root: str, entries: Iterable[TreeEntry], *, timeout: float = CALL_TIMEOUT
    ) -> None:
        """Write entries below ``root`` in their order; ``timeout`` is for each call."""
        for entry in entries:
            path = f"{root}/{entry.path}" if entry.path else root
            if entry.kind == pb.WriteFileRequest.KIND_FILE:
                await self.write_file(
                    path, entry.data, mode=entry.mode, uid=entry.uid, gid=entry.gid,
                    timeout=timeout,
                )  # fmt: skip
                continue
            request = pb.WriteFileRequest(
                path=os.fsencode(path),
                kind=entry.kind,
                mode=entry.mode,
                uid=entry.uid,
                gid=entry.gid,
                data=entry.data,
                last=True,
            )
            await self._call("WriteFile", request, pb.Empty, timeout)

    async def read_file(
        self, path: str, *, limit: int = 16 << 20, timeout: float = CALL_TIMEOUT
    ) -> bytes:
        """Return the content of a regular file of the VM, at most ``limit`` bytes of it."""
        pieces: list[bytes] = []
        size, end = 0, False
        while not end and size < limit:
            request = pb.ReadFileRequest(
                path=os.fsencode(path), offset=size, limit=min(_PIECE, limit - size)
            )
            answer = await self._call("ReadFile", request, pb.FileData, timeout)
            pieces.append(answer.data)
            size, end = size + len(answer.data), answer.end
        return b"".join(pieces)

    async def remove_file(
        self, path: str, *, recursive: bool = False, timeout: float = CALL_TIMEOUT
    ) -> None:
        """Remove a file or directory below /run/void; absent is no error."""
        request = pb.RemoveFileRequest(path=os.fsencode(path), recursive=recursive)
        await self._call("RemoveFile", request, pb.Empty, timeout)

    async def probe_disk(self, serial: str, *, timeout: float = CALL_TIMEOUT) -> pb.DiskReply:
        """Wait until the disk with this serial can be opened; NOT_FOUND when it does not come."""
        request = pb.DiskRequest(serial=serial, wait_ms=int(timeout * 1000))
        answer: pb.DiskReply = await self._call(
            "ProbeDisk", request, pb.DiskReply, timeout + CALL_TIMEOUT
        )
        return answer

    async def release_disk(self, serial: str, *, timeout: float = CALL_TIMEOUT) -> None:
        """Make the VM let go of a disk, before it is unplugged; absent is no error."""
        await self._call("ReleaseDisk", pb.DiskRequest(serial=serial), pb.Empty, timeout)

    async def configure_network(
        self, plan: pb.NetworkPlan, *, timeout: float = CALL_TIMEOUT
    ) -> None:
        """Set up links, addresses, routes and neighbours; loopback in any case."""
        await self._call("ConfigureNetwork", plan, pb.Empty, timeout)

    async def telemetry(self, *, timeout: float = CALL_TIMEOUT) -> pb.TelemetrySample:
        """Return one sample of the VM's load."""
        answer: pb.TelemetrySample = await self._call(
            "Telemetry", pb.Empty(), pb.TelemetrySample, timeout
        )
        return answer

    async def power_off(self, *, timeout: float = CALL_TIMEOUT) -> None:
        """Power the VM off; returns when void-init has agreed. The machine's end comes after."""
        await self._call("PowerOff", pb.Empty(), pb.Empty, timeout)
