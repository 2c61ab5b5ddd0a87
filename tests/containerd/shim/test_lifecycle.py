"""Create, Start, Wait, Delete, and everything between them that can come in another order."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import any_pb2

from protos.gen.containerd.v1.types import task_pb2 as types
from protos.gen.io.containerd.cgroups.v2 import metrics_pb2
from shims.ttrpc.codes import Code
from shims.ttrpc.errors import RpcError
from tests.containerd.shim.harness import FakeSupply

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from tests.containerd.shim.harness import FakeShim


async def test_output_exit_code_and_events_of_one_run(fake: FakeShim) -> None:
    shim = fake.shim
    pipes = shim.pipes()
    await shim.run("c", "sh", "-c", "echo out; echo err >&2; exit 7", pipes=pipes)
    ended = await shim.call("Wait", id="c")
    assert ended.exit_status == 7
    assert ended.exited_at.seconds > 0
    assert await pipes.all_of("stdout") == b"out\n"
    assert await pipes.all_of("stderr") == b"err\n"
    deleted = await shim.call("Delete", id="c")
    assert (deleted.exit_status, deleted.pid) == (7, os.getpid())
    assert fake.recorder.topics() == ["create", "start", "exit", "delete"]
    assert fake.recorder.exits[0][:2] == ("c", "")
    assert fake.supplies.undone == fake.supplies.made == 1


async def test_the_older_service_is_the_same(fake: FakeShim) -> None:
    fake.shim.service = "containerd.task.v2.Task"
    await fake.shim.run("c", "sh", "-c", "exit 3")
    assert (await fake.call("Wait", id="c")).exit_status == 3


async def test_states(fake: FakeShim) -> None:
    shim = fake.shim
    pipes = shim.pipes()
    await shim.create("c", "sleep", "60", pipes=pipes)
    assert (await shim.call("State", id="c")).status == types.CREATED
    await shim.call("Start", id="c")
    state = await shim.call("State", id="c")
    assert state.status == types.RUNNING
    assert (state.stdout, state.pid) == (pipes.paths["stdout"], os.getpid())
    await shim.call("Pause", id="c")
    assert (await shim.call("State", id="c")).status == types.PAUSED
    await shim.call("Resume", id="c")
    await shim.call("Kill", id="c", signal=9)
    await shim.call("Wait", id="c")
    state = await shim.call("State", id="c")
    assert (state.status, state.exit_status) == (types.STOPPED, 137)
    assert fake.recorder.topics() == ["create", "start", "paused", "resumed", "exit"]


async def test_many_waiters_before_and_after_the_exit(fake: FakeShim) -> None:
    await fake.shim.create("c", "sh", "-c", "exit 5")
    early = [asyncio.create_task(fake.call("Wait", id="c")) for _ in range(20)]
    await fake.call("Start", id="c")
    assert {ended.exit_status for ended in await asyncio.gather(*early)} == {5}
    assert (await fake.call("Wait", id="c")).exit_status == 5


async def test_an_exit_before_start_answers_is_told_after_the_start(fake: FakeShim) -> None:
    await fake.shim.create("c", "true")
    gate = fake.guest.gates["start_process"] = asyncio.Event()
    starting = asyncio.create_task(fake.call("Start", id="c"))
    container = fake.group.containers["c"]
    await asyncio.wait_for(container.init.died.wait(), 5)
    assert fake.recorder.topics() == ["create"]
    gate.set()
    await starting
    assert (await fake.call("Wait", id="c")).exit_status == 0
    assert fake.recorder.topics() == ["create", "start", "exit"]


async def test_a_program_that_is_not_there(fake: FakeShim) -> None:
    await fake.shim.create("c", "/no/such/program")
    with pytest.raises(RpcError, match="/no/such/program") as caught:
        await fake.call("Start", id="c")
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert (await fake.call("Wait", id="c")).exit_status == 127
    await fake.call("Delete", id="c")
    assert fake.recorder.topics() == ["create", "exit", "delete"]


async def test_delete_before_start(fake: FakeShim) -> None:
    await fake.shim.create("c", "sleep", "60")
    assert (await fake.call("Delete", id="c")).exit_status == 137
    assert fake.recorder.topics() == ["create", "exit", "delete"]
    with pytest.raises(RpcError) as caught:
        await fake.call("State", id="c")
    assert caught.value.code is Code.NOT_FOUND


async def test_delete_twice_and_at_once(fake: FakeShim) -> None:
    await fake.shim.run("c", "true")
    await fake.call("Wait", id="c")
    first: Any
    second: Any
    first, second = await asyncio.gather(
        fake.call("Delete", id="c"), fake.call("Delete", id="c"), return_exceptions=True
    )
    assert first.exit_status == 0
    assert isinstance(second, RpcError) or second.exit_status == 0
    with pytest.raises(RpcError) as caught:
        await fake.call("Delete", id="c")
    assert caught.value.code is Code.NOT_FOUND
    assert fake.recorder.topics().count("delete") == 1


async def test_a_disk_that_does_not_unplug_does_not_fail_delete(fake: FakeShim) -> None:
    class WithDisk(FakeSupply):
        async def attach(self, vm: Any, owned: AsyncExitStack) -> None:
            await vm.attach_disk(-1, "e-1", readonly=True)
            owned.push_async_callback(vm.detach_disk, "e-1")

    fake.supplies.next = WithDisk(fake.supplies.next.rootfs)
    await fake.shim.create("first", "true")
    await fake.shim.create("second", "true")
    await fake.call("Delete", id="first")
    assert fake.engine.last.disks == {"e-1"}, "the other container uses it"
    fake.engine.last.unplug_fails = True
    await fake.call("Delete", id="second")
    assert fake.recorder.topics()[-1] == "delete"


@pytest.mark.parametrize(
    ("method", "fields", "code"),
    [
        ("State", {"id": "x"}, Code.NOT_FOUND),
        ("State", {"id": "c", "exec_id": "x"}, Code.NOT_FOUND),
        ("Start", {"id": "x"}, Code.NOT_FOUND),
        ("Start", {"id": "c"}, Code.FAILED_PRECONDITION),
        ("Delete", {"id": "x"}, Code.NOT_FOUND),
        ("Delete", {"id": "c"}, Code.FAILED_PRECONDITION),
        ("Delete", {"id": "c", "exec_id": "x"}, Code.NOT_FOUND),
        ("Pids", {"id": "x"}, Code.NOT_FOUND),
        ("Resume", {"id": "c"}, Code.FAILED_PRECONDITION),
        ("Checkpoint", {"id": "c"}, Code.UNIMPLEMENTED),
        ("Kill", {"id": "x", "signal": 9}, Code.NOT_FOUND),
        ("Kill", {"id": "c", "signal": 0}, Code.INVALID_ARGUMENT),
        ("Kill", {"id": "c", "signal": 65}, Code.INVALID_ARGUMENT),
        ("Kill", {"id": "c", "signal": 9, "exec_id": "x"}, Code.NOT_FOUND),
        ("Exec", {"id": "x", "exec_id": "e"}, Code.NOT_FOUND),
        ("Exec", {"id": "c", "exec_id": "e"}, Code.INVALID_ARGUMENT),
        ("Exec", {"id": "c", "exec_id": "a/b"}, Code.INVALID_ARGUMENT),
        ("ResizePty", {"id": "x"}, Code.NOT_FOUND),
        ("CloseIO", {"id": "x"}, Code.NOT_FOUND),
        ("Update", {"id": "c"}, Code.INVALID_ARGUMENT),
        ("Wait", {"id": "x"}, Code.NOT_FOUND),
        ("Stats", {"id": "x"}, Code.NOT_FOUND),
        ("Create", {"id": "c", "bundle": "/nowhere"}, Code.ALREADY_EXISTS),
        ("Create", {"id": "d", "bundle": "/nowhere"}, Code.INVALID_ARGUMENT),
        ("Create", {"id": "d", "checkpoint": "/x"}, Code.UNIMPLEMENTED),
    ],
)
async def test_error_codes(
    fake: FakeShim, method: str, fields: dict[str, object], code: Code
) -> None:
    await fake.shim.run("c", "sleep", "60")
    with pytest.raises(RpcError) as caught:
        await fake.call(method, **fields)
    assert caught.value.code is code
    assert "\n" not in caught.value.message


async def test_connect_to_an_unknown_id_has_no_task(fake: FakeShim) -> None:
    answer = await fake.call("Connect", id="unknown")
    assert (answer.shim_pid, answer.task_pid) == (os.getpid(), 0)


async def test_kill_of_an_exited_process_is_not_found(fake: FakeShim) -> None:
    await fake.shim.run("c", "true")
    await fake.call("Wait", id="c")
    for number in (15, 9):
        with pytest.raises(RpcError) as caught:
            await fake.call("Kill", id="c", signal=number)
        assert caught.value.code is Code.NOT_FOUND


@pytest.mark.parametrize("number", [1, 2, 3, 9, 10, 12, 15])
async def test_death_by_signal(fake: FakeShim, number: int) -> None:
    await fake.shim.run("c", "sleep", "60")
    await fake.call("Kill", id="c", signal=number)
    assert (await fake.call("Wait", id="c")).exit_status == 128 + number


async def test_shutdown_waits_for_the_last_container(fake: FakeShim) -> None:
    await fake.shim.run("c", "sleep", "60")
    await fake.call("Shutdown", id="c")
    assert not fake.group.over.is_set()
    await fake.call("Kill", id="c", signal=9)
    await fake.call("Wait", id="c")
    await fake.call("Delete", id="c")
    await fake.call("Shutdown", id="c")
    assert fake.group.over.is_set()
    assert fake.engine.last.stopped


async def test_a_failed_create_leaves_nothing(fake: FakeShim) -> None:
    await fake.shim.create("first", "sleep", "60")
    fake.guest.errors["create_container"] = RpcError(Code.INTERNAL, "step 3: mount: EINVAL")
    with pytest.raises(RpcError, match="step 3"):
        await fake.shim.create("second", "true", pipes=fake.shim.pipes())
    assert (fake.supplies.made, fake.supplies.undone) == (2, 1)
    del fake.guest.errors["create_container"]
    await fake.shim.create("second", "true")
    assert fake.recorder.topics() == ["create", "create"]


async def test_a_vm_that_does_not_start_fails_create_with_its_reason(fake: FakeShim) -> None:
    fake.engine.refuse = "no space left on this host"
    with pytest.raises(RpcError, match="no space left") as caught:
        await fake.shim.create("c", "true")
    assert caught.value.code is Code.UNAVAILABLE
    fake.engine.refuse = ""
    await fake.shim.create("c", "true")


@pytest.mark.parametrize("reason", ["oom", "guest_oom"])
async def test_a_vm_that_ran_out_of_memory(fake: FakeShim, reason: str) -> None:
    await fake.shim.run("c", "sleep", "60")
    waiting = asyncio.create_task(fake.call("Wait", id="c"))
    fake.engine.last.die(reason, "too much")
    assert (await waiting).exit_status == 137
    assert fake.recorder.topics() == ["create", "start", "oom", "exit"]
    stats = metrics_pb2.Metrics.FromString((await fake.call("Stats", id="c")).stats.value)
    assert stats.memory_events.oom_kill == 1


async def test_statistics_of_a_vm_that_was_killed_before_anybody_looked(fake: FakeShim) -> None:
    await fake.shim.run("c", "sleep", "60")
    fake.engine.last.die()
    await fake.call("Wait", id="c")
    stats = metrics_pb2.Metrics.FromString((await fake.call("Stats", id="c")).stats.value)
    assert stats.HasField("memory")
    assert stats.memory.usage == 0


async def test_statistics_are_looked_at_with_every_heartbeat(fake: FakeShim) -> None:
    await fake.shim.run("c", "sleep", "60")
    await fake.group.vm.on_beat()
    fake.engine.last.die()
    await fake.call("Wait", id="c")
    stats = metrics_pb2.Metrics.FromString((await fake.call("Stats", id="c")).stats.value)
    assert stats.pids.current == 3


async def test_a_start_that_failed_has_its_reason_also_when_delete_comes_at_once(
    fake: FakeShim,
) -> None:
    await fake.shim.create("c", "/no/such/program")
    gate = fake.guest.gates["stats"] = asyncio.Event()
    with pytest.raises(RpcError, match="/no/such/program"):
        await fake.call("Start", id="c")
    deleting = asyncio.create_task(fake.call("Delete", id="c"))
    done, _ = await asyncio.wait([deleting], timeout=0.05)
    assert not done
    gate.set()
    assert (await deleting).exit_status == 127
    assert fake.recorder.topics() == ["create", "exit", "delete"]


async def test_out_of_memory_is_told_before_the_exit(fake: FakeShim) -> None:
    from protos.gen.voidbox.guest.v1 import guest_pb2

    await fake.shim.run("c", "sleep", "60")
    fake.guest.emit(oom=guest_pb2.OutOfMemory(container_id="c", kills=1))
    await fake.call("Kill", id="c", signal=9)
    assert (await fake.call("Wait", id="c")).exit_status == 137
    assert fake.recorder.topics() == ["create", "start", "oom", "exit"]


@pytest.mark.parametrize("broken", ["record_exit", "publish"])
async def test_a_full_run_directory_does_not_keep_a_container_alive(
    fake: FakeShim, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    await fake.shim.run("c", "sh", "-c", "exit 7")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(fake.recorder, broken, full)
        assert (await fake.call("Wait", id="c")).exit_status == 7
    assert (await fake.call("State", id="c")).status == types.STOPPED
    if broken == "record_exit":
        assert fake.recorder.topics() == ["create", "start", "exit"]
    assert any("No space left" in line for line in fake.recorder.lines)
    assert (await fake.call("Delete", id="c")).exit_status == 7
    assert fake.engine.last.stopped


async def test_a_failure_before_the_exit_is_told_does_not_hold_it_up(
    fake: FakeShim, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fake.shim.run("c", "sh", "-c", "read x; exit 7")
    container = fake.group.containers["c"]

    async def broken(**_: Any) -> None:
        raise ValueError("not statistics")

    monkeypatch.setattr(container, "sample_stats", broken)
    assert (await fake.call("Wait", id="c")).exit_status in {1, 7}
    assert any("not statistics" in line for line in fake.recorder.lines)


@pytest.mark.parametrize("paused", [False, True])
async def test_update_before_the_start_and_while_paused(fake: FakeShim, paused: bool) -> None:
    await fake.shim.create("c", "sleep", "60")
    if paused:
        await fake.call("Start", id="c")
        await fake.call("Pause", id="c")
    resources = any_pb2.Any(value=b'{"cpu": {"shares": 512}}')
    await fake.call("Update", id="c", resources=resources)
    assert "update_cgroup" in fake.guest.calls
