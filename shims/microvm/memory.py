"""Guest RAM as memfds: made, and copied where copy-on-write will not do.

A virtiofs daemon maps the guest's RAM, and must see what the guest writes; so a VM with shared
directories gets a copy of its template's RAM. The copy is sparse (80 to 120 MiB of the whole) and
is made by a child in the VM's cgroup, for whoever first touches a page is charged for it.
"""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING

from shims.core.errors import TargetError
from shims.microvm.launcher import fork_task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shims.microvm.cgroup import Cgroup

__all__ = ["copy_extents", "copy_memory", "create_memory"]

_LARGEST_PIECE = 1 << 30


def create_memory(mib: int, name: str = "void-ram") -> int:
    """Return a new memfd of ``mib`` MiB, all holes, that can be sealed."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, mib << 20)
    return fd


async def copy_memory(source: int, target: int, cgroup: Cgroup | None, timeout: float) -> None:
    """Copy ``source`` to ``target`` (both memfds of one size), charged to ``cgroup``."""
    process = fork_task(lambda: copy_extents(source, target), cgroup)
    try:
        async with asyncio.timeout(timeout):
            code = await asyncio.shield(process.exited)
    finally:
        process.kill()
    if code != 0:
        raise TargetError(f"cannot copy the template's memory: {process.failure or code}")


def copy_extents(source: int, target: int) -> None:
    """Copy what is not a hole."""
    for start, end in _extents(source):
        os.lseek(target, start, os.SEEK_SET)
        position = start
        while position < end:
            sent = os.sendfile(target, source, position, min(end - position, _LARGEST_PIECE))
            if sent == 0:
                raise OSError(errno.EIO, "the template's memory is shorter than it was")
            position += sent


def _extents(fd: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each piece of data. The descriptor's offset is shared: reopen it."""
    own = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        end = 0
        while True:
            try:
                start = os.lseek(own, end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return  # only holes from here on
                raise
            end = os.lseek(own, start, os.SEEK_HOLE)
            yield start, end
    finally:
        os.close(own)
