"""States, reasons, references and records: the tables hold together, the texts are stable."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shims.core.errors import InputError, InternalError
from shims.core.records import EventType, GuestUsage, RunEvent, RunReport, Sample, to_json
from shims.core.runs import (
    REASONS,
    TRANSITIONS,
    Reason,
    RunRef,
    RunState,
    RunStatus,
    check_run_id,
    check_transition,
    derive_run_id,
)

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
REF = RunRef("memory", "a")


def test_every_state_has_its_row_in_both_tables() -> None:
    assert set(TRANSITIONS) == set(REASONS) == set(RunState)
    assert set().union(*REASONS.values()) == set(Reason)


def test_the_three_ends_are_ends() -> None:
    ends = {state for state in RunState if state.is_terminal}
    assert ends == {RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED}


@pytest.mark.parametrize("state", RunState)
def test_transitions(state: RunState) -> None:
    check_transition(state, state)
    assert state not in TRANSITIONS[state]
    for other in set(RunState) - {state}:
        if other in TRANSITIONS[state]:
            check_transition(state, other)
        else:
            with pytest.raises(InternalError, match=f"from {state} to {other}"):
                check_transition(state, other)


def test_every_end_can_be_reached_from_pending() -> None:
    reached = {RunState.PENDING}
    while more := set().union(*(TRANSITIONS[state] for state in reached)) - reached:
        reached |= more
    assert reached == set(RunState)


def test_a_status_contradicts_itself_never() -> None:
    with pytest.raises(InternalError, match="cannot have reason"):
        RunStatus(ref=REF, state=RunState.RUNNING, reason=Reason.COMPLETED)
    with pytest.raises(InternalError, match="finished_at"):
        RunStatus(ref=REF, state=RunState.SUCCEEDED, reason=Reason.COMPLETED)
    with pytest.raises(InternalError, match="finished_at"):
        RunStatus(ref=REF, state=RunState.RUNNING, reason=Reason.ACTIVE, finished_at=NOW)


@pytest.mark.parametrize(
    ("state", "reason", "code"),
    [
        (RunState.SUCCEEDED, Reason.COMPLETED, 0),
        (RunState.FAILED, Reason.REPORTED_FAILURE, 1),
        (RunState.FAILED, Reason.DEADLINE_EXCEEDED, 124),
        (RunState.CANCELLED, Reason.CANCELLED_BY_USER, 1),
        (RunState.UNKNOWN, Reason.TARGET_UNREACHABLE, 5),
    ],
)
def test_a_waiting_command_exits_with_the_outcome(
    state: RunState, reason: Reason, code: int
) -> None:
    finished = NOW if state.is_terminal else None
    status = RunStatus(ref=REF, state=state, reason=reason, exit_code=0, finished_at=finished)
    assert status.command_exit_code == code


@pytest.mark.parametrize("good", ["a", "a-b", "a1", "x" * 63])
def test_good_ids(good: str) -> None:
    assert check_run_id(good) == good


@pytest.mark.parametrize("bad", ["", "-", "1a", "a-", "A", "a_b", "a/b", "a\n", "x" * 64, "ä"])
def test_bad_ids(bad: str) -> None:
    with pytest.raises(InputError, match="run id: got"):
        check_run_id(bad)


@given(st.text(), st.binary(max_size=20), st.text(max_size=5))
def test_any_name_gives_a_good_id_and_always_the_same(name: str, source: bytes, salt: str) -> None:
    run_id = derive_run_id(name, source, salt)
    assert check_run_id(run_id) == derive_run_id(name, source, salt)
    assert derive_run_id(name, source + b"x", salt) != run_id


def test_a_derived_id_can_be_recognised() -> None:
    assert derive_run_id("x", b"", "\ud800") != derive_run_id("x", b"", "\udcff")  # any argument
    assert derive_run_id("My Agent/2", b"").startswith("my-agent-2-")
    assert derive_run_id("42 things", b"").startswith("things-")
    assert derive_run_id("日本", b"").startswith("run-")
    assert len(derive_run_id("x" * 100, b"")) == 63


@pytest.mark.parametrize("text", ["memory:a", "k8s:default/a", "libvirt:qemu:///system/a"])
def test_references_are_text(text: str) -> None:
    assert str(RunRef.parse(text)) == text


@pytest.mark.parametrize("text", ["", "a", ":a", "k8s:", "k8s:ns/", "k8s:A"])
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(InputError):
        RunRef.parse(text)


def test_event_names_of_both_versions() -> None:
    names = {kind.value: kind.v2 for kind in EventType}
    assert names["run.started"] == "RunStarted"
    assert names["env.provisioned"] == "EnvironmentProvisioned"
    assert names["run.spec.loaded"] == "SpecLoaded"
    assert names["stage.completed"] == "StageSucceeded"
    assert names["run.output_ready"] == "RunOutputReady"
    assert names["run.finished"] == "RunCompleted"
    assert names["spec.parse_failed"] == "SpecParseFailed"
    assert len(set(names.values())) == len(names)


def test_records_become_json() -> None:
    event = RunEvent(seq=0, ts_ms=1, type=EventType.LOG_CHUNK, run_id="a", payload={"data": "x"})
    guest = GuestUsage(cpu_percent=1.5, memory_used_bytes=2, memory_total_bytes=3)
    sample = Sample(seq=0, ts_ms=1, stage="s", guest=guest)
    report = RunReport(name="n", kind="agent", success=True)
    for record in (event, sample, report):
        assert json.loads(json.dumps(to_json(record))) == to_json(record)
    assert to_json(event)["type"] == "log.chunk"
    assert to_json(sample)["guest"]["memory_total_bytes"] == 3
    assert to_json(sample)["host"] is None


def test_times_are_told_in_utc() -> None:
    east = NOW.astimezone(timezone(timedelta(hours=5)))
    status = RunStatus(ref=REF, state=RunState.PENDING, reason=Reason.ACCEPTED, created_at=east)
    assert to_json(status)["created_at"] == "2026-11-23T12:00:00.000+00:00"
