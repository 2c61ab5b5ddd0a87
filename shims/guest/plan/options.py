"""Mount options as fstab and the OCI spec write them, translated to what the kernel takes.

Values: linux/mount.h. Names and meaning: mount(8), OCI runtime spec "Linux mount options".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shims.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "MS_BIND",
    "MS_NODEV",
    "MS_NOEXEC",
    "MS_NOSUID",
    "MS_RDONLY",
    "MS_REC",
    "MS_RELATIME",
    "PROPAGATIONS",
    "MountOptions",
    "parse_options",
]

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_MANDLOCK = 64
MS_DIRSYNC = 128
MS_NOSYMFOLLOW = 256
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_REC = 16384
MS_SILENT = 32768
MS_POSIXACL = 1 << 16
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_I_VERSION = 1 << 23
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_ATIME = 0x70
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

_SET = {
    "acl": MS_POSIXACL,
    "bind": MS_BIND,
    "defaults": 0,
    "dirsync": MS_DIRSYNC,
    "iversion": MS_I_VERSION,
    "lazytime": MS_LAZYTIME,
    "mand": MS_MANDLOCK,
    "noatime": MS_NOATIME,
    "nodev": MS_NODEV,
    "nodiratime": MS_NODIRATIME,
    "noexec": MS_NOEXEC,
    "nosuid": MS_NOSUID,
    "nosymfollow": MS_NOSYMFOLLOW,
    "rbind": MS_BIND | MS_REC,
    "relatime": MS_RELATIME,
    "ro": MS_RDONLY,
    "silent": MS_SILENT,
    "strictatime": MS_STRICTATIME,
    "sync": MS_SYNCHRONOUS,
}
_CLEAR = {
    "async": MS_SYNCHRONOUS,
    "atime": MS_NOATIME,
    "dev": MS_NODEV,
    "diratime": MS_NODIRATIME,
    "exec": MS_NOEXEC,
    "loud": MS_SILENT,
    "noacl": MS_POSIXACL,
    "noiversion": MS_I_VERSION,
    "nolazytime": MS_LAZYTIME,
    "nomand": MS_MANDLOCK,
    "norelatime": MS_RELATIME,
    "nostrictatime": MS_STRICTATIME,
    "rw": MS_RDONLY,
    "suid": MS_NOSUID,
    "symfollow": MS_NOSYMFOLLOW,
}
PROPAGATIONS = {
    "private": MS_PRIVATE,
    "rprivate": MS_PRIVATE | MS_REC,
    "shared": MS_SHARED,
    "rshared": MS_SHARED | MS_REC,
    "slave": MS_SLAVE,
    "rslave": MS_SLAVE | MS_REC,
    "unbindable": MS_UNBINDABLE,
    "runbindable": MS_UNBINDABLE | MS_REC,
}
# Recursive attributes: (set, clear) for mount_setattr(2).
_RECURSIVE = {
    "ratime": (0, MOUNT_ATTR_NOATIME),
    "rdev": (0, MOUNT_ATTR_NODEV),
    "rdiratime": (0, MOUNT_ATTR_NODIRATIME),
    "rexec": (0, MOUNT_ATTR_NOEXEC),
    "rnoatime": (MOUNT_ATTR_NOATIME, MOUNT_ATTR_ATIME),
    "rnodev": (MOUNT_ATTR_NODEV, 0),
    "rnodiratime": (MOUNT_ATTR_NODIRATIME, 0),
    "rnoexec": (MOUNT_ATTR_NOEXEC, 0),
    "rnorelatime": (MOUNT_ATTR_STRICTATIME, MOUNT_ATTR_ATIME),
    "rnostrictatime": (0, MOUNT_ATTR_STRICTATIME),
    "rnosuid": (MOUNT_ATTR_NOSUID, 0),
    "rnosymfollow": (MOUNT_ATTR_NOSYMFOLLOW, 0),
    "rrelatime": (0, MOUNT_ATTR_ATIME),
    "rro": (MOUNT_ATTR_RDONLY, 0),
    "rrw": (0, MOUNT_ATTR_RDONLY),
    "rstrictatime": (MOUNT_ATTR_STRICTATIME, MOUNT_ATTR_ATIME),
    "rsuid": (0, MOUNT_ATTR_NOSUID),
    "rsymfollow": (0, MOUNT_ATTR_NOSYMFOLLOW),
}


@dataclass
class MountOptions:
    """The options of one mount, sorted by who takes them."""

    flags: int = 0
    """MS_* of mount(2)."""
    propagation: int = 0
    set_attributes: int = 0
    """MOUNT_ATTR_*, recursive."""
    clear_attributes: int = 0
    copy_up: bool = False
    data: list[str] = field(default_factory=list)
    """The file system's own options."""

    @property
    def is_bind(self) -> bool:
        """Tell whether a path is bound instead of a file system mounted."""
        return bool(self.flags & MS_BIND)


def _take_recursive(options: MountOptions, name: str) -> None:
    to_set, to_clear = _RECURSIVE[name]
    options.set_attributes = (options.set_attributes & ~to_clear) | to_set
    options.clear_attributes = (options.clear_attributes & ~to_set) | (to_clear & ~to_set)


def parse_options(names: Sequence[str], path: str) -> MountOptions:
    """Sort mount options; what is no option of the kernel's VFS goes to the file system.

    ``path`` is the field's path for the error of an option that cannot be carried out.
    """
    options = MountOptions()
    for index, name in enumerate(names):
        if name in _SET:
            options.flags |= _SET[name]
        elif name in _CLEAR:
            options.flags &= ~_CLEAR[name]
        elif name in PROPAGATIONS:
            options.propagation = PROPAGATIONS[name]
        elif name in _RECURSIVE:
            _take_recursive(options, name)
        elif name == "tmpcopyup":
            options.copy_up = True
        elif name == "remount":
            raise InputError(
                f"{path}[{index}]", name, "the options of one mount; list the mount once"
            )
        elif name in ("idmap", "ridmap"):
            raise InputError(
                f"{path}[{index}]",
                name,
                "mounts without id mapping: a VM has its own users, so map none",
            )
        elif name:
            options.data.append(name)
    return options
