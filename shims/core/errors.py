"""The errors of void shims: one tree, and the exit code that each branch stands for.

::

    ShimError                   1
    ├── UserError               2    the caller's to mend: other input or another moment would do
    │   ├── InputError          2    one field has a value that is not allowed
    │   ├── AlreadyExists       3    the name is taken
    │   ├── NotFound            4    there is no such thing
    │   └── Conflict            2    it exists, but not in a state that permits this
    ├── TargetError             5    containerd, libvirt, the cluster, QEMU or the guest is at fault
    │   ├── Unreachable         5    it does not answer, or the connection broke
    │   ├── NotSupported        6    it cannot do this, now or ever
    │   └── DeadlineExceeded  124    it did not answer in time
    └── InternalError           1    a fault of void shims: please report it

The type says whose fault it is, and a caller may branch on it. Errors of other libraries are
translated where they enter (``raise Unreachable(...) from error``), so that none of them crosses a
package boundary. Nothing is imported here, not even ``enum`` or ``typing``, which would cost the
shim's start path as much again as the interpreter itself.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

__all__ = [
    "AlreadyExists",
    "Conflict",
    "DeadlineExceeded",
    "Described",
    "ExitCode",
    "InputError",
    "InternalError",
    "NotFound",
    "NotSupported",
    "ShimError",
    "TargetError",
    "Unreachable",
    "UserError",
    "make_printable",
    "shorten",
    "show_value",
]


class ExitCode:
    """What a command of ours exits with; the only place where these numbers are chosen."""

    OK = 0
    """Done, or the run succeeded."""
    FAILED = 1
    """The run failed, or void shims did."""
    BAD_INPUT = 2
    ALREADY_EXISTS = 3
    NOT_FOUND = 4
    UNREACHABLE = 5
    NOT_SUPPORTED = 6
    TIMEOUT = 124
    """As of timeout(1)."""
    INTERRUPTED = 130
    """128 + SIGINT, as shells report it."""


class ShimError(Exception):
    """Root of the tree: a sentence for people, and what they can do about it.

    ``message`` is one line without a final full stop; ``hint`` is empty or names the next step.
    """

    exit_code: ClassVar[int] = ExitCode.FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Return the message, and the hint after a semicolon when there is one."""
        return f"{self.message}; {self.hint}" if self.hint else self.message


class UserError(ShimError):
    """The request cannot be served as it stands; asked differently, it could be."""

    exit_code = ExitCode.BAD_INPUT


class Described(str):
    """A value told in words, where its text would say less: ``a second 'name' key``."""

    __slots__ = ()


class InputError(UserError):
    """One field of the input has a value that is not allowed.

    ``field`` is the path of the field (``workflow.steps[2].timeout_secs``), ``value`` what stood
    there (never a secret), ``allowed`` what may stand there. The message is always one line:
    ``FIELD: got VALUE; allowed: ALLOWED``.
    """

    def __init__(self, field: str, value: object, allowed: str, *, hint: str = "") -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        message = f"{field}: got {show_value(value)}; allowed: {allowed}"
        super().__init__(make_printable(message), hint=make_printable(hint))


class AlreadyExists(UserError):
    """The name is taken by something else."""

    exit_code = ExitCode.ALREADY_EXISTS


class NotFound(UserError):
    """There is nothing of that name."""

    exit_code = ExitCode.NOT_FOUND


class Conflict(UserError):
    """The thing exists, but its state does not permit the request (pause of a stopped process)."""


class TargetError(ShimError):
    """Something outside of void shims failed: a daemon, a cluster, QEMU, the guest."""

    exit_code = ExitCode.UNREACHABLE


class Unreachable(TargetError):
    """The target does not answer. Whether the last request was carried out may be unknown."""


class NotSupported(TargetError):
    """The target cannot do this."""

    exit_code = ExitCode.NOT_SUPPORTED


class DeadlineExceeded(TargetError):
    """The target did not answer in time. Whether the request was carried out is unknown."""

    exit_code = ExitCode.TIMEOUT


class InternalError(ShimError):
    """A promise of our own code was broken."""


_LONGEST_SHOWN = 80


def show_value(value: object) -> str:
    """Return ``value`` for a message: JSON-like, on one line, cut at 80 characters."""
    # Cut before and after: what is escaped grows, and what is long costs its length to escape.
    match value:
        case None:
            text = "nothing"
        case Described():
            text = make_printable(value[: _LONGEST_SHOWN + 1])
        case bool():
            text = "true" if value else "false"
        case dict():
            text = f"a mapping of {len(value)}"
        case list() | tuple():
            text = f"a list of {len(value)}"
        case str():
            text = repr(value[: _LONGEST_SHOWN + 1])
        case _:
            text = repr(value)
    return shorten(text)


def shorten(text: str, limit: int = _LONGEST_SHOWN) -> str:
    """Return ``text``, cut to at most ``limit`` characters, with an ellipsis where it was cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def make_printable(text: str) -> str:
    """Return ``text`` on one line, with escapes for what a terminal would act on or hide.

    Whoever wrote a document or a file name must not be able to clear the screen, to turn text
    around, or to begin a line of its own that looks like one of ours. May be repeated.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
