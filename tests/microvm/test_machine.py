"""Real VMs under TCG: every way to start, every way to end, and that nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from protos.gen.voidbox.guest.v1 import guest_pb2
from shims.core.errors import AlreadyExists, NotFound, ShimError
from shims.microvm.cgroup import find_hierarchies, machine_cgroup
from shims.microvm.config import ExitReason, StartFailed
from shims.microvm.launcher import fork_launcher
from shims.microvm.machine import Machine, start_machine
from shims.microvm.templates import list_templates

if TYPE_CHECKING:
    from tests.microvm.conftest import Host

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(90)]

TIMEOUT = 20.0
NoLeaks = Callable[[Path], Any]


async def ended(machine: Machine) -> Any:
    return await asyncio.wait_for(asyncio.shield(machine.exited), TIMEOUT)


# ---- ways to start ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["microvm", "q35"])
async def test_a_cold_boot_is_a_full_citizen(host: Host, no_leaks: NoLeaks, kind: str) -> None:
    async with no_leaks(host.run_dir):
        async with start_machine(host.config(template="off", machine=kind)) as machine:
            assert machine.started_as == "cold"
            assert machine.link.info.kernel_release == host.image.release
            await use(machine)
            end = await machine.stop(5.0)
        assert end.reason is ExitReason.POWEROFF


async def test_clones_of_one_template(host: Host, no_leaks: NoLeaks) -> None:
    async with start_machine(host.config()) as machine:
        assert machine.started_as == "clone"
    keys = [template["key"] for template in await list_templates(host.run_dir)]
    async with no_leaks(host.run_dir):
        async with start_machine(host.config()) as one, start_machine(host.config()) as two:
            for machine in (one, two):
                assert machine.started_as == "clone"
                assert machine.timings["hello"] < 2.0  # a boot takes longer than that
                await use(machine)
            assert one.pid != two.pid
            assert await random_bytes(one) != await random_bytes(two)
            assert abs(await clock_of(one) - time.time()) < 5.0
        assert one.exited.result().reason is ExitReason.STOPPED
    assert [template["key"] for template in await list_templates(host.run_dir)] == keys


async def test_a_vm_for_shared_directories_is_a_copy(host: Host, no_leaks: NoLeaks) -> None:
    async with start_machine(host.config(shares=True)):
        pass  # builds the template
    async with no_leaks(host.run_dir), start_machine(host.config(shares=True)) as machine:
        assert machine.started_as == "copy"
        await use(machine)


async def test_a_launcher_forked_early_is_used(host: Host) -> None:
    config = host.config()
    launcher = fork_launcher(config.name, config.cgroup)
    async with start_machine(config, launcher=launcher) as machine:
        assert machine.pid == launcher.pid


async def test_more_memory_and_vcpus_are_another_template(host: Host) -> None:
    async with start_machine(host.config(vcpus=2, memory_mib=3000)) as machine:
        sample = await machine.link.telemetry()
        assert sample.memory_total_bytes > 6 << 30
        online = await machine.link.read_file("/sys/devices/system/cpu/online")
        assert online.strip() == b"0-1"
    assert len(await list_templates(host.run_dir)) >= 2


@pytest.mark.parametrize("template", ["shared", "per-namespace"])
async def test_trust_domains_do_not_share(fresh_host: Host, template: str) -> None:
    host = fresh_host
    for domain in ("a", "b"):
        config = host.config(template=template, trust_domain=domain)
        async with start_machine(config) as machine:
            assert machine.started_as == "clone"
    assert len(await list_templates(host.run_dir)) == 2


async def test_two_processes_that_start_at_once_build_one_template(fresh_host: Host) -> None:
    script = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from shims.guest.image import find_guest_image\n"
        "from shims.microvm.config import MachineConfig\n"
        "from shims.microvm.machine import start_machine\n"
        "name, image, state, run = sys.argv[1:]\n"
        "async def main():\n"
        "    config = MachineConfig(image=find_guest_image(Path(image)), name=name,\n"
        "                           state_dir=Path(state), run_dir=Path(run))\n"
        "    async with start_machine(config) as machine:\n"
        "        print(machine.started_as)\n"
        "asyncio.run(main())\n"
    )
    host = fresh_host
    starters = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script, f"p{number}", str(host.image.directory)),
            *(str(host.state_dir), str(host.run_dir)),
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        for number in range(2)
    ]
    async with asyncio.timeout(60):
        outputs = [(await starter.communicate())[0] for starter in starters]
    assert outputs == [b"clone\n", b"clone\n"]
    stored = await list_templates(host.run_dir)
    assert [template["uses"] for template in stored] == [1]  # the builder does not ask again


@pytest.mark.root
async def test_qemu_is_confined(host: Host) -> None:
    async with start_machine(host.config()) as machine:
        status = Path(f"/proc/{machine.pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert int(fields["Uid"].split()[0]) >= 0x75000000
        assert fields["CapEff"].strip("0") == ""
        assert fields["NoNewPrivs"] == "1"
        assert fields["Seccomp"] == "2"
        assert os.readlink(f"/proc/{machine.pid}/ns/net") != os.readlink("/proc/self/ns/net")
        groups = Path(f"/proc/{machine.pid}/cgroup").read_text().splitlines()
        joined = {hierarchy.version for hierarchy in find_hierarchies()}
        version = {line: 2 if line.startswith("0::") else 1 for line in groups}
        assert all("/void-" in line for line in groups if version[line] in joined)
        core = Path(f"/proc/{machine.pid}/limits").read_text()
        assert next(x for x in core.splitlines() if x.startswith("Max core")).split()[4] == "0"


# ---- using it ----------------------------------------------------------------------------------


async def use(machine: Machine) -> None:
    """Plug a disk in and out, and exchange a file."""
    serial = "e-0123456789abcdef"
    disk = os.memfd_create("disk")
    os.truncate(disk, 8 << 20)
    try:
        await machine.attach_disk(disk, serial, readonly=True)
        with pytest.raises(AlreadyExists):
            await machine.attach_disk(disk, serial, readonly=True)
        found = await machine.link.probe_disk(serial)
        assert found.size_bytes == 8 << 20
        await machine.link.release_disk(serial)
        await machine.detach_disk(serial)
        with pytest.raises(NotFound):
            await machine.detach_disk(serial)
        await machine.attach_disk(disk, serial, readonly=False)
        assert (await machine.link.probe_disk(serial)).device
    finally:
        os.close(disk)
    await machine.link.write_file("/run/void/files/x", b"content")
    assert await machine.link.read_file("/run/void/files/x") == b"content"


async def random_bytes(machine: Machine) -> bytes:
    return await machine.link.read_file("/proc/sys/kernel/random/uuid")


async def clock_of(machine: Machine) -> float:
    return (await machine.link.telemetry()).at_ns / 1e9


async def test_the_host_may_reconnect(host: Host) -> None:
    async with start_machine(host.config()) as machine:
        await machine.link.write_file("/run/void/files/kept", b"kept")
        broken = machine.link
        waiting = asyncio.ensure_future(anext(broken.events()))  # a call under way
        await asyncio.sleep(0)
        link = await machine.connect(TIMEOUT)
        assert link is machine.link
        assert await link.read_file("/run/void/files/kept") == b"kept"
        with contextlib.suppress(Exception):
            await asyncio.wait_for(waiting, TIMEOUT)
        assert broken.closed.done()
        await machine.disconnect()
        await machine.connect(TIMEOUT)
        assert await machine.link.read_file("/run/void/files/kept") == b"kept"


async def test_disks_of_block_devices_and_bad_descriptors(host: Host) -> None:
    async with start_machine(host.config()) as machine:
        read, write = os.pipe()
        with pytest.raises(Exception, match="QEMU refused"):
            await machine.attach_disk(read, "pipe", readonly=True)
        os.close(read)
        os.close(write)
        disk = os.memfd_create("disk")
        os.truncate(disk, 1 << 20)
        await machine.attach_disk(disk, "pipe", readonly=True)  # the serial is free again
        os.close(disk)


# ---- ways to end -------------------------------------------------------------------------------


async def test_killed_from_outside(host: Host, no_leaks: NoLeaks) -> None:
    async with no_leaks(host.run_dir), start_machine(host.config()) as machine:
        os.kill(machine.pid, signal.SIGKILL)
        end = await ended(machine)
        assert end.reason is ExitReason.KILLED
        assert end.status == -signal.SIGKILL
        assert (await machine.stop(1.0)).reason is ExitReason.KILLED


async def test_power_off_by_the_guest(host: Host) -> None:
    async with start_machine(host.config()) as machine:
        await machine.link.power_off()
        assert (await ended(machine)).reason is ExitReason.POWEROFF


async def test_a_lonely_guest_powers_off(host: Host) -> None:
    async with start_machine(host.config(lonely_poweroff_ms=100)) as machine:
        await machine.disconnect()
        assert (await ended(machine)).reason is ExitReason.POWEROFF


async def test_a_frozen_guest_is_ended_after_its_grace(host: Host) -> None:
    async with start_machine(host.config()) as machine:
        os.kill(machine.pid, signal.SIGSTOP)
        end = await machine.stop(0.2)
        assert end.reason is ExitReason.STOPPED
        assert "0.2 s" in end.detail


async def test_a_panic_is_told_with_its_words(host: Host, no_leaks: NoLeaks) -> None:
    config = host.config(template="off", kernel_args=("rdinit=/none", "root=/dev/none"))
    async with no_leaks(host.run_dir):
        with pytest.raises(StartFailed) as caught:
            async with start_machine(config):
                pytest.fail("a VM without init said hello")
    end = caught.value.exit
    assert end.reason is ExitReason.PANIC
    assert "Kernel panic - not syncing: VFS" in end.detail
    assert any("VFS" in line for line in end.console_tail)


@pytest.mark.parametrize("template", ["off", "shared"])
async def test_a_boot_that_hangs_ends_with_the_deadline(
    host: Host, no_leaks: NoLeaks, template: str
) -> None:
    hangs = ("rdinit=/none", "root=/dev/none", "panic=0", "ignore_loglevel")
    config = host.config(template=template, kernel_args=hangs, boot_timeout=4.0)
    async with no_leaks(host.run_dir):
        with pytest.raises(StartFailed) as caught:
            async with start_machine(config):
                pytest.fail("a VM without init said hello")
    end = caught.value.exit
    assert end.reason is ExitReason.BOOT_HANG
    assert "no hello from the guest" in end.detail
    assert any(line.startswith("[") for line in end.console_tail)


@pytest.mark.root
@pytest.mark.parametrize("early", [False, True])
async def test_a_vm_that_outgrows_its_cgroup(host: Host, no_leaks: NoLeaks, early: bool) -> None:
    config = host.config(template="off", memory_limit=64 << 20)
    async with no_leaks(host.run_dir):
        # Who forks early does not know the limit.
        launcher = fork_launcher(config.name, config.cgroup) if early else None
        with pytest.raises(StartFailed) as caught:
            async with start_machine(config, launcher=launcher):
                pytest.fail("booted in 64 MiB")
    assert caught.value.exit.reason is ExitReason.OOM


@pytest.mark.root
async def test_a_clone_that_outgrows_its_cgroup_ends_with_the_reason(host: Host) -> None:
    async with start_machine(host.config(memory_limit=160 << 20)) as machine:
        blob = os.urandom(1 << 20)
        with contextlib.suppress(ShimError):
            for number in range(512):
                await machine.link.write_file(f"/run/void/fill-{number}", blob)
        end = await asyncio.wait_for(machine.exited, 20)
    assert end.reason is ExitReason.OOM
    assert "memory limit" in end.detail


@pytest.mark.root
async def test_the_host_ranks_and_limits_qemu(host: Host) -> None:
    config = host.config()
    config = dataclasses.replace(config, memory_limit=config.whole_size, oom_score_adj=345)
    group = machine_cgroup(config.name, config.cgroup)
    assert group is not None
    async with start_machine(config) as machine:
        assert Path(f"/proc/{machine.pid}/oom_score_adj").read_text().strip() == "345"
        files = [
            Path(f"{hierarchy.mount}{group.path}/{name}")
            for hierarchy in group.hierarchies
            for name in ("memory.max", "memory.limit_in_bytes")
        ]
        limits = [path.read_text().strip() for path in files if path.exists()]
    assert limits == [str(config.whole_size)]
    # A guest that uses all that it has is not killed for it.
    assert config.whole_size > (config.ram_mib + 256) << 20


async def test_qemu_that_refuses_its_options(host: Host, no_leaks: NoLeaks, tmp_path: Path) -> None:
    fake = tmp_path / "qemu"
    fake.write_text("#!/bin/sh\necho 'no such device' >&2\nexit 1\n")
    fake.chmod(0o755)
    for directory in (tmp_path, *tmp_path.parents):
        if directory == tmp_path or directory.name.startswith("pytest"):
            directory.chmod(0o755)  # QEMU's user must reach it
    async with no_leaks(host.run_dir):
        with pytest.raises(StartFailed, match="no such device") as caught:
            async with start_machine(host.config(qemu=str(fake), template="off")):
                pytest.fail("a script is no VM")
    assert caught.value.exit.reason is ExitReason.ERROR


async def test_without_qemu(host: Host, no_leaks: NoLeaks) -> None:
    async with no_leaks(host.run_dir):
        with pytest.raises(NotFound, match="apt-get install qemu-system-x86"):
            async with start_machine(host.config(qemu="qemu-system-none")):
                pytest.fail("no QEMU is no VM")


# ---- shared directories ------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.virtiofs
async def test_a_shared_directory(host: Host, no_leaks: NoLeaks, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "greeting").write_text("hello")
    virtiofsd = next(
        path
        for path in ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")
        if os.access(path, os.X_OK)
    )
    async with no_leaks(host.run_dir), start_machine(host.config(shares=True)) as machine:
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
            listener.bind(str(tmp_path / "fs.sock"))
            listener.listen()
            client.connect(str(tmp_path / "fs.sock"))
            daemon = await asyncio.create_subprocess_exec(
                *(virtiofsd, f"--fd={listener.fileno()}", "-o", f"source={tmp_path}/shared"),
                pass_fds=[listener.fileno()],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            await machine.attach_share("data", client)
        step = guest_pb2.MountStep(
            source_kind=guest_pb2.MountStep.SOURCE_TAG,
            source=b"data",
            where=guest_pb2.WHERE_GUEST,
            target=b"/run/void/files/data",
            fstype="virtiofs",
            make_target=True,
        )
        plan = guest_pb2.LaunchPlan(
            container_id="c",
            namespaces=[guest_pb2.Namespace(kind=guest_pb2.Namespace.KIND_MOUNT)],
            cgroup=guest_pb2.Cgroup(path="c"),
            process=guest_pb2.ProcessPlan(args=[b"/init"], cwd=b"/"),
            steps=[guest_pb2.Step(mount=step)],
        )
        inside = f"/proc/{await machine.link.create_container(plan)}/root/run/void/files/data"
        assert await machine.link.read_file(f"{inside}/greeting") == b"hello"
        (tmp_path / "shared" / "later").write_text("new")
        assert await machine.link.read_file(f"{inside}/later") == b"new"
        await machine.stop(5.0)
        await asyncio.wait_for(daemon.wait(), TIMEOUT)
