"""The real void-init on this host: built once, on a socketpair instead of a virtio port."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protos.gen.voidbox.guest.v1 import guest_pb2 as pb
from shims.guest.hello import Hello
from shims.guest.link import GuestLink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SOURCE = Path(__file__).parents[3] / "shims" / "guest" / "init"
CGROUPS = Path("/sys/fs/cgroup/unified")
DEADLINE = 20.0
BUILD_LIMIT = 300
_MS_BIND = 4096
_KERNELS_LIMIT = ["prlimit", "--nofile=1024:4096"]
"""Files that PID 1 of a VM may open."""


def build(target: str, out: Path) -> None:
    """Run one make target; the compiler's words are the failure's message."""
    done = subprocess.run(
        ["make", "-C", str(SOURCE), f"OUT={out}", target],
        capture_output=True, text=True, timeout=BUILD_LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@dataclass
class Guest:
    """One running void-init."""

    process: subprocess.Popen[bytes]
    socket: socket.socket
    root: Path
    cgroup: Path
    links: list[GuestLink] = field(default_factory=list)

    async def connect(self, **hello: Any) -> GuestLink:
        """Say hello over the socketpair."""
        link = await GuestLink.connect(self.socket, Hello(**hello), timeout=DEADLINE)
        self.links.append(link)
        return link


def cgroup_root() -> Path:
    """Where cgroup v2 is mounted on this host."""
    return CGROUPS if CGROUPS.is_dir() else Path("/sys/fs/cgroup")


def _wait_empty(path: Path) -> None:
    """Wait until the last process of a cgroup has died; the kernel announces it."""
    until = time.monotonic() + DEADLINE
    with (path / "cgroup.events").open() as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        while "populated 0" not in events.read() and time.monotonic() < until:
            poll.poll(1000 * max(0.0, until - time.monotonic()))
            events.seek(0)


def remove_cgroup(path: Path) -> None:
    """Remove a cgroup and those below it, their processes killed."""
    if not path.is_dir():
        return
    with contextlib.suppress(OSError):
        (path / "cgroup.kill").write_text("1")
        _wait_empty(path)
    for below in sorted(path.rglob("*"), reverse=True):
        if below.is_dir():
            with contextlib.suppress(OSError):
                below.rmdir()
    with contextlib.suppress(OSError):
        path.rmdir()


@contextlib.asynccontextmanager
async def running_guest(binary: Path, root: Path, *options: str) -> AsyncIterator[Guest]:
    """Start void-init under test and stop it, whatever happens in between."""
    ours, theirs = socket.socketpair()
    cgroup = cgroup_root() / f"void-test-{os.getpid()}-{root.name}"
    (root / "run").mkdir(exist_ok=True)
    with theirs:
        process = subprocess.Popen(  # noqa: ASYNC220 - it only forks
            [*_KERNELS_LIMIT, str(binary), "--test-fd", str(theirs.fileno()),
             "--root", str(root), "--cgroup", str(cgroup), *options],
            pass_fds=[theirs.fileno()], stderr=sys.stderr,
        )  # fmt: skip
    guest = Guest(process, ours, root, cgroup)
    try:
        yield guest
    finally:
        for link in guest.links:
            await link.close()
        ours.close()
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(process.wait, DEADLINE)
        finally:
            process.kill()
            process.wait()
            remove_cgroup(cgroup)


def process_plan(*args: str, terminal: bool = False, **fields: Any) -> pb.ProcessPlan:
    """A process with all three streams, as root, in /."""
    plan = pb.ProcessPlan(
        args=[arg.encode() for arg in args],
        env=[b"PATH=/usr/bin:/bin:/usr/sbin:/sbin"],
        cwd=b"/",
        terminal=terminal,
        stdin=True,
        stdout=True,
        stderr=not terminal,
    )
    for name, value in fields.items():
        setattr(plan, name, value)
    return plan


def container_plan(
    name: str, *args: str, terminal: bool = False, pid_namespace: bool = True, **fields: Any
) -> pb.LaunchPlan:
    """A container on this host's own root file system, in namespaces and a cgroup of its own."""
    kinds = [pb.Namespace.KIND_MOUNT]
    if pid_namespace:
        kinds.append(pb.Namespace.KIND_PID)
    return pb.LaunchPlan(
        container_id=name,
        namespaces=[pb.Namespace(kind=kind) for kind in kinds],
        cgroup=pb.Cgroup(path=name),
        process=process_plan(*args, terminal=terminal, **fields),
    )


def terminal_plan(root: Path, name: str, *args: str) -> pb.LaunchPlan:
    """A container with a terminal: a root of its own (this host's files) and its own devpts."""
    plan = container_plan(name, *args, terminal=True)
    plan.rootfs = os.fsencode(root / f"rootfs-{name}")
    plan.steps.add().mount.CopyFrom(
        pb.MountStep(
            source_kind=pb.MountStep.SOURCE_PATH, source=b"/", where=pb.WHERE_GUEST,
            target=plan.rootfs, flags=_MS_BIND, make_target=True,
        )
    )  # fmt: skip
    for fstype, target, data in (
        ("tmpfs", b"/dev", b"mode=755"),
        ("devpts", b"/dev/pts", b"newinstance,ptmxmode=0666,mode=0620"),
        ("proc", b"/proc", b""),
    ):
        plan.steps.add().mount.CopyFrom(
            pb.MountStep(
                source_kind=pb.MountStep.SOURCE_NONE, source=fstype.encode(), fstype=fstype,
                where=pb.WHERE_ROOTFS, target=target, data=data, make_target=True,
            )
        )  # fmt: skip
    ptmx = pb.SymlinkStep(where=pb.WHERE_ROOTFS, path=b"/dev/ptmx", target=b"pts/ptmx")
    plan.steps.add().symlink.CopyFrom(ptmx)
    for node, minor in ((b"/dev/null", 3), (b"/dev/zero", 5)):
        plan.steps.add().node.CopyFrom(
            pb.NodeStep(where=pb.WHERE_ROOTFS, path=node, mode=0o20666, major=1, minor=minor)
        )
    plan.steps.add().pivot.CopyFrom(pb.PivotStep())
    return plan


async def next_exits(link: GuestLink, count: int, after: int = 0) -> list[pb.Event]:
    """Return the next ``count`` events about exits; others in between are let pass."""
    found: list[pb.Event] = []
    async with asyncio.timeout(DEADLINE):
        async for event in link.events(after):
            if event.WhichOneof("kind") == "exited":
                found.append(event)
            if len(found) == count:
                break
    return found


async def read_all(link: GuestLink, container: str, exec_id: str, stream: pb.Stream) -> bytes:
    """Read a stream to its end."""
    pieces: list[bytes] = []
    async with asyncio.timeout(DEADLINE):
        while True:
            data, end = await link.read_stdio(container, exec_id, stream)
            pieces.append(data)
            if end:
                return b"".join(pieces)


async def run_container(link: GuestLink, name: str, *args: str, **options: Any) -> int:
    """Create and start a container; return its pid."""
    await link.create_container(container_plan(name, *args, **options))
    return await link.start_process(name)
