"""Groups: several containers in one VM, its early start, its replacement, the lease."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protos.gen.runtimeoptions.v1 import options_pb2
from shims.containerd.shim import anys
from shims.containerd.shim.daemon import group_settings, lease_lost
from shims.containerd.shim.state import State
from shims.core.errors import ShimError
from shims.ttrpc.codes import Code
from shims.ttrpc.errors import RpcError
from tests.containerd.shim.harness import start_fake_shim
from tests.fakes.machine import FakeConfig

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tests.containerd.shim.harness import FakeShim

_EARLY: Any = FakeConfig("tests.c", 512)


async def test_members_of_a_pod_share_one_vm(tmp_path: Path) -> None:
    async with start_fake_shim(tmp_path, group="pod") as fake:
        for name in ("pod", "one", "two"):
            await fake.shim.run(name, "sleep", "60")
        assert len(fake.engine.machines) == 1
        for name in ("one", "pod"):
            await fake.call("Kill", id=name, signal=9)
            await fake.call("Wait", id=name)
            await fake.call("Delete", id=name)
        assert not fake.engine.last.stopped
        assert (await fake.call("State", id="two")).pid
        await fake.shim.run("one", "true")  # a container of the same name, after a crash
        assert (await fake.call("Wait", id="one")).exit_status == 0


async def test_the_vm_of_a_lone_container_goes_with_its_exit(fake: FakeShim) -> None:
    await fake.shim.run("c", "true")
    await fake.call("Wait", id="c")
    await asyncio.gather(*fake.group.shared.tasks)
    assert fake.engine.last.stopped
    assert (await fake.call("Stats", id="c")).stats.type_url == "io.containerd.cgroups.v2.Metrics"
    await fake.call("Delete", id="c")


async def test_an_early_vm_is_used(fake: FakeShim) -> None:
    fake.group.vm.begin(_EARLY)
    await fake.shim.run("c", "true")
    assert len(fake.engine.machines) == 1


async def test_an_early_vm_that_does_not_fit_is_replaced(fake: FakeShim) -> None:
    fake.group.vm.begin(_EARLY)
    await fake.group.vm.ready()
    fake.supplies.next.needs_shares = True
    await fake.shim.run("c", "true")
    first, second = fake.engine.machines
    assert first.stopped
    assert second.config.shares
    assert (await fake.call("Wait", id="c")).exit_status == 0


async def test_an_early_vm_that_does_not_fit_is_not_booted_first(fake: FakeShim) -> None:
    fake.engine.gate = asyncio.Event()  # nothing ever sets this one
    fake.group.vm.begin(_EARLY)
    await fake.engine.called.wait()
    fake.supplies.next.needs_shares = True
    fake.engine.gate = None
    await fake.shim.run("c", "true")
    assert [machine.config.shares for machine in fake.engine.machines] == [True]


async def test_no_new_container_in_a_shim_that_gives_up(fake: FakeShim) -> None:
    order = []
    fake.group.close_sockets = lambda: order.append("socket")
    fake.group.vm.report = order.append
    await fake.shim.run("c", "sleep", "60")
    giving_up = asyncio.create_task(fake.group.abandon("test"))
    with pytest.raises(RpcError, match="shutting down") as caught:
        await fake.shim.create("d", "true")
    assert caught.value.code is Code.UNAVAILABLE
    await giving_up
    assert order[0] == "socket"
    assert order.count("socket") == 1
    assert len(fake.engine.machines) == 1


@pytest.mark.parametrize(
    ("body", "timeout"), [("guest-timeout = 77", 77.0), ("nonsense = 1", 30.0), (None, 30.0)]
)
def test_the_bounds_come_with_the_options_of_start(
    tmp_path: Path, body: str | None, timeout: float
) -> None:
    state = State("tests", "c", {"VOID_SHIMS_RUN": str(tmp_path)})
    if body is not None:
        Path(state.directory).mkdir(parents=True)
        options = options_pb2.Options(config_body=body.encode())
        state.write("options", anys.pack(options).SerializeToString())
    assert group_settings(state).guest_timeout == timeout


async def test_an_early_vm_that_failed_is_tried_again(fake: FakeShim) -> None:
    fake.engine.refuse = "not yet"
    fake.group.vm.begin(_EARLY)
    with pytest.raises(ShimError, match="not yet"):
        await fake.group.vm.ready()
    fake.engine.refuse = ""
    await fake.group.vm.stop()
    await fake.shim.run("c", "true")


async def test_shares_are_refused_in_a_vm_without_them(tmp_path: Path) -> None:
    async with start_fake_shim(tmp_path, group="pod") as fake:
        await fake.shim.run("pod", "sleep", "60")
        fake.supplies.next.needs_shares = True
        with pytest.raises(RpcError, match="without shared directories") as caught:
            await fake.shim.create("one", "true")
        assert caught.value.code is Code.FAILED_PRECONDITION


async def test_two_creates_of_one_id(fake: FakeShim) -> None:
    fake.engine.gate = asyncio.Event()
    first = asyncio.create_task(fake.shim.create("c", "true"))
    second = asyncio.create_task(fake.shim.create("c", "true"))
    done, _ = await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
    assert [type(task.exception()) for task in done] == [RpcError]
    fake.engine.gate.set()
    await asyncio.wait({first, second})
    assert len(fake.group.containers) == 1


async def test_a_create_whose_client_went_away_goes_on(fake: FakeShim) -> None:
    fake.engine.gate = asyncio.Event()
    bundle = fake.shim.bundle("c", "true")
    with pytest.raises(ShimError, match=r"."):
        await fake.shim.call("Create", timeout=0.05, id="c", bundle=str(bundle))
    fake.engine.gate.set()
    await asyncio.gather(*fake.group.shared.tasks)
    assert (await fake.call("State", id="c")).pid


async def test_the_lease(fake: FakeShim, tmp_path: Path) -> None:
    group = fake.group
    now = group.last_activity
    bundle = tmp_path / "bundle"
    assert lease_lost(group, str(bundle), now) == "the bundle is gone"
    bundle.mkdir()
    assert lease_lost(group, str(bundle), now) == ""
    assert "no container" in lease_lost(group, str(bundle), now + 3600)
    await fake.shim.run("c", "sleep", "60")
    assert lease_lost(group, str(bundle), now + 3600) == ""
    container = tmp_path / "c"
    container.rename(tmp_path / ".c")
    assert "the bundle of container c" in lease_lost(group, str(bundle), now)
    await group.abandon("test")
    assert fake.recorder.topics() == ["create", "start", "exit", "delete"]
    assert group.over.is_set()
    assert fake.engine.last.stopped


_STEPS = st.lists(
    st.sampled_from(
        ["start", "exec", "start exec", "kill exec", "kill", "pause", "resume", "delete exec"]
    ),
    max_size=12,
)


@given(steps=_STEPS, together=st.booleans())
@settings(max_examples=25, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
async def test_events_keep_their_order_whatever_is_asked(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], together: bool
) -> None:
    async with start_fake_shim(tmp_path_factory.mktemp("shim")) as fake:
        await fake.shim.create("c", "sleep", "60")
        calls = [_step(fake, step, number) for number, step in enumerate(steps)]
        if together:
            await asyncio.gather(*calls, return_exceptions=True)
        else:
            for call in calls:
                try:
                    await call
                except RpcError:
                    pass
        try:
            await fake.call("Kill", id="c", signal=9)
        except RpcError:
            pass  # killed by a step
        await fake.call("Wait", id="c")
        await fake.call("Delete", id="c")
        check_order(fake.recorder.topics())


def _step(fake: FakeShim, step: str, number: int) -> Coroutine[Any, Any, Any]:
    verb, _, of_exec = step.partition(" ")
    exec_id = f"e{number // 3}" if of_exec else ""
    if verb == "exec":
        return fake.shim.exec("c", f"e{number // 3}", "sleep", "60")
    more: dict[str, Any] = {"exec_id": exec_id} if verb in ("start", "kill", "delete") else {}
    if verb == "kill":
        more["signal"] = 9
    return fake.shim.call(verb.capitalize(), id="c", **more)


def check_order(topics: list[str]) -> None:
    """Assert what containerd requires of the order of a container's events."""
    assert topics[0] == "create"
    assert topics[-1] == "delete"
    assert topics[-2] == "exit", topics
    once = [topic for topic in topics if topic not in ("paused", "resumed")]
    assert len(set(once)) == len(once), topics
    turns = [topic for topic in topics if topic in ("paused", "resumed")]
    assert turns[::2] == ["paused"] * len(turns[::2]), topics
    assert turns[1::2] == ["resumed"] * len(turns[1::2]), topics
    if "start" in topics:
        assert topics.index("start") < topics.index("exit")
    for topic in topics:
        kind, _, exec_id = topic.partition(" ")
        if kind == "exec-started":
            assert topics.index(f"exec-added {exec_id}") < topics.index(topic)
        if kind == "exit" and exec_id:
            assert topics.index(f"exec-started {exec_id}") < topics.index(topic)
    running = {t.partition(" ")[2] for t in topics if t.startswith("exec-started")}
    ended = {t.partition(" ")[2] for t in topics if t.startswith("exit ")}
    assert running == ended
