"""The RunSpec: each field, its default, its type, and how YAML and JSON reach it."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shims.core.findings import Severity, SpecError
from shims.core.loading import parse_spec
from shims.core.rules import review
from shims.core.runspec import AgentSpec, RunSpec, SandboxSpec
from shims.core.scalars import PlainScalar, resolve

if TYPE_CHECKING:
    from shims.core.loading import LoadedSpec

# Every key that void-box 0.2 knows, with a value that is not its default.
FULL: dict[str, Any] = {
    "api_version": "v1",
    "kind": "pipeline",
    "name": "everything",
    "sandbox": {
        "mode": "local",
        "kernel": "/boot/k",
        "initramfs": "/boot/i",
        "memory_mb": 2048,
        "vcpus": 4,
        "network": True,
        "env": {"A": "1", "B": ""},
        "mounts": [{"host": "h", "guest": "/g", "mode": "rw"}],
        "image": "python:3.12",
        "guest_image": "",
        "snapshot": "abc",
    },
    "llm": {
        "provider": "custom",
        "model": "m",
        "base_url": "http://10.0.2.2:1",
        "api_key_env": "KEY",
        "credential_proxy": False,
    },
    "observe": {
        "traces": True,
        "metrics": True,
        "logs": True,
        "otlp_endpoint": "http://o",
        "service_name": "s",
        "telemetry_buffer_size": 7,
    },
    "agent": {
        "prompt": "p",
        "skills": [
            "agent:claude-code",
            {"image": "i", "mount": "/m", "readonly": False},
            {"command": "c", "args": ["a"], "env": {"K": "V"}},
            {"name": "n", "content": "t"},
        ],
        "timeout_secs": 5,
        "output_file": "/workspace/o",
        "messaging": {"enabled": True, "provider_bridge": "claude_channels"},
        "mode": "interactive",
    },
    "pipeline": {
        "boxes": [
            {
                "name": "b",
                "prompt": "p",
                "skills": ["file:x"],
                "llm": {
                    "provider": "ollama",
                    "model": None,
                    "base_url": None,
                    "api_key_env": None,
                    "credential_proxy": False,
                },
                "timeout_secs": 0,
                "sandbox": {
                    "memory_mb": 512,
                    "vcpus": 2,
                    "network": True,
                    "env": {"C": "2"},
                    "mounts": [{"host": "h", "guest": "/g", "mode": "ro"}],
                    "snapshot": "s",
                },
                "outputs": [{"name": "o", "guest": "/o"}],
                "inputs": [{"from": "o", "guest": "/i"}],
            }
        ],
        "stages": [{"type": "box", "name": "b"}, {"type": "fan_out", "boxes": ["c"]}],
    },
    "workflow": {
        "steps": [
            {
                "name": "s",
                "run": {"program": "p", "args": ["a"], "stdin_from": "r"},
                "depends_on": ["r"],
                "mode": "service",
                "timeout_secs": 3,
            }
        ],
        "output_step": "s",
    },
}


def test_every_field_survives_a_round_trip() -> None:
    spec = RunSpec.model_validate(FULL)
    dumped = json.loads(spec.model_dump_json(by_alias=True))
    assert dumped == FULL
    assert RunSpec.model_validate(dumped) == spec


def test_the_defaults_are_those_of_void_box() -> None:
    loaded = parse_spec(b"kind: agent\nname: x\nagent: {prompt: p}\n")
    spec = loaded.spec
    assert spec.api_version == "v1"
    assert spec.sandbox == SandboxSpec(
        mode="auto", memory_mb=1024, vcpus=1, network=False, env={}, mounts=()
    )
    assert (spec.sandbox.kernel, spec.sandbox.image, spec.sandbox.guest_image) == (None,) * 3
    assert spec.agent == AgentSpec(prompt="p", skills=(), mode="task")
    assert (spec.llm, spec.observe, spec.pipeline, spec.workflow) == (None,) * 4
    assert loaded.findings == ()


def test_defaults_of_nested_parts() -> None:
    data = {
        "kind": "pipeline",
        "name": "x",
        "sandbox": {"mounts": [{"host": "h", "guest": "g"}]},
        "pipeline": {
            "boxes": [
                {
                    "name": "b",
                    "prompt": "p",
                    "outputs": [{"name": "o"}],
                    "inputs": [{"from": "o"}],
                    "skills": [{"image": "i", "mount": "m"}],
                    "sandbox": {},
                }
            ]
        },
        "observe": {},
        "agent": {"prompt": "", "messaging": {}},
    }
    spec = RunSpec.model_validate(data)
    assert spec.sandbox.mounts[0].mode == "ro"
    assert spec.pipeline is not None
    box = spec.pipeline.boxes[0]
    assert (box.outputs[0].guest, box.inputs[0].guest) == ("/workspace/output", "/workspace/input")
    assert json.loads(box.skills[0].model_dump_json())["readonly"] is True  # type: ignore[union-attr]
    assert box.sandbox is not None
    assert box.sandbox.memory_mb is None
    assert spec.agent is not None
    assert spec.agent.messaging is not None
    assert spec.agent.messaging.enabled is False
    assert spec.observe is not None
    assert (spec.observe.traces, spec.observe.telemetry_buffer_size) == (False, None)


def test_a_spec_cannot_be_changed() -> None:
    spec = RunSpec.model_validate(FULL)
    with pytest.raises(ValidationError, match="frozen"):
        spec.name = "other"  # type: ignore[misc]


def _yaml(body: str) -> LoadedSpec:
    return parse_spec(f"kind: sandbox\nname: x\n{body}\n".encode())


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("8080", "8080"),
        ("yes", "yes"),
        ("true", "true"),
        ("1.50", "1.50"),
        ("012", "012"),
        ("12:30:45", "12:30:45"),
        ("2026-11-23", "2026-11-23"),
        ("~", "~"),
        ("null", "null"),
        ("", ""),
        ("'quoted'", "quoted"),
        ('"a\\tb"', "a\tb"),
        ("!!str 5", "5"),
        ("|\n      two\n      lines", "two\nlines\n"),
    ],
)
def test_text_is_what_stands_there(written: str, read: str) -> None:
    spec = _yaml(f"sandbox:\n  env:\n    KEY: {written}").spec
    assert spec.sandbox.env == {"KEY": read}


@pytest.mark.parametrize(
    ("written", "read"),
    [("2048", 2048), ("+2048", 2048), ("0x800", 2048), ("0o4000", 2048), ("0b11111", 31)],
)
def test_numbers_of_the_core_schema(written: str, read: int) -> None:
    assert _yaml(f"sandbox: {{memory_mb: {written}}}").spec.sandbox.memory_mb == read


@pytest.mark.parametrize("written", ["'2048'", "2048.0", "2_048", "02048", "-1", "1e3", "~", "yes"])
def test_what_is_no_number(written: str) -> None:
    with pytest.raises(ValueError, match="allowed: a whole number"):
        _yaml_error(f"sandbox: {{memory_mb: {written}}}")


def _yaml_error(body: str) -> None:
    try:
        _yaml(body)
    except SpecError as error:
        raise ValueError(str(error)) from error


@pytest.mark.parametrize(("written", "read"), [("true", True), ("False", False), ("TRUE", True)])
def test_truth_values(written: str, read: bool) -> None:
    assert _yaml(f"sandbox: {{network: {written}}}").spec.sandbox.network is read


@pytest.mark.parametrize("written", ["yes", "on", "1", "'true'", "tRue"])
def test_what_is_no_truth_value(written: str) -> None:
    with pytest.raises(ValueError, match="allowed: true, false"):
        _yaml_error(f"sandbox: {{network: {written}}}")


def test_a_key_with_nothing_behind_it() -> None:
    spec = _yaml("sandbox:\n  env:\n  mounts:\n  kernel:\n  image: ~\nllm:\nobserve: null").spec
    assert (spec.sandbox.env, spec.sandbox.mounts) == ({}, ())
    assert (spec.sandbox.kernel, spec.sandbox.image, spec.llm, spec.observe) == (None,) * 4
    assert _yaml("sandbox:").spec.sandbox == SandboxSpec()


def test_the_same_spec_as_json_and_as_yaml() -> None:
    text = json.dumps(
        {**FULL, "kind": "sandbox", "agent": None, "pipeline": None, "workflow": None}
    )
    as_json = parse_spec(text.encode(), "json")
    as_yaml = parse_spec(text.encode(), "yaml")
    assert as_json.spec == as_yaml.spec
    assert as_json.source == text.encode()


def test_the_source_is_kept_byte_for_byte() -> None:
    source = "# comment\r\nkind: sandbox\r\nname:   'ä'  # tail\r\nfuture: [1, yes]".encode()
    loaded = parse_spec(source)
    assert loaded.source == source
    assert loaded.spec.name == "ä"


def test_unknown_keys_are_kept_with_the_types_that_they_look_like() -> None:
    spec = _yaml("future: [1, yes, true, ~, 1.5, {a: 0x10}]").spec
    assert spec.model_extra == {"future": [1, "yes", True, None, 1.5, {"a": 16}]}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("+.Inf", math.inf),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-0", 0),
        ("-0b11", -3),
        ("1" * 70, "1" * 70),
        ("0x", "0x"),
        ("1.2.3", "1.2.3"),
        ("-", "-"),
        ("+", "+"),
        (".", "."),
    ],
)
def test_what_plain_scalars_look_like(text: str, value: object) -> None:
    assert resolve(PlainScalar(text)) == value
    assert type(resolve(PlainScalar(text))) is type(value)


def test_not_a_number_is_one() -> None:
    found = resolve(PlainScalar(".nan"))
    assert isinstance(found, float)
    assert math.isnan(found)


_NAMES = st.sampled_from(["a", "b", "c", "d", "e"])


@given(st.lists(st.tuples(_NAMES, st.lists(_NAMES, max_size=3)), min_size=1, max_size=5))
def test_a_workflow_is_refused_exactly_when_its_steps_cannot_be_ordered(
    steps: list[tuple[str, list[str]]],
) -> None:
    waiting = {name: set(needed) for name, needed in steps}  # the last of a name wins
    possible = all(set(needed) <= waiting.keys() for _, needed in steps)
    while free := {name for name, needed in waiting.items() if not needed & waiting.keys()}:
        waiting = {name: needed for name, needed in waiting.items() if name not in free}
    possible = possible and not waiting
    spec = RunSpec.model_validate(
        {
            "kind": "workflow",
            "name": "x",
            "workflow": {
                "steps": [
                    {"name": name, "depends_on": needed, "run": {"program": "p"}}
                    for name, needed in steps
                ]
            },
        }
    )
    errors = [finding for finding in review(spec) if finding.severity is Severity.ERROR]
    assert possible == (not errors)
