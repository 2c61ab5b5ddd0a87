"""Events for containerd: journaled on disk until it took them, in order.

containerd forgets nothing that it answered, and may be away for minutes (a restart, an upgrade).
So an event is written to ``events.jsonl`` first, then forwarded over ttrpc, one at a time, and
crossed off when the answer came. A shim that is started again in the same state directory replays
what is left; where none is, the courier takes it (see there). Delivery is at least once: consumers
tolerate duplicates, not losses.

Without a ttrpc address (an old or foreign daemon) the publish program is run for each event.
"""

from __future__ import annotations

import asyncio
import base64
import collections
import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING, NamedTuple, Self

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from protos.gen.containerd.services.events.ttrpc.v1.events_pb2 import ForwardRequest
from shims.containerd.shim.journal import Journal
from shims.containerd.shim.quickjson import dump_flat
from shims.containerd.shim.state import write_file
from shims.core.errors import ShimError
from shims.ttrpc.client import Client
from shims.ttrpc.codes import Code
from shims.ttrpc.errors import RpcError

if TYPE_CHECKING:
    from google.protobuf.message import Message

__all__ = ["Publisher"]

_log = logging.getLogger(__name__)

SERVICE = "containerd.services.events.ttrpc.v1.Events"
CALL_SECONDS = 5.0
_FIRST_DELAY = 0.05
_LONGEST_DELAY = 5.0
_LARGEST_JOURNAL = 32 << 20
"""Bytes of events that wait; at some hundred bytes each this is a hundred thousand of them."""
_MOST_DELIVERED = 1 << 20
"""Bytes of delivered events in the journal above which it is written anew without them."""
_RECORD = 256
"""About as many bytes a record has besides its data, with the one that crosses it off."""
_NS = 1_000_000_000
_HOPELESS = frozenset((Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED, Code.RESOURCE_EXHAUSTED))
"""Answers that will not change: the event is dropped rather than hold up all that follow."""


class _Event(NamedTuple):
    number: int
    topic: str
    type_url: str
    data: bytes
    at_ns: int


class Publisher:
    """The one queue of events of a shim. ``async with Publisher(...) as publisher``.

    ``directory`` is the shim's state directory. ``publish`` may be called before the block is
    entered.
    """

    def __init__(
        self,
        directory: str,
        namespace: str,
        *,
        ttrpc_address: str,
        publish_binary: str = "",
        grpc_address: str = "",
    ) -> None:
        self._namespace = namespace
        self._address = ttrpc_address.removeprefix("unix://")
        self._publish_binary = publish_binary
        self._grpc_address = grpc_address
        self._journal = Journal(f"{directory}/events.jsonl")
        self._queue: collections.deque[_Event] = collections.deque()
        self._bytes = 0
        self._delivered = 0
        """Bytes in the journal that are crossed off, about."""
        self._dropped = 0
        self._number = 0
        self._changed = asyncio.Event()
        self._taken = asyncio.Event()
        self._client: Client | None = None
        self._task: asyncio.Task[None] | None = None
        self._replay()

    def publish(self, topic: str, event: Message) -> None:
        """Journal one event of containerd.events; never blocks, never fails, keeps order."""
        self._number += 1
        type_url = event.DESCRIPTOR.full_name
        item = _Event(self._number, topic, type_url, event.SerializeToString(), time.time_ns())
        if self._bytes + len(item.data) > _LARGEST_JOURNAL:
            self._dropped += 1
            _log.error("event %s dropped, the %d-th: containerd takes none", topic, self._dropped)
            return
        self._write(_record(item))
        self._append(item)

    @property
    def pending(self) -> int:
        """How many events containerd has not taken yet."""
        return len(self._queue)

    async def flush(self, timeout: float) -> bool:
        """Wait until containerd took everything; return whether it did."""
        try:
            async with asyncio.timeout(timeout):
                while self._queue:
                    self._taken.clear()
                    await self._taken.wait()
        except TimeoutError:
            return False
        return True

    async def __aenter__(self) -> Self:
        """Begin to forward, first of all what an earlier daemon left in the journal."""
        self._task = asyncio.create_task(self._run(), name="events")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop forwarding; what is not taken stays in the journal."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._disconnect()
        self._journal.close()

    def _append(self, item: _Event) -> None:
        self._queue.append(item)
        self._bytes += len(item.data)
        self._changed.set()

    def _replay(self) -> None:
        done = 0
        found: list[_Event] = []
        for record in self._journal.read():
            number = record.get("taken")
            if isinstance(number, int):
                done = max(done, number)
            elif (item := _event(record)) is not None:
                found.append(item)
                self._number = max(self._number, item.number)
        for item in found:
            if item.number > done:
                self._append(item)

    def _write(self, record: dict[str, str | int]) -> None:
        try:
            self._journal.append(record)
        except OSError as error:  # a full disk: the event still goes out from memory
            _log.warning("event journal: %s", error)

    async def _run(self) -> None:
        delay = _FIRST_DELAY
        while True:
            while not self._queue:
                self._changed.clear()
                await self._changed.wait()
            if await self._forward_first():
                delay = _FIRST_DELAY
                continue
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_DELAY)

    async def _forward_first(self) -> bool:
        """Forward the oldest event; return whether it is out of the way."""
        item = self._queue[0]
        try:
            if self._address:
                await self._forward(item)
            elif self._publish_binary:
                await self._run_publish(item)
        except RpcError as error:
            _log.warning("event %s: %s", item.topic, error)
            if error.code not in _HOPELESS:
                return False
        except (ShimError, OSError, TimeoutError) as error:
            _log.info("event %s waits for containerd: %s", item.topic, error)
            await self._disconnect()
            return False
        self._cross_off(item)
        return True

    def _cross_off(self, item: _Event) -> None:
        self._queue.popleft()
        self._bytes -= len(item.data)
        self._delivered += len(item.data) + _RECORD
        if not self._queue:
            # The journal starts anew whenever it is empty, and so stays small.
            self._truncate(item)
        # Not more often than what is left to write is worth it.
        elif self._delivered <= max(_MOST_DELIVERED, self._bytes) or not self._compact():
            self._write({"taken": item.number})
        self._taken.set()

    def _compact(self) -> bool:
        """Write the journal anew with what still waits; return whether that was possible."""
        lines = [dump_flat(_record(item)) + "\n" for item in self._queue]
        self._journal.close()
        self._delivered = 0
        try:
            write_file(self._journal.path, "".join(lines))
        except OSError as error:
            _log.warning("event journal: %s", error)
            return False
        return True

    def _truncate(self, item: _Event) -> None:
        self._journal.close()
        self._delivered = 0
        try:
            os.truncate(self._journal.path, 0)
        except FileNotFoundError:
            pass
        except OSError:
            self._write({"taken": item.number})

    async def _forward(self, item: _Event) -> None:
        if self._client is None or self._client.closed.is_set():
            await self._disconnect()
            self._client = await Client.connect(self._address, timeout=CALL_SECONDS)
        request = ForwardRequest()
        envelope = request.envelope
        envelope.timestamp.seconds, envelope.timestamp.nanos = divmod(item.at_ns, _NS)
        envelope.namespace = self._namespace
        envelope.topic = item.topic
        envelope.event.type_url = item.type_url
        envelope.event.value = item.data
        # containerd files events under the namespace of the call's metadata.
        metadata = (("containerd-namespace-ttrpc", self._namespace),)
        await self._client.unary(
            SERVICE, "Forward", request, Empty, timeout=CALL_SECONDS, metadata=metadata
        )

    async def _run_publish(self, item: _Event) -> None:
        process = await asyncio.create_subprocess_exec(
            self._publish_binary,
            "--address",
            self._grpc_address,
            "publish",
            "--topic",
            item.topic,
            "--namespace",
            self._namespace,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        payload = AnyMessage(type_url=item.type_url, value=item.data).SerializeToString()
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await process.communicate(payload)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise OSError(f"{self._publish_binary} exited with {process.returncode}")

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()


def _record(item: _Event) -> dict[str, str | int]:
    """Return the line of the journal for an event."""
    return {
        "number": item.number,
        "topic": item.topic,
        "type": item.type_url,
        "data": base64.b64encode(item.data).decode(),
        "at_ns": item.at_ns,
    }


def _event(record: dict[str, object]) -> _Event | None:
    """Return the event in a line of the journal; None when the line is damaged."""
    match record:
        case {
            "number": int(number),
            "topic": str(topic),
            "type": str(type_url),
            "data": str(data),
            "at_ns": int(at_ns),
        }:
            try:
                return _Event(number, topic, type_url, base64.b64decode(data), at_ns)
            except ValueError:
                return None
        case _:
            return None
