"""Execs: many, concurrent, racing with the first process."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest

from protos.gen.containerd.runc.v1 import options_pb2 as runc_options
from protos.gen.containerd.v1.types import task_pb2 as types
from shims.containerd.shim.copying import Copies
from shims.ttrpc.codes import Code
from shims.ttrpc.errors import RpcError

if TYPE_CHECKING:
    from tests.containerd.shim.harness import FakeShim


async def test_one_exec(fake: FakeShim) -> None:
    shim = fake.shim
    await shim.run("c", "sleep", "60")
    pipes = shim.pipes()
    await shim.exec("c", "e", "sh", "-c", "echo hello; exit 4", pipes=pipes)
    assert (await shim.call("State", id="c", exec_id="e")).status == types.CREATED
    waiting = asyncio.create_task(shim.call("Wait", id="c", exec_id="e"))
    await shim.call("Start", id="c", exec_id="e")
    assert (await waiting).exit_status == 4
    assert await pipes.all_of("stdout") == b"hello\n"
    assert (await shim.call("Delete", id="c", exec_id="e")).exit_status == 4
    assert fake.recorder.topics() == [
        "create", "start", "exec-added e", "exec-started e", "exit e",
    ]  # fmt: skip


async def test_fifty_at_once(fake: FakeShim) -> None:
    shim = fake.shim
    await shim.run("c", "sleep", "60")

    async def one(number: int) -> tuple[int, bytes]:
        pipes = shim.pipes()
        name = f"e{number}"
        await shim.exec("c", name, "sh", "-c", f"echo {number}; exit {number}", pipes=pipes)
        await shim.call("Start", id="c", exec_id=name)
        status = (await shim.call("Wait", id="c", exec_id=name)).exit_status
        await shim.call("Delete", id="c", exec_id=name)
        return status, await pipes.all_of("stdout")

    results = await asyncio.gather(*(one(number) for number in range(50)))
    assert results == [(number, f"{number}\n".encode()) for number in range(50)]
    assert not fake.group.containers["c"].execs


async def test_a_used_id_is_refused_until_it_is_deleted(fake: FakeShim) -> None:
    shim = fake.shim
    await shim.run("c", "sleep", "60")
    await shim.exec("c", "e", "true")
    with pytest.raises(RpcError) as caught:
        await shim.exec("c", "e", "true")
    assert caught.value.code is Code.ALREADY_EXISTS
    await shim.call("Delete", id="c", exec_id="e")
    await shim.exec("c", "e", "true")


async def test_an_id_is_free_again_after_a_failed_start(fake: FakeShim) -> None:
    shim = fake.shim
    await shim.run("c", "sleep", "60")
    await shim.exec("c", "e", "/no/such/program")
    with pytest.raises(RpcError, match="/no/such/program"):
        await shim.call("Start", id="c", exec_id="e")
    with pytest.raises(RpcError) as caught:
        await shim.call("Start", id="c", exec_id="e")
    assert caught.value.code is Code.FAILED_PRECONDITION
    await shim.call("Delete", id="c", exec_id="e")
    await shim.exec("c", "e", "true")
    await shim.call("Start", id="c", exec_id="e")
    assert (await shim.call("Wait", id="c", exec_id="e")).exit_status == 0


async def test_waiters_of_an_exec_that_never_started_wake_at_delete(fake: FakeShim) -> None:
    shim = fake.shim
    await shim.run("c", "sleep", "60")
    await shim.exec("c", "e", "true")
    waiting = asyncio.create_task(shim.call("Wait", id="c", exec_id="e"))
    await shim.call("State", id="c")
    await shim.call("Delete", id="c", exec_id="e")
    assert (await waiting).exit_status == 137
    assert "exit e" not in fake.recorder.topics()


async def test_the_first_process_exits_last(fake: FakeShim) -> None:
    shim = fake.shim
    await shim.run("c", "sleep", "60")
    for number in range(5):
        await shim.exec("c", f"e{number}", "sleep", "60")
        await shim.call("Start", id="c", exec_id=f"e{number}")
    await shim.call("Kill", id="c", signal=9)
    await shim.call("Wait", id="c")
    exits = [topic for topic in fake.recorder.topics() if topic.startswith("exit")]
    assert len(exits) == 6
    assert exits[-1] == "exit"
    assert (await shim.call("Wait", id="c", exec_id="e3")).exit_status == 137


async def test_an_exec_whose_exit_the_guest_forgot(fake: FakeShim) -> None:
    shim = fake.shim
    await shim.run("c", "sleep", "60")
    await shim.exec("c", "e", "sleep", "60")
    await shim.call("Start", id="c", exec_id="e")
    fake.guest.lose_exits = True
    container = fake.group.containers["c"]
    container.note_exit("", 0)
    assert (await shim.call("Wait", id="c", exec_id="e")).exit_status == 137
    assert (await shim.call("Wait", id="c")).exit_status == 0


async def test_an_exec_that_fails_to_start_does_not_hold_up_the_exit(fake: FakeShim) -> None:
    shim = fake.shim
    await shim.run("c", "sleep", "60")
    await shim.exec("c", "e", "/no/such/program")
    container = fake.group.containers["c"]
    gate = asyncio.Event()
    original = fake.guest.start_process

    async def late(*args: Any, **options: Any) -> int:
        await gate.wait()
        return int(await original(*args, **options))

    fake.guest.start_process = late
    starting = asyncio.create_task(shim.call("Start", id="c", exec_id="e"))
    await fake.guest.called("add_process")
    container.note_exit("", 3)
    waiting = asyncio.create_task(shim.call("Wait", id="c"))
    await shim.call("State", id="c")
    gate.set()
    with pytest.raises(RpcError):
        await starting
    assert (await asyncio.wait_for(waiting, 2)).exit_status == 3


async def test_the_exit_of_an_exec_is_not_journaled(fake: FakeShim) -> None:
    await fake.shim.run("c", "sleep", "60")
    await fake.shim.exec("c", "e", "true")
    await fake.call("Start", id="c", exec_id="e")
    await fake.call("Wait", id="c", exec_id="e")
    await fake.call("Kill", id="c", signal=9)
    await fake.call("Wait", id="c")
    assert [exec_id for _, exec_id, _, _ in fake.recorder.exits] == [""]
    assert "exit e" in fake.recorder.topics()


async def test_no_exec_in_a_stopped_container(fake: FakeShim) -> None:
    shim = fake.shim
    await shim.run("c", "sleep", "60")
    await shim.exec("c", "before", "true")
    await shim.call("Kill", id="c", signal=9)
    await shim.call("Wait", id="c")
    for attempt in (
        shim.exec("c", "after", "true"),
        shim.call("Start", id="c", exec_id="before"),
    ):
        with pytest.raises(RpcError) as caught:
            await attempt
        assert caught.value.code is Code.FAILED_PRECONDITION


async def test_no_exec_in_a_paused_container(fake: FakeShim) -> None:
    await fake.shim.run("c", "sleep", "60")
    await fake.call("Pause", id="c")
    with pytest.raises(RpcError, match="paused") as caught:
        await fake.shim.exec("c", "e", "true")
    assert caught.value.code is Code.FAILED_PRECONDITION


async def test_pids_name_the_execs(fake: FakeShim) -> None:
    shim = fake.shim
    await shim.run("c", "sleep", "60")
    await shim.exec("c", "e", "sleep", "60")
    await shim.call("Start", id="c", exec_id="e")
    listed = (await shim.call("Pids", id="c")).processes
    assert len(listed) == 2
    assert listed[0].pid != listed[1].pid
    details = runc_options.ProcessDetails.FromString(listed[1].info.value)
    assert listed[1].info.type_url == "containerd.runc.v1.ProcessDetails"
    assert details.exec_id == "e"


async def test_a_stopped_container_still_has_a_process(fake: FakeShim) -> None:
    await fake.shim.run("c", "true")
    await fake.call("Wait", id="c")
    assert [info.pid for info in (await fake.call("Pids", id="c")).processes] == [os.getpid()]


async def test_kill_one_exec_leaves_the_others(fake: FakeShim) -> None:
    shim = fake.shim
    await shim.run("c", "sleep", "60")
    for name in ("one", "two"):
        await shim.exec("c", name, "sleep", "60")
        await shim.call("Start", id="c", exec_id=name)
    await shim.call("Kill", id="c", exec_id="one", signal=15)
    assert (await shim.call("Wait", id="c", exec_id="one")).exit_status == 143
    assert (await shim.call("State", id="c", exec_id="two")).status == types.RUNNING
    with pytest.raises(RpcError) as caught:
        await shim.call("Kill", id="c", exec_id="one", signal=9)
    assert caught.value.code is Code.NOT_FOUND


async def test_a_delete_while_the_start_is_under_way_ends_what_was_started(fake: FakeShim) -> None:
    shim = fake.shim
    await shim.run("c", "sleep", "60")
    await shim.exec("c", "e", "sleep", "60")
    gate = fake.guest.gates["start_process"] = asyncio.Event()
    fake.guest.calls.clear()
    starting = asyncio.create_task(shim.call("Start", id="c", exec_id="e"))
    await fake.guest.called("start_process")
    deleting = asyncio.create_task(shim.call("Delete", id="c", exec_id="e"))
    done, _ = await asyncio.wait([deleting], timeout=0.1)
    assert not done, "nobody knows yet whether it was started"
    gate.set()
    await starting
    assert (await deleting).exit_status == 137
    assert [info.exec_id for info in await fake.guest.list_processes("c", timeout=1)] == [""]
    del fake.guest.gates["start_process"]
    await shim.exec("c", "e", "true")
    await shim.call("Start", id="c", exec_id="e")
    assert (await shim.call("Wait", id="c", exec_id="e")).exit_status == 0


async def test_kill_of_all_with_an_exec_is_the_exec_alone(fake: FakeShim) -> None:
    shim = fake.shim
    await shim.run("c", "sleep", "60")
    for name in ("e", "f"):
        await shim.exec("c", name, "sleep", "60")
        await shim.call("Start", id="c", exec_id=name)
    await shim.call("Kill", id="c", exec_id="e", signal=9, all=True)
    assert (await shim.call("Wait", id="c", exec_id="e")).exit_status == 137
    assert (await shim.call("State", id="c")).status == types.RUNNING
    assert (await shim.call("State", id="c", exec_id="f")).status == types.RUNNING


async def test_readers_that_stall_are_waited_for_together(
    fake: FakeShim, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, most = 0, 0
    drain = Copies.drain

    async def counted(copies: Copies, timeout: float) -> bool:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        try:
            return await drain(copies, timeout)
        finally:
            waiting -= 1

    shim = fake.shim
    await shim.run("c", "sleep", "60")
    for number in range(6):
        pipes = shim.pipes(read=False)
        name = f"e{number}"
        await shim.exec("c", name, "sh", "-c", "yes | head -c 4000000; exit 0", pipes=pipes)
        await shim.call("Start", id="c", exec_id=name)
    await shim.call("Kill", id="c", signal=9)
    await shim.call("Wait", id="c")
    monkeypatch.setattr(Copies, "drain", counted)
    await shim.call("Delete", id="c", timeout=20)
    assert most == 6
