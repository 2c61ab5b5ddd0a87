"""Containers on this host: what a process finds around itself, and what is left of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from protos.gen.voidbox.guest.v1 import guest_pb2 as pb
from shims.guest.plan import GuestSource
from shims.ttrpc.errors import RpcError
from tests.guest.init.bundle import default_spec, nothing_left_behind, shell_spec
from tests.guest.init.harness import DEADLINE

if TYPE_CHECKING:
    from tests.guest.init.bundle import Box

pytestmark = pytest.mark.root


async def test_the_first_process_has_namespaces_and_a_root_of_its_own(box: Box) -> None:
    async with nothing_left_behind(box):
        outcome = await box.shell(
            "echo pid $$; ls -1 /; cat /proc/self/cgroup | grep ^0;"
            " for n in mnt pid ipc uts cgroup; do readlink /proc/self/ns/$n; done"
        )
    assert outcome.status == 0, outcome.stderr
    lines = outcome.stdout.split()
    assert lines[:2] == ["pid", "1"]
    assert lines[2:10] == ["bin", "dev", "etc", "home", "proc", "run", "sys", "tmp"]
    assert "0::/" in lines
    for name in ("mnt", "pid", "ipc", "uts", "cgroup"):
        assert os.readlink(f"/proc/self/ns/{name}") not in lines


async def test_the_old_root_is_gone(box: Box) -> None:
    outcome = await box.shell("cat /proc/self/mountinfo; ls /proc/1/fd; ls -d /work /usr 2>&1")
    mounts = [line.split(" ")[4] for line in outcome.stdout.splitlines() if " - " in line]
    assert mounts[0] == "/"
    assert set(mounts) >= {"/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/run"}
    assert not [mount for mount in mounts if mount.startswith("/run/void")]
    assert "No such file" in outcome.stdout
    fds = [line for line in outcome.stdout.splitlines() if line.isdigit()]
    assert set(fds) <= {"0", "1", "2", "3"}  # 3: ls reads /proc/1/fd of the shell, or of itself


async def test_device_nodes_and_links(box: Box) -> None:
    outcome = await box.shell(
        "cd /dev; stat -c '%n %F %a %t:%T' null zero full random urandom tty; "
        "for link in ptmx fd stdin stdout stderr core; do readlink $link; done;"
        " echo hidden > /dev/null && echo written"
    )
    assert outcome.stdout.splitlines() == [
        "null character special file 666 1:3",
        "zero character special file 666 1:5",
        "full character special file 666 1:7",
        "random character special file 666 1:8",
        "urandom character special file 666 1:9",
        "tty character special file 666 5:0",
        "pts/ptmx",
        "/proc/self/fd",
        "/proc/self/fd/0",
        "/proc/self/fd/1",
        "/proc/self/fd/2",
        "/proc/kcore",
        "written",
    ]


async def test_the_device_filter_keeps_other_devices_out(box: Box) -> None:
    outcome = await box.shell("mknod /tmp/loop b 7 0 && cat /tmp/loop; head -c 1 /dev/zero | od -c")
    assert "Operation not permitted" in outcome.stderr
    assert outcome.stdout.startswith("0000000  \\0")


async def test_masked_and_readonly_paths(box: Box) -> None:
    spec = shell_spec(
        "cat /etc/secret; ls /etc/secrets | wc -l; echo x > /etc/fixed 2>&1; cat /etc/fixed;"
        " echo 1 > /proc/sys/kernel/shmmax"
    )
    (box.rootfs / "etc" / "secret").write_text("secret")
    (box.rootfs / "etc" / "fixed").write_text("fixed")
    (box.rootfs / "etc" / "secrets").mkdir()
    (box.rootfs / "etc" / "secrets" / "one").write_text("secret")
    spec["linux"]["maskedPaths"] += ["/etc/secret", "/etc/secrets", "/etc/absent"]
    spec["linux"]["readonlyPaths"] += ["/etc/fixed", "/etc/absent"]
    outcome = await box.run(spec)
    assert outcome.stdout == "0\nfixed"
    assert outcome.stderr.count("Read-only file system") == 2


async def test_a_readonly_root_still_gets_its_mount_points(box: Box) -> None:
    spec = shell_spec(
        "touch /file; touch /scratch/file && echo scratch; touch /work/x; pwd", cwd="/work"
    )
    spec["root"]["readonly"] = True
    spec["mounts"].append({"destination": "/scratch", "type": "tmpfs", "source": "tmpfs"})
    outcome = await box.run(spec)
    assert outcome.stdout == "scratch\n/work\n"
    assert outcome.stderr.count("Read-only file system") == 2


async def test_binds_with_options(box: Box, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    (data / "file").write_text("content")
    spec = shell_spec(
        "cat /mnt/file /one; touch /mnt/new; /mnt/run; grep -E ' /(mnt|one) ' /proc/mounts"
    )
    (data / "run").write_text("#!/bin/sh\necho ran\n")
    (data / "run").chmod(0o755)
    options = ["rbind", "ro", "nosuid", "nodev", "noexec", "noatime", "rprivate"]
    spec["mounts"] += [
        {"destination": "/mnt", "type": "bind", "source": "/x", "options": options},
        {"destination": "/one", "type": "bind", "source": "/x", "options": ["bind", "rro"]},
    ]
    count = len(spec["mounts"])
    sources = {
        count - 2: GuestSource("pushed", str(data)),
        count - 1: GuestSource("pushed", str(data), path="file"),
    }
    outcome = await box.run(spec, sources=sources)
    assert outcome.stdout.startswith("contentcontent")
    assert "Read-only file system" in outcome.stderr
    assert "Permission denied" in outcome.stderr
    assert "ran" not in outcome.stdout.splitlines()
    table = [line.split() for line in outcome.stdout.splitlines()[-2:]]
    flags = {words[-5]: words[-3].split(",") for words in table}
    assert set(flags["/mnt"]) >= {"ro", "nosuid", "nodev", "noexec", "noatime"}
    assert "ro" in flags["/one"]
    assert not (data / "new").exists()


async def test_tmpfs_copies_up_and_takes_the_mode(box: Box) -> None:
    tree = box.rootfs / "srv"
    (tree / "deep" / "er").mkdir(parents=True)
    tree.chmod(0o1770)
    (tree / "deep" / "file").write_text("kept")
    os.chown(tree / "deep" / "file", 7, 8)
    (tree / "link").symlink_to("deep/file")
    spec = shell_spec("stat -c '%a %u:%g %n' /srv /srv/deep/file; cat /srv/link; touch /srv/new")
    options = ["tmpcopyup", "size=1m"]
    spec["mounts"].append({"destination": "/srv", "type": "tmpfs", "options": options})
    outcome = await box.run(spec)
    assert outcome.stdout == "1770 0:0 /srv\n644 7:8 /srv/deep/file\nkept"
    assert not (tree / "new").exists()


async def test_a_readonly_tmpfs_is_filled_first(box: Box) -> None:
    spec = shell_spec("touch /dev/x; ls /dev/null")
    for mount in spec["mounts"]:
        if mount["destination"] == "/dev":
            mount["options"] = [*mount["options"], "ro"]
    outcome = await box.run(spec)
    assert outcome.stdout == "/dev/null\n"
    assert "Read-only file system" in outcome.stderr


async def test_hostname_and_sysctls_stay_inside(box: Box) -> None:
    spec = shell_spec("hostname; cat /proc/sys/kernel/domainname /proc/sys/kernel/msgmax")
    spec["hostname"] = "inside"
    spec["domainname"] = "example.test"
    spec["linux"]["sysctl"] = {"kernel.msgmax": "4242"}
    outcome = await box.run(spec)
    assert outcome.stdout.split() == ["inside", "example.test", "4242"]
    assert os.uname().nodename != "inside"
    assert Path("/proc/sys/kernel/msgmax").read_text().strip() != "4242"


async def test_a_network_namespace_of_its_own_has_loopback_up(box: Box) -> None:
    outcome = await box.run(shell_spec("cat /proc/net/dev | wc -l; ls /sys/class/net; "
                                       "cat /sys/class/net/lo/flags"), network="vm")  # fmt: skip
    assert outcome.stdout.split() == ["3", "lo", "0x9"]


async def test_a_time_namespace_has_its_offset(box: Box) -> None:
    if not Path("/proc/self/ns/time").exists():
        pytest.skip("the kernel has no time namespaces")
    spec = shell_spec("cat /proc/uptime")
    spec["linux"]["namespaces"].append({"type": "time"})
    spec["linux"]["timeOffsets"] = {"boottime": {"secs": 10_000_000}}
    outcome = await box.run(spec)
    assert float(outcome.stdout.split()[0]) > 10_000_000


async def test_a_terminal_is_the_containers_own(box: Box) -> None:
    spec = default_spec("/bin/sh", "-c", "tty; stty size; ls -l /dev/console; test -t 0 && echo y;"
                        " cat /proc/self/stat | cut -d' ' -f5-7", terminal=True,
                        consoleSize={"height": 33, "width": 111})  # fmt: skip
    outcome = await box.run(spec)
    lines = outcome.stdout.replace("\r", "").splitlines()
    assert lines[0] == "/dev/pts/0"
    assert lines[1] == "33 111"
    assert "/dev/console" in lines[2]
    assert lines[3] == "y"


async def test_a_terminal_needs_a_devpts(box: Box) -> None:
    spec = default_spec("tty", terminal=True)
    spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] != "devpts"]
    with pytest.raises(RpcError, match="a terminal needs a devpts"):
        await box.run(spec)


async def test_a_shared_volume_cannot_lead_the_mount_outside(box: Box, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (box.rootfs / "escape").symlink_to(outside)
    (box.rootfs / "climb").symlink_to("../../../../../../../../../../" + str(outside))
    spec = shell_spec("grep -c scratch /proc/mounts; ls -d " + str(outside) + "/one")
    spec["mounts"] += [
        {"destination": "/escape/one", "type": "tmpfs", "source": "scratch"},
        {"destination": "/climb/two", "type": "tmpfs", "source": "scratch"},
        {"destination": "/../../x/../escape/three", "type": "tmpfs", "source": "scratch"},
    ]
    outcome = await box.run(spec)
    assert outcome.stdout == f"3\n{outside}/one\n"
    assert list(outside.iterdir()) == []
    assert (box.rootfs / str(outside).lstrip("/") / "two").is_dir()


async def test_nodes_and_links_do_not_follow_the_image(box: Box, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (box.rootfs / "dev").rmdir()
    (box.rootfs / "dev").symlink_to(tmp_path)
    spec = shell_spec("ls -l /dev/null")
    spec["mounts"] = [
        mount for mount in spec["mounts"] if not mount["destination"].startswith("/dev")
    ]
    outcome = await box.run(spec)
    assert outcome.status == 0, outcome.stderr
    assert set(os.listdir(tmp_path)) == {box.guest.root.name, "victim"}


async def test_a_dangling_link_as_mount_point_is_completed_inside(box: Box, tmp_path: Path) -> None:
    (tmp_path / "resolv").write_text("nameserver 10.0.0.1\n")
    (box.rootfs / "etc" / "resolv.conf").symlink_to("../run/systemd/resolve/stub.conf")
    spec = shell_spec("cat /etc/resolv.conf")
    spec["mounts"] += [
        {"destination": "/etc/resolv.conf", "type": "bind", "source": "/x", "options": ["ro"]}
    ]
    source = GuestSource("pushed", str(tmp_path / "resolv"))
    outcome = await box.run(spec, sources={len(spec["mounts"]) - 1: source})
    assert outcome.stdout == "nameserver 10.0.0.1\n"


async def test_containers_join_each_others_namespaces(box: Box) -> None:
    spec = default_spec("/bin/sleep", "100")
    spec["hostname"] = "pod"
    sandbox_name = f"{box.prefix}-sandbox"
    sandbox = box.plan(spec, name=sandbox_name)
    await box.link.create_container(sandbox, timeout=DEADLINE)
    await box.link.start_process(sandbox_name, timeout=DEADLINE)
    member = shell_spec("hostname; cat /proc/1/cmdline | tr '\\0' ' '; readlink /proc/self/ns/ipc")
    member["linux"]["namespaces"] = [
        {"type": "mount"},
        *({"type": kind, "path": f"/proc/1/ns/{kind}"} for kind in ("pid", "ipc", "uts")),
    ]
    joins = {f"/proc/1/ns/{kind}": sandbox_name for kind in ("pid", "ipc", "uts")}
    outcome = await box.run(member, joins=joins)
    assert outcome.stdout.splitlines()[0] == "pod"
    assert outcome.stdout.splitlines()[1].startswith("/bin/sleep 100 ipc:[")
    await box.link.signal_process(sandbox_name, signal=9)
    assert await box.exit_status(sandbox_name) == 137
    await box.link.delete_process(sandbox_name)
    with pytest.raises(RpcError, match="whose namespaces it joins, does not run"):
        await box.run(member, joins=joins)


async def test_a_cgroup_in_use_is_not_shared(box: Box) -> None:
    async with nothing_left_behind(box):
        first = box.plan(
            default_spec("/bin/sleep", "100"), name=f"{box.prefix}-first", cgroup_path="pod/one"
        )
        await box.link.create_container(first, timeout=DEADLINE)
        second = box.plan(
            default_spec("/bin/true"), name=f"{box.prefix}-second", cgroup_path="pod/one"
        )
        with pytest.raises(RpcError, match="has processes of another container"):
            await box.link.create_container(second, timeout=DEADLINE)
        await box.link.signal_process(first.container_id, signal=9)
        await box.exit_status(first.container_id)
        await box.link.delete_process(first.container_id)


async def test_unusable_cgroup_paths(box: Box) -> None:
    for path in ("../x", "/x", "a//b", "a/..", "."):
        plan = box.plan(default_spec("/bin/true"), name=f"{box.prefix}-odd", cgroup_path=path)
        with pytest.raises(RpcError, match="cgroup"):
            await box.link.create_container(plan, timeout=DEADLINE)
    plan = box.plan(default_spec("/bin/true"), name=f"{box.prefix}-odd")
    plan.cgroup.writes.append(pb.CgroupWrite(file="../cgroup.procs", value="1"))
    with pytest.raises(RpcError, match="write the cgroup's"):
        await box.link.create_container(plan, timeout=DEADLINE)


async def test_what_the_image_has_in_dev_gives_way(box: Box) -> None:
    """Without a tmpfs on /dev the nodes and links go into the image's own directory."""
    dev = box.rootfs / "dev"
    (dev / "null").write_text("a file")
    (dev / "fd").symlink_to("/elsewhere")
    (dev / "core").mkdir()
    spec = shell_spec("stat -c %F /dev/null; readlink /dev/fd; stat -c %F /dev/core")
    spec["mounts"] = [
        mount for mount in spec["mounts"] if not mount["destination"].startswith("/dev")
    ]
    outcome = await box.run(spec)
    assert outcome.stdout == "character special file\n/proc/self/fd\ndirectory\n"


async def test_the_roots_propagation(box: Box) -> None:
    for name, mark in (("rshared", "shared:"), ("private", " - "), ("unbindable", "unbindable")):
        spec = shell_spec("grep ' / / ' /proc/self/mountinfo || grep ' / ' /proc/self/mountinfo")
        spec["linux"]["rootfsPropagation"] = name
        outcome = await box.run(spec)
        first = outcome.stdout.splitlines()[0]
        assert mark in first
        assert ("shared:" in first) == (name == "rshared")
