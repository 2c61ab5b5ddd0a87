"""The in-memory backend keeps ShimCore's contract; so the checks can be passed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from shims.core.conformance import CHECKS, ContractBroken, Harness, check_backend
from shims.core.memory import MemoryBackend, MemoryTarget
from shims.core.runs import Reason, RunRef, RunState
from shims.core.shimcore import Rendered

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from shims.core.loading import LoadedSpec
    from shims.core.runs import RunStatus
    from shims.core.shimcore import RunOptions, ShimCore


class MemoryHarness(Harness):
    def __init__(self, target: MemoryTarget, backend: type[MemoryBackend] = MemoryBackend) -> None:
        self._target = target
        self._backend = backend

    def connect(self) -> ShimCore:
        return self._backend(self._target)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_contract(check: Callable[[Harness], Awaitable[None]]) -> None:
    async with MemoryTarget() as target:
        await check(MemoryHarness(target))
        assert not target.runs


async def test_the_whole_kit_passes_in_one_go() -> None:
    async with MemoryTarget() as target:
        await check_backend(MemoryHarness(target))


class _ForgetsItsName(MemoryBackend):
    async def run(self, spec: LoadedSpec, options: RunOptions) -> RunRef:
        ref = await super().run(spec, options)
        return RunRef("else", ref.id)


class _SucceedsAlways(MemoryBackend):
    async def wait(self, ref: RunRef, *, timeout: float | None = None) -> RunStatus:
        status = await super().wait(ref, timeout=timeout)
        if status.state is not RunState.FAILED:
            return status
        return replace(status, state=RunState.SUCCEEDED, reason=Reason.COMPLETED)


class _RendersTheClock(MemoryBackend):
    count = 0

    def render(self, spec: LoadedSpec, options: RunOptions) -> Sequence[Rendered]:
        super().render(spec, options)
        type(self).count += 1
        return [Rendered("x", str(self.count))]


class _KeepsRuns(MemoryBackend):
    async def remove(self, ref: RunRef, *, force: bool = False) -> None:
        if force:
            await super().remove(ref, force=True)


@pytest.mark.parametrize(
    "backend", [_ForgetsItsName, _SucceedsAlways, _RendersTheClock, _KeepsRuns]
)
async def test_the_kit_notices_broken_promises(backend: type[MemoryBackend]) -> None:
    async with MemoryTarget() as target:
        with pytest.raises(ContractBroken):
            await check_backend(MemoryHarness(target, backend))
