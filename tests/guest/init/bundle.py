"""Busybox containers for the launcher's tests, compiled from specs as the shim would."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protos.gen.voidbox.guest.v1 import guest_pb2 as pb
from shims.guest.plan import GuestSource, Rootfs, compile_plan, compile_process
from tests.guest.init.harness import DEADLINE, Guest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from shims.guest.link import GuestLink

SPECS = Path(__file__).parents[2] / "golden" / "plan"
BUSYBOX = shutil.which("busybox") or "/bin/busybox"
APPLETS = (
    "sh cat id ls mount touch stat hostname grep sleep true false ulimit env tty mkdir ln rm echo"
    " readlink chmod kill awk test nice umask pwd head sysctl stty dd find sort tr"
)


def make_rootfs(directory: Path) -> Path:
    """A root file system with busybox and a user database."""
    for name in ("bin", "etc", "dev", "proc", "sys", "run", "tmp", "home/user"):
        (directory / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, directory / "bin" / "busybox")
    for applet in APPLETS.split():
        (directory / "bin" / applet).symlink_to("busybox")
    (directory / "etc" / "passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"
    )
    return directory


def default_spec(*args: str, **process: object) -> dict[str, Any]:
    """What ctr of containerd 1.6 writes, with a program of ours."""
    spec: dict[str, Any] = json.loads((SPECS / "ctr-1.6-plain.spec.json").read_text())
    spec["process"]["args"] = list(args)
    spec["process"]["env"] = ["PATH=/bin:/usr/bin"]
    spec["process"].update(process)
    return spec


def shell_spec(script: str, **process: object) -> dict[str, Any]:
    return default_spec("/bin/sh", "-c", script, **process)


@dataclass
class Outcome:
    status: int
    stdout: str
    stderr: str


@dataclass
class Box:
    """A guest, the link to it, and a root file system to launch containers from."""

    guest: Guest
    link: GuestLink
    rootfs: Path
    runs: int = 0
    exits: dict[tuple[str, str], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.events = self.link.events()

    @property
    def prefix(self) -> str:
        """Begins the name of every container of this box, and of no other on this host."""
        return self.guest.cgroup.name

    def plan(
        self,
        spec: Mapping[str, Any],
        *,
        name: str = "",
        sources: Mapping[int, GuestSource] | None = None,
        **options: Any,
    ) -> pb.LaunchPlan:
        """Compile for the root file system of this box."""
        self.runs += 1
        return compile_plan(
            copy.deepcopy(spec),
            container_id=name or f"{self.prefix}-{self.runs}",
            rootfs=Rootfs(share=GuestSource("pushed", str(self.rootfs))),
            sources=sources or {},
            **options,
        )

    async def read(self, name: str, exec_id: str, stream: pb.Stream) -> str:
        """Everything that a stream says until its end."""
        parts = []
        end = False
        while not end:
            data, end = await self.link.read_stdio(name, exec_id, stream, 65536)
            parts.append(data)
        return b"".join(parts).decode()

    async def exit_status(self, name: str, exec_id: str = "") -> int:
        """Wait for the exit event of a process."""
        while (name, exec_id) not in self.exits:
            event = await anext(self.events)
            if event.HasField("exited"):
                exited = event.exited
                self.exits[exited.container_id, exited.exec_id] = exited.exit_status
        return self.exits.pop((name, exec_id))

    async def finish(self, name: str, exec_id: str = "", *, terminal: bool = False) -> Outcome:
        """Collect a started process's output and status."""
        stdout = await self.read(name, exec_id, pb.STREAM_STDOUT)
        stderr = "" if terminal else await self.read(name, exec_id, pb.STREAM_STDERR)
        return Outcome(await self.exit_status(name, exec_id), stdout, stderr)

    async def run_plan(self, plan: pb.LaunchPlan) -> Outcome:
        """Create, start, collect and delete."""
        name = plan.container_id
        await self.link.create_container(plan, timeout=DEADLINE)
        await self.link.start_process(name, timeout=DEADLINE)
        if plan.process.stdin:
            await self.link.write_stdio(name, "", b"", end=True)
        outcome = await self.finish(name, terminal=plan.process.terminal)
        await self.link.delete_process(name)
        return outcome

    async def run(self, spec: Mapping[str, Any], **options: Any) -> Outcome:
        return await self.run_plan(self.plan(spec, **options))

    async def shell(self, script: str, **process: object) -> Outcome:
        """Run a shell script in a container with ctr's default spec."""
        return await self.run(shell_spec(script, **process))

    async def exec(self, name: str, process: Mapping[str, Any], *, exec_id: str = "e") -> Outcome:
        """Run a process in a running container."""
        plan = compile_process(process)
        await self.link.add_process(name, exec_id, plan)
        await self.link.start_process(name, exec_id, timeout=DEADLINE)
        outcome = await self.finish(name, exec_id, terminal=plan.terminal)
        await self.link.delete_process(name, exec_id)
        return outcome


@contextlib.asynccontextmanager
async def nothing_left_behind(box: Box) -> AsyncIterator[None]:
    """Mounts, cgroups and mount points are afterwards what they were before."""

    def state() -> tuple[list[str], list[str], list[str]]:
        table = Path("/proc/self/mountinfo").read_text().splitlines()
        mounts = sorted(line.split(" ", 5)[4] for line in table if box.prefix in line)
        cgroups = sorted(path for path, _, _ in os.walk(box.guest.cgroup))[1:]
        points = Path("/run/void/c").glob(f"{box.prefix}*")
        return mounts, cgroups, sorted(str(path) for path in points)

    before = state()
    yield
    assert state() == before
