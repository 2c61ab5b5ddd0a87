"""Guest RAM: sparse, and copied sparsely."""

from __future__ import annotations

import os

import pytest

from shims.core.errors import TargetError
from shims.microvm.memory import copy_extents, copy_memory, create_memory

TIMEOUT = 10.0


def used(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


async def test_a_copy_has_the_data_and_the_holes() -> None:
    source, target = create_memory(64), create_memory(64)
    pieces = {0: b"begin", 5 << 20: b"middle" * 4000, (64 << 20) - 3: b"end"}
    for offset, data in pieces.items():
        os.pwrite(source, data, offset)
    os.lseek(source, 7, os.SEEK_SET)
    await copy_memory(source, target, None, TIMEOUT)
    for offset, data in pieces.items():
        assert os.pread(target, len(data), offset) == data
    assert used(target) == used(source) < 1 << 20
    assert os.lseek(source, 0, os.SEEK_CUR) == 7  # others read it, too
    for fd in (source, target):
        os.close(fd)


def test_nothing_but_holes() -> None:
    source, target = create_memory(1), create_memory(1)
    copy_extents(source, target)
    assert used(target) == 0
    for fd in (source, target):
        os.close(fd)


async def test_a_failure_says_what() -> None:
    source = create_memory(1)
    os.pwrite(source, b"x", 0)
    target = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(TargetError, match="cannot copy the template's memory"):
        await copy_memory(source, target, None, TIMEOUT)
    for fd in (source, target):
        os.close(fd)
