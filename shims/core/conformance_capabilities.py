"""The part of the contract that is optional: what a backend declares, it does.

A check of something that is not declared passes; that it is refused is a check of its own.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from shims.core.conformance_kit import (
    Behaviour,
    expect,
    expect_error,
    first,
    missing,
    reach,
    running,
)
from shims.core.errors import Conflict, DeadlineExceeded, NotFound, NotSupported
from shims.core.runs import RunState
from shims.core.shimcore import Capability

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from shims.core.conformance_kit import Harness
    from shims.core.runs import RunRef
    from shims.core.shimcore import Attachment, ShimCore

__all__ = ["CAPABILITY_CHECKS"]


def _declares(harness: Harness, capability: Capability) -> bool:
    return capability in harness.connect().capabilities


async def _end(harness: Harness, backend: ShimCore, ref: RunRef) -> bool:
    """End the run and return True, if the backend can do that without removing it."""
    if Capability.CANCEL not in backend.capabilities:
        return False
    await backend.cancel(ref)
    await backend.wait(ref, timeout=harness.patience)
    return True


async def undeclared_capabilities_are_refused(harness: Harness) -> None:
    """What is not declared raises NotSupported, what is declared knows its runs."""
    async with harness.connect() as backend:
        ref = missing(backend)
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
                await expect_error(kind, promise, call())


async def _first_sample(backend: ShimCore, ref: RunRef) -> object:
    return await first(backend.telemetry(ref))


async def cancelling_is_idempotent(harness: Harness) -> None:
    """A cancelled run is Cancelled; cancelling what is over changes nothing."""
    if not _declares(harness, Capability.CANCEL):
        return
    async with running(harness, Behaviour.LASTS, "cancel") as (backend, ref):
        await reach(backend, ref, RunState.RUNNING, harness.patience)
        await backend.cancel(ref, reason="because")
        status = await backend.wait(ref, timeout=harness.patience)
        expect(status.state is RunState.CANCELLED, "it is Cancelled", status)
        await backend.cancel(ref)
        expect(await backend.status(ref) == status, "it stays as it was", status)


async def suspension_can_be_undone(harness: Harness) -> None:
    """A suspended run goes on; both calls may be repeated; a run that is over refuses."""
    if not _declares(harness, Capability.SUSPEND):
        return
    async with running(harness, Behaviour.LASTS, "suspend") as (backend, ref):
        await reach(backend, ref, RunState.RUNNING, harness.patience)
        for _ in range(2):
            await backend.suspend(ref)
        await reach(backend, ref, RunState.SUSPENDED, harness.patience)
        for _ in range(2):
            await backend.resume(ref)
        await reach(backend, ref, RunState.RUNNING, harness.patience)
    async with running(harness, Behaviour.SUCCEEDS, "suspend-late") as (backend, ref):
        await backend.wait(ref, timeout=harness.patience)
        await expect_error(Conflict, "what is over cannot be suspended", backend.suspend(ref))
        await expect_error(Conflict, "what is over cannot be resumed", backend.resume(ref))


async def a_suspended_run_does_not_end(harness: Harness) -> None:
    """A run that is suspended shortly before its end ends after it was resumed."""
    if not _declares(harness, Capability.SUSPEND):
        return
    async with running(harness, Behaviour.BRIEF, "suspend-brief") as (backend, ref):
        await reach(backend, ref, RunState.RUNNING, harness.patience)
        try:
            await backend.suspend(ref)
        except Conflict:
            return  # it was over before: this machine is too slow for an answer
        call = backend.wait(ref, timeout=2 * harness.moment)
        await expect_error(DeadlineExceeded, "a suspended run does not end", call)
        status = await backend.status(ref)
        expect(status.state is RunState.SUSPENDED, "it stays Suspended", status)
        await backend.resume(ref)
        status = await backend.wait(ref, timeout=harness.patience)
        expect(status.state is RunState.SUCCEEDED, "once resumed, it succeeds", status)


async def a_message_reaches_who_listens(harness: Harness) -> None:
    """send delivers to a running run with messaging, and to no other."""
    if not _declares(harness, Capability.SEND):
        return
    async with running(harness, Behaviour.LISTENS, "send") as (backend, ref):
        await reach(backend, ref, RunState.RUNNING, harness.patience)
        async with asyncio.timeout(harness.patience):
            await backend.send(ref, "hello")
        if await _end(harness, backend, ref):
            call = backend.send(ref, "hello")
            await expect_error(Conflict, "a run that is over gets no message", call)
    async with running(harness, Behaviour.LASTS, "send-deaf") as (backend, ref):
        await reach(backend, ref, RunState.RUNNING, harness.patience)
        call = backend.send(ref, "hello")
        await expect_error(NotSupported, "without messaging there is no message", call)


async def telemetry_counts_upwards(harness: Harness) -> None:
    """Samples come in order, perhaps with gaps, and can be resumed."""
    if not _declares(harness, Capability.TELEMETRY):
        return
    async with running(harness, Behaviour.LASTS, "telemetry") as (backend, ref):
        await reach(backend, ref, RunState.RUNNING, harness.patience)
        async with asyncio.timeout(harness.patience):
            sample = await first(backend.telemetry(ref, follow=True))
        expect(sample is not None, "a running run is measured", sample)
        numbers = [each.seq async for each in backend.telemetry(ref)]
        expect(bool(numbers), "what was seen is there without following, too", numbers)
        expect(numbers == sorted(set(numbers)), "seq rises", numbers)
        rest = [each.seq async for each in backend.telemetry(ref, after=numbers[0])]
        expect(min(rest, default=numbers[0] + 1) > numbers[0], "after resumes", rest)


async def an_endpoint_needs_a_running_run(harness: Harness) -> None:
    """A running service has an address; a run that is over has none."""
    if not _declares(harness, Capability.ENDPOINT):
        return
    async with running(harness, Behaviour.SERVES, "endpoint") as (backend, ref):
        await reach(backend, ref, RunState.RUNNING, harness.patience)
        for _ in range(2):
            found = await backend.endpoint(ref)
            expect("://" in found.url, "an endpoint has a URL", found)
    async with running(harness, Behaviour.SUCCEEDS, "endpoint-late") as (backend, ref):
        await backend.wait(ref, timeout=harness.patience)
        call = backend.endpoint(ref)
        await expect_error(Conflict, "a run that is over has no endpoint", call)


async def exec_tells_how_it_ended(harness: Harness) -> None:
    """exec returns output and exit code, keeps its deadline, and needs a running run."""
    if not _declares(harness, Capability.EXEC):
        return
    async with running(harness, Behaviour.LASTS, "exec") as (backend, ref):
        await reach(backend, ref, RunState.RUNNING, harness.patience)
        done = await backend.exec(ref, harness.argv_hello, timeout=harness.patience)
        expect(done.exit_code == 0 and b"hello" in done.stdout, "exec returns output", done)
        done = await backend.exec(ref, harness.argv_fails, timeout=harness.patience)
        expect(done.exit_code != 0, "a failure is a result", done)
        call = backend.exec(ref, harness.argv_lasts, timeout=0.1)
        await expect_error(DeadlineExceeded, "exec keeps its deadline", call)
        status = await backend.status(ref)
        expect(status.state is RunState.RUNNING, "the run goes on", status)
    async with running(harness, Behaviour.SUCCEEDS, "exec-late") as (backend, ref):
        await backend.wait(ref, timeout=harness.patience)
        call = backend.exec(ref, harness.argv_hello)
        await expect_error(Conflict, "nothing is executed in a run that is over", call)


async def an_attachment_can_be_let_go(harness: Harness) -> None:
    """attach carries both ways; letting go leaves the run alone; others are not attached to."""
    if not _declares(harness, Capability.ATTACH):
        return
    async with running(harness, Behaviour.CONVERSES, "attach") as (backend, ref):
        await reach(backend, ref, RunState.RUNNING, harness.patience)
        attachment = await backend.attach(ref)
        try:
            async with asyncio.timeout(harness.patience):
                await attachment.resize(80, 24)
                await attachment.write(b"hello\n")
                seen = await _read_until(attachment, b"hello")
            expect(b"hello" in seen, "what is typed comes back", seen)
        finally:
            for _ in range(2):
                await attachment.aclose()
        status = await backend.status(ref)
        expect(status.state is RunState.RUNNING, "the run goes on", status)
        attachment = await backend.attach(ref)
        try:
            for _ in range(2):
                await attachment.close_input()
            if await _end(harness, backend, ref):
                call = attachment.write(b"late\n")
                await expect_error(Conflict, "nothing is typed into what is over", call)
                await expect_error(Conflict, "what is over has no terminal", backend.attach(ref))
        finally:
            await attachment.aclose()
    async with running(harness, Behaviour.LASTS, "attach-deaf") as (backend, ref):
        await reach(backend, ref, RunState.RUNNING, harness.patience)
        await expect_error(NotSupported, "only interactive runs have one", backend.attach(ref))


async def _read_until(attachment: Attachment, wanted: bytes) -> bytes:
    seen = b""
    async with aclosing(attachment.output()) as pieces:
        async for piece in pieces:
            seen += piece
            if wanted in seen:
                break
    return seen


CAPABILITY_CHECKS: tuple[Callable[[Harness], Awaitable[None]], ...] = (
    undeclared_capabilities_are_refused,
    cancelling_is_idempotent,
    suspension_can_be_undone,
    a_suspended_run_does_not_end,
    a_message_reaches_who_listens,
    telemetry_counts_upwards,
    an_endpoint_needs_a_running_run,
    exec_tells_how_it_ended,
    an_attachment_can_be_let_go,
)
