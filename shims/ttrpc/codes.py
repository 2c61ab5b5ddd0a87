"""The status codes that an answer can carry, numbered as in google.rpc."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Code", "code_from_number"]


class Code(IntEnum):
    """Why a call ended. containerd branches on NOT_FOUND, UNIMPLEMENTED and UNAVAILABLE."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


def code_from_number(number: int) -> Code:
    """Return the code with this number; an unassigned number means UNKNOWN."""
    try:
        return Code(number)
    except ValueError:
        return Code.UNKNOWN
