"""Launches that fail, or end, at an unlucky moment: nothing is lost, leaked or left unanswered."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import select
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from protos.gen.voidbox.guest.v1 import guest_pb2 as pb
from shims.ttrpc.codes import Code
from shims.ttrpc.errors import RpcError
from tests.guest.init.harness import (
    DEADLINE,
    container_plan,
    process_plan,
    run_container,
    terminal_plan,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shims.guest.link import GuestLink
    from tests.guest.init.harness import Guest

pytestmark = pytest.mark.root

_PTRACE_SEIZE = 0x4206


def _terminals(guest: Guest) -> int:
    """How many masters of terminals void-init has open."""
    directory = Path(f"/proc/{guest.process.pid}/fd")
    return sum(os.readlink(entry).endswith("ptmx") for entry in directory.iterdir())


def _wait_dead(pid: int) -> None:
    """Wait until a process has exited, reaped or not."""
    fd = os.pidfd_open(pid)
    try:
        assert select.select([fd], [], [], DEADLINE)[0], f"process {pid} does not exit"
    finally:
        os.close(fd)


@contextlib.contextmanager
def _stopped(guest: Guest) -> Iterator[None]:
    """What happens inside is all news to void-init in one turn of its loop."""
    guest.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, guest.process.pid, os.WSTOPPED | os.WNOWAIT)
    try:
        yield
    finally:
        guest.process.send_signal(signal.SIGCONT)


async def _members(link: GuestLink, guest: Guest, name: str, count: int) -> list[int]:
    """The pids in a container's cgroup, once there are so many."""
    file = guest.cgroup / name / "cgroup.procs"
    async with asyncio.timeout(DEADLINE):
        while not file.exists() or len(file.read_text().split()) < count:
            await link.telemetry()
    return [int(pid) for pid in file.read_text().split()]


async def _code(call: object) -> Code | None:
    """How a call was refused, if it was; it has to be answered at all."""
    try:
        await asyncio.wait_for(call, DEADLINE)  # type: ignore[arg-type]
    except RpcError as error:
        return error.code
    return None


async def test_a_terminal_that_nobody_took_over_is_closed(guest: Guest) -> None:
    link = await guest.connect()
    with pytest.raises(RpcError, match="no such file"):
        await link.create_container(terminal_plan(guest.root, "bad", "/no/such"))
    assert _terminals(guest) == 0
    await link.create_container(terminal_plan(guest.root, "c", "sleep", "1000"))
    await link.start_process("c")
    for _ in range(3):
        await link.add_process("c", "e", process_plan("/no/such", terminal=True))
        with pytest.raises(RpcError, match="no such file"):
            await link.start_process("c", "e")
        await link.delete_process("c", "e")
    assert _terminals(guest) == 2  # of c: one to read, one to write


async def test_the_cause_of_a_failed_terminal_launch_is_told(guest: Guest) -> None:
    """Also when its exit is noticed before its reports: another process dies in the same turn."""
    link = await guest.connect()
    await link.create_container(terminal_plan(guest.root, "c", "sleep", "1000"))
    first = await link.start_process("c")
    other = await run_container(link, "d", "sleep", "1000")
    await link.freeze("c", True)
    await link.add_process("c", "e", process_plan("/no/such", terminal=True))
    start = asyncio.create_task(link.start_process("c", "e"))
    (added,) = set(await _members(link, guest, "c", 2)) - {first}
    with _stopped(guest):
        os.kill(other, signal.SIGKILL)
        _wait_dead(other)
        (guest.cgroup / "c" / "cgroup.freeze").write_text("0")
        _wait_dead(added)
    with pytest.raises(RpcError, match="no such file"):
        await start
    hello = pb.HelloRequest(protocol=1)
    seen = await link._call("Hello", hello, pb.HelloResponse, DEADLINE)
    states = {p.exec_id: p for c in seen.containers for p in c.processes if c.container_id == "c"}
    assert states["e"].exit_status == 127


async def test_a_failed_creation_is_answered_when_nothing_is_left(guest: Guest) -> None:
    link = await guest.connect()
    for _ in range(100):
        with pytest.raises(RpcError, match="no such file"):
            await link.create_container(container_plan("c", "/no/such"))
        assert not (guest.cgroup / "c").exists()
        assert await _code(link.delete_process("c")) == Code.NOT_FOUND
        assert await _code(link.freeze("c", True)) == Code.NOT_FOUND


async def test_calls_that_meet_a_launch_that_fails_are_answered(guest: Guest) -> None:
    link = await guest.connect()
    plan = container_plan("c", "true")
    step = plan.steps.add().mount
    step.source_kind, step.source, step.wait_ms = pb.MountStep.SOURCE_DISK, b"absent", 20_000
    step.fstype, step.where, step.target = "erofs", pb.WHERE_GUEST, b"/mnt"
    for _ in range(20):
        create = asyncio.create_task(_code(link.create_container(plan)))
        (pid,) = await _members(link, guest, "c", 1)
        freeze = asyncio.create_task(_code(link.freeze("c", True)))
        delete = asyncio.create_task(_code(link.delete_process("c")))
        os.kill(pid, signal.SIGKILL)
        assert await create == Code.INVALID_ARGUMENT
        assert await freeze in {None, Code.FAILED_PRECONDITION, Code.NOT_FOUND}
        assert await delete in {None, Code.FAILED_PRECONDITION, Code.NOT_FOUND}
        assert not (guest.cgroup / "c").exists()


async def test_an_exec_into_a_container_that_exits_is_told_so(guest: Guest) -> None:
    """Its first process waits for a child that has a tracer: it exits, and is not gone yet."""
    link = await guest.connect()
    first = await run_container(link, "c", "sh", "-c", "sleep 1000 & wait")
    child = max(await _members(link, guest, "c", 2))
    await link.add_process("c", "e", process_plan("true"))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.ptrace(_PTRACE_SEIZE, child, None, None) == 0, os.strerror(ctypes.get_errno())
    try:
        await link.signal_process("c", signal=signal.SIGKILL)
        _wait_dead(child)
        assert Path(f"/proc/{first}").exists()
        with pytest.raises(RpcError, match="not running") as caught:
            await link.start_process("c", "e")
    finally:
        await asyncio.to_thread(os.waitpid, child, 0)
    assert caught.value.code == Code.FAILED_PRECONDITION


async def test_an_exec_shares_its_containers_keyring(link: GuestLink) -> None:
    describe = (
        "import ctypes; text = ctypes.create_string_buffer(200);"
        "libc = ctypes.CDLL(None); libc.syscall(250, 6, -3, text, 200);"
        "print(libc.syscall(250, 0, -3, 0), text.value.decode(), flush=True)"
    )  # KEYCTL_DESCRIBE and KEYCTL_GET_KEYRING_ID of the session keyring
    script = describe + "; input()"
    await run_container(link, "c", "python3", "-c", script)
    first, _ = await link.read_stdio("c", "", pb.STREAM_STDOUT)
    await link.add_process("c", "e", process_plan("python3", "-c", describe))
    await link.start_process("c", "e")
    second, _ = await link.read_stdio("c", "e", pb.STREAM_STDOUT)
    assert second == first
    assert b"_ses.c" in second
