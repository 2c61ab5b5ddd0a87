"""The life of processes: how they end, in which order the host hears of it, what is left behind."""

from __future__ import annotations

import asyncio
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
    next_exits,
    process_plan,
    read_all,
    run_container,
)

if TYPE_CHECKING:
    from shims.guest.link import GuestLink
    from tests.guest.init.harness import Guest

pytestmark = pytest.mark.root

_HARMLESS = {
    signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH,
    signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
}  # fmt: skip
_DEADLY = [int(number) for number in signal.valid_signals() if number not in _HARMLESS]


async def _exec(link: GuestLink, container: str, name: str, *args: str) -> int:
    await link.add_process(container, name, process_plan(*args))
    return await link.start_process(container, name)


async def test_every_exit_code_arrives(link: GuestLink) -> None:
    await run_container(link, "c", "sleep", "1000")
    for first in range(0, 256, 64):
        codes = range(first, first + 64)
        await asyncio.gather(
            *(_exec(link, "c", f"e{code}", "sh", "-c", f"exit {code}") for code in codes)
        )
        exits = await next_exits(link, 64, after=first)
        assert {event.exited.exec_id: event.exited.exit_status for event in exits} == {
            f"e{code}": code for code in codes
        }
        await asyncio.gather(*(link.delete_process("c", f"e{code}") for code in codes))


async def test_every_deadly_signal_is_reported_as_128_plus_its_number(link: GuestLink) -> None:
    await run_container(link, "c", "sleep", "1000")
    await asyncio.gather(*(_exec(link, "c", f"s{n}", "sleep", "1000") for n in _DEADLY))
    await asyncio.gather(*(link.signal_process("c", f"s{n}", signal=n) for n in _DEADLY))
    exits = await next_exits(link, len(_DEADLY))
    assert {event.exited.exec_id: event.exited.exit_status for event in exits} == {
        f"s{n}": 128 + n for n in _DEADLY
    }


@pytest.mark.parametrize("pid_namespace", [True, False], ids=["own-pids", "shared-pids"])
async def test_the_first_process_exits_last(link: GuestLink, pid_namespace: bool) -> None:
    await run_container(link, "c", "sleep", "1000", pid_namespace=pid_namespace)
    for name in "xyz":
        await _exec(link, "c", name, "sleep", "1000")
    await link.signal_process("c", signal=signal.SIGTERM if not pid_namespace else signal.SIGKILL)
    exits = [event.exited for event in await next_exits(link, 4)]
    assert {event.exec_id for event in exits[:3]} == {"x", "y", "z"}
    assert {event.exit_status for event in exits[:3]} == {128 + signal.SIGKILL}
    assert exits[3].exec_id == ""
    await link.delete_process("c")


@pytest.mark.parametrize("pid_namespace", [True, False], ids=["own-pids", "shared-pids"])
async def test_orphans_are_reaped(guest: Guest, pid_namespace: bool) -> None:
    link = await guest.connect()
    script = "for i in 1 2 3 4 5; do (sleep 0.05 &); done; exec sleep 1000"
    await run_container(link, "c", "sh", "-c", script, pid_namespace=pid_namespace)
    async with asyncio.timeout(DEADLINE):
        while len(await link.list_processes("c")) != 1:
            await link.telemetry()
        if not pid_namespace:
            children = Path(f"/proc/{guest.process.pid}/task/{guest.process.pid}/children")
            while len(children.read_text().split()) != 1:
                await link.telemetry()


async def test_a_child_that_keeps_the_pipe_does_not_hold_back_the_exit(link: GuestLink) -> None:
    script = "echo first; (sleep 1000 &); exit 3"
    await run_container(link, "c", "sleep", "1000")
    await _exec(link, "c", "e", "sh", "-c", script)
    (exited,) = await next_exits(link, 1)
    assert exited.exited.exit_status == 3
    assert await link.read_stdio("c", "e", pb.STREAM_STDOUT) == (b"first\n", False)
    waiting = asyncio.create_task(link.read_stdio("c", "e", pb.STREAM_STDOUT))
    await link.telemetry()
    assert not waiting.done()
    await link.delete_process("c", "e")
    assert await waiting == (b"", True)


async def test_a_container_that_was_never_started_can_be_killed(link: GuestLink) -> None:
    await link.create_container(container_plan("c", "true"))
    await link.signal_process("c", signal=signal.SIGKILL)
    (event,) = await next_exits(link, 1)
    assert event.exited.exit_status == 128 + signal.SIGKILL
    await link.delete_process("c")
    await link.create_container(container_plan("c", "true"))


async def test_a_program_that_is_not_there_fails_and_nothing_else(link: GuestLink) -> None:
    with pytest.raises(RpcError, match="no such file") as caught:
        await run_container(link, "c", "/no/such/program")
    assert caught.value.code == Code.INVALID_ARGUMENT
    await run_container(link, "d", "sleep", "1000")
    with pytest.raises(RpcError, match="no such file"):
        await _exec(link, "d", "e", "/no/such/program")
    await _until_deletable(link, "d", "e")
    await _exec(link, "d", "e", "sh", "-c", "exit 9")
    (event,) = await next_exits(link, 1)
    assert (event.exited.container_id, event.exited.exit_status) == ("d", 9)


async def _until_deletable(link: GuestLink, container: str, exec_id: str = "") -> None:
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                return await link.delete_process(container, exec_id)
            except RpcError as error:
                if error.code != Code.FAILED_PRECONDITION:
                    raise


async def test_a_plan_that_fails_leaves_nothing(guest: Guest) -> None:
    link = await guest.connect()
    plan = container_plan("c", "true")
    step = plan.steps.add()
    step.mount.source_kind = pb.MountStep.SOURCE_NONE
    step.mount.where = pb.WHERE_GUEST
    step.mount.fstype = "nosuchfs"
    step.mount.source = b"none"
    step.mount.target = b"/"
    with pytest.raises(RpcError, match=r"nosuchfs|[Nn]o such device"):
        await link.create_container(plan)
    assert not (guest.cgroup / "c").exists()
    del plan.steps[:]
    await link.create_container(plan)


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda link: link.start_process("nobody"), Code.NOT_FOUND),
        (lambda link: link.start_process("c"), Code.FAILED_PRECONDITION),
        (lambda link: link.start_process("c", "nobody"), Code.NOT_FOUND),
        (lambda link: link.delete_process("c"), Code.FAILED_PRECONDITION),
        (lambda link: link.delete_process("nobody"), Code.NOT_FOUND),
        (lambda link: link.signal_process("c", "nobody", signal=9), Code.NOT_FOUND),
        (lambda link: link.signal_process("c", signal=999), Code.INVALID_ARGUMENT),
        (lambda link: link.resize_terminal("c", "", 1, 1), Code.FAILED_PRECONDITION),
        (lambda link: link.stats("nobody"), Code.NOT_FOUND),
        (lambda link: link.create_container(container_plan("c", "true")), Code.ALREADY_EXISTS),
        (lambda link: link.create_container(pb.LaunchPlan()), Code.INVALID_ARGUMENT),
        (lambda link: link.add_process("c", "", process_plan("true")), Code.INVALID_ARGUMENT),
        (lambda link: link.add_process("x" * 500, "e", process_plan("true")),
         Code.INVALID_ARGUMENT),
    ],
)  # fmt: skip
async def test_wrong_calls_are_refused_by_their_code(
    link: GuestLink, call: object, code: Code
) -> None:
    await run_container(link, "c", "sleep", "1000")
    with pytest.raises(RpcError) as caught:
        await call(link)  # type: ignore[operator]
    assert caught.value.code == code


async def test_an_exited_process_does_not_take_signals(link: GuestLink) -> None:
    await run_container(link, "c", "sleep", "1000")
    await _exec(link, "c", "e", "true")
    await next_exits(link, 1)
    with pytest.raises(RpcError) as caught:
        await link.signal_process("c", "e", signal=9)
    assert caught.value.code == Code.NOT_FOUND


async def test_more_processes_than_the_table_holds_are_refused(link: GuestLink) -> None:
    await run_container(link, "c", "sleep", "1000")
    for number in range(255):
        await link.add_process("c", f"e{number}", process_plan("sleep", "1000"))
    for number in range(254):
        await link.start_process("c", f"e{number}")
    with pytest.raises(RpcError) as caught:
        await link.add_process("c", "one-more", process_plan("true"))
    assert caught.value.code == Code.RESOURCE_EXHAUSTED
    await link.delete_process("c", "e254")
    await link.add_process("c", "one-more", process_plan("sh", "-c", "ulimit -Sn; ulimit -Hn"))
    await link.start_process("c", "one-more")
    # What void-init needs for itself is no limit of theirs.
    assert await read_all(link, "c", "one-more", pb.STREAM_STDOUT) == b"1024\n4096\n"


async def test_many_cgroups_of_a_container_hold_up_nobody(guest: Guest) -> None:
    link = await guest.connect()
    await run_container(link, "c", "true")
    await next_exits(link, 1)
    for number in range(1000):
        (guest.cgroup / "c" / f"own-{number}").mkdir()
    delete = asyncio.create_task(link.delete_process("c", timeout=DEADLINE))
    await link.telemetry()
    await link.telemetry()
    assert not delete.done()
    await delete
    assert not (guest.cgroup / "c").exists()


async def test_freezing_stops_and_thawing_resumes(link: GuestLink) -> None:
    await run_container(link, "c", "sh", "-c", "while read line; do echo got $line; done")
    await link.freeze("c", True)
    await link.write_stdio("c", "", b"one\n")
    answer = asyncio.create_task(link.read_stdio("c", "", pb.STREAM_STDOUT))
    await link.telemetry()
    assert not answer.done()
    await link.freeze("c", False)
    assert await answer == (b"got one\n", False)


async def test_the_list_tells_declared_processes_from_children(link: GuestLink) -> None:
    await run_container(link, "c", "sh", "-c", "sleep 1000 & wait")
    pid = await _exec(link, "c", "e", "sleep", "1000")
    async with asyncio.timeout(DEADLINE):
        while len(found := await link.list_processes("c")) != 3:
            await link.telemetry()
    assert [(info.exec_id, info.declared) for info in found if info.pid == pid] == [("e", True)]
    assert sorted(info.declared for info in found) == [False, True, True]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_signal_to_all_reaches_children(link: GuestLink, number: int) -> None:
    script = "trap '' TERM; sleep 1000 & echo ready; wait; echo over; read line"
    await run_container(link, "c", "sh", "-c", script)
    assert (await link.read_stdio("c", "", pb.STREAM_STDOUT))[0] == b"ready\n"
    await link.signal_process("c", signal=number, everyone=True)
    if number == signal.SIGKILL:
        assert (await next_exits(link, 1))[0].exited.exit_status == 128 + number


async def test_events_come_again_until_they_are_acknowledged(link: GuestLink) -> None:
    await run_container(link, "c", "sleep", "1000")
    for name in "abc":
        await _exec(link, "c", name, "true")
    first = await _journal(link, 3)
    assert await _journal(link, 3) == first
    assert await next_exits(link, 1, after=first[1].sequence) == first[2:]
    assert await _journal(link, 1) == first[2:]
    with pytest.raises(RpcError) as caught:
        await anext(link.events(after=1000))
    assert caught.value.code == Code.INVALID_ARGUMENT


async def _journal(link: GuestLink, count: int) -> list[pb.Event]:
    """Ask for everything, acknowledge nothing, until there are so many."""
    async with asyncio.timeout(DEADLINE):
        while True:
            request = pb.NextEventsRequest(wait_ms=0)
            answer = await link._call("NextEvents", request, pb.EventList, DEADLINE)
            if len(answer.events) >= count:
                return list(answer.events)


async def test_statistics_are_the_kernels_own_files(link: GuestLink) -> None:
    await run_container(link, "c", "sleep", "1000")
    stats = await link.stats("c")
    files = {file.name: file.content for file in stats.files}
    assert files["cpu.stat"].startswith(b"usage_usec ")
    assert b"populated 1" in files["cgroup.events"]
    assert "lo" in {interface.name for interface in stats.interfaces}
    await link.update_cgroup("c", [pb.CgroupWrite(file="no.such", value="1", optional=True)])
    with pytest.raises(RpcError, match=r"no\.such"):
        await link.update_cgroup("c", [pb.CgroupWrite(file="no.such", value="1")])


async def test_names_that_are_no_text_are_told_all_the_same(link: GuestLink) -> None:
    rename = (
        "import socket, fcntl, struct, sys;"
        "new = b'\\xff\\xed\\xbf\\x80\\xc3\\xa9\\xc3';"
        "fcntl.ioctl(socket.socket(), 0x8923, struct.pack('16s16s', b'lo', new));"
        "print('done', flush=True); input()"
    )  # SIOCSIFNAME
    plan = container_plan("c", "python3", "-c", rename)
    plan.namespaces.add(kind=pb.Namespace.KIND_NETWORK)
    await link.create_container(plan)
    await link.start_process("c")
    assert await link.read_stdio("c", "", pb.STREAM_STDOUT) == (b"done\n", False)
    stats = await link.stats("c")
    assert "????é?" in {interface.name for interface in stats.interfaces}


@pytest.mark.parametrize("letter", ["é", "€", "😀"])
async def test_a_sentence_cut_inside_a_character_is_told(link: GuestLink, letter: str) -> None:
    await run_container(link, "c", "sleep", "1000")
    for name in ("", "a", "ab", "abc"):
        await link.add_process("c", "e", process_plan(f"/{name}{150 * letter}"))
        with pytest.raises(RpcError, match=letter):
            await link.start_process("c", "e")
        await link.delete_process("c", "e")


async def test_an_oom_kill_comes_before_the_exit_that_it_caused(guest: Guest) -> None:
    link = await guest.connect()
    controllers = (guest.cgroup / "cgroup.controllers").read_text().split()
    if "memory" not in controllers:
        pytest.skip("this host's cgroup v2 has no memory controller")
    plan = container_plan("c", "tail", "/dev/zero")
    plan.cgroup.writes.add(file="memory.max", value=str(16 << 20))
    plan.cgroup.writes.add(file="memory.swap.max", value="0", optional=True)
    await link.create_container(plan)
    await link.start_process("c")
    kinds = []
    async with asyncio.timeout(DEADLINE):
        async for event in link.events():
            kinds.append(event.WhichOneof("kind"))
            if kinds[-1] == "exited":
                assert event.exited.exit_status == 128 + signal.SIGKILL
                break
    assert kinds == ["oom", "exited"]


async def test_read_all_ends_with_the_process(link: GuestLink) -> None:
    await run_container(link, "c", "sh", "-c", "echo out; echo err >&2")
    assert await read_all(link, "c", "", pb.STREAM_STDOUT) == b"out\n"
    assert await read_all(link, "c", "", pb.STREAM_STDERR) == b"err\n"
