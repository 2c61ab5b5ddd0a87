"""How we were called: flags and environment, read once into one frozen object.

The flags are Go's: one dash or two, ``-name value`` or ``-name=value``, switches bare; the
sub-command is the first word that is no flag. Unknown flags are skipped, because a later
containerd may pass new ones. Sources: containerd core/runtime/v2/binary.go, pkg/shim/shim.go.

This module is on the path that every container start waits for: it imports nothing but os.
"""

from __future__ import annotations

import os

__all__ = ["Invocation", "UsageError", "parse_invocation"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_VALUES = {
    "namespace": "namespace",
    "id": "id",
    "address": "address",
    "publish-binary": "publish_binary",
    "bundle": "bundle",
    "socket": "socket",
    "group": "group",
}
_SWITCHES = {"debug": "debug", "info": "info", "v": "show_version", "version": "show_version"}
_TRUE = frozenset(("", "1", "t", "T", "TRUE", "true", "True"))
_LONGEST_ID = 76


class UsageError(Exception):
    """The command line cannot be obeyed."""


class Invocation:
    """One call of the shim. Attributes are set once, by ``parse_invocation``, and not changed.

    ``action`` is "start", "delete", "daemon" or "" (for -info and -v). ``group`` is the id of the
    shim and VM that container ``id`` lives in; only our own daemon is given it as a flag, start and
    delete find it out. ``bundle`` is absolute.
    """

    __slots__ = (
        "action", "address", "bundle", "debug", "environ", "group", "id", "info", "namespace",
        "publish_binary", "show_version", "socket",
    )  # fmt: skip

    action: str
    address: str
    """containerd's gRPC socket."""
    bundle: str
    debug: bool
    environ: Mapping[str, str]
    """The environment at the start of the process."""
    group: str
    id: str
    info: bool
    namespace: str
    publish_binary: str
    """containerd's program, for events when there is no ttrpc address."""
    show_version: bool
    socket: str
    """Path of the socket that the daemon listens on."""

    @property
    def ttrpc_address(self) -> str:
        """Path of the socket on which containerd takes events; empty when it offers none."""
        return self.environ.get("TTRPC_ADDRESS", "").removeprefix("unix://")

    def arguments(self) -> list[str]:
        """Return the flags that make ``parse_invocation`` return the same again."""
        words: list[str] = []
        for flag, name in _VALUES.items():
            if value := getattr(self, name):
                words += (f"-{flag}", value)
        if self.debug:
            words.append("-debug")
        return words


def parse_invocation(
    words: Sequence[str], environ: Mapping[str, str] = os.environ, cwd: str | None = None
) -> Invocation:
    """Return what ``words`` (without the program's name) ask for; raise UsageError if unclear."""
    call = Invocation()
    for name in _VALUES.values():
        setattr(call, name, "")
    for name in _SWITCHES.values():
        setattr(call, name, False)
    call.action = ""
    call.environ = environ
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            call.action = call.action or (rest[0] if rest else "")
            break
        if word.startswith("-") and len(word) > 1:
            _flag(call, word, rest)
        elif not call.action:
            call.action = word
    call.bundle = os.path.abspath(call.bundle or cwd or os.getcwd())
    _check(call)
    return call


def _flag(call: Invocation, word: str, rest: list[str]) -> None:
    name, equals, value = word.lstrip("-").partition("=")
    if (attribute := _SWITCHES.get(name)) is not None:
        setattr(call, attribute, value in _TRUE)
    elif (attribute := _VALUES.get(name)) is not None:
        if not equals:
            if not rest:
                raise UsageError(f"flag needs an argument: -{name}")
            value = rest.pop(0)
        setattr(call, attribute, value)
    elif not equals and _is_value(rest):
        # An unknown flag: whether the next word is its value cannot be known. It is, unless it
        # is a command of ours or another flag.
        rest.pop(0)


def _is_value(rest: list[str]) -> bool:
    return bool(rest) and not rest[0].startswith("-") and rest[0] not in _ACTIONS


_ACTIONS = ("start", "delete", "daemon")


def _check(call: Invocation) -> None:
    if call.info or call.show_version:
        return
    if call.action not in _ACTIONS:
        raise UsageError(f"unknown command {call.action!r}; known: {', '.join(_ACTIONS)}")
    for flag, value in (("namespace", call.namespace), ("id", call.id)):
        if not is_identifier(value):
            raise UsageError(f"-{flag}: got {value!r}; allowed: a containerd identifier")


def is_identifier(text: object) -> bool:
    """Return whether ``text`` is a name as containerd allows it, which is safe in a path."""
    if not isinstance(text, str) or not 0 < len(text) <= _LONGEST_ID or not text.isascii():
        return False
    if not (text[0].isalnum() and text[-1].isalnum()):
        return False
    return all(letter.isalnum() or letter in "._-" for letter in text) and ".." not in text
