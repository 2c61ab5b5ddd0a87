"""Launch plans in a real VM: what a host cannot show, because there the cgroup has no controllers.

Disks as layers, as writable upper and as volumes; cgroup limits; the device filter against the VM's
own disks; a terminal; execs.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from protos.gen.voidbox.guest.v1 import guest_pb2 as pb
from shims.core.errors import AlreadyExists
from shims.guest.plan import GuestSource, Rootfs, compile_plan, compile_process, compile_update
from shims.microvm.machine import start_machine
from shims.ttrpc.errors import RpcError
from tests.guest.init.bundle import make_rootfs, shell_spec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from shims.microvm.machine import Machine
    from tests.microvm.conftest import Host

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(90)]

TIMEOUT = 20.0
LAYER = GuestSource("disk", "e-layer", fstype="erofs")


def make_erofs(tree: Path, image: Path) -> int:
    """Return a descriptor of a read-only image of a tree."""
    subprocess.run(["mkfs.erofs", "--quiet", str(image), str(tree)], check=True, timeout=60,
                   capture_output=True)  # fmt: skip
    return os.open(image, os.O_RDONLY | os.O_CLOEXEC)


def make_ext4(image: Path, size: int) -> int:
    """Return a descriptor of an empty writable disk."""
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-F", str(image)], check=True, timeout=60)
    return os.open(image, os.O_RDWR | os.O_CLOEXEC)


@dataclass
class Containers:
    """Runs containers in one VM and collects what they say."""

    machine: Machine

    async def create(self, spec: Mapping[str, Any], name: str, **options: Any) -> pb.LaunchPlan:
        options.setdefault("rootfs", Rootfs(layers=(LAYER,)))
        options.setdefault("sources", {})
        plan = compile_plan(spec, container_id=name, **options)
        plan.process.stdin = False
        await self.machine.link.create_container(plan, timeout=TIMEOUT)
        return plan

    async def output(self, name: str, exec_id: str = "") -> str:
        parts = []
        end = False
        while not end:
            link = self.machine.link
            data, end = await link.read_stdio(name, exec_id, pb.STREAM_STDOUT, 65536)
            parts.append(data)
        return b"".join(parts).decode().replace("\r", "")

    async def run(self, script: str, name: str, spec: Any = None, **options: Any) -> str:
        spec = shell_spec(f"exec 2>&1; {script}") if spec is None else spec
        await self.create(spec, name, **options)
        await self.machine.link.start_process(name, timeout=TIMEOUT)
        return await self.output(name)


async def test_plans_in_a_vm(host: Host, tmp_path: Path) -> None:
    """One VM for all, because a boot is what takes the time."""
    async with start_machine(host.config()) as machine:
        layer = make_erofs(make_rootfs(tmp_path / "tree"), tmp_path / "layer.erofs")
        await machine.attach_disk(layer, "e-layer", readonly=True)
        containers = Containers(machine)
        await limits_and_their_updates(containers)
        await the_devices_of_the_vm_are_out_of_reach(containers)
        await a_disk_takes_what_is_written(containers, tmp_path)
        await one_path_of_a_disk(containers, tmp_path)
        await a_terminal_and_an_exec(containers)
        await a_disk_that_does_not_come(containers)


async def test_the_first_container_of_a_clone(host: Host, tmp_path: Path) -> None:
    """Its disks are in slots, and a process of the template becomes it; it must not notice."""
    layer = make_erofs(make_rootfs(tmp_path / "tree"), tmp_path / "layer.erofs")
    disk = make_ext4(tmp_path / "upper.ext4", 32 << 20)
    async with start_machine(replace(host.config(), hostname="of-the-vm")) as machine:
        slot = await machine.insert_disk(layer, "e-layer", readonly=True)
        with pytest.raises(AlreadyExists):
            await machine.insert_disk(layer, "e-layer", readonly=True)
        upper = await machine.insert_disk(disk, "u-upper", readonly=False, keep_flushes=False)
        assert (slot, upper) == ("slot-r0", "slot-w0")
        containers = Containers(machine)
        rootfs = Rootfs(
            layers=(GuestSource("disk", slot, fstype="erofs"),),
            upper=GuestSource("disk", upper, fstype="ext4"),
        )
        script = (
            "echo kept > /etc/new && cat /etc/new; hostname; echo $$; cat /proc/self/cgroup;"
            " dd if=/dev/zero of=/big bs=1M count=64; mknod /tmp/d b 8 0 && head -c 4 /tmp/d"
        )
        output = await containers.run(script, "first", rootfs=rootfs)
        assert output.startswith("kept\nof-the-vm\n1\n0::/\n")
        assert "No space left on device" in output
        assert "Operation not permitted" in output
        # What was in a slot never shares it with what comes later; beyond them there is hotplug.
        await machine.detach_disk("u-upper")
        assert await machine.insert_disk(disk, "u-upper", readonly=False) == "slot-w1"
        assert await machine.insert_disk(disk, "u-third", readonly=False) == "u-third"
        assert (await machine.link.probe_disk("u-third")).size_bytes == 32 << 20
        rootfs = Rootfs(layers=rootfs.layers)
        assert "root" in await containers.run("ls /; echo root", "second", rootfs=rootfs)


async def limits_and_their_updates(containers: Containers) -> None:
    spec = shell_spec("mount -t cgroup2 none /tmp; cd /sys/fs/cgroup; sleep 1000")
    spec["mounts"].append({"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro"]})
    spec["linux"]["resources"].update(
        memory={"limit": 64 << 20, "swap": 64 << 20, "reservation": 32 << 20},
        cpu={"shares": 512, "quota": 50_000, "period": 100_000},
        pids={"limit": 17},
        unified={"memory.oom.group": "1"},
    )
    await containers.create(spec, "limits")
    link = containers.machine.link
    await link.start_process("limits", timeout=TIMEOUT)
    names = ["memory.max", "memory.low", "cpu.max", "cpu.weight", "pids.max", "memory.oom.group"]

    async def read(exec_id: str) -> list[str]:
        script = f"cd /sys/fs/cgroup; cat {' '.join(names)}"
        process = compile_process({"args": ["/bin/sh", "-c", script], "env": ["PATH=/bin"]})
        await link.add_process("limits", exec_id, process)
        await link.start_process("limits", exec_id, timeout=TIMEOUT)
        return (await containers.output("limits", exec_id)).splitlines()

    assert await read("one") == ["67108864", "33554432", "50000 100000", "20", "17", "1"]
    update = {"memory": {"limit": 128 << 20}, "pids": {"limit": -1}, "cpu": {"shares": 1024}}
    await link.update_cgroup("limits", compile_update(update))
    assert await read("two") == ["134217728", "33554432", "50000 100000", "39", "max", "1"]
    with pytest.raises(RpcError, match=r"memory\.max"):
        await link.update_cgroup("limits", [pb.CgroupWrite(file="memory.max", value="much")])
    await link.signal_process("limits", signal=9)


async def the_devices_of_the_vm_are_out_of_reach(containers: Containers) -> None:
    output = await containers.run(
        "mknod /tmp/disk b 8 0 && head -c 4 /tmp/disk; head -c 4 /dev/zero | wc -c", "devices"
    )
    assert "Operation not permitted" in output
    assert output.splitlines()[-1] == "4"


async def a_disk_takes_what_is_written(containers: Containers, tmp_path: Path) -> None:
    disk = make_ext4(tmp_path / "upper.ext4", 32 << 20)
    await containers.machine.attach_disk(disk, "u-upper", readonly=False)
    upper = GuestSource("disk", "u-upper", fstype="ext4")
    script = (
        "echo kept > /etc/new && rm /etc/passwd && cat /etc/new; ls /etc;"
        " grep ' / ' /proc/mounts; dd if=/dev/zero of=/big bs=1M count=64"
    )
    output = await containers.run(script, "upper", rootfs=Rootfs(layers=(LAYER,), upper=upper))
    assert output.startswith("kept\nnew\noverlay / overlay rw,")
    assert "No space left on device" in output


async def one_path_of_a_disk(containers: Containers, tmp_path: Path) -> None:
    tree = tmp_path / "volume"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "file").write_text("inside")
    (tree / "a" / "escape").symlink_to("/etc")
    disk = make_erofs(tree, tmp_path / "volume.erofs")
    await containers.machine.attach_disk(disk, "v-volume", readonly=True)
    spec = shell_spec("exec 2>&1; cat /data/file /one; grep -c aside /proc/mounts; touch /data/x")
    spec["mounts"] += [
        {"destination": "/data", "type": "bind", "source": "/x", "options": ["rbind", "ro"]},
        {"destination": "/one", "type": "bind", "source": "/x", "options": ["rbind", "ro"]},
    ]
    count = len(spec["mounts"])
    sources = {
        count - 2: GuestSource("disk", "v-volume", path="a/b", fstype="erofs"),
        count - 1: GuestSource("disk", "v-volume", path="a/b/file", fstype="erofs"),
    }
    output = await containers.run("", "volume", spec, sources=sources)
    assert output.startswith("insideinside0\n")
    assert "Read-only file system" in output
    sources[count - 2] = GuestSource("disk", "v-volume", path="a/escape", fstype="erofs")
    with pytest.raises(RpcError, match="a/escape in it: no such file or directory"):
        await containers.create(spec, "escape", sources=sources)


async def a_terminal_and_an_exec(containers: Containers) -> None:
    spec = shell_spec("tty; stty size; exit 3", terminal=True)
    spec["process"]["consoleSize"] = {"height": 10, "width": 20}
    assert await containers.run("", "terminal", spec) == "/dev/pts/0\n10 20\n"


async def a_disk_that_does_not_come(containers: Containers) -> None:
    rootfs = Rootfs(layers=(GuestSource("disk", "e-none", fstype="erofs"),))
    plan = compile_plan(shell_spec("true"), container_id="none", rootfs=rootfs, sources={})
    for step in plan.steps:
        step.mount.wait_ms = min(step.mount.wait_ms, 50) if step.HasField("mount") else 0
    del plan.steps[:1]
    with pytest.raises(RpcError, match="disk e-none"):
        await containers.machine.link.create_container(plan, timeout=TIMEOUT)
