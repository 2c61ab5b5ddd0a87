"""The monitor, against a scripted peer on the other end of a socketpair."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from shims.core.errors import Unreachable
from shims.microvm.qmp import Command, Monitor, QmpError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GREETING: dict[str, Any] = {"QMP": {"version": {}, "capabilities": []}}
TIMEOUT = 5.0


class Peer:
    """QEMU's end, driven by hand."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.loop = asyncio.get_running_loop()
        self.buffer = b""

    async def say(self, *messages: dict[str, Any]) -> None:
        data = b"".join(json.dumps(message).encode() + b"\r\n" for message in messages)
        await self.loop.sock_sendall(self.sock, data)

    async def hear(self) -> dict[str, Any]:
        async with asyncio.timeout(TIMEOUT):
            while b"\n" not in self.buffer:
                self.buffer += await self.loop.sock_recv(self.sock, 65536)
        line, _, self.buffer = self.buffer.partition(b"\n")
        return dict(json.loads(line))


class Pair:
    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.monitor = Monitor(ours, lambda name, data: self.events.append((name, data)))
        self.peer = Peer(theirs)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    made = Pair()
    yield made
    made.monitor.close()
    made.peer.sock.close()


def event(name: str, **data: Any) -> dict[str, Any]:
    return {"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 5}}


async def test_answers_go_to_their_commands_in_order(pair: Pair) -> None:
    answers = [pair.monitor.send(Command(name, {})) for name in ("a", "b")]
    assert [(await pair.peer.hear())["execute"] for _ in range(2)] == ["a", "b"]
    await pair.peer.say(GREETING, {"return": 1}, event("RESUME"), {"return": {"x": 2}})
    async with asyncio.timeout(TIMEOUT):
        assert [await answer for answer in answers] == [1, {"x": 2}]
    assert pair.monitor.greeted.done()
    assert pair.events == [("RESUME", {})]


async def test_a_refusal_carries_qemus_words(pair: Pair) -> None:
    asked = asyncio.ensure_future(pair.monitor.execute("device_del", timeout=TIMEOUT, id="d"))
    assert (await pair.peer.hear())["arguments"] == {"id": "d"}
    await pair.peer.say({"error": {"class": "DeviceNotFound", "desc": "no d"}})
    with pytest.raises(QmpError, match="refused device_del: no d") as caught:
        await asked
    assert caught.value.kind == "DeviceNotFound"


async def test_the_first_of_several_refusals_is_raised(pair: Pair) -> None:
    commands = [Command("a", {}), Command("b", {}), Command("c", {})]
    asked = asyncio.ensure_future(pair.monitor.execute_all(commands, timeout=TIMEOUT))
    await pair.peer.say(
        {"return": {}},
        {"error": {"class": "GenericError", "desc": "first"}},
        {"error": {"class": "GenericError", "desc": "second"}},
    )
    with pytest.raises(QmpError, match="first"):
        await asked


async def test_messages_may_be_cut_anywhere(pair: Pair) -> None:
    answer = pair.monitor.send(Command("a", {}))
    data = json.dumps({"return": "é" * 10}, ensure_ascii=False).encode() + b"\n"
    for index in range(len(data)):
        await pair.peer.loop.sock_sendall(pair.peer.sock, data[index : index + 1])
        await asyncio.sleep(0)
    assert await asyncio.wait_for(answer, TIMEOUT) == "é" * 10


async def test_a_descriptor_goes_with_its_command(pair: Pair) -> None:
    read, write = os.pipe()
    _ = pair.monitor.send(Command("getfd", {"fdname": "x"}, write))
    os.close(write)
    payload, fds, _, _ = socket.recv_fds(pair.peer.sock, 4096, 1)
    assert json.loads(payload)["execute"] == "getfd"
    os.write(fds[0], b"through")
    os.close(fds[0])
    assert os.read(read, 100) == b"through"
    os.close(read)


async def test_a_hang_up_ends_whoever_waits(pair: Pair) -> None:
    waiting = pair.monitor.send(Command("a", {}))
    pair.peer.sock.close()
    with pytest.raises(Unreachable):
        await asyncio.wait_for(waiting, TIMEOUT)
    with pytest.raises(Unreachable):
        await pair.monitor.execute("b", timeout=TIMEOUT)
    pair.monitor.close()


async def test_a_silent_qemu_is_not_waited_for(pair: Pair) -> None:
    with pytest.raises(TimeoutError):
        await pair.monitor.execute("a", timeout=0.01)


async def test_more_than_the_socket_takes_is_sent_later(pair: Pair) -> None:
    blob = "x" * 300_000
    answers = [pair.monitor.send(Command("a", {"blob": blob})) for _ in range(5)]
    for _ in answers:
        assert (await pair.peer.hear())["arguments"]["blob"] == blob
        await pair.peer.say({"return": {}})
    async with asyncio.timeout(TIMEOUT):
        for answer in answers:
            assert await answer == {}


async def test_the_last_words_are_heard(pair: Pair) -> None:
    """QEMU's exit may be noticed before its last event was read."""
    pair.peer.sock.sendall(json.dumps(event("SHUTDOWN", reason="guest-reset")).encode() + b"\n")
    pair.peer.sock.close()
    pair.monitor.drain()
    assert pair.events == [("SHUTDOWN", {"reason": "guest-reset"})]


@pytest.mark.parametrize(
    "words",
    [
        b"{", b"[]", b'"event"', b'{"event": "X", "data": 1}', b'{"error": {}}', b'{"error": 5}',
        b'{"event": "X", "timestamp": {"seconds": 1, "microseconds": 1' + b"0" * 400 + b"}}",
    ],
)  # fmt: skip
async def test_whatever_a_hostile_qemu_says_raises_nothing_here(words: bytes) -> None:
    def on_event(_: str, data: dict[str, Any]) -> None:
        data["status"] / 0  # whatever a handler may stumble over

    ours, theirs = socket.socketpair()
    monitor = Monitor(ours, on_event)
    waiting = monitor.send(Command("a", {}))
    with theirs:
        theirs.sendall(words + b"\n")
    monitor.drain()
    with pytest.raises(Unreachable):
        await asyncio.wait_for(waiting, TIMEOUT)
    monitor.close()


async def test_commands_that_nobody_answers_are_not_piled_up(pair: Pair) -> None:
    answers = [pair.monitor.send(Command("a", {})) for _ in range(2000)]
    assert all(answer.done() for answer in answers)
    with pytest.raises(Unreachable):
        await answers[0]
