"""The copy loops between a process in the guest and its streams on the host.

Each stream of each process has a loop of its own, so that a reader that stalls holds up its own
process and nothing else. Output is asked for in bounded pieces: one is being written to the host
while the next is on its way, and no more is ever in flight, which is how backpressure reaches the
process. Input travels the same way, and its end travels behind the last byte.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from protos.gen.voidbox.guest.v1 import guest_pb2
from shims.core.errors import ShimError
from shims.ttrpc.codes import Code
from shims.ttrpc.errors import RpcError

if TYPE_CHECKING:
    from collections.abc import Callable

    from shims.containerd.shim.stdio import Endpoints, Sink

__all__ = ["Copies", "StreamGuest"]

_OUTPUT_PIECE = 512 * 1024
_INPUT_PIECE = 256 * 1024
_SMALL_PIECE = 64 * 1024
_LEAST_PATIENCE = 0.5
_BURST = 0.005
_PAUSE = 0.002
"""A guest answers as soon as there is a byte. A process that writes in small pieces without pause
would be read piece by piece, some 8 MB/s; asked a little later, its pipe has filled meanwhile. What
comes alone, as an echo does, is never delayed."""
_LONGEST_PAUSE = 0.5


class StreamGuest(Protocol):
    """What the loops need of the guest link."""

    async def read_stdio(
        self, container: str, exec_id: str, stream: guest_pb2.Stream, limit: int
    ) -> tuple[bytes, bool]:
        """Return at least one byte, or the end (True)."""

    async def write_stdio(
        self, container: str, exec_id: str, data: bytes, *, end: bool = False
    ) -> None:
        """Return when the process's pipe has taken ``data``."""


class Copies:
    """The loops of one process. ``begin`` them once; ``close`` them in any state."""

    def __init__(
        self,
        guest: StreamGuest,
        container_id: str,
        exec_id: str,
        ends: Endpoints,
        *,
        terminal: bool,
        report: Callable[[str], None],
    ) -> None:
        self._guest = guest
        self._container_id = container_id
        self._exec_id = exec_id
        self._ends = ends
        self._terminal = terminal
        self._report = report
        self._outputs: list[asyncio.Task[None]] = []
        self._input: asyncio.Task[None] | None = None
        self._input_ready = asyncio.Event()
        self._input_ends = False
        self._delivering = 0
        self._delivered = 0

    def begin(self) -> None:
        """Start copying, as soon as the guest knows the process."""
        ends = self._ends
        if ends.stdout is not None or self._terminal:
            self._spawn_output(guest_pb2.STREAM_STDOUT, ends.stdout)
        if ends.stderr is not None:
            self._spawn_output(guest_pb2.STREAM_STDERR, ends.stderr)
        if ends.stdin is not None:
            self._input = asyncio.create_task(
                self._guarded(self._copy_input(), "stdin"), name=f"stdin {self._exec_id}"
            )

    def end_input(self) -> None:
        """Let input end behind what the client has written until now (CloseIO)."""
        self._input_ends = True
        self._input_ready.set()

    async def drain(self, timeout: float) -> bool:
        """Wait for the end of the output, at most ``timeout`` seconds; say whether it came.

        Called when the process has exited; a child of it may keep its output open for ever.
        """
        await self._stop_input()
        if not self._outputs:
            return True
        _, pending = await asyncio.wait(self._outputs, timeout=timeout)
        return not pending

    @property
    def stalled(self) -> bool:
        """Whether the reader of an output is slower than the process just now."""
        return self._delivering > 0

    async def taken(self, patience: float) -> None:
        """Wait for the end of the output as long as it is the reader who is slow.

        A stream that has nothing to deliver, and had nothing for ``patience`` seconds, is held open
        by a child of the process, perhaps for ever: it is not waited for.
        """
        while any(not task.done() for task in self._outputs):
            before = self._delivered
            await asyncio.wait(self._outputs, timeout=max(patience, _LEAST_PATIENCE))
            if not self.stalled and self._delivered == before:
                return

    async def close(self) -> None:
        """Stop all loops and let go of the streams. May be repeated."""
        await self._stop_input()
        outputs, self._outputs = self._outputs, []
        for task in outputs:
            task.cancel()
        await asyncio.gather(*outputs, return_exceptions=True)
        await self._ends.close()

    async def _stop_input(self) -> None:
        task, self._input = self._input, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _spawn_output(self, stream: guest_pb2.Stream, sink: Sink | None) -> None:
        name = guest_pb2.Stream.Name(stream).removeprefix("STREAM_").lower()
        self._outputs.append(
            asyncio.create_task(
                self._guarded(self._copy_output(stream, sink), name),
                name=f"{name} {self._container_id} {self._exec_id}",
            )
        )

    async def _copy_output(self, stream: guest_pb2.Stream, sink: Sink | None) -> None:
        clock = asyncio.get_running_loop().time
        pending: asyncio.Task[tuple[bytes, bool]] | None = self._read(stream)
        arrived = clock()
        try:
            while pending is not None:
                data, end = await pending
                before, arrived = arrived, clock()
                trickles = len(data) < _SMALL_PIECE and arrived - before < _BURST
                pending = None if end or trickles else self._read(stream)
                if data and sink is not None:
                    sink = await self._deliver(sink, data)
                if trickles and not end:
                    await asyncio.sleep(_PAUSE)
                    pending = self._read(stream)
        finally:
            if pending is not None:
                pending.cancel()
                await asyncio.gather(pending, return_exceptions=True)
        if sink is not None:
            await sink.close()  # the reader sees the end now, not at Delete

    async def _deliver(self, sink: Sink, data: bytes) -> Sink | None:
        """Write ``data``; a full disk must not stop the process, so what follows is dropped."""
        self._delivering += 1
        try:
            await sink.write(data)
        except OSError as error:
            self._report(f"output of {self._container_id} {self._exec_id} is lost: {error}")
            await sink.close()
            return None
        finally:
            self._delivering -= 1
            self._delivered += len(data)
        return sink

    def _read(self, stream: guest_pb2.Stream) -> asyncio.Task[tuple[bytes, bool]]:
        return asyncio.create_task(
            self._guest.read_stdio(self._container_id, self._exec_id, stream, _OUTPUT_PIECE)
        )

    async def _copy_input(self) -> None:
        source = self._ends.stdin
        assert source is not None
        try:
            while True:
                # Taken before the read: input that ends now may still have bytes in the fifo.
                ends = self._input_ends
                data = source.read(_INPUT_PIECE)
                if data:
                    await self._write(data, end=False)
                elif ends or data == b"":
                    await self._write(b"", end=True)
                    return
                else:
                    self._input_ready.clear()
                    source.watch(self._input_ready)
                    if not self._input_ends:
                        await self._input_ready.wait()
        finally:
            # Nobody reads any more: a client that writes on is told so by EPIPE.
            await source.close()

    async def _write(self, data: bytes, *, end: bool) -> None:
        pause = _PAUSE
        while True:
            try:
                await self._guest.write_stdio(self._container_id, self._exec_id, data, end=end)
            except RpcError as error:
                # Of what it has no room for, the guest takes nothing: a little later it has.
                if error.code != Code.RESOURCE_EXHAUSTED:
                    raise
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                return

    async def _guarded(self, loop: object, name: str) -> None:
        """Run one loop to its end. A guest that is gone ends it quietly, a file error loudly."""
        assert asyncio.iscoroutine(loop)
        try:
            await loop
        except (ShimError, OSError) as error:
            self._report(f"{name} of {self._container_id} {self._exec_id}: {error}")
