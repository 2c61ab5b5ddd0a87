"""Host directories and files inside a VM: one virtiofsd per share.

virtiofsd comes in two dialects, QEMU's own in C (until 8.0, Debian 12 has 7.2) and its successor in
Rust; both take the listening socket as a descriptor, and we connect to it before it runs, so
nobody waits for a path to appear. It is root, because a file's owner in the guest is its owner on
the host, but root of a user namespace of its own (``staging``), with the capabilities that its
share needs, a seccomp filter, its own pid, network and mount namespaces, and nothing mounted but
the share. Such a root cannot make device nodes, on no file system (mknod(2)): the guest cannot
either, in a share.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shims.core.errors import InputError, NotSupported, TargetError
from shims.core.paths import ensure_private_dir
from shims.microvm.child import Child
from shims.microvm.helpers import helper_argv, helper_environment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from shims.microvm.cgroup import Cgroup

__all__ = ["Share", "ShareOptions", "Virtiofsd", "find_virtiofsd", "start_share"]

_GRACE = 0.5
_SOCKET = ".share-"
_STALE = 60.0
"""Seconds; a socket has its name for less than one."""
LONGEST_TAG = 36
"""Bytes that the virtio-fs device has for it."""
SINGLE_FILE = "file"
"""Where a shared file is, below the root of its share."""

_KNOWN_PLACES = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd")
_CAPABILITIES = {"chown": 0, "dac_override": 1, "fowner": 3, "fsetid": 4, "setgid": 6, "setuid": 7,
                 "mknod": 27, "setfcap": 31}  # fmt: skip
"""What either dialect keeps unless told otherwise, by number."""
_READING = frozenset({"dac_override", "fowner"})
"""``fowner``: overlayfs opens its lower files with O_NOATIME, which is for their owner only."""
_WRITING = frozenset(_CAPABILITIES) - {"mknod"}
_NOSUID, _NODEV = 2, 4
_MS = {"readonly": 1, "noexec": 8}


@dataclass(frozen=True)
class Virtiofsd:
    """A virtiofsd of the host, and the language that its command line speaks."""

    path: str
    dialect: str
    """``c`` or ``rust``."""


@dataclass(frozen=True)
class ShareOptions:
    """What a guest may do with a share. The mount flags hold on the host's side.

    That is ``nosuid`` and ``nodev`` always; what holds in the guest is a matter of its own mount.
    """

    readonly: bool = False
    noexec: bool = False
    recursive: bool = True
    """With everything that is mounted below the source (``rbind``)."""

    @property
    def mount_flags(self) -> int:
        """The MS_* flags of mount(2)."""
        return _NOSUID | _NODEV | sum(bit for name, bit in _MS.items() if getattr(self, name))

    @property
    def capabilities(self) -> frozenset[str]:
        """What virtiofsd needs: reading needs little."""
        return _READING if self.readonly else _WRITING


@dataclass(frozen=True)
class Share:
    """A running virtiofsd, ready for ``Machine.attach_share(share.tag, share.socket)``."""

    tag: str
    socket: socket.socket
    """Connected to virtiofsd; it serves this one connection and ends with it."""
    path: str
    """Where the source is below the share's root: empty for a directory."""
    readonly: bool
    _child: Child

    @property
    def pid(self) -> int:
        """The process to note for cleaning up; the members of its group die with it."""
        return self._child.pid

    @property
    def exited(self) -> asyncio.Future[int]:
        """Done when virtiofsd has ended, with its exit code."""
        return self._child.exited

    def said(self) -> str:
        """Return the end of virtiofsd's log."""
        return self._child.said()


def find_virtiofsd(configured: str = "") -> Virtiofsd:
    """Return the host's virtiofsd, or the ``configured`` one; raise ``NotSupported`` without."""
    candidates = [configured] if configured else [*_on_path("virtiofsd"), *_KNOWN_PLACES]
    for path in candidates:
        if os.access(path, os.X_OK):
            return Virtiofsd(path, _dialect(path))
    where = configured or "PATH, /usr/libexec and /usr/lib/qemu"
    raise NotSupported(
        f"shared directories need virtiofsd, and there is none in {where}",
        hint="apt-get install qemu-system-common (Debian 12) or virtiofsd",
    )


def _on_path(name: str) -> list[str]:
    # shutil.which would bring half a megabyte of decompressors into the shim's memory.
    return [os.path.join(place, name) for place in os.get_exec_path()]


def _dialect(path: str) -> str:
    """Tell the dialects apart without running the program: QEMU's is linked with its fuse code."""
    with open(path, "rb") as program:
        return "c" if b"fuse_session" in program.read() else "rust"


@contextlib.asynccontextmanager
async def start_share(
    source: str,
    tag: str,
    *,
    run_dir: Path,
    options: ShareOptions | None = None,
    cgroup: Cgroup | None = None,
    virtiofsd: Virtiofsd | None = None,
) -> AsyncIterator[Share]:
    """Share ``source``, a file or directory of the host, for as long as the context lasts.

    ``run_dir`` is private and holds the socket for a moment. ``cgroup`` is made for virtiofsd, may
    be shared by several, and goes with the last of them. Raises ``InputError`` for a source
    that cannot be shared or a tag that is too long, ``NotSupported`` without virtiofsd or root.
    """
    options = options or ShareOptions()
    if not tag or len(tag.encode()) > LONGEST_TAG:
        raise InputError("share.tag", tag, f"1 to {LONGEST_TAG} bytes")
    if os.geteuid() != 0:
        raise NotSupported("shared directories need root", hint="run the shim as root")
    daemon = virtiofsd or find_virtiofsd()
    with contextlib.ExitStack() as opened:
        descriptor, is_file = _open_source(source)
        opened.callback(os.close, descriptor)
        listener, client = _socket_pair(run_dir)
        opened.enter_context(listener)
        try:
            if cgroup is not None:
                cgroup.create()
            request = {
                "program": daemon.path, "argv": _argv(daemon, listener.fileno(), options),
                "source": descriptor, "is_file": is_file, "listener": listener.fileno(),
                "flags": options.mount_flags, "recursive": options.recursive,
                "cgroups": _procs_files(cgroup),
                "capabilities": sorted(_CAPABILITIES[name] for name in options.capabilities),
            }  # fmt: skip
            child = Child(
                helper_argv("shims.microvm.staging", request),
                helper_environment(),
                (descriptor, listener.fileno()),
            )
        except BaseException:
            client.close()
            if cgroup is not None:
                cgroup.remove()
            raise
    try:
        yield Share(tag, client, SINGLE_FILE if is_file else "", options.readonly, child)
    finally:
        client.close()
        # The end of its connection is the end of virtiofsd, which then reaps its own worker; a
        # QEMU that still has the device is no reason to wait longer.
        await asyncio.wait([child.exited], timeout=_GRACE)
        await child.end()
        if cgroup is not None:
            cgroup.remove()


def _open_source(source: str) -> tuple[int, bool]:
    try:
        descriptor = os.open(source, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise InputError("share.source", source,
                         f"an existing path ({error.strerror})") from error  # fmt: skip
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind in (stat.S_IFDIR, stat.S_IFREG):
        return descriptor, kind == stat.S_IFREG
    os.close(descriptor)
    raise InputError("share.source", source, "a file or directory",
                     hint="sockets, fifos and devices do not reach into a VM")  # fmt: skip


def _socket_pair(run_dir: Path) -> tuple[socket.socket, socket.socket]:
    """Return a listening socket for virtiofsd, and one that is connected to it already."""
    ensure_private_dir(run_dir)
    name = f"{_SOCKET}{os.urandom(8).hex()}"
    place = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # By way of the descriptor, because a socket's path is limited to 107 bytes.
        address = f"/proc/self/fd/{place}/{name}"
        listener.bind(address)
        listener.listen(1)
        client.connect(address)
        os.unlink(name, dir_fd=place)
        _sweep(place)
    except OSError as error:
        listener.close()
        client.close()
        raise TargetError(f"no socket in {run_dir}: {error.strerror}") from error
    finally:
        os.close(place)
    return listener, client


def _sweep(place: int) -> None:
    """Remove the sockets of shims that were killed in the moment in which they have a name."""
    oldest = time.time() - _STALE
    for name in os.listdir(place):
        try:
            if name.startswith(_SOCKET) and os.stat(name, dir_fd=place).st_mtime < oldest:
                os.unlink(name, dir_fd=place)
        except FileNotFoundError:
            pass  # another did it


def _procs_files(cgroup: Cgroup | None) -> list[str]:
    if cgroup is None:
        return []
    return [f"{hierarchy.mount}{cgroup.path}/cgroup.procs" for hierarchy in cgroup.hierarchies]


def _argv(daemon: Virtiofsd, listener: int, options: ShareOptions) -> Sequence[str]:
    """Return the command line; ``@SHARE@`` stands for the staged directory."""
    dropped = sorted(set(_CAPABILITIES) - options.capabilities)
    changes = ":".join(f"-{name}" for name in dropped)
    if daemon.dialect == "c":
        settings = ["source=@SHARE@", "cache=auto", "sandbox=namespace", "xattr",
                    "announce_submounts", "log_level=warn"]  # fmt: skip
        settings += [f"modcaps={changes}"]
        return [daemon.path, f"--fd={listener}", *(w for s in settings for w in ("-o", s))]
    words = ["--shared-dir=@SHARE@", "--cache=auto", "--sandbox=namespace", "--seccomp=kill",
             "--xattr", "--announce-submounts", "--inode-file-handles=never",
             "--log-level=warn"]  # fmt: skip
    words += [f"--modcaps={changes}"]
    return [daemon.path, f"--fd={listener}", *words]
