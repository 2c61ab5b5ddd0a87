"""The device filter, run by a small interpreter of the instructions that it uses."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shims.core.errors import InputError
from shims.guest.plan.devices import compile_device_filter
from shims.guest.plan.reading import Reader
from tests.guest.plan.specs import compile_spec, spec_with

BLOCK, CHAR = 1, 2
MKNOD, READ, WRITE = 1, 2, 4
DENY_ALL = {"allow": False, "access": "rwm"}


def run(program: bytes, kind: int, access: int, major: int, minor: int) -> bool:
    """Return what the filter answers; a program that runs off its end fails."""
    if not program:
        return True
    context = {0: access << 16 | kind, 4: major, 8: minor}
    registers = dict.fromkeys(range(10), 0)
    code = list(struct.iter_unpack("<BBhi", program))
    at = 0
    while True:
        operation, pair, offset, value = code[at]
        to, source = pair & 15, pair >> 4
        at += 1
        if operation == 0x61:
            registers[to] = context[offset]
        elif operation == 0x55:
            at += offset if registers[to] != value else 0
        elif operation == 0x15:
            at += offset if registers[to] == value else 0
        elif operation == 0xB7:
            registers[to] = value
        elif operation == 0x57:
            registers[to] &= value
        elif operation == 0x77:
            registers[to] >>= value
        elif operation == 0xBF:
            registers[to] = registers[source]
        else:
            assert operation == 0x95
            return bool(registers[0])


def compiled(*rules: dict[str, Any]) -> bytes:
    return compile_device_filter(Reader({"devices": list(rules)}, "linux.resources"))


@pytest.mark.parametrize("rules", [(), (DENY_ALL,)])
def test_defaults(rules: tuple[dict[str, Any], ...]) -> None:
    program = compiled(*rules)
    for minor in (3, 5, 7, 8, 9):
        assert run(program, CHAR, READ | WRITE, 1, minor)
    assert run(program, CHAR, READ | WRITE, 5, 0)
    assert run(program, CHAR, READ | WRITE, 5, 2)
    assert run(program, CHAR, READ | WRITE, 136, 99)
    assert run(program, BLOCK, MKNOD, 8, 0)
    assert not run(program, BLOCK, READ, 8, 0)
    assert not run(program, BLOCK, READ | MKNOD, 8, 0)
    assert not run(program, CHAR, READ, 1, 1)  # /dev/mem
    assert not run(program, BLOCK, READ, 1, 3)  # the numbers of /dev/null, but a block device


def test_access_is_allowed_bit_by_bit() -> None:
    rule = {"allow": True, "type": "b", "major": 8, "minor": 0}
    program = compiled(DENY_ALL, {**rule, "access": "r"})
    assert run(program, BLOCK, READ, 8, 0)
    assert not run(program, BLOCK, READ | WRITE, 8, 0)
    assert not run(program, BLOCK, READ, 8, 1)
    program = compiled(DENY_ALL, {**rule, "access": "r"}, {**rule, "access": "w"})
    assert run(program, BLOCK, READ | WRITE, 8, 0)
    program = compiled(DENY_ALL, {**rule, "access": "rw"}, {**rule, "access": "w", "allow": False})
    assert run(program, BLOCK, READ, 8, 0)
    assert not run(program, BLOCK, WRITE, 8, 0)


def test_wildcards() -> None:
    program = compiled(DENY_ALL, {"allow": True, "type": "c", "major": 10, "access": "rwm"})
    assert run(program, CHAR, READ, 10, 229)
    program = compiled(DENY_ALL, {"allow": True, "type": "a", "major": 7, "minor": 7})
    assert run(program, CHAR, READ, 7, 7)
    assert run(program, BLOCK, WRITE, 7, 7)


def test_everything_allowed_needs_no_filter() -> None:
    assert compiled(DENY_ALL, {"allow": True, "access": "rwm"}) == b""


def test_exceptions_from_everything() -> None:
    allow_all = {"allow": True, "access": "rwm"}
    program = compiled(allow_all, {"allow": False, "type": "b", "major": 8, "access": "w"})
    assert run(program, BLOCK, READ, 8, 0)
    assert not run(program, BLOCK, WRITE | READ, 8, 0)
    assert run(program, CHAR, WRITE, 8, 0)


RULES = st.lists(
    st.fixed_dictionaries(
        {"allow": st.booleans(), "type": st.sampled_from(["c", "b"])},
        optional={
            "major": st.integers(0, 3),
            "minor": st.integers(0, 3),
            "access": st.sampled_from(["r", "w", "m", "rw", "rwm"]),
        },
    ),
    max_size=8,
)


def _verdict(rules: list[dict[str, Any]], kind: int, letter: str, major: int, minor: int) -> bool:
    """What the rules say in their order about one kind of access."""
    allowed = False
    for rule in rules:
        numbers = rule.get("major", major), rule.get("minor", minor)
        if rule["type"] == {BLOCK: "b", CHAR: "c"}[kind] and numbers == (major, minor):
            allowed = rule["allow"] if letter in rule.get("access", "rwm") else allowed
    return allowed


@given(RULES, st.sampled_from([BLOCK, CHAR]), st.integers(1, 7), st.integers(0, 3))
def test_a_program_does_what_its_rules_say_in_their_order(
    rules: list[dict[str, Any]], kind: int, access: int, n: int
) -> None:
    try:
        program = compiled(DENY_ALL, *rules)
    except InputError:
        return  # a hole
    for major in (0, 2, 3):  # 1 has the default devices
        run(program, kind, access, major, n)
        for letter, bit in (("r", READ), ("w", WRITE)):
            expected = _verdict(rules, kind, letter, major, n)
            assert run(program, kind, bit, major, n) == expected


@pytest.mark.parametrize("first", [False, True], ids=["deny all", "allow all"])
@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ({"type": "c", "major": 10}, {"type": "c", "major": 10, "minor": 229}),
        ({"type": "c", "minor": 229}, {"type": "c", "major": 10, "minor": 229}),
        ({"type": "c"}, {"type": "c", "major": 10}),
        ({"type": "c", "minor": 229}, {"type": "c", "major": 10}),
    ],
)
def test_a_hole_in_a_wider_rule_is_refused_not_dropped(
    first: bool, wide: dict[str, Any], narrow: dict[str, Any]
) -> None:
    rules = [
        {"allow": first, "access": "rwm"},
        {"allow": not first, "access": "rw", **wide},
        {"allow": first, "access": "w", **narrow},
    ]
    with pytest.raises(InputError, match=r"devices\[2\]: got .*no hole in the rule for c "):
        compiled(*rules)
    rules[2]["access"] = "m"
    compiled(*rules)  # that the wider rule says nothing about


def test_a_wider_rule_takes_what_is_in_it() -> None:
    rule = {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"}
    wider = {"allow": False, "type": "c", "major": 10, "access": "w"}
    program = compiled(DENY_ALL, rule, wider)
    assert run(program, CHAR, READ, 10, 229)
    assert not run(program, CHAR, WRITE, 10, 229)


@pytest.mark.parametrize(
    "rule",
    [
        {"allow": True, "type": "x"},
        {"allow": True, "access": "rx"},
        {"allow": True, "major": "8"},
        {"allow": "yes"},
    ],
)
def test_rules_that_make_no_sense(rule: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"linux\.resources\.devices\[0\]"):
        compiled(rule)


@pytest.mark.parametrize(
    ("kind", "major", "minor", "path"),
    [("c", 10, 232, "/dev/kvm"), ("b", 8, 0, "/dev/sda"), ("c", 10, 200, "/dev/net/tun")],
)
def test_host_devices_are_refused_with_advice(kind: str, major: int, minor: int, path: str) -> None:
    device = {"path": path, "type": kind, "major": major, "minor": minor}
    with pytest.raises(InputError, match=f"got '?{path}.*microVM") as caught:
        compile_spec(spec_with("linux.devices", [device]))
    assert "bind the directory (in Kubernetes: volumeMode Filesystem" in caught.value.hint


def test_a_dev_from_elsewhere_is_left_alone() -> None:
    from shims.guest.plan import GuestSource

    mount = {"destination": "/dev", "type": "bind", "source": "/d", "options": ["rbind"]}
    plan = compile_spec(spec_with("mounts", [mount]), sources={0: GuestSource("pushed", "/x")})
    assert not [step for step in plan.steps if step.HasField("node")]
