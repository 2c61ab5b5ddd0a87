"""A backend that keeps its runs in memory: the smallest one that honours the whole contract.

It is an example for authors of backends and a stand-in for tests of callers, and is registered
nowhere. It runs mock workflows only, one step after the other: ``echo`` prints its arguments,
``sleep`` waits for so many seconds (or ``infinity``), every other program fails.
"""

from __future__ import annotations

import asyncio
import json
import math
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self, TypeVar

from shims.core.errors import (
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    InputError,
    NotFound,
    NotSupported,
)
from shims.core.records import EventType, RunEvent
from shims.core.runs import Reason, RunRef, RunState, RunStatus, check_transition
from shims.core.shimcore import Capability, Rendered, RunOptions, ShimCore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from types import TracebackType

    from shims.core.loading import LoadedSpec
    from shims.core.runspec import WorkflowStep

__all__ = ["MemoryBackend", "MemoryTarget"]

T = TypeVar("T")


@dataclass
class _Run:
    status: RunStatus
    log: list[bytes] = field(default_factory=list)
    events: list[RunEvent] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    removed: bool = False
    task: asyncio.Task[None] | None = None

    async def announce(self, type_: EventType, message: str = "", stage: str = "") -> None:
        async with self.changed:
            self.note(type_, message, stage)

    def note(self, type_: EventType, message: str = "", stage: str = "") -> None:
        """Add an event. The caller holds ``changed``, as for ``enter``."""
        event = RunEvent(
            seq=len(self.events),
            ts_ms=int(datetime.now(UTC).timestamp() * 1000),
            type=type_,
            run_id=self.status.ref.id,
            message=message,
            stage=stage,
        )
        self.events.append(event)
        self.changed.notify_all()

    def enter(self, state: RunState, reason: Reason, message: str = "") -> None:
        check_transition(self.status.state, state)
        now = datetime.now(UTC)
        started = self.status.started_at or (now if state is RunState.RUNNING else None)
        self.status = replace(
            self.status,
            state=state,
            reason=reason,
            message=message,
            started_at=started,
            finished_at=now if state.is_terminal else None,
            exit_code={RunState.SUCCEEDED: 0, RunState.FAILED: 1}.get(state),
        )
        self.changed.notify_all()

    @asynccontextmanager
    async def at_work(self) -> AsyncGenerator[None, None]:
        """Hold ``changed`` at a moment when the run is not suspended."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.status.state is not RunState.SUSPENDED)
            yield

    async def forget(self) -> None:
        async with self.changed:
            self.removed = True
            self.changed.notify_all()


class MemoryTarget:
    """Where the runs live. Its context owns their tasks; a backend is a connection to it."""

    def __init__(self) -> None:
        self.runs: dict[str, _Run] = {}
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for run in self.runs.values():
            if run.task is not None:
                run.task.cancel()
        # An error of the caller is none of the tasks': given to the group, it would be wrapped.
        await self._tasks.__aexit__(None, None, None)

    def start(self, run: _Run, steps: Sequence[WorkflowStep]) -> None:
        """Let ``run`` carry out ``steps`` until it is over or cancelled."""
        self.runs[run.status.ref.id] = run
        run.task = self._tasks.create_task(_work(run, steps), name=str(run.status.ref))


async def _work(run: _Run, steps: Sequence[WorkflowStep]) -> None:
    await run.announce(EventType.RUN_STARTED)
    async with run.at_work():
        run.enter(RunState.RUNNING, Reason.ACTIVE)
    for step in steps:
        async with run.at_work():
            run.note(EventType.STAGE_STARTED, stage=step.name)
        if problem := await _carry_out(run, step):
            async with run.at_work():
                run.note(EventType.STAGE_FAILED, problem, step.name)
                run.note(EventType.RUN_FINISHED, problem)
                run.enter(RunState.FAILED, Reason.REPORTED_FAILURE, problem)
            return
        await run.announce(EventType.STAGE_COMPLETED, stage=step.name)
    # A run that is suspended while its last step ends has ended when it is resumed, not before.
    async with run.at_work():
        run.note(EventType.RUN_FINISHED)
        run.enter(RunState.SUCCEEDED, Reason.COMPLETED)


async def _carry_out(run: _Run, step: WorkflowStep) -> str:
    """Do what the step says and return what went wrong, or nothing."""
    arguments = step.run.args
    if step.run.program == "echo":
        async with run.changed:
            run.log.append(" ".join(arguments).encode() + b"\n")
            run.changed.notify_all()
        return ""
    if step.run.program == "sleep":
        seconds = float(arguments[0])
        await (asyncio.Event().wait() if math.isinf(seconds) else asyncio.sleep(seconds))
        return ""
    return f"step {step.name}: there is no program {step.run.program}"


class MemoryBackend(ShimCore):
    """A connection to a ``MemoryTarget``."""

    name = "memory"
    summary = "runs mock workflows in memory, for tests and as an example"
    capabilities = frozenset({Capability.CANCEL, Capability.SUSPEND})

    def __init__(self, target: MemoryTarget) -> None:
        self._target = target

    def render(self, spec: LoadedSpec, options: RunOptions) -> Sequence[Rendered]:
        run_id = options.choose_run_id(spec)
        if spec.spec.workflow is None or spec.spec.sandbox.mode != "mock":
            raise NotSupported("memory runs workflows with sandbox.mode: mock only")
        for i, step in enumerate(spec.spec.workflow.steps):
            if step.run.program == "sleep" and not _is_duration(step.run.args):
                path = f"workflow.steps[{i}].run.args"
                raise InputError(path, list(step.run.args), "seconds, or infinity")
        steps = [[step.run.program, *step.run.args] for step in spec.spec.workflow.steps]
        return [Rendered(f"{run_id}.json", json.dumps(steps))]

    async def run(self, spec: LoadedSpec, options: RunOptions) -> RunRef:
        self.render(spec, options)
        ref = RunRef(self.name, options.choose_run_id(spec))
        if ref.id in self._target.runs:
            raise AlreadyExists(f"run {ref} exists", hint="remove it, or choose another run id")
        status = RunStatus(
            ref=ref, state=RunState.PENDING, reason=Reason.ACCEPTED, created_at=datetime.now(UTC)
        )
        workflow = spec.spec.workflow
        self._target.start(_Run(status), workflow.steps if workflow else ())
        return ref

    def _find(self, ref: RunRef) -> _Run:
        run = self._target.runs.get(ref.id)
        if run is None or ref != run.status.ref:
            raise NotFound(f"there is no run {ref}")
        return run

    async def status(self, ref: RunRef) -> RunStatus:
        return self._find(ref).status

    async def wait(self, ref: RunRef, *, timeout: float | None = None) -> RunStatus:
        run = self._find(ref)
        try:
            async with asyncio.timeout(timeout), run.changed:
                await run.changed.wait_for(lambda: run.removed or run.status.state.is_terminal)
        except TimeoutError as error:
            raise DeadlineExceeded(f"run {ref} is still {run.status.state}") from error
        if run.removed:
            raise NotFound(f"run {ref} was removed")
        return run.status

    async def logs(self, ref: RunRef, *, follow: bool = False) -> AsyncGenerator[bytes, None]:
        run = self._find(ref)
        async for piece in _follow(run, run.log, 0, follow=follow):
            yield piece

    async def events(
        self, ref: RunRef, *, after: int = -1, follow: bool = False
    ) -> AsyncGenerator[RunEvent, None]:
        run = self._find(ref)
        async for event in _follow(run, run.events, after + 1, follow=follow):
            yield event

    async def list(self) -> Sequence[RunStatus]:
        return sorted(
            (run.status for run in self._target.runs.values()), key=lambda status: str(status.ref)
        )

    async def remove(self, ref: RunRef, *, force: bool = False) -> None:
        try:
            run = self._find(ref)
        except NotFound:
            return
        if not run.status.state.is_terminal:
            if not force:
                raise Conflict(f"run {ref} is {run.status.state}", hint="cancel it, or use force")
            await self.cancel(ref)
        self._target.runs.pop(ref.id, None)
        await run.forget()

    async def cancel(self, ref: RunRef, *, reason: str = "") -> None:
        run = self._find(ref)
        if run.status.state.is_terminal or run.task is None:
            return
        run.task.cancel()
        await asyncio.wait([run.task])
        async with run.changed:
            if not run.status.state.is_terminal:
                run.note(EventType.RUN_CANCELLED, reason)
                run.enter(RunState.CANCELLED, Reason.CANCELLED_BY_USER, reason)

    async def suspend(self, ref: RunRef) -> None:
        run = self._find(ref)
        async with run.changed:
            if run.status.state.is_terminal:
                raise Conflict(f"run {ref} is over")
            if run.status.state is not RunState.SUSPENDED:
                run.enter(RunState.SUSPENDED, Reason.SUSPENDED_BY_USER)

    async def resume(self, ref: RunRef) -> None:
        run = self._find(ref)
        async with run.changed:
            if run.status.state.is_terminal:
                raise Conflict(f"run {ref} is over")
            if run.status.state is RunState.SUSPENDED:
                run.enter(RunState.RUNNING, Reason.ACTIVE)


def _is_duration(arguments: Sequence[str]) -> bool:
    try:
        return len(arguments) == 1 and float(arguments[0]) >= 0
    except ValueError:
        return False


async def _follow(
    run: _Run, items: Sequence[T], position: int, *, follow: bool
) -> AsyncGenerator[T, None]:
    while True:
        while position < len(items):
            yield items[position]
            position += 1
        async with run.changed:
            while position >= len(items):
                if not follow or run.removed or run.status.state.is_terminal:
                    return
                await run.changed.wait()
