"""A plan that fails at each kind of step: a sentence that names it, and nothing left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from protos.gen.voidbox.guest.v1 import guest_pb2 as pb
from shims.ttrpc.errors import RpcError
from tests.guest.init.bundle import default_spec, nothing_left_behind
from tests.guest.init.harness import DEADLINE

if TYPE_CHECKING:
    from tests.guest.init.bundle import Box

pytestmark = pytest.mark.root

ROOTFS, GUEST = pb.WHERE_ROOTFS, pb.WHERE_GUEST
NONE, PATH, DISK = (
    pb.MountStep.SOURCE_NONE,
    pb.MountStep.SOURCE_PATH,
    pb.MountStep.SOURCE_DISK,
)
MS_BIND = 4096


def mount(**fields: object) -> pb.Step:
    return pb.Step(mount=pb.MountStep(where=ROOTFS, **fields))  # type: ignore[arg-type]


STEPS = {
    "unknown file system": (
        mount(source_kind=NONE, source=b"x", fstype="nosuchfs", target=b"/mnt", make_target=True),
        r"step 1 \(mount x on /mnt\): nosuchfs with options \"\": no such device",
    ),
    "options that the file system refuses": (
        mount(source_kind=NONE, source=b"x", fstype="tmpfs", target=b"/tmp", data=b"size=x"),
        r"step 1 \(mount x on /tmp\): tmpfs with options .*size=x\": invalid argument",
    ),
    "no mount point": (
        mount(source_kind=NONE, source=b"x", fstype="tmpfs", target=b"/absent"),
        r"step 1 \(mount x on /absent\): the mount point: no such file or directory",
    ),
    "a bind of nothing": (
        mount(source_kind=PATH, source=b"/no/such", target=b"/mnt", flags=MS_BIND),
        r"step 1 \(bind /no/such on /mnt\): the source: no such file or directory",
    ),
    "a directory on a file": (
        mount(source_kind=PATH, source=b"/tmp", target=b"/etc/passwd", flags=MS_BIND),
        r"the source is a directory, but the mount point is a file",
    ),
    "a file on a directory": (
        mount(source_kind=PATH, source=b"/etc/passwd", target=b"/tmp", flags=MS_BIND),
        r"the source is a file, but the mount point is a directory",
    ),
    "a disk that does not come": (
        mount(source_kind=DISK, source=b"e-absent", fstype="erofs", target=b"/tmp", wait_ms=20),
        r"step 1 \(mount e-absent on /tmp\): disk e-absent: ",
    ),
    "a NUL in a path": (
        mount(source_kind=NONE, source=b"x", fstype="tmpfs", target=b"/t\0mp"),
        r"the mount point: bad message",
    ),
    "a loop of links": (
        pb.Step(symlink=pb.SymlinkStep(where=ROOTFS, path=b"/loop/x", target=b"x")),
        r"step 1 \(make the symlink /loop/x\): the directory: (too many|symbolic link) ",
    ),
    "a node below a file": (
        pb.Step(node=pb.NodeStep(where=ROOTFS, path=b"/etc/passwd/null", mode=0o20666)),
        r"step 1 \(make the device /etc/passwd/null\): the directory: not a directory",
    ),
    "a node in place of a directory": (
        pb.Step(node=pb.NodeStep(where=ROOTFS, path=b"/etc", mode=0o20666, major=1, minor=3)),
        r"step 1 \(make the device /etc\): mknod: is a directory",
    ),
    "a directory in place of a file": (
        pb.Step(directory=pb.DirectoryStep(where=ROOTFS, path=b"/etc/passwd", mode=0o755)),
        r"step 1 \(make directory /etc/passwd\): there is something else: not a directory",
    ),
    "an unknown sysctl": (
        pb.Step(sysctl=pb.SysctlStep(path=b"net/no/such", value=b"1")),
        r"step 1 \(set sysctl net/no/such\): write \"1\": no such file or directory",
    ),
    "a sysctl outside": (
        pb.Step(sysctl=pb.SysctlStep(path=b"../version", value=b"1")),
        r"step 1 \(set sysctl \.\./version\): write \"1\": .*cross-device link",
    ),
    "a sysctl value": (
        pb.Step(sysctl=pb.SysctlStep(path=b"kernel/msgmax", value=b"much")),
        r"step 1 \(set sysctl kernel/msgmax\): write \"much\": invalid argument",
    ),
    "a hostname too long": (
        pb.Step(hostname=pb.HostnameStep(hostname="h" * 65)),
        r"step 1 \(set the hostname h+\): sethostname: invalid argument",
    ),
    "an interface that is not there": (
        pb.Step(link_up=pb.LinkUpStep(name="none0")),
        r"step 1 \(bring up none0\): bring it up: no such device",
    ),
    "a remount of nothing": (
        pb.Step(remount=pb.RemountStep(path=b"/absent", flags=1)),
        r"step 1 \(remount /absent\): open: no such file or directory",
    ),
    "a remount of no mount": (
        pb.Step(remount=pb.RemountStep(path=b"/etc", flags=1)),
        r"step 1 \(remount /etc\): remount: invalid argument",
    ),
}


@pytest.mark.parametrize("name", list(STEPS))
async def test_each_kind_of_step_fails_by_name(box: Box, name: str) -> None:
    step, sentence = STEPS[name]
    (box.rootfs / "loop").symlink_to("loop")
    plan = box.plan(default_spec("/bin/true"))
    bind_root = next(s for s in plan.steps if s.HasField("mount"))
    del plan.steps[:]
    plan.steps.extend([bind_root, step, pb.Step(pivot=pb.PivotStep())])
    async with nothing_left_behind(box):
        with pytest.raises(RpcError, match=sentence):
            await box.link.create_container(plan, timeout=DEADLINE)
    assert (await box.shell("echo still here")).stdout == "still here\n"


async def test_an_unknown_step_is_refused(box: Box) -> None:
    """A newer host's plan must not be carried out by halves."""
    plan = box.plan(default_spec("/bin/true"))
    unknown = b"\x22\x03\xfa\x01\x00"  # steps (4): a message with field 31, which is empty
    plan.MergeFromString(unknown)
    async with nothing_left_behind(box):
        with pytest.raises(RpcError, match="this guest does not know it"):
            await box.link.create_container(plan, timeout=DEADLINE)


async def test_a_rootfs_that_is_not_there(box: Box) -> None:
    plan = box.plan(default_spec("/bin/true"))
    del plan.steps[:]
    plan.steps.append(pb.Step(pivot=pb.PivotStep()))
    async with nothing_left_behind(box):
        sentence = r"step 0 \(change the root\): pivot_root to .*: no such file or directory"
        with pytest.raises(RpcError, match=sentence):
            await box.link.create_container(plan, timeout=DEADLINE)


async def test_optional_sysctls_and_cgroup_writes_may_fail(box: Box) -> None:
    plan = box.plan(default_spec("/bin/true"))
    step = pb.Step(sysctl=pb.SysctlStep(path=b"no/such", value=b"1", optional=True))
    plan.steps.insert(0, step)
    plan.cgroup.writes.add(file="no.such", value="1", optional=True)
    assert (await box.run_plan(plan)).status == 0


async def test_cgroup_writes_fail_by_file(box: Box) -> None:
    plan = box.plan(default_spec("/bin/true"))
    plan.cgroup.writes.add(file="cgroup.max.depth", value="many")
    async with nothing_left_behind(box):
        with pytest.raises(RpcError, match=r"write the cgroup's cgroup\.max\.depth: "):
            await box.link.create_container(plan, timeout=DEADLINE)


async def test_a_broken_device_filter_is_refused(box: Box) -> None:
    for instructions in (b"123", b"\0" * 8):
        plan = box.plan(default_spec("/bin/true"))
        plan.cgroup.device_filter = instructions
        async with nothing_left_behind(box):
            with pytest.raises(RpcError, match="attach the device filter: invalid argument"):
                await box.link.create_container(plan, timeout=DEADLINE)


async def test_a_broken_seccomp_filter_is_refused(box: Box) -> None:
    for instructions in (b"123", b"\0" * 8):
        plan = box.plan(default_spec("/bin/true", noNewPrivileges=False))
        plan.process.seccomp = instructions
        async with nothing_left_behind(box):
            with pytest.raises(RpcError, match="seccomp filter"):
                await box.link.create_container(plan, timeout=DEADLINE)


async def test_a_plan_without_a_program(box: Box) -> None:
    plan = box.plan(default_spec("/bin/true"))
    del plan.process.args[:]
    async with nothing_left_behind(box):
        with pytest.raises(RpcError, match="there is no program to run"):
            await box.link.create_container(plan, timeout=DEADLINE)
    plan.process.args.append(b"with\0nul")
    with pytest.raises(RpcError, match="hold a NUL byte"):
        await box.link.create_container(plan, timeout=DEADLINE)
