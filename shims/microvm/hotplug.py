"""Plugging disks and shared directories into a running VM, everything by descriptor.

QEMU never opens a path of the host: an image reaches it as an open file, a virtiofs daemon as a
connected socket. Facts: QEMU's QMP reference (add-fd, blockdev-add, device_add).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat
from typing import TYPE_CHECKING, Any

from shims.core.errors import AlreadyExists, Conflict, DeadlineExceeded, InputError, NotFound
from shims.microvm.plan import DISK_BUS, DISK_SLOTS, SHARE_PORTS, SLOT_BYTES
from shims.microvm.qmp import Command, QmpError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from shims.microvm.vm import Vm

__all__ = ["HotPlug"]

_TIMEOUT = 10.0
_UNPLUG_TIMEOUT = 10.0
_LONGEST_SERIAL = 20
_MOST_DISKS = min(slot.scsi_id for slot in DISK_SLOTS.values())


class HotPlug:
    """The devices that were added to one VM."""

    def __init__(self, vm: Vm, *, shares: bool, slots: bool = False) -> None:
        self._vm = vm
        self._slots: list[str] = list(DISK_SLOTS) if slots else []
        self._inserted: dict[str, str] = {}
        self._disks: dict[str, int] = {}
        self._ports: list[str] = list(SHARE_PORTS) if shares else []
        self._shares: dict[str, str] = {}

    async def insert_disk(
        self, fd: int, serial: str, *, readonly: bool, keep_flushes: bool = True
    ) -> str:
        """Attach a disk in the way that is quickest for the guest; return its serial in there.

        That is one of ``DISK_SLOTS``, or without a free one ``serial`` itself: see ``attach_disk``.
        ``detach_disk`` takes ``serial``.
        """
        _check_serial(serial)
        if serial in self._disks or serial in self._inserted:
            raise AlreadyExists(f"disk {serial} is plugged in already")
        fits = os.lseek(fd, 0, os.SEEK_END) <= SLOT_BYTES
        free = (name for name in self._slots if DISK_SLOTS[name].readonly == readonly)
        name = next(free, None) if fits else None
        if name is None:
            await self.attach_disk(fd, serial, readonly=readonly, keep_flushes=keep_flushes)
            return serial
        # Used once only: a guest that still has the old disk mounted must never see the next one.
        self._slots.remove(name)
        fdset = DISK_SLOTS[name].scsi_id + 1
        access = {"read-only": readonly, "auto-read-only": False, "discard": "unmap"}
        file = {"node-name": f"file-{name}", **_file_node(fd, fdset), **access}
        handed = _reopen(fd, readonly=readonly)
        self._inserted[serial] = name
        try:
            await self._vm.monitor.execute_all(
                [
                    Command("add-fd", {"fdset-id": fdset}, handed),
                    Command("blockdev-add", file),
                    _exchange(name, f"file-{name}", keep_flushes=keep_flushes),
                ],
                timeout=_TIMEOUT,
            )
        except BaseException as error:
            self._eject(serial)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(f"disk {serial}: QEMU did not take it") from error
            raise
        finally:
            os.close(handed)
        return name

    def _eject(self, serial: str) -> list[asyncio.Future[Any]]:
        """Empty the slot of a disk. QEMU does it when it gets there, and in order."""
        name = self._inserted.pop(serial)
        return self._undo(
            _exchange(name, DISK_SLOTS[name].empty, keep_flushes=False),
            Command("blockdev-del", {"node-name": f"file-{name}"}),
            Command("remove-fd", {"fdset-id": DISK_SLOTS[name].scsi_id + 1}),
        )

    async def attach_disk(
        self, fd: int, serial: str, *, readonly: bool, keep_flushes: bool = True
    ) -> None:
        """Plug in the raw image or block device ``fd`` as a SCSI disk with this serial.

        Returns when QEMU has it; the guest finds it by its serial a little later. The caller may
        close ``fd`` then. ``keep_flushes`` false lets the guest's fsync return at once: for disks
        that nobody reads after the VM. Raises ``AlreadyExists`` for a serial in use.
        """
        _check_serial(serial)
        if serial in self._disks or serial in self._inserted:
            raise AlreadyExists(f"disk {serial} is plugged in already")
        slot = self._free_slot()
        file = _file_node(fd, slot + 1)
        node = {
            "driver": "raw",
            "node-name": f"node-{serial}",
            "read-only": readonly,
            "auto-read-only": False,
            "discard": "unmap",
            "cache": {"no-flush": not keep_flushes},
            "file": {**file, "read-only": readonly, "auto-read-only": False, "discard": "unmap"},
        }
        device = {
            "driver": "scsi-hd",
            "id": f"disk-{serial}",
            "drive": f"node-{serial}",
            "bus": DISK_BUS,
            "scsi-id": slot,
            "serial": serial,
            # The default stops the whole VM when the host's file system is full.
            "werror": "report",
            "rerror": "report",
        }
        handed = _reopen(fd, readonly=readonly)
        self._disks[serial] = slot
        try:
            await self._vm.monitor.execute_all(
                [
                    Command("add-fd", {"fdset-id": slot + 1}, handed),
                    Command("blockdev-add", node),
                    Command("device_add", device),
                ],
                timeout=_TIMEOUT,
            )
        except QmpError:
            self._drop_disk(serial)
            raise
        except BaseException as error:
            self._give_up(f"disk-{serial}", lambda: self._drop_disk(serial))
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(f"disk {serial}: QEMU did not plug it in") from error
            raise
        finally:
            os.close(handed)

    async def detach_disk(self, serial: str) -> None:
        """Unplug a disk, which the guest should have released, and let go of its image.

        Raises ``NotFound`` for an unknown serial, ``DeadlineExceeded`` when the guest does not let
        go. Its place is free again when it has.
        """
        if serial in self._inserted:
            await _all_of(self._eject(serial), f"disk {serial}: QEMU did not let go of it")
            return
        if serial not in self._disks:
            raise NotFound(f"no disk {serial} is plugged in")
        device = f"disk-{serial}"
        _ = self._vm.expect_deletion(device)
        try:
            await self._vm.monitor.execute("device_del", timeout=_TIMEOUT, id=device)
            await self._vm.device_deleted(device, _UNPLUG_TIMEOUT)
        except BaseException as error:
            self._give_up(device, lambda: self._drop_disk(serial))
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(f"disk {serial}: the guest did not let go of it") from error
            raise
        await _all_of(self._drop_disk(serial), f"disk {serial}: QEMU did not let go of it")

    async def attach_share(self, tag: str, sock: socket.socket) -> None:
        """Plug in the virtiofs daemon behind ``sock`` (connected) under the mount tag ``tag``.

        The VM must have been started with ``shares``. The caller may close ``sock`` afterwards.
        """
        if tag in self._shares:
            raise AlreadyExists(f"share {tag} is plugged in already")
        if not self._ports and not self._shares:
            raise Conflict("the VM has no port for a share", hint="start it with shares=True")
        if not self._ports:
            raise Conflict(
                f"the VM has {len(SHARE_PORTS)} shared directories, and has no port for one more",
                hint="mount one directory that holds several of them",
            )
        port = self._ports.pop(0)
        self._shares[tag] = port
        backend = {
            "type": "socket",
            "data": {"addr": {"type": "fd", "data": {"str": f"share-{tag}"}}, "server": False},
        }
        device = {
            "driver": "vhost-user-fs-pci",
            "id": f"share-{tag}",
            "chardev": f"share-{tag}",
            "tag": tag,
            "bus": port,
        }
        try:
            await self._vm.monitor.execute_all(
                [
                    Command("getfd", {"fdname": f"share-{tag}"}, sock.fileno()),
                    Command("chardev-add", {"id": f"share-{tag}", "backend": backend}),
                    Command("device_add", device),
                ],
                timeout=_TIMEOUT,
            )
        except QmpError:
            self._drop_share(tag)
            raise
        except BaseException as error:
            self._give_up(f"share-{tag}", lambda: self._drop_share(tag))
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(f"share {tag}: QEMU did not plug it in") from error
            raise

    def _free_slot(self) -> int:
        used = set(self._disks.values())
        for slot in range(_MOST_DISKS):
            if slot not in used:
                return slot
        raise Conflict(f"the VM has {_MOST_DISKS} disks already")

    def _give_up(self, device: str, drop: Callable[[], object]) -> None:
        """Call ``drop`` when ``device`` is surely not there: nobody knows how far QEMU has come."""
        self._vm.expect_deletion(device).add_done_callback(lambda _: drop())

        def answered(answer: asyncio.Future[Any]) -> None:
            error = None if answer.cancelled() else answer.exception()
            if isinstance(error, QmpError) and error.kind == "DeviceNotFound":
                drop()

        self._vm.monitor.send(Command("device_del", {"id": device})).add_done_callback(answered)

    def _drop_disk(self, serial: str) -> list[asyncio.Future[Any]]:
        """Give up everything of a disk but its device, which is gone; may be repeated."""
        slot = self._disks.pop(serial, None)
        if slot is None:
            return []
        return self._undo(
            Command("blockdev-del", {"node-name": f"node-{serial}"}),
            Command("remove-fd", {"fdset-id": slot + 1}),
        )

    def _drop_share(self, tag: str) -> None:
        """Give up everything of a share but its device, which is gone; may be repeated."""
        port = self._shares.pop(tag, None)
        if port is not None:
            self._ports.insert(0, port)
            self._undo(
                Command("chardev-remove", {"id": f"share-{tag}"}),
                Command("closefd", {"fdname": f"share-{tag}"}),
            )

    def _undo(self, *commands: Command) -> list[asyncio.Future[Any]]:
        """Send commands; QEMU refuses those for a step that was never reached."""
        return [self._vm.monitor.send(command) for command in commands]


async def _all_of(answers: list[asyncio.Future[Any]], late: str) -> None:
    """Wait for answers, whatever they are. Raises ``DeadlineExceeded`` with the words ``late``."""
    try:
        async with asyncio.timeout(_TIMEOUT):
            await asyncio.gather(*answers, return_exceptions=True)
    except TimeoutError as error:
        raise DeadlineExceeded(late) from error


def _file_node(fd: int, fdset: int) -> dict[str, Any]:
    return {
        "driver": "host_device" if stat.S_ISBLK(os.fstat(fd).st_mode) else "file",
        "filename": f"/dev/fdset/{fdset}",
        "locking": "off",  # the one who opened the image answers for its use
    }


def _exchange(name: str, file: str, *, keep_flushes: bool) -> Command:
    """Return the command that puts the block node ``file`` into a slot."""
    node = {
        "driver": "raw",
        "node-name": name,
        "file": file,
        "read-only": DISK_SLOTS[name].readonly,
        "discard": "unmap",
        "cache": {"no-flush": not keep_flushes},
    }
    return Command("blockdev-reopen", {"options": [node]})


def _reopen(fd: int, *, readonly: bool) -> int:
    """Return a descriptor of the same file that can do what is asked, and no more than that.

    QEMU picks a descriptor of a set by its access mode, and a read-only disk must be one on this
    side of the wall, too.
    """
    mode = os.O_RDONLY if readonly else os.O_RDWR
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == mode:
        return os.dup(fd)
    if not readonly:
        raise InputError("fd", "a descriptor for reading", "one for reading and writing")
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


def _check_serial(serial: str) -> None:
    plain = serial.replace("-", "").replace("_", "")
    if not 1 <= len(serial) <= _LONGEST_SERIAL or not plain.isalnum() or not serial.isascii():
        raise InputError("serial", serial, f"1 to {_LONGEST_SERIAL} letters, digits, '-', '_'")
