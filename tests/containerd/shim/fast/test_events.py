"""Events reach containerd in order and all of them, whatever containerd does meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from protos.gen.containerd.events import task_pb2 as events
from protos.gen.containerd.services.events.ttrpc.v1.events_pb2 import ForwardRequest
from shims.containerd.shim import events as module
from shims.containerd.shim.events import SERVICE, Publisher
from shims.ttrpc.codes import Code
from shims.ttrpc.errors import RpcError
from shims.ttrpc.server import Context, Method, Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Containerd:
    """The side that takes events; can be stopped and started again, and be difficult."""

    def __init__(self, path: Path, namespace: str = "ns") -> None:
        self.path = path
        self.namespace = namespace
        self.taken: list[tuple[str, str]] = []
        self.metadata: list[str] = []
        self.refusals: list[RpcError] = []
        self.arrived = asyncio.Event()
        self._server: Server | None = None
        self._serving: asyncio.Task[None] | None = None

    def start(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen()
        self._server = Server()
        method = Method.unary(self._forward, ForwardRequest, Empty)
        self._server.add_service(SERVICE, {"Forward": method})
        self._serving = asyncio.create_task(self._server.serve(listener))

    async def stop(self) -> None:
        if self._server is not None and self._serving is not None:
            self._server.close()
            await self._serving
            self._server = None

    async def _forward(self, request: ForwardRequest, context: Context) -> Empty:
        if self.refusals:
            raise self.refusals.pop(0)
        envelope = request.envelope
        assert envelope.event.type_url == "containerd.events.TaskExit"
        event = events.TaskExit.FromString(envelope.event.value)
        self.taken.append((envelope.topic, event.container_id))
        self.metadata.append(context.first("containerd-namespace-ttrpc"))
        assert envelope.namespace == self.namespace
        assert envelope.timestamp.seconds > 1_700_000_000
        self.arrived.set()
        return Empty()

    def ids(self) -> list[str]:
        return [identifier for _, identifier in self.taken]


@pytest.fixture
async def containerd(tmp_path: Path) -> AsyncIterator[Containerd]:
    containerd = Containerd(tmp_path / "containerd.ttrpc")
    yield containerd
    await containerd.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_DELAY", 0.001)
    monkeypatch.setattr(module, "_LONGEST_DELAY", 0.01)


def publisher(tmp_path: Path, containerd: Containerd) -> Publisher:
    return Publisher(str(tmp_path), "ns", ttrpc_address=f"unix://{containerd.path}")


def publish(target: Publisher, *names: str) -> None:
    for name in names:
        target.publish("/tasks/exit", events.TaskExit(container_id=name))


async def test_in_order(tmp_path: Path, containerd: Containerd) -> None:
    containerd.start()
    names = [str(number) for number in range(300)]
    async with publisher(tmp_path, containerd) as target:
        publish(target, *names)
        assert await target.flush(20)
        assert target.pending == 0
    assert containerd.ids() == names
    assert set(containerd.taken) == {("/tasks/exit", name) for name in names}
    assert set(containerd.metadata) == {"ns"}
    assert (tmp_path / "events.jsonl").stat().st_size == 0


async def test_containerd_is_away(tmp_path: Path, containerd: Containerd) -> None:
    async with publisher(tmp_path, containerd) as target:
        publish(target, "a", "b")
        assert not await target.flush(0.05)
        assert target.pending == 2
        containerd.start()
        assert await target.flush(20)
        publish(target, "c")
        assert await target.flush(20)
        await containerd.stop()
        publish(target, "d", "e")
        assert not await target.flush(0.05)
        containerd.start()
        assert await target.flush(20)
    assert containerd.ids() == ["a", "b", "c", "d", "e"]


async def test_a_later_daemon_replays_the_journal(tmp_path: Path, containerd: Containerd) -> None:
    containerd.start()
    async with publisher(tmp_path, containerd) as target:
        publish(target, "a", "b")
        assert await target.flush(20)
        await containerd.stop()
        publish(target, "c", "d")
    containerd.start()
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"number": 9, "topic": "cut o')
    async with publisher(tmp_path, containerd) as target:
        publish(target, "e")
        assert await target.flush(20)
    assert containerd.ids() == ["a", "b", "c", "d", "e"]


async def test_what_was_taken_is_not_replayed(tmp_path: Path, containerd: Containerd) -> None:
    containerd.refusals = []
    containerd.start()
    async with publisher(tmp_path, containerd) as target:
        publish(target, "a")
        await containerd.arrived.wait()
        await containerd.stop()
        publish(target, "b", "c")
    containerd.start()
    async with publisher(tmp_path, containerd) as target:
        assert await target.flush(20)
    # At least once: "a" may come twice when its answer was lost.
    assert [name for name in containerd.ids() if name != "a"] == ["b", "c"]


@pytest.mark.parametrize(
    ("code", "kept"),
    [(Code.UNAVAILABLE, True), (Code.UNKNOWN, True), (Code.INVALID_ARGUMENT, False)],
)
async def test_refusals(tmp_path: Path, containerd: Containerd, code: Code, kept: bool) -> None:
    """An answer that may change is waited out; one that will not holds up nobody else."""
    containerd.refusals = [RpcError(code, "no")]
    containerd.start()
    async with publisher(tmp_path, containerd) as target:
        publish(target, "a", "b")
        assert await target.flush(20)
    assert containerd.ids() == (["a", "b"] if kept else ["b"])


async def test_the_queue_is_bounded(
    tmp_path: Path, containerd: Containerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LARGEST_JOURNAL", 1000)
    async with publisher(tmp_path, containerd) as target:
        publish(target, *(f"container-{number}" for number in range(200)))
        assert target.pending < 100
    assert (tmp_path / "events.jsonl").stat().st_size < 30_000


async def test_what_was_delivered_does_not_fill_the_disk(
    tmp_path: Path, containerd: Containerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even when one event always waits, so that the journal is never empty."""
    monkeypatch.setattr(module, "_MOST_DELIVERED", 10_000)
    containerd.start()
    journal, sizes = tmp_path / "events.jsonl", []
    names = [str(number) for number in range(1000)]
    async with publisher(tmp_path, containerd) as target:
        publish(target, names[0])
        for name in names[1:]:
            publish(target, name)
            while target.pending > 1:
                target._taken.clear()
                await asyncio.wait_for(target._taken.wait(), 10)
            sizes.append(journal.stat().st_size)
        assert containerd.ids() == names[: len(containerd.ids())]
        waiting = target.pending
        await containerd.stop()
        publish(target, "last")
    assert min(sizes) > 0
    assert max(sizes) < 20_000
    containerd.start()
    async with publisher(tmp_path, containerd) as target:
        assert target.pending in {1, 1 + waiting}
        assert await target.flush(20)
    seen = list(dict.fromkeys(containerd.ids()))
    assert seen == [*names, "last"]
    assert [path.name for path in tmp_path.glob("events*")] == ["events.jsonl"]


async def test_a_journal_that_cannot_be_rewritten_is_kept(
    tmp_path: Path, containerd: Containerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_MOST_DELIVERED", 0)
    monkeypatch.setattr(module, "write_file", refuse)
    containerd.start()
    async with publisher(tmp_path, containerd) as target:
        publish(target, "a", "b", "c")
        assert await target.flush(20)
    assert containerd.ids() == ["a", "b", "c"]


async def test_publish_binary(tmp_path: Path) -> None:
    program = tmp_path / "containerd"
    out = tmp_path / "out"
    program.write_text(f'#!/bin/sh\necho "$@" >>{out}.args\ncat >>{out}\n')
    program.chmod(0o755)
    target = Publisher(
        str(tmp_path), "ns", ttrpc_address="", publish_binary=str(program), grpc_address="/grpc"
    )
    async with target:
        publish(target, "a")
        assert await target.flush(20)
    arguments = Path(f"{out}.args").read_text().strip()
    assert arguments == "--address /grpc publish --topic /tasks/exit --namespace ns"
    payload = AnyMessage.FromString(out.read_bytes())
    assert payload.type_url == "containerd.events.TaskExit"


async def test_nobody_to_tell(tmp_path: Path) -> None:
    async with Publisher(str(tmp_path), "ns", ttrpc_address="") as target:
        publish(target, "a")
        assert await target.flush(5)
