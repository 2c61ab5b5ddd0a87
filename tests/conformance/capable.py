"""The in-memory backend with every capability: what the checks of capabilities are tried on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from shims.core.errors import Conflict, DeadlineExceeded, NotSupported
from shims.core.loading import parse_spec
from shims.core.memory import MemoryBackend, MemoryTarget
from shims.core.records import Sample
from shims.core.runs import RunRef, RunState
from shims.core.shimcore import Attachment, Capability, Endpoint, ExecResult, Rendered

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from shims.core.loading import LoadedSpec
    from shims.core.runspec import AgentSpec
    from shims.core.shimcore import RunOptions

SLEEPER = parse_spec(
    b"kind: workflow\nname: sleeper\nsandbox: {mode: mock}\n"
    b"workflow: {steps: [{name: a, run: {program: sleep, args: [infinity]}}]}\n"
)
"""What every agent does here."""


class CapableTarget(MemoryTarget):
    """Remembers the agents of its runs."""

    def __init__(self) -> None:
        super().__init__()
        self.agents: dict[str, AgentSpec] = {}


class Terminal(Attachment):
    """Gives back what it gets."""

    def __init__(self, backend: CapableBackend, ref: RunRef) -> None:
        self._backend = backend
        self._ref = ref
        self._typed: asyncio.Queue[bytes] = asyncio.Queue()

    async def output(self) -> AsyncGenerator[bytes, None]:
        while True:
            yield await self._typed.get()

    async def write(self, data: bytes) -> None:
        await self._backend.need_running(self._ref)
        self._typed.put_nowait(data)

    async def close_input(self) -> None:
        return None

    async def resize(self, columns: int, rows: int) -> None:
        await self._backend.need_running(self._ref)

    async def aclose(self) -> None:
        return None


class CapableBackend(MemoryBackend):
    """A connection to a ``CapableTarget``; agents sleep until they are ended."""

    name = "capable"
    capabilities = frozenset(Capability)

    def __init__(self, target: CapableTarget) -> None:
        super().__init__(target)
        self.target = target

    def render(self, spec: LoadedSpec, options: RunOptions) -> Sequence[Rendered]:
        if spec.spec.agent is not None:
            return [Rendered(options.choose_run_id(spec), "an agent")]
        return super().render(spec, options)

    async def run(self, spec: LoadedSpec, options: RunOptions) -> RunRef:
        agent = spec.spec.agent
        if agent is None:
            return await super().run(spec, options)
        ref = await super().run(SLEEPER, options)
        self.target.agents[ref.id] = agent
        return ref

    async def need_running(self, ref: RunRef) -> None:
        status = await self.status(ref)
        if status.state is not RunState.RUNNING:
            raise Conflict(f"run {ref} is {status.state}")

    async def send(self, ref: RunRef, message: str) -> None:
        await self.need_running(ref)
        agent = self.target.agents.get(ref.id)
        if agent is None or agent.messaging is None:
            raise NotSupported(f"run {ref} has no inbox")

    async def telemetry(
        self, ref: RunRef, *, after: int = -1, follow: bool = False
    ) -> AsyncGenerator[Sample, None]:
        await self.status(ref)
        for number in range(max(after + 1, 3), 10, 2):
            yield Sample(seq=number, ts_ms=0, stage="")

    async def endpoint(self, ref: RunRef) -> Endpoint:
        await self.need_running(ref)
        return Endpoint("http://127.0.0.1:1")

    async def exec(
        self, ref: RunRef, argv: Sequence[str], *, timeout: float | None = None
    ) -> ExecResult:
        await self.need_running(ref)
        if argv[0] == "sleep":
            try:
                await asyncio.wait_for(asyncio.Event().wait(), timeout)
            except TimeoutError as error:
                raise DeadlineExceeded(f"{argv[0]} took too long") from error
        words = " ".join(argv[1:]).encode()
        return ExecResult(int(argv[0] != "echo"), words, b"")

    async def attach(self, ref: RunRef) -> Attachment:
        await self.need_running(ref)
        agent = self.target.agents.get(ref.id)
        if agent is None or agent.mode != "interactive":
            raise NotSupported(f"run {ref} has no terminal")
        return Terminal(self, ref)
