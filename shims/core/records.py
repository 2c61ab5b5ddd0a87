"""What a run says about itself: events, telemetry samples, and one report at its end.

Names and meanings are those of void-box's daemon (version 0.2.0), so that whoever reads its API
can read this. Times are integers in milliseconds since the epoch unless a name says otherwise.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["EventType", "GuestUsage", "HostUsage", "RunEvent", "RunReport", "Sample", "to_json"]


class EventType(StrEnum):
    """Kinds of events; ``v2`` is the name in version 2 of void-box's API."""

    RUN_STARTED = "run.started"
    ENV_PROVISIONED = "env.provisioned"
    SPEC_LOADED = "run.spec.loaded"
    SPEC_PARSE_FAILED = "spec.parse_failed"
    SKILL_MOUNTED = "skill.mounted"
    BOX_STARTED = "box.started"
    WORKFLOW_PLANNED = "workflow.planned"
    STAGE_QUEUED = "stage.queued"
    STAGE_STARTED = "stage.started"
    STAGE_COMPLETED = "stage.completed"
    STAGE_FAILED = "stage.failed"
    STAGE_SKIPPED = "stage.skipped"
    OUTPUT_READY = "run.output_ready"
    LOG_CHUNK = "log.chunk"
    LOG_CLOSED = "log.closed"
    RUN_FINISHED = "run.finished"
    RUN_FAILED = "run.failed"
    RUN_CANCELLED = "run.cancelled"

    @property
    def v2(self) -> str:
        """The name with capitals: ``RunStarted``."""
        special = _V2_NAMES.get(self)
        return special or "".join(part.capitalize() for part in self.replace("_", ".").split("."))


_V2_NAMES: Mapping[EventType, str] = {
    EventType.ENV_PROVISIONED: "EnvironmentProvisioned",
    EventType.SPEC_LOADED: "SpecLoaded",
    EventType.STAGE_COMPLETED: "StageSucceeded",
    EventType.RUN_FINISHED: "RunCompleted",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """Something happened in a run. ``seq`` counts from 0 without gaps within one run."""

    seq: int
    ts_ms: int
    type: EventType
    run_id: str
    message: str = ""
    level: Literal["debug", "info", "warn", "error"] = "info"
    attempt: int = 1
    stage: str = ""
    """Stage that it is about; empty for the run itself."""
    box: str = ""
    stream: Literal["", "stdout", "stderr"] = ""
    payload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestUsage:
    """What the guest measured about itself. Sizes in bytes, network counters since boot."""

    cpu_percent: float
    memory_used_bytes: int
    memory_total_bytes: int
    net_rx_bytes: int = 0
    net_tx_bytes: int = 0
    procs_running: int = 0
    open_fds: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostUsage:
    """What the host measured about the machine's process. I/O counters since its start."""

    rss_bytes: int
    cpu_percent: float
    io_read_bytes: int = 0
    io_write_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One telemetry sample; ``seq`` counts from 0 within one run."""

    seq: int
    ts_ms: int
    stage: str
    guest: GuestUsage | None = None
    host: HostUsage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """The outcome of a run that could be carried out, whether it succeeded or not."""

    name: str
    kind: str
    success: bool
    output: str = ""
    stages: int = 0
    total_cost_usd: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0


def to_json(record: object) -> Any:
    """Return ``record`` as what ``json.dumps`` takes: enums as text, times as RFC 3339 in UTC."""
    match record:
        case Enum():
            return record.value
        case datetime():
            return record.astimezone(UTC).isoformat(timespec="milliseconds")
        case dict():
            return {str(key): to_json(value) for key, value in record.items()}
        case list() | tuple() | frozenset():
            return [to_json(value) for value in record]
        case _ if dataclasses.is_dataclass(record):
            names = [each.name for each in dataclasses.fields(record)]
            return {name: to_json(getattr(record, name)) for name in names}
        case _:
            return record
