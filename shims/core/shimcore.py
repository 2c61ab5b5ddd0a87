"""ShimCore: what every target can do with a run.

The docstrings are the contract: when a call is legal, what it raises, who owns the result, whether
it may be repeated. ``shims.core.conformance`` checks it against any backend. Beyond what is listed,
every call may raise ``Unreachable`` and ``DeadlineExceeded``, because every call but ``render``
talks to a target; none may raise an error that is no ``ShimError``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Self

from shims.core.errors import NotSupported
from shims.core.runs import check_run_id, derive_run_id

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from types import TracebackType

    from shims.core.loading import LoadedSpec
    from shims.core.records import RunEvent, Sample
    from shims.core.runs import RunRef, RunStatus

__all__ = [
    "Attachment",
    "Capability",
    "Endpoint",
    "ExecResult",
    "Rendered",
    "RunOptions",
    "ShimCore",
]


class Capability(StrEnum):
    """What a backend may offer beyond the basics."""

    CANCEL = "cancel"
    SUSPEND = "suspend"
    """Both ``suspend`` and ``resume``."""
    SEND = "send"
    TELEMETRY = "telemetry"
    ENDPOINT = "endpoint"
    EXEC = "exec"
    ATTACH = "attach"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What a caller may say about a run besides its spec."""

    run_id: str = ""
    """Empty: derived from the spec and these options, so that the same run has the same name."""
    input: str | None = None
    """Given to the first agent, as void-box's ``--input``."""
    labels: Mapping[str, str] = field(default_factory=dict)

    def choose_run_id(self, spec: LoadedSpec) -> str:
        """Return the id that a run of ``spec`` gets. Raises ``InputError``."""
        if self.run_id:
            return check_run_id(self.run_id)
        labels = "".join(f"\0{key}={value}" for key, value in sorted(self.labels.items()))
        return derive_run_id(spec.spec.name, spec.source, f"{self.input or ''}{labels}")


@dataclass(frozen=True, slots=True)
class Rendered:
    """One object that ``render`` produced: a file name and its text."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a run can be reached while its context is open."""

    url: str
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class ExecResult:
    """How a command in a run ended."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class Attachment(ABC):
    """A connection to the standard streams of a running process; belongs to who asked for it."""

    @abstractmethod
    def output(self) -> AsyncGenerator[bytes, None]:
        """Yield what the process prints, from now on, until it ends or ``aclose`` is called."""

    @abstractmethod
    async def write(self, data: bytes) -> None:
        """Hand ``data`` to the process; returns when it was taken. ``Conflict`` after its end."""

    @abstractmethod
    async def close_input(self) -> None:
        """Tell the process that no input will come. May be repeated."""

    @abstractmethod
    async def resize(self, columns: int, rows: int) -> None:
        """Set the size of the process's terminal. ``Conflict`` when it has none."""

    @abstractmethod
    async def aclose(self) -> None:
        """Let go of the streams; the process goes on. May be repeated."""


class ShimCore(ABC):
    """A target on which RunSpecs run.

    Use it as an asynchronous context manager: leaving the context closes connections and never
    touches runs. Before and after, only ``render`` and the class attributes may be used. One
    object serves any number of tasks of one event loop at the same time.
    """

    name: ClassVar[str]
    """The name under which the backend is registered; also ``RunRef.backend``."""
    summary: ClassVar[str]
    """One line for a list of backends."""
    capabilities: ClassVar[frozenset[Capability]] = frozenset()
    """What may be called of the methods that are not abstract; the others raise NotSupported."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    @abstractmethod
    def render(self, spec: LoadedSpec, options: RunOptions) -> Sequence[Rendered]:
        """Return what ``run`` would create on the target.

        Pure: no I/O, no clock, no randomness, the same arguments give the same bytes. No secret
        is part of it. Always legal. Raises ``InputError`` for a spec that the target cannot
        express, ``NotSupported`` for one that it never runs.
        """

    @abstractmethod
    async def run(self, spec: LoadedSpec, options: RunOptions) -> RunRef:
        """Start a run and return its name as soon as the target has accepted it.

        The caller owns the run and must ``remove`` it when done. Raises what ``render`` raises,
        and ``AlreadyExists`` when the id is taken: repeating a call never starts a second run.
        When it raises anything but ``DeadlineExceeded`` or ``Unreachable``, nothing is left behind.
        """

    @abstractmethod
    async def status(self, ref: RunRef) -> RunStatus:
        """Return where the run stands. Legal in every state. Raises ``NotFound``."""

    @abstractmethod
    async def wait(self, ref: RunRef, *, timeout: float | None = None) -> RunStatus:
        """Return the status once it is terminal; at once when it already is.

        ``timeout`` is in seconds, None means no limit. Raises ``NotFound``, also when the run is
        removed meanwhile, and ``DeadlineExceeded``, after which the run goes on. May be repeated.
        """

    @abstractmethod
    def logs(self, ref: RunRef, *, follow: bool = False) -> AsyncGenerator[bytes, None]:
        """Yield what the run printed, from its beginning, in pieces of any size.

        Without ``follow`` the iterator ends at what is there now; with it, when the run is over
        and everything has been yielded. Legal in every state. Raises ``NotFound`` at the first
        step. The caller must exhaust or ``aclose()`` the iterator. May be repeated.
        """

    @abstractmethod
    def events(
        self, ref: RunRef, *, after: int = -1, follow: bool = False
    ) -> AsyncGenerator[RunEvent, None]:
        """Yield the run's events with a ``seq`` above ``after``, in order and without gaps.

        ``follow`` and ownership as for ``logs``. Raises ``NotFound`` at the first step. A reader
        that was interrupted goes on by passing the last ``seq`` that it saw.
        """

    @abstractmethod
    async def list(self) -> Sequence[RunStatus]:
        """Return the status of every run of this backend on the target, sorted by reference."""

    @abstractmethod
    async def remove(self, ref: RunRef, *, force: bool = False) -> None:
        """Delete the run and whatever belongs to it; afterwards it is unknown.

        Raises ``Conflict`` for a run that is not over, unless ``force``, which ends it first.
        Idempotent: removing what is not there succeeds. When it fails half-way, repeating it
        carries on.
        """

    # ------------------------------------------------------------------------ by capability

    async def cancel(self, ref: RunRef, *, reason: str = "") -> None:
        """End the run; its work stops, its records stay (capability ``cancel``).

        Returns when the target has accepted it: ``wait`` says when it has happened. Idempotent:
        a run that is over stays as it is. Raises ``NotFound``.
        """
        raise self._refusal(Capability.CANCEL)

    async def suspend(self, ref: RunRef) -> None:
        """Stop the run so that it can go on later (capability ``suspend``).

        Legal in Pending and Running; in Suspended it does nothing. Raises ``NotFound``, and
        ``Conflict`` for a run that is over.
        """
        raise self._refusal(Capability.SUSPEND)

    async def resume(self, ref: RunRef) -> None:
        """Let a suspended run go on (capability ``suspend``).

        Legal in Suspended; in Pending and Running it does nothing. Raises as ``suspend`` does.
        """
        raise self._refusal(Capability.SUSPEND)

    async def send(self, ref: RunRef, message: str) -> None:
        """Deliver ``message`` to the agent of a running run (capability ``send``).

        Returns only when the agent can read it. Raises ``NotFound``, ``Conflict`` for a run that
        is not Running, and ``NotSupported`` for one whose spec enables no messaging.
        """
        raise self._refusal(Capability.SEND)

    def telemetry(
        self, ref: RunRef, *, after: int = -1, follow: bool = False
    ) -> AsyncGenerator[Sample, None]:
        """Yield telemetry samples as ``events`` yields events (capability ``telemetry``).

        Samples may have gaps: a target keeps a bounded number of them.
        """
        raise self._refusal(Capability.TELEMETRY)

    async def endpoint(self, ref: RunRef) -> Endpoint:
        """Return where the run's service can be reached (capability ``endpoint``).

        Legal in Running, else ``Conflict``. Raises ``NotFound``. Whatever carries the connection
        belongs to the backend and closes with its context.
        """
        raise self._refusal(Capability.ENDPOINT)

    async def exec(
        self, ref: RunRef, argv: Sequence[str], *, timeout: float | None = None
    ) -> ExecResult:
        """Run a command inside of a running run (capability ``exec``).

        Returns how it ended; a command that fails is a result, not an error. Raises ``NotFound``,
        ``Conflict`` for a run that is not Running, ``DeadlineExceeded`` after having killed it.
        """
        raise self._refusal(Capability.EXEC)

    async def attach(self, ref: RunRef) -> Attachment:
        """Connect to the terminal of an interactive run (capability ``attach``).

        Legal in Running, else ``Conflict``. Raises ``NotFound``, and ``NotSupported`` for a run
        whose spec is not interactive. The caller must ``aclose()`` the result.
        """
        raise self._refusal(Capability.ATTACH)

    def _refusal(self, capability: Capability) -> NotSupported:
        if capability in self.capabilities:
            return NotSupported(f"backend {self.name} names {capability} but lacks it")
        return NotSupported(f"backend {self.name} cannot {capability}")
