"""What the checks of a backend are made of: the harness, and the words in which they promise.

``shims.core.conformance`` says how to use them.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from contextlib import aclosing, asynccontextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from shims.core.errors import NotFound, ShimError
from shims.core.loading import parse_spec
from shims.core.runs import TRANSITIONS, RunRef, RunState
from shims.core.shimcore import RunOptions

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence

    from shims.core.loading import LoadedSpec
    from shims.core.runs import RunStatus
    from shims.core.shimcore import ShimCore

__all__ = [
    "Behaviour",
    "ContractBroken",
    "Harness",
    "drain",
    "expect",
    "expect_error",
    "first",
    "missing",
    "reach",
    "running",
]


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
    BRIEF = "brief"
    """Go on for ``Harness.moment`` seconds and succeed. For capability ``suspend`` only."""
    LISTENS = "listens"
    """Go on, with messaging enabled. For ``send`` only."""
    SERVES = "serves"
    """Go on, as a service. For ``endpoint`` only."""
    CONVERSES = "converses"
    """Go on, interactively: what is typed comes back. For ``attach`` only."""


class Harness(ABC):
    """What the checks need to know about a backend."""

    patience: float = 10.0
    """Seconds after which a run that should have moved counts as stuck."""
    moment: float = 0.3
    """Seconds that a ``BRIEF`` run takes: enough for seeing it run, and suspending it."""
    argv_hello: Sequence[str] = ("echo", "hello")
    """A command that prints ``hello`` and succeeds. For capability ``exec``, as the next two."""
    argv_fails: Sequence[str] = ("false",)
    argv_lasts: Sequence[str] = ("sleep", "infinity")

    @abstractmethod
    def connect(self) -> ShimCore:
        """Return a new, unentered connection to the same target."""

    def make_spec(self, behaviour: Behaviour) -> LoadedSpec:
        """Return a spec that behaves so; override it when the target runs no mock runs.

        Only the behaviours that belong to the backend's capabilities are asked for.
        """
        header = f"api_version: v1\nname: conformance-{behaviour}\nsandbox: {{mode: mock}}\n"
        agent = {
            Behaviour.LISTENS: "{prompt: listen, messaging: {enabled: true}}",
            Behaviour.SERVES: "{prompt: serve, mode: service, output_file: /workspace/out}",
            Behaviour.CONVERSES: "{prompt: '', mode: interactive}",
        }.get(behaviour)
        if agent is not None:
            return parse_spec(f"{header}kind: agent\nagent: {agent}\n".encode())
        steps = self._make_steps(behaviour)
        return parse_spec(f"{header}kind: workflow\nworkflow: {{steps: [{steps}]}}\n".encode())

    def _make_steps(self, behaviour: Behaviour) -> str:
        hello = "{name: hello, run: {program: echo, args: [hello]}}"
        return {
            Behaviour.SUCCEEDS: hello,
            Behaviour.FAILS: "{name: broken, run: {program: /no/such/program}}",
            Behaviour.LASTS: f"{hello}, {{name: long, run: {{program: sleep, args: [infinity]}}}}",
            Behaviour.BRIEF: f"{{name: brief, run: {{program: sleep, args: ['{self.moment}']}}}}",
        }[behaviour]


E = TypeVar("E", bound=ShimError)


def expect(holds: bool, promise: str, seen: object) -> None:
    """Raise ``ContractBroken`` with the promise and what was seen, unless it ``holds``."""
    if not holds:
        raise ContractBroken(f"{promise}; seen: {seen!r}")


async def expect_error(kind: type[E], promise: str, call: Awaitable[object]) -> E:
    """Return the error that ``call`` raises. ``ContractBroken`` when it is of another kind."""
    try:
        result = await call
    except kind as error:
        return error
    except ShimError as error:
        raise ContractBroken(f"{promise}; raised {type(error).__name__}: {error}") from error
    raise ContractBroken(f"{promise}; returned {result!r}")


async def first(items: AsyncGenerator[object, None]) -> object:
    """Return the first item, or None; the iterator is closed."""
    async with aclosing(items):
        async for item in items:
            return item
    return None


@asynccontextmanager
async def running(
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


async def reach(backend: ShimCore, ref: RunRef, state: RunState, patience: float) -> RunStatus:
    """Return the first status with ``state``, checking the steps that lead there."""
    before = await backend.status(ref)
    try:
        async with asyncio.timeout(patience):
            while before.state is not state:
                await asyncio.sleep(0.01)  # the contract offers no wait for a state that passes
                now = await backend.status(ref)
                legal = now.state is before.state or now.state in TRANSITIONS[before.state]
                expect(legal, "states follow the table of transitions", (before, now))
                before = now
    except TimeoutError as error:
        raise ContractBroken(f"the run reaches {state}; it stays {before.state}") from error
    return before


def missing(backend: ShimCore) -> RunRef:
    """Return a reference to a run that does not exist."""
    return RunRef(backend.name, "conformance-no-such-run")


async def drain(items: AsyncIterator[object]) -> None:
    """Read to the end, which a removal may have brought about."""
    try:
        async for _ in items:
            pass
    except NotFound:
        return  # the run was removed before the first step
