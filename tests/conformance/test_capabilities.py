"""Every capability has a check, and each check notices a backend that does not keep it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from shims.core import conformance_capabilities as checks
from shims.core.conformance import CHECKS, ContractBroken, Harness
from shims.core.records import Sample
from shims.core.runs import RunState
from shims.core.shimcore import Attachment, Capability, Endpoint, ExecResult
from tests.conformance.capable import CapableBackend, CapableTarget, Terminal

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from shims.core.runs import RunRef
    from shims.core.shimcore import ShimCore

    Check = Callable[[Harness], Awaitable[None]]


class CapableHarness(Harness):
    patience = 2.0
    moment = 0.1

    def __init__(
        self, target: CapableTarget, backend: type[CapableBackend] = CapableBackend
    ) -> None:
        self._target = target
        self._backend = backend

    def connect(self) -> ShimCore:
        return self._backend(self._target)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_contract(check: Check) -> None:
    async with CapableTarget() as target:
        await check(CapableHarness(target))
        assert not target.runs


class _SendsToAnybody(CapableBackend):
    async def send(self, ref: RunRef, message: str) -> None:
        await self.need_running(ref)


class _SendsToTheDead(CapableBackend):
    async def send(self, ref: RunRef, message: str) -> None:
        if ref.id in self.target.agents:
            return
        await super().send(ref, message)


class _CountsTwice(CapableBackend):
    async def telemetry(
        self, ref: RunRef, *, after: int = -1, follow: bool = False
    ) -> AsyncGenerator[Sample, None]:
        await self.status(ref)
        for _ in range(2):
            yield Sample(seq=max(after + 1, 3), ts_ms=0, stage="")


class _StartsOver(CapableBackend):
    async def telemetry(
        self, ref: RunRef, *, after: int = -1, follow: bool = False
    ) -> AsyncGenerator[Sample, None]:
        await self.status(ref)
        yield Sample(seq=0, ts_ms=0, stage="")


class _MeasuresNothing(CapableBackend):
    async def telemetry(
        self, ref: RunRef, *, after: int = -1, follow: bool = False
    ) -> AsyncGenerator[Sample, None]:
        await self.status(ref)
        for sample in list[Sample]():
            yield sample


class _ServesTheDead(CapableBackend):
    async def endpoint(self, ref: RunRef) -> Endpoint:
        await self.status(ref)
        return Endpoint("http://127.0.0.1:1")


class _ExecutesInTheDead(CapableBackend):
    async def need_running(self, ref: RunRef) -> None:
        await self.status(ref)


class _ExecutesForever(CapableBackend):
    async def exec(
        self, ref: RunRef, argv: Sequence[str], *, timeout: float | None = None
    ) -> ExecResult:
        done = await super().exec(ref, ["echo", *argv[1:]])
        return ExecResult(int(argv[0] == "false"), done.stdout, b"")


class _SeesNoFailure(CapableBackend):
    async def exec(
        self, ref: RunRef, argv: Sequence[str], *, timeout: float | None = None
    ) -> ExecResult:
        done = await super().exec(ref, argv, timeout=timeout)
        return ExecResult(0, done.stdout, b"")


class _AttachesToAnybody(CapableBackend):
    async def attach(self, ref: RunRef) -> Attachment:
        await self.need_running(ref)
        return Terminal(self, ref)


class _AttachmentEndsTheRun(CapableBackend):
    async def attach(self, ref: RunRef) -> Attachment:
        backend = self

        class Deadly(Terminal):
            async def aclose(self) -> None:
                await backend.cancel(ref)

        await super().attach(ref)
        return Deadly(self, ref)


class _EndsWhileSuspended(CapableBackend):
    async def suspend(self, ref: RunRef) -> None:
        if (await self.status(ref)).state is not RunState.RUNNING:
            await super().suspend(ref)


@pytest.mark.parametrize(
    ("backend", "check"),
    [
        (_SendsToAnybody, checks.a_message_reaches_who_listens),
        (_SendsToTheDead, checks.a_message_reaches_who_listens),
        (_CountsTwice, checks.telemetry_counts_upwards),
        (_StartsOver, checks.telemetry_counts_upwards),
        (_MeasuresNothing, checks.telemetry_counts_upwards),
        (_ServesTheDead, checks.an_endpoint_needs_a_running_run),
        (_ExecutesInTheDead, checks.exec_tells_how_it_ended),
        (_ExecutesForever, checks.exec_tells_how_it_ended),
        (_SeesNoFailure, checks.exec_tells_how_it_ended),
        (_AttachesToAnybody, checks.an_attachment_can_be_let_go),
        (_AttachmentEndsTheRun, checks.an_attachment_can_be_let_go),
        (_ExecutesInTheDead, checks.an_attachment_can_be_let_go),
        (_EndsWhileSuspended, checks.a_suspended_run_does_not_end),
    ],
)
async def test_a_broken_promise_is_noticed(backend: type[CapableBackend], check: Check) -> None:
    async with CapableTarget() as target:
        with pytest.raises(ContractBroken):
            await check(CapableHarness(target, backend))


def test_every_capability_has_a_check_of_its_own() -> None:
    own = {*checks.CAPABILITY_CHECKS} - {checks.undeclared_capabilities_are_refused}
    tried = {name for check in own for name in check.__code__.co_names}
    assert {each.name for each in Capability} <= tried
