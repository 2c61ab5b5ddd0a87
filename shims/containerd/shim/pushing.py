"""Small files and trees of the host, copied into the VM over the guest link and kept in step."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from protos.gen.voidbox.guest.v1 import guest_pb2
from shims.guest.link import TreeEntry
from shims.guest.push import push_volume

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from shims.guest.link import GuestLink

__all__ = ["make_directory", "push"]

_log = logging.getLogger(__name__)


async def make_directory(guest: GuestLink, path: str) -> None:
    """Make a directory of the VM that anybody may write to, as an emptyDir is."""
    entry = TreeEntry(path="", kind=guest_pb2.WriteFileRequest.KIND_DIRECTORY, mode=0o777)
    await guest.write_tree(path, [entry])


def push(guest: GuestLink, source: str, target: str) -> AbstractAsyncContextManager[None]:
    """Copy a file or tree of the host to ``target`` in the VM, and its changes while entered.

    What cannot be brought up to date later goes to the log; the VM keeps the last good state.
    """
    return push_volume(guest, source, target, report=lambda text: _log.warning("%s", text))
