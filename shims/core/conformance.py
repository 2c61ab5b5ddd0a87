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
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from shims.core.errors import (
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    InputError,
    NotFound,
    NotSupported,
    ShimError,
)
from shims.core.loading import parse_spec
from shims.core.runs import TRANSITIONS, RunRef, RunState
from shims.core.shimcore import Capability, RunOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from shims.core.loading import LoadedSpec
    from shims.core.runs import RunStatus
    from shims.core.shimcore import ShimCore

__all__ = ["CHECKS", "Behaviour", "ContractBroken", "Harness", "check_backend"]


class ContractBroken(AssertionError):
    """A backend does not do what ``ShimCore`` promises."""


class Behaviour(StrEnum):
    """What a run that a check needs must do."""

    SUCCEEDS = "succeeds"
    """Print ``hello`` and succeed within a moment."""
    FAILS = "fails"
    """Fail within a moment."""
    LASTS = "lasts"
    """Print ``hello`` and go on until somebody ends it."""


class Harness(ABC):
    """What the checks need to know about a backend."""

    patience: float = 10.0
    """Seconds after which a run that should have moved counts as stuck."""

    @abstractmethod
    def connect(self) -> ShimCore:
        """Return a new, unentered connection to the same target."""

    def make_spec(self, behaviour: Behaviour) -> LoadedSpec:
        """Return a spec that behaves so; override it when the target runs no mock workflows."""
        hello = "{name: hello, run: {program: echo, args: [hello]}}"
        steps = {
            Behaviour.SUCCEEDS: hello,
            Behaviour.FAILS: "{name: broken, run: {program: /no/such/program}}",
            Behaviour.LASTS: f"{hello}, {{name: long, run: {{program: sleep, args: [infinity]}}}}",
        }[behaviour]
        text = (
            f"api_version: v1\nkind: workflow\nname: conformance-{behaviour}\n"
            f"sandbox: {{mode: mock}}\nworkflow: {{steps: [{steps}]}}\n"
        )
        return parse_spec(text.encode())


E = TypeVar("E", bound=ShimError)


async def check_backend(harness: Harness) -> None:
    """Run every check. Raises ``ContractBroken`` at the first promise that does not hold."""
    for check in CHECKS:
        await check(harness)


def _expect(holds: bool, promise: str, seen: object) -> None:
    if not holds:
        raise ContractBroken(f"{promise}; seen: {seen!r}")


async def _expect_error(kind: type[E], promise: str, call: Awaitable[object]) -> E:
    try:
        result = await call
    except kind as error:
        return error
    except ShimError as error:
        raise ContractBroken(f"{promise}; raised {type(error).__name__}: {error}") from error
    raise ContractBroken(f"{promise}; returned {result!r}")


async def _first(items: AsyncIterator[object]) -> object:
    async for item in items:
        return item
    return None


@asynccontextmanager
async def _running(
    harness: Harness, behaviour: Behaviour, name: str
) -> AsyncIterator[tuple[ShimCore, RunRef]]:
    """Give a connection and a run that is removed at the end, whatever happened."""
    async with harness.connect() as backend:
        options = RunOptions(run_id=f"conformance-{name}")
        ref = await backend.run(harness.make_spec(behaviour), options)
        try:
            yield backend, ref
        finally:
            await backend.remove(ref, force=True)


async def _reach(backend: ShimCore, ref: RunRef, state: RunState, patience: float) -> RunStatus:
    """Return the first status with ``state``, checking the steps that lead there."""
    before = await backend.status(ref)
    try:
        async with asyncio.timeout(patience):
            while before.state is not state:
                await asyncio.sleep(0.01)  # the contract offers no wait for a state that passes
                now = await backend.status(ref)
                legal = now.state is before.state or now.state in TRANSITIONS[before.state]
                _expect(legal, "states follow the table of transitions", (before, now))
                before = now
    except TimeoutError as error:
        raise ContractBroken(f"the run reaches {state}; it stays {before.state}") from error
    return before


def _missing(backend: ShimCore) -> RunRef:
    return RunRef(backend.name, "conformance-no-such-run")


# ------------------------------------------------------------------------------------ the checks


async def rendering_is_pure(harness: Harness) -> None:
    """Two connections render the same bytes, and rendering starts nothing."""
    spec = harness.make_spec(Behaviour.SUCCEEDS)
    first = harness.connect().render(spec, RunOptions())
    second = harness.connect().render(spec, RunOptions())
    _expect(list(first) == list(second), "render gives the same bytes", (first, second))
    async with harness.connect() as backend:
        _expect(not await backend.list(), "render creates nothing", await backend.list())


async def a_run_succeeds(harness: Harness) -> None:
    """A run that succeeds says so, with a time, its output and its events."""
    async with _running(harness, Behaviour.SUCCEEDS, "succeeds") as (backend, ref):
        _expect(ref.backend == backend.name, "a reference names its backend", ref)
        _expect(RunRef.parse(str(ref)) == ref, "a reference survives as text", str(ref))
        status = await backend.wait(ref, timeout=harness.patience)
        _expect(status.state is RunState.SUCCEEDED, "it succeeds", status)
        _expect(status == await backend.status(ref), "a terminal status stays", status)
        again = await backend.wait(ref, timeout=harness.patience)
        _expect(status == again, "wait may be repeated", again)
        output = b"".join([piece async for piece in backend.logs(ref)])
        _expect(b"hello" in output, "logs hold what it printed", output)


async def a_failure_is_a_failure(harness: Harness) -> None:
    """A run that fails is Failed, whatever its machine did."""
    async with _running(harness, Behaviour.FAILS, "fails") as (backend, ref):
        status = await backend.wait(ref, timeout=harness.patience)
        _expect(status.state is RunState.FAILED, "it is Failed", status)
        _expect(bool(status.message), "a failure has a message", status)


async def a_name_is_taken_once(harness: Harness) -> None:
    """Running under the same id again raises AlreadyExists and leaves the first run alone."""
    async with _running(harness, Behaviour.LASTS, "twice") as (backend, ref):
        options = RunOptions(run_id=ref.id)
        again = backend.run(harness.make_spec(Behaviour.FAILS), options)
        await _expect_error(AlreadyExists, "an id is taken once", again)
        status = await _reach(backend, ref, RunState.RUNNING, harness.patience)
        _expect(len(await backend.list()) == 1, "no second run exists", status)


async def the_same_run_has_the_same_name(harness: Harness) -> None:
    """Without an id, the spec and the options decide on the name."""
    spec = harness.make_spec(Behaviour.SUCCEEDS)
    async with harness.connect() as backend:
        ref = await backend.run(spec, RunOptions())
        try:
            _expect(ref.id == RunOptions().choose_run_id(spec), "the id is derived", ref)
            again = backend.run(spec, RunOptions())
            await _expect_error(AlreadyExists, "the same run is not started twice", again)
        finally:
            await backend.remove(ref, force=True)


async def a_bad_id_is_refused(harness: Harness) -> None:
    """An id that no target could bear raises InputError and leaves nothing."""
    async with harness.connect() as backend:
        for run_id in ("Upper", "with space", "-dash", "9first", "x" * 64, "a/b", "../a"):
            spec = harness.make_spec(Behaviour.SUCCEEDS)
            call = backend.run(spec, RunOptions(run_id=run_id))
            await _expect_error(InputError, f"id {run_id!r} is refused", call)
        _expect(not await backend.list(), "a refused run leaves nothing", await backend.list())


async def the_unknown_is_not_found(harness: Harness) -> None:
    """Everything about a run that does not exist raises NotFound, except removing it."""
    async with harness.connect() as backend:
        ref = _missing(backend)
        await _expect_error(NotFound, "status raises NotFound", backend.status(ref))
        await _expect_error(NotFound, "wait raises NotFound", backend.wait(ref, timeout=1))
        await _expect_error(NotFound, "logs raise NotFound", _first(backend.logs(ref)))
        await _expect_error(NotFound, "events raise NotFound", _first(backend.events(ref)))
        await backend.remove(ref)
        await backend.remove(ref, force=True)


async def waiting_has_a_deadline(harness: Harness) -> None:
    """wait raises DeadlineExceeded in time, and the run goes on."""
    async with _running(harness, Behaviour.LASTS, "deadline") as (backend, ref):
        await _reach(backend, ref, RunState.RUNNING, harness.patience)
        call = backend.wait(ref, timeout=0.05)
        await _expect_error(DeadlineExceeded, "wait keeps its deadline", call)
        status = await backend.status(ref)
        _expect(status.state is RunState.RUNNING, "the run goes on", status)


async def removing_needs_an_end(harness: Harness) -> None:
    """remove refuses a live run unless forced, and then nothing is left of it."""
    async with _running(harness, Behaviour.LASTS, "remove") as (backend, ref):
        await _reach(backend, ref, RunState.RUNNING, harness.patience)
        await _expect_error(Conflict, "a live run is not removed", backend.remove(ref))
        await backend.remove(ref, force=True)
        await _expect_error(NotFound, "a removed run is unknown", backend.status(ref))
        _expect(not await backend.list(), "a removed run is not listed", await backend.list())
        await backend.remove(ref)


async def removing_ends_waiting(harness: Harness) -> None:
    """Whoever waits for a run that is removed gets NotFound, and does not hang."""
    async with _running(harness, Behaviour.LASTS, "waiter") as (backend, ref):
        await _reach(backend, ref, RunState.RUNNING, harness.patience)
        waiter = asyncio.ensure_future(backend.wait(ref, timeout=harness.patience))
        await asyncio.sleep(0)
        await backend.remove(ref, force=True)
        try:
            status = await waiter
        except NotFound:
            return
        # The run ended before it was removed, and the waiter may have seen that moment.
        _expect(status.state.is_terminal, "wait ends with NotFound or the end", status)


async def runs_are_listed_in_order(harness: Harness) -> None:
    """list names every run once, sorted by reference."""
    async with (
        _running(harness, Behaviour.LASTS, "list-b") as (backend, second),
        _running(harness, Behaviour.SUCCEEDS, "list-a") as (_, first),
    ):
        listed = [status.ref for status in await backend.list()]
        _expect(listed == [first, second], "list is sorted and complete", listed)


async def logs_can_be_followed(harness: Harness) -> None:
    """Following yields what comes later and ends with the run; an iterator may be dropped."""
    async with _running(harness, Behaviour.LASTS, "follow") as (backend, ref):
        pieces = backend.logs(ref, follow=True)
        async with asyncio.timeout(harness.patience):
            piece = await _first(pieces)
        _expect(bool(piece), "a follower sees what is printed", piece)
        reader = asyncio.ensure_future(_drain(backend.logs(ref, follow=True)))
        await asyncio.sleep(0)
        await backend.remove(ref, force=True)
        async with asyncio.timeout(harness.patience):
            await reader


async def _drain(items: AsyncIterator[object]) -> None:
    try:
        async for _ in items:
            pass
    except NotFound:
        return  # the run was removed before the first step


async def events_have_no_gaps(harness: Harness) -> None:
    """Events count from 0 without gaps, end with the run, and can be resumed anywhere."""
    async with _running(harness, Behaviour.SUCCEEDS, "events") as (backend, ref):
        async with asyncio.timeout(harness.patience):
            events = [event async for event in backend.events(ref, follow=True)]
        numbers = [event.seq for event in events]
        _expect(numbers == list(range(len(events))), "seq counts from 0 without gaps", numbers)
        _expect({event.run_id for event in events} == {ref.id}, "events name their run", events)
        middle = len(events) // 2
        rest = [event async for event in backend.events(ref, after=middle)]
        _expect(rest == events[middle + 1 :], "after resumes", rest)
        _expect([event async for event in backend.events(ref, after=10**6)] == [], "no more", ref)


async def another_connection_sees_the_run(harness: Harness) -> None:
    """A run belongs to the target: it outlives the connection that started it."""
    spec = harness.make_spec(Behaviour.LASTS)
    async with harness.connect() as first:
        ref = await first.run(spec, RunOptions(run_id="conformance-reconnect"))
    async with harness.connect() as second:
        try:
            await _reach(second, ref, RunState.RUNNING, harness.patience)
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
            _expect(set(states) == {RunState.SUCCEEDED}, "all of them succeed", states)
        finally:
            await asyncio.gather(*(backend.remove(ref, force=True) for ref in refs))


async def undeclared_capabilities_are_refused(harness: Harness) -> None:
    """What is not declared raises NotSupported, what is declared knows its runs."""
    async with harness.connect() as backend:
        ref = _missing(backend)
        calls: dict[Capability, list[Callable[[], Awaitable[object]]]] = {
            Capability.CANCEL: [lambda: backend.cancel(ref)],
            Capability.SUSPEND: [lambda: backend.suspend(ref), lambda: backend.resume(ref)],
            Capability.SEND: [lambda: backend.send(ref, "hello")],
            Capability.ENDPOINT: [lambda: backend.endpoint(ref)],
            Capability.EXEC: [lambda: backend.exec(ref, ["true"])],
            Capability.ATTACH: [lambda: backend.attach(ref)],
            Capability.TELEMETRY: [lambda: _first_sample(backend, ref)],
        }
        for capability, each in calls.items():
            kind = NotFound if capability in backend.capabilities else NotSupported
            for call in each:
                promise = f"{capability} raises {kind.__name__} for an unknown run"
                await _expect_error(kind, promise, call())


async def _first_sample(backend: ShimCore, ref: RunRef) -> object:
    return await _first(backend.telemetry(ref))


async def cancelling_is_idempotent(harness: Harness) -> None:
    """A cancelled run is Cancelled; cancelling what is over changes nothing."""
    if Capability.CANCEL not in harness.connect().capabilities:
        return
    async with _running(harness, Behaviour.LASTS, "cancel") as (backend, ref):
        await _reach(backend, ref, RunState.RUNNING, harness.patience)
        await backend.cancel(ref, reason="because")
        status = await backend.wait(ref, timeout=harness.patience)
        _expect(status.state is RunState.CANCELLED, "it is Cancelled", status)
        await backend.cancel(ref)
        _expect(await backend.status(ref) == status, "it stays as it was", status)


async def suspension_can_be_undone(harness: Harness) -> None:
    """A suspended run goes on; both calls may be repeated; a run that is over refuses."""
    if Capability.SUSPEND not in harness.connect().capabilities:
        return
    async with _running(harness, Behaviour.LASTS, "suspend") as (backend, ref):
        await _reach(backend, ref, RunState.RUNNING, harness.patience)
        for _ in range(2):
            await backend.suspend(ref)
        await _reach(backend, ref, RunState.SUSPENDED, harness.patience)
        for _ in range(2):
            await backend.resume(ref)
        await _reach(backend, ref, RunState.RUNNING, harness.patience)
    async with _running(harness, Behaviour.SUCCEEDS, "suspend-late") as (backend, ref):
        await backend.wait(ref, timeout=harness.patience)
        await _expect_error(Conflict, "what is over cannot be suspended", backend.suspend(ref))
        await _expect_error(Conflict, "what is over cannot be resumed", backend.resume(ref))


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
    undeclared_capabilities_are_refused,
    cancelling_is_idempotent,
    suspension_can_be_undone,
)
"""Every check, from the plain to the particular."""
