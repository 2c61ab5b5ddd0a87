"""Errors of calls, and how the project's errors translate to status codes and back.

::

    ShimError
    ├── RpcError               the other side answered with a status other than OK
    │   └── RemoteDeadline     it says that the time is over; a DeadlineExceeded as well
    └── TargetError
        ├── DeadlineExceeded   the time was over here; core's class
        │   └── RemoteDeadline
        └── Unreachable
            └── LinkClosed     the connection ended; whether the call was carried out is unknown
"""

from __future__ import annotations

from shims.core.errors import (
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    NotFound,
    NotSupported,
    ShimError,
    Unreachable,
    UserError,
)
from shims.ttrpc.codes import Code

__all__ = ["LinkClosed", "RemoteDeadline", "RpcError", "WireError", "code_of", "error_of"]


class RpcError(ShimError):
    """A call that ended with a status other than OK; raised by clients and by handlers alike."""

    def __init__(self, code: Code, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code

    def __repr__(self) -> str:
        """Show the code too: the message alone rarely says who refused."""
        return f"RpcError({self.code.name}, {self.message!r})"


class RemoteDeadline(RpcError, DeadlineExceeded):
    """The other side noticed first that the time was over.

    Both ends watch the same deadline, each by its own clock: which of them is first is chance. So
    a caller who catches DeadlineExceeded gets both, with the same exit code.
    """


class LinkClosed(Unreachable):
    """The connection ended before the answer came."""


class WireError(ValueError):
    """Bytes that are no ttrpc message: the other side's fault."""


_CODES: tuple[tuple[type[ShimError], Code], ...] = (
    (AlreadyExists, Code.ALREADY_EXISTS),
    (NotFound, Code.NOT_FOUND),
    (Conflict, Code.FAILED_PRECONDITION),
    (UserError, Code.INVALID_ARGUMENT),
    (NotSupported, Code.UNIMPLEMENTED),
    (DeadlineExceeded, Code.DEADLINE_EXCEEDED),
    (Unreachable, Code.UNAVAILABLE),
)
"""First match wins: special before general."""


def error_of(code: Code, message: str) -> RpcError:
    """Return what a client raises when the server answered with this status."""
    kind = RemoteDeadline if code is Code.DEADLINE_EXCEEDED else RpcError
    return kind(code, message)


def code_of(error: ShimError) -> Code:
    """Return the status code with which a server answers when a handler raises ``error``."""
    if isinstance(error, RpcError):
        return error.code
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return Code.INTERNAL
