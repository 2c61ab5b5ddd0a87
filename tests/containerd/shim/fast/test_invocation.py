"""Flags as Go's flag package reads them, and as future containerds may send them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shims.containerd.shim.invocation import UsageError, is_identifier, parse_invocation

BASE = ["-namespace", "n", "-id", "c1"]


@pytest.mark.parametrize(
    "words",
    [
        ["-namespace", "n", "-id", "c1", "-address", "/a", "-publish-binary", "/p", "start"],
        ["--namespace", "n", "--id=c1", "-address=/a", "--publish-binary=/p", "start"],
        ["start", "-namespace", "n", "-id", "c1", "-address", "/a", "-publish-binary", "/p"],
    ],
)
def test_forms_of_flags(words: list[str]) -> None:
    call = parse_invocation(words, {}, "/bundle")
    assert call.action == "start"
    assert (call.namespace, call.id, call.address, call.publish_binary, call.bundle) == (
        "n", "c1", "/a", "/p", "/bundle",
    )  # fmt: skip
    assert not call.debug


@pytest.mark.parametrize(
    ("flag", "debug"),
    [("-debug", True), ("--debug", True), ("-debug=true", True), ("-debug=false", False)],
)
def test_switches_take_no_word(flag: str, debug: bool) -> None:
    call = parse_invocation([*BASE, flag, "start"], {}, "/")
    assert (call.action, call.debug) == ("start", debug)


@pytest.mark.parametrize(
    "flags",
    [["-new-switch"], ["-new-switch=x"], ["--new", "value"], ["-a", "-b"], ["-x", "1", "-y=2"]],
)
def test_unknown_flags_are_skipped(flags: list[str]) -> None:
    call = parse_invocation([*BASE, *flags, "start"], {}, "/")
    assert (call.action, call.id) == ("start", "c1")
    call = parse_invocation([*flags, *BASE, "delete"], {}, "/")
    assert (call.action, call.id) == ("delete", "c1")


@pytest.mark.parametrize("flag", ["-v", "--v", "-version", "--version"])
def test_version_needs_nothing_else(flag: str) -> None:
    assert parse_invocation([flag], {}, "/").show_version


def test_info_needs_no_namespace() -> None:
    assert parse_invocation(["-info"], {}, "/").info


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["start"],
        [*BASE],
        [*BASE, "restart"],
        ["-id", "c1", "start"],
        ["-namespace", "n", "start"],
        ["start", *BASE, "-address"],
        ["-namespace", "..", "-id", "c1", "start"],
        ["-namespace", "n", "-id", "a/b", "start"],
    ],
)
def test_unclear(words: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_invocation(words, {}, "/")


def test_arguments_reproduce_the_call() -> None:
    call = parse_invocation(
        [
            *BASE,
            "-address",
            "/a",
            "-debug",
            "-bundle",
            "/b",
            "-group",
            "g",
            "-socket",
            "/s",
            "start",
        ],
        {},
        "/",
    )
    again = parse_invocation([*call.arguments(), "daemon"], {}, "/elsewhere")
    for name in ("namespace", "id", "address", "debug", "bundle", "group", "socket"):
        assert getattr(again, name) == getattr(call, name)


def test_ttrpc_address_comes_from_the_environment() -> None:
    call = parse_invocation([*BASE, "start"], {"TTRPC_ADDRESS": "unix:///run/x"}, "/")
    assert call.ttrpc_address == "/run/x"


@pytest.mark.parametrize("name", ["a", "A-1", "x.y_z", "0" * 76])
def test_identifiers(name: str) -> None:
    assert is_identifier(name)


@pytest.mark.parametrize("name", ["", ".", "a..b", "-a", "a-", "a/b", "ä", "a b", "0" * 77, "a\n"])
def test_no_identifiers(name: str) -> None:
    assert not is_identifier(name)


@given(st.lists(st.text(max_size=12)))
def test_any_words(words: list[str]) -> None:
    """Whatever the words, there is a call or a sentence."""
    with contextlib.suppress(UsageError):
        assert parse_invocation(words, {}, "/").action in ("", "start", "delete", "daemon")
