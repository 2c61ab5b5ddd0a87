"""Leases on numeric user ids: each running QEMU has one that no other has.

A lease is a lock on one byte of a file, so it ends with the process that holds it, however that
process ends, and leaves nothing behind. QEMU, which the kernel ends with its shim, does not hold it
beside the shim: who has the descriptor can lock every other id, and a guest may have taken it over.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import zlib
from typing import TYPE_CHECKING

from shims.core.errors import Conflict

if TYPE_CHECKING:
    from pathlib import Path

    from shims.microvm.config import QemuUser

__all__ = ["UserLease"]

# struct flock: l_type, l_whence, padding, l_start, l_len, l_pid (0 for locks of open files)
_FLOCK = "hhxxxxqqixxxx"


class UserLease:
    """The right to use one id. Held until ``close``."""

    def __init__(self, uid: int, fd: int) -> None:
        self.uid = uid
        self._fd = fd

    @classmethod
    def take(cls, users: QemuUser, run_dir: Path, name: str) -> UserLease:
        """Lease an id of the range; which one is tried first follows from ``name``.

        Raises ``Conflict`` when every id is in use.
        """
        fd = os.open(run_dir / "uids.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        start = zlib.crc32(name.encode())
        for step in range(users.count):
            offset = (start + step) % users.count
            if _lock_byte(fd, offset):
                return cls(users.first + offset, fd)
        os.close(fd)
        raise Conflict(f"all {users.count} user ids for QEMU are in use", hint="widen the range")

    def close(self) -> None:
        """Give the id back. May be repeated."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _lock_byte(fd: int, offset: int) -> bool:
    request = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
    try:
        # Locks of the open file, not of the process: two leases in one process differ, too.
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False
    return True
