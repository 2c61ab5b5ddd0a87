"""The contract of ``ShimCore`` as checks that any backend can be put through.

No test framework is needed. Subclass ``Harness``, then either await ``check_backend(harness)`` or
hand ``CHECKS`` to the parameters of your tests, one check per test::

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    async def test_contract(check):
        async with my_harness() as harness:
            await check(harness)

A check raises ``ContractBroken`` with a sentence that quotes the contract. Every check gets its
own run ids, removes its runs, and expects to be the only one who uses the target.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from shims.core.conformance_capabilities import CAPABILITY_CHECKS
from shims.core.conformance_kit import (
    Behaviour,
    ContractBroken,
    Harness,
    drain,
    expect,
    expect_error,
    first,
    missing,
    reach,
    running,
)
from shims.core.errors import (
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    InputError,
    NotFound,
)
from shims.core.runs import RunRef, RunState
from shims.core.shimcore import RunOptions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["CHECKS", "Behaviour", "ContractBroken", "Harness", "check_backend"]


async def check_backend(harness: Harness) -> None:
    """Run every check. Raises ``ContractBroken`` at the first promise that does not hold."""
    for check in CHECKS:
        await check(harness)


async def rendering_is_pure(harness: Harness) -> None:
    """Two connections render the same bytes, and rendering starts nothing."""
    spec = harness.make_spec(Behaviour.SUCCEEDS)
    first = harness.connect().render(spec, RunOptions())
    second = harness.connect().render(spec, RunOptions())
    expect(list(first) == list(second), "render gives the same bytes", (first, second))
    async with harness.connect() as backend:
        expect(not await backend.list(), "render creates nothing", await backend.list())


async def a_run_succeeds(harness: Harness) -> None:
    """A run that succeeds says so, with a time, its output and its events."""
    async with running(harness, Behaviour.SUCCEEDS, "succeeds") as (backend, ref):
        expect(ref.backend == backend.name, "a reference names its backend", ref)
        expect(RunRef.parse(str(ref)) == ref, "a reference survives as text", str(ref))
        status = await backend.wait(ref, timeout=harness.patience)
        expect(status.state is RunState.SUCCEEDED, "it succeeds", status)
        expect(status == await backend.status(ref), "a terminal status stays", status)
        again = await backend.wait(ref, timeout=harness.patience)
        expect(status == again, "wait may be repeated", again)
        output = b"".join([piece async for piece in backend.logs(ref)])
        expect(b"hello" in output, "logs hold what it printed", output)


async def a_failure_is_a_failure(harness: Harness) -> None:
    """A run that fails is Failed, whatever its machine did."""
    async with running(harness, Behaviour.FAILS, "fails") as (backend, ref):
        status = await backend.wait(ref, timeout=harness.patience)
        expect(status.state is RunState.FAILED, "it is Failed", status)
        expect(bool(status.message), "a failure has a message", status)


async def a_name_is_taken_once(harness: Harness) -> None:
    """Running under the same id again raises AlreadyExists and leaves the first run alone."""
    async with running(harness, Behaviour.LASTS, "twice") as (backend, ref):
        options = RunOptions(run_id=ref.id)
        again = backend.run(harness.make_spec(Behaviour.FAILS), options)
        await expect_error(AlreadyExists, "an id is taken once", again)
        status = await reach(backend, ref, RunState.RUNNING, harness.patience)
        expect(len(await backend.list()) == 1, "no second run exists", status)


async def the_same_run_has_the_same_name(harness: Harness) -> None:
    """Without an id, the spec and the options decide on the name."""
    spec = harness.make_spec(Behaviour.SUCCEEDS)
    async with harness.connect() as backend:
        ref = await backend.run(spec, RunOptions())
        try:
            expect(ref.id == RunOptions().choose_run_id(spec), "the id is derived", ref)
            again = backend.run(spec, RunOptions())
            await expect_error(AlreadyExists, "the same run is not started twice", again)
        finally:
            await backend.remove(ref, force=True)


async def a_bad_id_is_refused(harness: Harness) -> None:
    """An id that no target could bear raises InputError and leaves nothing."""
    async with harness.connect() as backend:
        for run_id in ("Upper", "with space", "-dash", "9first", "x" * 64, "a/b", "../a"):
            spec = harness.make_spec(Behaviour.SUCCEEDS)
            call = backend.run(spec, RunOptions(run_id=run_id))
            await expect_error(InputError, f"id {run_id!r} is refused", call)
        expect(not await backend.list(), "a refused run leaves nothing", await backend.list())


async def the_unknown_is_not_found(harness: Harness) -> None:
    """Everything about a run that does not exist raises NotFound, except removing it."""
    async with harness.connect() as backend:
        ref = missing(backend)
        await expect_error(NotFound, "status raises NotFound", backend.status(ref))
        await expect_error(NotFound, "wait raises NotFound", backend.wait(ref, timeout=1))
        await expect_error(NotFound, "logs raise NotFound", first(backend.logs(ref)))
        await expect_error(NotFound, "events raise NotFound", first(backend.events(ref)))
        await backend.remove(ref)
        await backend.remove(ref, force=True)


async def waiting_has_a_deadline(harness: Harness) -> None:
    """wait raises DeadlineExceeded in time, and the run goes on."""
    async with running(harness, Behaviour.LASTS, "deadline") as (backend, ref):
        await reach(backend, ref, RunState.RUNNING, harness.patience)
        call = backend.wait(ref, timeout=0.05)
        await expect_error(DeadlineExceeded, "wait keeps its deadline", call)
        status = await backend.status(ref)
        expect(status.state is RunState.RUNNING, "the run goes on", status)


async def removing_needs_an_end(harness: Harness) -> None:
    """remove refuses a live run unless forced, and then nothing is left of it."""
    async with running(harness, Behaviour.LASTS, "remove") as (backend, ref):
        await reach(backend, ref, RunState.RUNNING, harness.patience)
        await expect_error(Conflict, "a live run is not removed", backend.remove(ref))
        await backend.remove(ref, force=True)
        await expect_error(NotFound, "a removed run is unknown", backend.status(ref))
        expect(not await backend.list(), "a removed run is not listed", await backend.list())
        await backend.remove(ref)


async def removing_ends_waiting(harness: Harness) -> None:
    """Whoever waits for a run that is removed gets NotFound, and does not hang."""
    async with running(harness, Behaviour.LASTS, "waiter") as (backend, ref):
        await reach(backend, ref, RunState.RUNNING, harness.patience)
        waiter = asyncio.ensure_future(backend.wait(ref, timeout=harness.patience))
        await asyncio.sleep(0)
        await backend.remove(ref, force=True)
        try:
            status = await waiter
        except NotFound:
            return
        # The run ended before it was removed, and the waiter may have seen that moment.
        expect(status.state.is_terminal, "wait ends with NotFound or the end", status)


async def runs_are_listed_in_order(harness: Harness) -> None:
    """list names every run once, sorted by reference."""
    async with (
        running(harness, Behaviour.LASTS, "list-b") as (backend, second),
        running(harness, Behaviour.SUCCEEDS, "list-a") as (_, first),
    ):
        listed = [status.ref for status in await backend.list()]
        expect(listed == [first, second], "list is sorted and complete", listed)


async def logs_can_be_followed(harness: Harness) -> None:
    """Following yields what comes later and ends with the run; an iterator may be dropped."""
    async with running(harness, Behaviour.LASTS, "follow") as (backend, ref):
        pieces = backend.logs(ref, follow=True)
        async with asyncio.timeout(harness.patience):
            piece = await first(pieces)
        expect(bool(piece), "a follower sees what is printed", piece)
        reader = asyncio.ensure_future(drain(backend.logs(ref, follow=True)))
        await asyncio.sleep(0)
        await backend.remove(ref, force=True)
        async with asyncio.timeout(harness.patience):
            await reader


async def events_have_no_gaps(harness: Harness) -> None:
    """Events count from 0 without gaps, end with the run, and can be resumed anywhere."""
    async with running(harness, Behaviour.SUCCEEDS, "events") as (backend, ref):
        async with asyncio.timeout(harness.patience):
            events = [event async for event in backend.events(ref, follow=True)]
        numbers = [event.seq for event in events]
        expect(numbers == list(range(len(events))), "seq counts from 0 without gaps", numbers)
        expect({event.run_id for event in events} == {ref.id}, "events name their run", events)
        middle = len(events) // 2
        rest = [event async for event in backend.events(ref, after=middle)]
        expect(rest == events[middle + 1 :], "after resumes", rest)
        expect([event async for event in backend.events(ref, after=10**6)] == [], "no more", ref)


async def another_connection_sees_the_run(harness: Harness) -> None:
    """A run belongs to the target: it outlives the connection that started it."""
    spec = harness.make_spec(Behaviour.LASTS)
    async with harness.connect() as first:
        ref = await first.run(spec, RunOptions(run_id="conformance-reconnect"))
    async with harness.connect() as second:
        try:
            await reach(second, ref, RunState.RUNNING, harness.patience)
        finally:
            await second.remove(ref, force=True)


async def many_run_at_once(harness: Harness) -> None:
    """One connection serves many tasks."""
    async with harness.connect() as backend:
        spec = harness.make_spec(Behaviour.SUCCEEDS)
        many = [RunOptions(run_id=f"conformance-many-{i}") for i in range(5)]
        refs = await asyncio.gather(*(backend.run(spec, options) for options in many))
        try:
            waits = (backend.wait(ref, timeout=harness.patience) for ref in refs)
            states = [status.state for status in await asyncio.gather(*waits)]
            expect(set(states) == {RunState.SUCCEEDED}, "all of them succeed", states)
        finally:
            await asyncio.gather(*(backend.remove(ref, force=True) for ref in refs))


CHECKS: tuple[Callable[[Harness], Awaitable[None]], ...] = (
    rendering_is_pure,
    a_run_succeeds,
    a_failure_is_a_failure,
    a_name_is_taken_once,
    the_same_run_has_the_same_name,
    a_bad_id_is_refused,
    the_unknown_is_not_found,
    waiting_has_a_deadline,
    removing_needs_an_end,
    removing_ends_waiting,
    runs_are_listed_in_order,
    logs_can_be_followed,
    events_have_no_gaps,
    another_connection_sees_the_run,
    many_run_at_once,
    *CAPABILITY_CHECKS,
)
"""Every check, from the plain to the particular."""
