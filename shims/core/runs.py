"""A run: its name, its states, and why it is in one.

Everything that decides which state may follow which, and which reason goes with which state, is in
the two tables of this module. The truth that a state tells is the run's outcome: a run whose
report says ``success: false`` has failed, whatever its process exited with.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from shims.core.errors import ExitCode, InputError, InternalError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

__all__ = [
    "REASONS",
    "TRANSITIONS",
    "Reason",
    "RunRef",
    "RunState",
    "RunStatus",
    "check_run_id",
    "check_transition",
    "derive_run_id",
]


class RunState(StrEnum):
    """Where a run stands."""

    PENDING = "Pending"
    """Accepted; nothing of the spec has run yet."""
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    """Stopped on request, and able to go on."""
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"
    UNKNOWN = "Unknown"
    """The target does not say; the run may be in any state."""

    @property
    def is_terminal(self) -> bool:
        """Whether the run is over for good."""
        return not TRANSITIONS[self]


_ENDS = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED})
_LIVE = frozenset({RunState.PENDING, RunState.RUNNING, RunState.SUSPENDED})

TRANSITIONS: Mapping[RunState, frozenset[RunState]] = {
    RunState.PENDING: (_LIVE | _ENDS | {RunState.UNKNOWN}) - {RunState.PENDING},
    # Back to Pending: a cluster may have to place a run anew.
    RunState.RUNNING: (_LIVE | _ENDS | {RunState.UNKNOWN}) - {RunState.RUNNING},
    # Never straight to Succeeded: what is suspended does no work.
    RunState.SUSPENDED: frozenset(
        {
            RunState.PENDING,
            RunState.RUNNING,
            RunState.FAILED,
            RunState.CANCELLED,
            RunState.UNKNOWN,
        }
    ),
    RunState.UNKNOWN: _LIVE | _ENDS,
    RunState.SUCCEEDED: frozenset(),
    RunState.FAILED: frozenset(),
    RunState.CANCELLED: frozenset(),
}
"""Which states may follow which. Staying in a state is no transition."""


class Reason(StrEnum):
    """Why a run is in its state. The words are stable: scripts may compare them."""

    ACCEPTED = "Accepted"
    UNSCHEDULABLE = "Unschedulable"
    PREPARING = "Preparing"
    STARTING = "Starting"
    ACTIVE = "Active"
    SUSPENDED_BY_USER = "SuspendedByUser"
    COMPLETED = "Completed"
    REPORTED_FAILURE = "ReportedFailure"
    """The report says ``success: false``."""
    NONZERO_EXIT = "NonzeroExit"
    SPEC_REJECTED = "SpecRejected"
    IMAGE_UNAVAILABLE = "ImageUnavailable"
    BOOT_FAILED = "BootFailed"
    MACHINE_LOST = "MachineLost"
    GUEST_SILENT = "GuestSilent"
    OUT_OF_MEMORY = "OutOfMemory"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    EVICTED = "Evicted"
    SHIM_FAILED = "ShimFailed"
    CANCELLED_BY_USER = "CancelledByUser"
    TARGET_UNREACHABLE = "TargetUnreachable"


REASONS: Mapping[RunState, frozenset[Reason]] = {
    RunState.PENDING: frozenset(
        {
            Reason.ACCEPTED,
            Reason.UNSCHEDULABLE,
            Reason.PREPARING,
            Reason.STARTING,
            Reason.IMAGE_UNAVAILABLE,
        }
    ),
    RunState.RUNNING: frozenset({Reason.ACTIVE}),
    RunState.SUSPENDED: frozenset({Reason.SUSPENDED_BY_USER}),
    RunState.SUCCEEDED: frozenset({Reason.COMPLETED}),
    RunState.FAILED: frozenset(
        {
            Reason.REPORTED_FAILURE,
            Reason.NONZERO_EXIT,
            Reason.SPEC_REJECTED,
            Reason.IMAGE_UNAVAILABLE,
            Reason.UNSCHEDULABLE,
            Reason.BOOT_FAILED,
            Reason.MACHINE_LOST,
            Reason.GUEST_SILENT,
            Reason.OUT_OF_MEMORY,
            Reason.DEADLINE_EXCEEDED,
            Reason.EVICTED,
            Reason.SHIM_FAILED,
        }
    ),
    RunState.CANCELLED: frozenset({Reason.CANCELLED_BY_USER, Reason.EVICTED}),
    RunState.UNKNOWN: frozenset({Reason.TARGET_UNREACHABLE, Reason.GUEST_SILENT}),
}
"""Which reasons a state may have."""


def check_transition(before: RunState, after: RunState) -> None:
    """Raise ``InternalError`` unless a run may go from ``before`` to ``after``."""
    if after is not before and after not in TRANSITIONS[before]:
        raise InternalError(f"a run cannot go from {before} to {after}")


_RUN_ID = re.compile(r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?\Z", re.ASCII)
_ID_RULE = "1 to 63 of a-z, 0-9 and '-', with a letter first and no '-' last"
_HASH_DIGITS = 8
_SLUG_LENGTH = 63 - 1 - _HASH_DIGITS


def check_run_id(run_id: str) -> str:
    """Return ``run_id``, or raise ``InputError``: every target must be able to bear the name."""
    if not _RUN_ID.match(run_id):
        raise InputError("run id", run_id, _ID_RULE)
    return run_id


def derive_run_id(name: str, source: bytes, salt: str = "") -> str:
    """Return the id of a run that nobody named: the same document gives the same id.

    ``salt`` holds whatever else makes two runs different, input and labels for example.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    slug = re.sub(r"\A[0-9-]+", "", slug)[:_SLUG_LENGTH].rstrip("-") or "run"
    words = salt.encode("utf-8", "surrogatepass")  # an argument may be anything but text
    digest = hashlib.sha256(source + b"\0" + words).hexdigest()[:_HASH_DIGITS]
    return check_run_id(f"{slug}-{digest}")


@dataclass(frozen=True, slots=True)
class RunRef:
    """The name of a run on a target; as text ``BACKEND:SCOPE/ID``, or ``BACKEND:ID``."""

    backend: str
    id: str
    scope: str = ""
    """What the backend keeps runs apart by: a namespace, a libvirt URI's name."""

    def __str__(self) -> str:
        return (
            f"{self.backend}:{self.scope}/{self.id}" if self.scope else f"{self.backend}:{self.id}"
        )

    @classmethod
    def parse(cls, text: str) -> RunRef:
        """Return the reference that ``text`` is. Raises ``InputError``."""
        backend, colon, rest = text.partition(":")
        if not colon or not backend:
            raise InputError("run reference", text, "BACKEND:SCOPE/ID or BACKEND:ID")
        scope, _, run_id = rest.rpartition("/")
        return cls(backend, check_run_id(run_id), scope)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """What is known about a run at one moment. Building one with a foreign reason is a bug."""

    ref: RunRef
    state: RunState
    reason: Reason
    message: str = ""
    """One line for people: what happened."""
    hint: str = ""
    """One line for people: what to do about it."""
    exit_code: int | None = None
    """Of the run's main process, once it ended and if the target tells."""
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None

    def __post_init__(self) -> None:
        if self.reason not in REASONS[self.state]:
            raise InternalError(f"state {self.state} cannot have reason {self.reason}")
        if self.state.is_terminal != (self.finished_at is not None):
            raise InternalError(f"state {self.state} with finished_at {self.finished_at}")

    @property
    def command_exit_code(self) -> int:
        """What a command that waited for this run exits with."""
        if self.state is RunState.SUCCEEDED:
            return ExitCode.OK
        if self.reason is Reason.DEADLINE_EXCEEDED:
            return ExitCode.TIMEOUT
        return ExitCode.UNREACHABLE if self.state is RunState.UNKNOWN else ExitCode.FAILED
