"""Standard streams: no byte lost, none out of order, and a stalled reader stalls nobody else."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from typing import TYPE_CHECKING

import pytest

from protos.gen.voidbox.guest.v1 import guest_pb2 as pb
from shims.ttrpc.codes import Code
from shims.ttrpc.errors import RpcError
from tests.guest.init.harness import (
    DEADLINE,
    container_plan,
    next_exits,
    process_plan,
    read_all,
    run_container,
    terminal_plan,
)

if TYPE_CHECKING:
    from shims.guest.link import GuestLink
    from tests.guest.init.harness import Guest

pytestmark = pytest.mark.root

OUT, ERR = pb.STREAM_STDOUT, pb.STREAM_STDERR
_SIZE = 20 << 20
_LEAST_MB_PER_S = 200


async def _feed(link: GuestLink, container: str, data: bytes, piece: int = 1 << 18) -> None:
    for at in range(0, len(data), piece):
        await link.write_stdio(container, "", data[at : at + piece])
    await link.write_stdio(container, "", b"", end=True)


async def test_20_mib_go_in_and_come_out(link: GuestLink) -> None:
    data = os.urandom(_SIZE)
    await run_container(link, "c", "cat")
    _, out = await asyncio.gather(_feed(link, "c", data), read_all(link, "c", "", OUT))
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()
    assert (await next_exits(link, 1))[0].exited.exit_status == 0


async def test_standard_error_is_a_stream_of_its_own(link: GuestLink) -> None:
    await run_container(link, "c", "sh", "-c", f"head -c {_SIZE} /dev/zero | tee /dev/stderr")
    out, err = await asyncio.gather(read_all(link, "c", "", OUT), read_all(link, "c", "", ERR))
    assert out == err == bytes(_SIZE)


async def test_output_stays_readable_after_the_exit(link: GuestLink) -> None:
    await run_container(link, "c", "sh", "-c", "head -c 500000 /dev/zero; echo end")
    await next_exits(link, 1)
    assert await read_all(link, "c", "", OUT) == bytes(500000) + b"end\n"
    assert await link.read_stdio("c", "", OUT) == (b"", True)
    assert await link.read_stdio("c", "", ERR) == (b"", True)


async def test_an_answer_has_no_more_than_was_asked_for(link: GuestLink) -> None:
    await run_container(link, "c", "echo", "-n", "abcdefgh")
    await next_exits(link, 1)
    assert await link.read_stdio("c", "", OUT, limit=3) == (b"abc", False)
    assert await link.read_stdio("c", "", OUT, limit=3) == (b"def", False)
    assert await link.read_stdio("c", "", OUT, limit=3) == (b"gh", True)


async def test_a_process_that_nobody_reads_stops_alone(link: GuestLink) -> None:
    await run_container(link, "flood", "cat", "/dev/zero")
    await run_container(link, "c", "cat")
    for number in range(50):
        line = f"line {number}\n".encode()
        await link.write_stdio("c", "", line)
        assert await link.read_stdio("c", "", OUT) == (line, False)
    data, end = await link.read_stdio("flood", "", OUT)
    assert not end
    assert data == bytes(len(data))


async def test_a_write_waits_until_the_pipe_has_taken_it(link: GuestLink) -> None:
    await link.create_container(container_plan("d", "sh", "-c", "sleep 1000"))
    await link.start_process("d")
    piece = bytes(3 << 20)
    late = asyncio.create_task(link.write_stdio("d", "", piece))
    later = asyncio.create_task(link.write_stdio("d", "", b"x", end=True))
    await link.telemetry()
    assert not late.done()
    assert not later.done()
    with pytest.raises(RpcError) as caught:
        await asyncio.gather(*(link.write_stdio("d", "", piece) for _ in range(6)))
    assert caught.value.code == Code.RESOURCE_EXHAUSTED
    await link.signal_process("d", signal=9)
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(late, later)


async def test_processes_that_do_not_read_keep_no_input_from_others(link: GuestLink) -> None:
    await run_container(link, "c", "sleep", "1000")
    names = [f"e{number}" for number in range(66)]
    for name in names:
        await link.add_process("c", name, process_plan("sleep", "1000"))
        await link.start_process("c", name)
    piece = bytes(3 << 20)
    stalled = [asyncio.create_task(link.write_stdio("c", name, piece)) for name in names]
    await link.add_process("c", "slow", process_plan("sh", "-c", "read line; cat"))
    await link.start_process("c", "slow")
    late = asyncio.create_task(link.write_stdio("c", "slow", b"go on\n" + piece, end=True))
    assert await read_all(link, "c", "slow", OUT) == piece
    await late
    assert not any(task.done() for task in stalled)
    await link.signal_process("c", signal=9)
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*stalled)


async def test_a_write_that_is_refused_took_nothing(link: GuestLink) -> None:
    await run_container(link, "c", "cat")
    await link.freeze("c", True)
    piece = bytes(3 << 20)
    waiting = [asyncio.create_task(link.write_stdio("c", "", piece)) for _ in range(4)]
    await link.telemetry()
    with pytest.raises(RpcError) as caught:
        await link.write_stdio("c", "", b"last", end=True)
    assert caught.value.code == Code.RESOURCE_EXHAUSTED
    await link.freeze("c", False)
    reading = asyncio.create_task(read_all(link, "c", "", OUT))
    await asyncio.gather(*waiting)
    await link.write_stdio("c", "", b"last", end=True)
    assert await reading == 4 * piece + b"last"


async def test_nobody_reading_standard_input_is_no_error(link: GuestLink) -> None:
    await run_container(link, "c", "sh", "-c", "exec <&-; echo closed; sleep 1000")
    assert (await link.read_stdio("c", "", OUT))[0] == b"closed\n"
    await link.write_stdio("c", "", b"lost\n")
    await link.write_stdio("c", "", b"", end=True)
    await link.write_stdio("c", "", b"", end=True)


async def test_streams_that_the_plan_does_not_want_are_null(link: GuestLink) -> None:
    plan = container_plan("c", "sh", "-c", "cat; echo out; echo err >&2")
    plan.process.stdin = plan.process.stdout = plan.process.stderr = False
    await link.create_container(plan)
    await link.start_process("c")
    assert (await next_exits(link, 1))[0].exited.exit_status == 0
    assert await link.read_stdio("c", "", OUT) == (b"", True)


async def test_waiting_readers_are_answered_in_their_order(link: GuestLink) -> None:
    await run_container(link, "c", "cat")
    waiting = [asyncio.create_task(link.read_stdio("c", "", OUT)) for _ in range(4)]
    await link.telemetry()
    with pytest.raises(RpcError) as caught:
        await link.read_stdio("c", "", OUT)
    assert caught.value.code == Code.FAILED_PRECONDITION
    for number, reader in enumerate(waiting[:3]):
        await link.write_stdio("c", "", b"%d" % number, end=number == 2)
        assert (await reader)[0] == b"%d" % number
    assert await waiting[3] == (b"", True)
    with pytest.raises(RpcError) as caught:
        await link.read_stdio("c", "", pb.STREAM_UNSPECIFIED)
    assert caught.value.code == Code.INVALID_ARGUMENT


async def test_a_stream_is_iterated_to_its_end(link: GuestLink) -> None:
    await run_container(link, "c", "seq", "1", "300000")
    pieces = [piece async for piece in link.stream_stdio("c", "", OUT)]
    expected = b"".join(b"%d\n" % number for number in range(1, 300001))
    assert b"".join(pieces) == expected


async def test_output_is_fast(link: GuestLink) -> None:
    size = 400 << 20
    await run_container(link, "c", "head", "-c", str(size), "/dev/zero")
    begin, got = time.monotonic(), 0
    async for piece in link.stream_stdio("c", "", OUT):
        got += len(piece)
    assert got == size
    assert size / (time.monotonic() - begin) / 1e6 > _LEAST_MB_PER_S


# Terminals.


async def _until(link: GuestLink, container: str, exec_id: str, text: bytes) -> bytes:
    seen = b""
    async with asyncio.timeout(DEADLINE):
        while text not in seen:
            data, end = await link.read_stdio(container, exec_id, OUT)
            seen += data
            assert not end or text in seen, seen
    return seen


async def _start(guest: Guest, *args: str) -> GuestLink:
    link = await guest.connect()
    await link.create_container(terminal_plan(guest.root, "c", *args))
    await link.start_process("c")
    return link


async def test_a_terminal_has_the_size_of_the_plan(guest: Guest) -> None:
    link = await guest.connect()
    plan = terminal_plan(guest.root, "c", "sh", "-c", "stty size; tty")
    plan.process.rows, plan.process.columns = 33, 77
    await link.create_container(plan)
    await link.start_process("c")
    assert b"33 77\r\n/dev/" in await read_all(link, "c", "", OUT)


@pytest.mark.parametrize("exec_id", ["", "e"], ids=["container", "exec"])
async def test_a_resize_before_the_start_sticks(guest: Guest, exec_id: str) -> None:
    script = "stty size; trap 'stty size' WINCH; echo ready; while :; do sleep 0.01; done"
    link = await guest.connect()
    if exec_id:
        await link.create_container(terminal_plan(guest.root, "c", "sleep", "1000"))
        await link.start_process("c")
        await link.add_process("c", "e", process_plan("sh", "-c", script, terminal=True))
    else:
        await link.create_container(terminal_plan(guest.root, "c", "sh", "-c", script))
    await link.resize_terminal("c", exec_id, 41, 123)
    await link.start_process("c", exec_id)
    assert b"41 123\r\n" in await _until(link, "c", exec_id, b"ready")
    await link.resize_terminal("c", exec_id, 10, 20)
    await _until(link, "c", exec_id, b"10 20\r\n")


async def test_a_terminal_echoes_and_ends_by_its_own_character(guest: Guest) -> None:
    link = await _start(guest, "cat")
    await link.write_stdio("c", "", b"hello\n")
    await _until(link, "c", "", b"hello\r\nhello\r\n")
    await link.write_stdio("c", "", b"half a line", end=True)
    assert (await read_all(link, "c", "", OUT)).endswith(b"half a line")
    assert (await next_exits(link, 1))[0].exited.exit_status == 0


async def test_the_terminal_interrupts(guest: Guest) -> None:
    link = await _start(guest, "sh", "-c", "trap 'exit 5' INT; echo ready; read x")
    await _until(link, "c", "", b"ready")
    await link.write_stdio("c", "", b"\x03")
    assert (await next_exits(link, 1))[0].exited.exit_status == 5


async def test_no_line_of_a_terminal_is_lost(guest: Guest) -> None:
    link = await _start(guest, "seq", "1", "100000")
    lines = (await read_all(link, "c", "", OUT)).split()
    assert lines == [str(number).encode() for number in range(1, 100001)]
