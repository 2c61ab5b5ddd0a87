"""Mounts, namespaces, names, processes: what is refused, and what order things come in."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from protos.gen.voidbox.guest.v1 import guest_pb2 as pb
from shims.core.errors import InputError
from shims.guest.plan import GuestSource, Rootfs, Streams, compile_process
from shims.guest.plan.options import parse_options
from shims.guest.plan.process import parse_cpus
from shims.guest.plan.sysctls import sysctl_path
from tests.guest.plan.specs import LAYER, compile_spec, spec_with


def mount_of(mount: dict[str, Any], source: GuestSource | None = None) -> pb.MountStep:
    sources = {0: source} if source else {}
    plan = compile_spec(spec_with("mounts", [mount]), sources=sources)
    steps = [step.mount for step in plan.steps if step.HasField("mount")]
    return steps[-1]


def bind(**more: object) -> dict[str, Any]:
    return {"destination": "/d", "type": "bind", "source": "/s", "options": ["rbind"], **more}


# ---- mounts ------------------------------------------------------------------------------------


def test_a_pushed_source_is_bound() -> None:
    step = mount_of(bind(options=["rbind", "ro", "rslave"]), GuestSource("pushed", "/p", path="f"))
    assert (step.source_kind, step.source) == (pb.MountStep.SOURCE_PATH, b"/p/f")
    assert step.flags == 4096 | 16384 | 1
    assert step.propagation == 1 << 19 | 16384


def test_a_share_and_a_disk_are_mounted() -> None:
    step = mount_of(bind(options=["rbind", "nosuid"]), GuestSource("share", "tag", path="/a/b/"))
    assert (step.source_kind, step.fstype) == (pb.MountStep.SOURCE_TAG, "virtiofs")
    assert (step.source, step.source_subpath, step.flags) == (b"tag", b"a/b", 2)
    step = mount_of(bind(), GuestSource("disk", "v-1", fstype="ext4"))
    assert (step.source_kind, step.fstype, step.flags) == (pb.MountStep.SOURCE_DISK, "ext4", 0)
    assert step.wait_ms > 0


def test_the_cgroup_mount_is_version_2_whatever_the_host_has() -> None:
    options = ["nosuid", "noexec", "nodev", "relatime", "ro", "xattr"]
    step = mount_of({"destination": "/sys/fs/cgroup", "type": "cgroup", "options": options})
    assert (step.fstype, step.data) == ("cgroup2", b"")


@pytest.mark.parametrize(
    ("mount", "field"),
    [
        (bind(), "mounts[0].source"),
        ({"destination": "/d", "type": "ext4", "source": "/dev/sdb"}, "mounts[0].type"),
        ({"destination": "/d", "type": "nfs", "source": "h:/x"}, "mounts[0].type"),
        ({"destination": "", "type": "tmpfs"}, "mounts[0].destination"),
        ({"destination": "/d", "type": "tmpfs", "options": ["idmap"]}, "mounts[0].options[0]"),
        ({"destination": "/d", "type": "tmpfs", "options": ["remount"]}, "mounts[0].options[0]"),
        ({"destination": "/d", "type": "proc", "options": ["tmpcopyup"]}, "mounts[0].options"),
        ({"destination": "/d", "type": "tmpfs", "options": "ro"}, "mounts[0].options"),
        ({"destination": "/d\0", "type": "tmpfs"}, "mounts[0].destination"),
        ("/d", "mounts[0]"),
    ],
)
def test_mounts_that_cannot_be(mount: Any, field: str) -> None:
    with pytest.raises(InputError) as caught:
        compile_spec(spec_with("mounts", [mount]))
    assert str(caught.value).startswith(f"{field}: got ")


def test_option_table() -> None:
    options = parse_options(
        ["noexec", "nosuid", "exec", "rro", "rnoexec", "rexec", "rnoatime", "size=1m", "mode=700"],
        "",
    )
    assert options.flags == 2
    assert options.data == ["size=1m", "mode=700"]
    assert options.set_attributes == 0x1 | 0x10
    assert options.clear_attributes == 0x8 | 0x60
    assert parse_options(["rrelatime"], "").clear_attributes == 0x70
    assert parse_options(["defaults", "rw", "suid", "dev"], "").flags == 0


# ---- root --------------------------------------------------------------------------------------


def test_layers_become_an_overlay() -> None:
    layers = (LAYER, GuestSource("pushed", "/below"))
    plan = compile_spec(spec_with(), rootfs=Rootfs(layers=layers))
    overlay = next(s.mount for s in plan.steps if s.mount.fstype == "overlay")
    base = "/run/void/c/c1"
    assert overlay.data.decode() == (
        f"lowerdir={base}/lower0:{base}/lower1,upperdir={base}/upper/upper,workdir={base}/upper/work"
    )
    assert overlay.target == plan.rootfs


def test_an_upper_disk_need_not_be_synced() -> None:
    upper = GuestSource("disk", "u-1", fstype="ext4")
    plan = compile_spec(spec_with(), rootfs=Rootfs(layers=(LAYER,), upper=upper))
    overlay = next(s.mount for s in plan.steps if s.mount.fstype == "overlay")
    assert overlay.data.endswith(b",volatile")


@pytest.mark.parametrize("rootfs", [Rootfs(), Rootfs(layers=(GuestSource("disk", "x"),))])
def test_a_root_of_nothing(rootfs: Rootfs) -> None:
    with pytest.raises(InputError, match="rootfs"):
        compile_spec(spec_with(), rootfs=rootfs)


@pytest.mark.parametrize(("view", "spec"), [(True, False), (False, True), (False, False)])
def test_readonly_is_the_pivots(view: bool, spec: bool) -> None:
    plan = compile_spec(
        spec_with("root.readonly", spec), rootfs=Rootfs(layers=(LAYER,), readonly=view)
    )
    assert plan.steps[-1].pivot.readonly == (view or spec)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".x", "a:b", "a,b", "x" * 200])
def test_container_ids_are_paths_later(name: str) -> None:
    with pytest.raises(InputError, match="id"):
        compile_spec(spec_with(), container_id=name)


# ---- namespaces and names ----------------------------------------------------------------------


def kinds(plan: pb.LaunchPlan) -> set[str]:
    names = pb.Namespace.Kind.Name
    return {names(entry.kind).removeprefix("KIND_").lower() for entry in plan.namespaces}


def test_mount_and_cgroup_namespaces_are_always_new() -> None:
    assert kinds(compile_spec(spec_with("linux.namespaces", []))) == {"mount", "cgroup"}


def test_the_network_namespace() -> None:
    """Loopback VMs are as good as a new namespace; a VM with a network is the one to join."""
    new = [{"type": "network"}]
    joined = [{"type": "network", "path": "/var/run/netns/cni-1"}]
    assert "network" not in kinds(compile_spec(spec_with("linux.namespaces", new)))
    assert "network" in kinds(compile_spec(spec_with("linux.namespaces", new), network="vm"))
    assert "network" not in kinds(compile_spec(spec_with("linux.namespaces", joined), network="vm"))
    with pytest.raises(InputError, match=r"linux\.namespaces\[0\]\.path.*loopback only"):
        compile_spec(spec_with("linux.namespaces", joined))


@pytest.mark.parametrize("kind", ["pid", "ipc", "uts", "mount", "cgroup", "time"])
def test_host_namespaces_cannot_be_joined(kind: str) -> None:
    entry = {"type": kind, "path": f"/proc/1/ns/{kind}"}
    with pytest.raises(InputError, match=r"linux\.namespaces\[0\]\.path"):
        compile_spec(spec_with("linux.namespaces", [entry]), network="vm")


@pytest.mark.parametrize(
    "entries", [[{"type": "user"}], [{"type": "x"}], [{}], [{"type": "pid"}, {"type": "pid"}]]
)
def test_namespaces_that_cannot_be(entries: list[dict[str, Any]]) -> None:
    with pytest.raises(InputError, match=r"linux\.namespaces\["):
        compile_spec(spec_with("linux.namespaces", entries))


def test_a_shared_name_is_left_alone() -> None:
    spec = spec_with("hostname", "pod")
    spec["linux"]["namespaces"] = [{"type": "uts", "path": "/proc/7/ns/uts"}]
    plan = compile_spec(spec, joins={"/proc/7/ns/uts": "sandbox"})
    assert not [step for step in plan.steps if step.HasField("hostname")]
    with pytest.raises(InputError, match="hostname"):
        compile_spec(spec_with("hostname", "h" * 65))


def test_sysctl_names() -> None:
    assert sysctl_path("net.ipv4.ip_forward") == "net/ipv4/ip_forward"
    assert sysctl_path("net/ipv4/conf/eth0.1/forwarding") == "net/ipv4/conf/eth0.1/forwarding"
    assert sysctl_path("net.ipv4.conf.eth0/1.forwarding") == "net/ipv4/conf/eth0.1/forwarding"


@pytest.mark.parametrize(
    "name", ["kernel.core_pattern", "kernel/modprobe", "kernel.panic", "..", "net..x", "x", ""]
)
def test_sysctls_of_the_vm_are_not_the_containers(name: str) -> None:
    with pytest.raises(InputError, match=r"linux\.sysctl"):
        compile_spec(spec_with("linux.sysctl", {name: "1"}))


# ---- processes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("process", "field"),
    [
        ({}, "process.args"),
        ({"args": []}, "process.args"),
        ({"args": [""]}, "process.args"),
        ({"args": ["a", 1]}, "process.args[1]"),
        ({"args": ["a"], "cwd": "x"}, "process.cwd"),
        ({"args": ["a"], "env": ["A"]}, "process.env[0]"),
        ({"args": ["a"], "env": ["=A"]}, "process.env[0]"),
        ({"args": ["a"], "user": {"uid": -1}}, "process.user.uid"),
        ({"args": ["a"], "user": {"uid": 2**32}}, "process.user.uid"),
        ({"args": ["a"], "user": {"additionalGids": [1, "x"]}}, "process.user.additionalGids[1]"),
        ({"args": ["a"], "oomScoreAdj": 1001}, "process.oomScoreAdj"),
        ({"args": ["a"], "rlimits": [{"type": "RLIMIT_X"}]}, "process.rlimits[0].type"),
        (
            {"args": ["a"], "rlimits": [{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]},
            "process.rlimits[0].soft",
        ),
        (
            {"args": ["a"], "rlimits": [{"type": "RLIMIT_CPU"}, {"type": "RLIMIT_CPU"}]},
            "process.rlimits[1].type",
        ),
        ({"args": ["a"], "ioPriority": {"class": "x"}}, "process.ioPriority.class"),
        ({"args": ["a"], "scheduler": {"policy": "x"}}, "process.scheduler.policy"),
        ({"args": ["a"], "execCPUAffinity": {"final": "3-1"}}, "process.execCPUAffinity.final"),
        ({"args": ["a"], "terminal": 1}, "process.terminal"),
    ],
)
def test_processes_that_cannot_be(process: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        compile_process(process)
    assert str(caught.value).startswith(f"{field}: got ")


def test_of_a_variable_that_is_given_twice_the_last_counts() -> None:
    plan = compile_process({"args": ["a"], "env": ["PATH=/no", "A=1", "PATH=/bin", "A="]})
    assert list(plan.env) == [b"PATH=/bin", b"A="]


def test_cpu_lists() -> None:
    assert parse_cpus("0-3,8", "f") == bytes([0x0F, 0x01, 0, 0, 0, 0, 0, 0])
    assert parse_cpus("64", "f") == bytes(8) + bytes([1]) + bytes(7)


def test_streams_and_terminals() -> None:
    plan = compile_process({"args": ["a"]}, streams=Streams(stdin=False, stderr=False))
    assert (plan.stdin, plan.stdout, plan.stderr) == (False, True, False)
    assert not compile_process({"args": ["a"], "terminal": True}).stderr


def test_an_exec_has_its_containers_profile() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}],
    }
    spec = spec_with("linux.seccomp", profile)
    assert compile_process({"args": ["a"]}, spec=spec).seccomp == compile_spec(spec).process.seccomp
    assert not compile_process({"args": ["a"]}).seccomp


def test_unknown_capabilities_are_what_the_guest_could_not_grant() -> None:
    sets = {"bounding": ["CAP_FUTURE", "cap_kill"], "permitted": [], "ambient": ["CAP_KILL"]}
    capabilities = compile_process({"args": ["a"], "capabilities": sets}).capabilities
    assert (capabilities.bounding, capabilities.ambient) == (1 << 5, 0)


def test_bytes_that_are_no_text_survive() -> None:
    plan = compile_process({"args": ["/bin/echo", "ä", "\udcff"]})
    assert list(plan.args) == [b"/bin/echo", "ä".encode(), b"\xff"]


def test_the_compiler_is_cheap_to_import() -> None:
    script = (
        "import sys, shims.guest.plan; "
        "print(sorted({'asyncio', 'pydantic', 'pyseccomp', 'subprocess'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.strip() == "[]"
