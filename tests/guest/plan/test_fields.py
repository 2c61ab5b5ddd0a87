"""Every field of the OCI runtime spec is carried out, left out for a written reason, or refused.

For a carried field the proof is a pair of values: both compile, and the plans differ. For a refused
one, that it raises with the field's path; for an ignored one, that the plan stays as it is.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from shims.core.errors import InputError
from shims.guest.plan import review
from shims.guest.plan.fields import VERDICTS, Ignored, Refused
from tests.guest.plan.specs import compile_spec, spec_with

FIELDS = [
    line
    for line in (Path(__file__).parent / "oci_fields.txt").read_text().splitlines()
    if line and not line.startswith("#")
]

RULE = {"allow": True, "type": "c", "major": 10, "minor": 1, "access": "rw"}
DEVICE = {"path": "/dev/x", "type": "c", "major": 10, "minor": 229, "fileMode": 0o600}
LIMIT = {"type": "RLIMIT_CORE", "soft": 1, "hard": 2}
ARG = {"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}
CALL = {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": [ARG]}
PROFILE = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [CALL]}
REALTIME = {"policy": "SCHED_FIFO", "priority": 1}
DEADLINE = {"policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3}
MOUNT = {"destination": "/a", "type": "tmpfs", "source": "x"}
TIME = [{"type": "time"}]
SETS = {name: ["CAP_KILL"] for name in ("bounding", "permitted", "inheritable", "effective")}

# field → (where to put it, first value, second value)
PROOFS: dict[str, tuple[str, object, object]] = {
    "hostname": ("hostname", "a", "b"),
    "domainname": ("domainname", "a", "b"),
    "root.readonly": ("root", {"readonly": True}, {"readonly": False}),
    "mounts[].destination": ("mounts", [MOUNT], [{**MOUNT, "destination": "/b"}]),
    "mounts[].source": ("mounts", [MOUNT], [{**MOUNT, "source": "y"}]),
    "mounts[].type": ("mounts", [MOUNT], [{**MOUNT, "type": "proc"}]),
    "mounts[].options": ("mounts", [MOUNT], [{**MOUNT, "options": ["ro"]}]),
    "process.args": ("process.args", ["/a"], ["/b"]),
    "process.consoleSize.height": (
        "process", {"args": ["a"], "terminal": True, "consoleSize": {"height": 1, "width": 1}},
        {"args": ["a"], "terminal": True, "consoleSize": {"height": 2, "width": 1}}),
    "process.consoleSize.width": (
        "process", {"args": ["a"], "terminal": True, "consoleSize": {"height": 1, "width": 1}},
        {"args": ["a"], "terminal": True, "consoleSize": {"height": 1, "width": 2}}),
    "process.cwd": ("process.cwd", "/a", "/b"),
    "process.env": ("process.env", ["A=1"], ["A=2"]),
    "process.terminal": ("process.terminal", True, False),
    "process.user.uid": ("process.user.uid", 1, 2),
    "process.user.gid": ("process.user.gid", 1, 2),
    "process.user.umask": ("process.user.umask", 0, 0o77),
    "process.user.additionalGids": ("process.user.additionalGids", [1], [2]),
    **{
        f"process.capabilities.{name}": ("process.capabilities", SETS, {**SETS, name: []})
        for name in ("bounding", "permitted", "effective", "inheritable")
    },
    "process.capabilities.ambient": (
        "process.capabilities", SETS, {**SETS, "ambient": ["CAP_KILL"]}),
    "process.oomScoreAdj": ("process.oomScoreAdj", -1, 1),
    "process.ioPriority.class": (
        "process.ioPriority", {"class": "IOPRIO_CLASS_BE"}, {"class": "IOPRIO_CLASS_RT"}),
    "process.ioPriority.priority": (
        "process.ioPriority", {"class": "IOPRIO_CLASS_BE", "priority": 1},
        {"class": "IOPRIO_CLASS_BE", "priority": 2}),
    "process.noNewPrivileges": ("process.noNewPrivileges", True, False),
    "process.scheduler.policy": (
        "process.scheduler", {"policy": "SCHED_BATCH"}, {"policy": "SCHED_IDLE"}),
    "process.scheduler.nice": (
        "process.scheduler", {"policy": "SCHED_OTHER", "nice": 1},
        {"policy": "SCHED_OTHER", "nice": -1}),
    "process.scheduler.priority": ("process.scheduler", REALTIME, {**REALTIME, "priority": 2}),
    "process.scheduler.flags": (
        "process.scheduler", REALTIME, {**REALTIME, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}),
    "process.scheduler.runtime": ("process.scheduler", DEADLINE, {**DEADLINE, "runtime": 2}),
    "process.scheduler.deadline": ("process.scheduler", DEADLINE, {**DEADLINE, "deadline": 3}),
    "process.scheduler.period": ("process.scheduler", DEADLINE, {**DEADLINE, "period": 4}),
    "process.rlimits[].type": (
        "process.rlimits", [LIMIT], [{**LIMIT, "type": "RLIMIT_CPU"}]),
    "process.rlimits[].soft": ("process.rlimits", [LIMIT], [{**LIMIT, "soft": 2}]),
    "process.rlimits[].hard": ("process.rlimits", [LIMIT], [{**LIMIT, "hard": 3}]),
    "process.execCPUAffinity.initial": (
        "process.execCPUAffinity", {"initial": "0"}, {"initial": "1"}),
    "process.execCPUAffinity.final": ("process.execCPUAffinity", {"final": "0"}, {"final": "1"}),
    "linux.devices[].type": (
        "linux.devices", [DEVICE], [{"path": "/dev/x", "type": "p", "fileMode": 0o600}]),
    "linux.devices[].path": ("linux.devices", [DEVICE], [{**DEVICE, "path": "/dev/y"}]),
    "linux.devices[].major": (
        "linux.devices", [{**DEVICE, "major": 1, "minor": 3}], [{**DEVICE, "minor": 229}]),
    "linux.devices[].minor": (
        "linux.devices", [{**DEVICE, "major": 1, "minor": 3}],
        [{**DEVICE, "major": 1, "minor": 5}]),
    "linux.devices[].fileMode": ("linux.devices", [DEVICE], [{**DEVICE, "fileMode": 0o644}]),
    "linux.devices[].uid": ("linux.devices", [DEVICE], [{**DEVICE, "uid": 1}]),
    "linux.devices[].gid": ("linux.devices", [DEVICE], [{**DEVICE, "gid": 1}]),
    "linux.namespaces[].type": ("linux.namespaces", [{"type": "pid"}], [{"type": "ipc"}]),
    "linux.namespaces[].path": (
        "linux.namespaces", [{"type": "pid"}], [{"type": "pid", "path": "/proc/7/ns/pid"}]),
    "linux.resources.unified": (
        "linux.resources.unified", {"memory.high": "1"}, {"memory.high": "2"}),
    "linux.resources.devices[].allow": (
        "linux.resources.devices", [RULE], [{**RULE, "allow": False}]),
    "linux.resources.devices[].type": (
        "linux.resources.devices", [RULE], [{**RULE, "type": "b"}]),
    "linux.resources.devices[].major": (
        "linux.resources.devices", [RULE], [{**RULE, "major": 11}]),
    "linux.resources.devices[].minor": (
        "linux.resources.devices", [RULE], [{**RULE, "minor": 2}]),
    "linux.resources.devices[].access": (
        "linux.resources.devices", [RULE], [{**RULE, "access": "r"}]),
    "linux.resources.pids.limit": ("linux.resources.pids.limit", 5, 6),
    "linux.resources.blockIO.weight": ("linux.resources.blockIO.weight", 10, 100),
    "linux.resources.cpu.period": ("linux.resources.cpu.period", 50000, 60000),
    "linux.resources.cpu.quota": ("linux.resources.cpu.quota", 50000, 60000),
    "linux.resources.cpu.burst": ("linux.resources.cpu.burst", 0, 60000),
    "linux.resources.cpu.shares": ("linux.resources.cpu.shares", 512, 1024),
    "linux.resources.cpu.idle": ("linux.resources.cpu.idle", 0, 1),
    "linux.resources.hugepageLimits[].pageSize": (
        "linux.resources.hugepageLimits", [{"pageSize": "2MB", "limit": 1}],
        [{"pageSize": "1GB", "limit": 1}]),
    "linux.resources.hugepageLimits[].limit": (
        "linux.resources.hugepageLimits", [{"pageSize": "2MB", "limit": 1}],
        [{"pageSize": "2MB", "limit": 2}]),
    "linux.resources.memory.limit": ("linux.resources.memory.limit", 1, 2),
    "linux.resources.memory.reservation": ("linux.resources.memory.reservation", 1, 2),
    "linux.resources.memory.swap": (
        "linux.resources.memory", {"limit": 1, "swap": 1}, {"limit": 1, "swap": 2}),
    "linux.rootfsPropagation": ("linux.rootfsPropagation", "rslave", "private"),
    "linux.seccomp.defaultAction": (
        "linux.seccomp", PROFILE, {**PROFILE, "defaultAction": "SCMP_ACT_KILL"}),
    "linux.seccomp.defaultErrnoRet": (
        "linux.seccomp", {**PROFILE, "defaultAction": "SCMP_ACT_ERRNO"},
        {**PROFILE, "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5}),
    "linux.seccomp.architectures": (
        "linux.seccomp", PROFILE, {**PROFILE, "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_ARM"]}),
    "linux.seccomp.flags": (
        "linux.seccomp", PROFILE, {**PROFILE, "flags": ["SECCOMP_FILTER_FLAG_LOG"]}),
    "linux.seccomp.syscalls[].names": (
        "linux.seccomp", PROFILE, {**PROFILE, "syscalls": [{**CALL, "names": ["rmdir"]}]}),
    "linux.seccomp.syscalls[].action": (
        "linux.seccomp", PROFILE, {**PROFILE, "syscalls": [{**CALL, "action": "SCMP_ACT_TRAP"}]}),
    "linux.seccomp.syscalls[].errnoRet": (
        "linux.seccomp", PROFILE, {**PROFILE, "syscalls": [{**CALL, "errnoRet": 2}]}),
    **{
        f"linux.seccomp.syscalls[].args[].{name}": (
            "linux.seccomp", PROFILE,
            {**PROFILE, "syscalls": [{**CALL, "args": [{**ARG, name: other}]}]})
        for name, other in (
            ("index", 1), ("value", 3), ("valueTwo", 1), ("op", "SCMP_CMP_EQ"))
    },
    "linux.sysctl": ("linux.sysctl", {"net.a": "1"}, {"net.a": "2"}),
    "linux.maskedPaths": ("linux.maskedPaths", ["/a"], ["/b"]),
    "linux.readonlyPaths": ("linux.readonlyPaths", ["/a"], ["/b"]),
    "linux.personality.domain": (
        "linux.personality", {"domain": "LINUX"}, {"domain": "LINUX32"}),
    "linux.timeOffsets.*.secs": (
        "linux", {"namespaces": TIME, "timeOffsets": {"boottime": {"secs": 1}}},
        {"namespaces": TIME, "timeOffsets": {"boottime": {"secs": -1}}}),
    "linux.timeOffsets.*.nanosecs": (
        "linux", {"namespaces": TIME, "timeOffsets": {"boottime": {"nanosecs": 1}}},
        {"namespaces": TIME, "timeOffsets": {"boottime": {"nanosecs": 2}}}),
}  # fmt: skip


def verdict_on(field: str) -> object:
    """Return the verdict on a field, which may be that on an object above it."""
    while field:
        if field in VERDICTS:
            return VERDICTS[field]
        field = field.removesuffix("[]") if field.endswith("[]") else field.rpartition(".")[0]
    return None


def sample(field: str) -> dict[str, Any]:
    """Return a spec in which the field says something."""
    spec = spec_with()
    place: Any = spec
    *parents, last = field.split(".")
    for name in parents:
        plain = name.removesuffix("[]")
        place = place.setdefault(plain, [{}] if name.endswith("[]") else {})
        place = place[0] if name.endswith("[]") else place
    place[last] = [{"x": 1}]
    # What such an object cannot be without.
    if field.startswith("linux.seccomp"):
        place["defaultAction"] = "SCMP_ACT_ALLOW"
    if field.startswith("linux.personality"):
        place["domain"] = "LINUX"
    return spec


def options() -> dict[str, Any]:
    return {"joins": {"/proc/7/ns/pid": "other"}}


@pytest.mark.parametrize("field", FIELDS)
def test_each_field_has_its_verdict_and_it_holds(field: str) -> None:
    verdict = verdict_on(field)
    assert verdict is not None, "no verdict in shims/guest/plan/fields.py"
    if isinstance(verdict, Refused):
        with pytest.raises(InputError) as caught:
            compile_spec(sample(field))
        assert verdict.allowed in str(caught.value)
        plain = field.replace("[]", "[0]")
        assert any(plain.startswith(word.strip(":")) for word in str(caught.value).split())
    elif isinstance(verdict, Ignored):
        assert verdict.reason
        assert compile_spec(sample(field)) == compile_spec(neutral(field))
        found = [finding.reason for finding in review(sample(field))]
        assert verdict.usual or verdict.reason in found
    else:
        path, first, second = PROOFS[field]
        one = compile_spec(spec_with(path, first), **options())
        two = compile_spec(spec_with(path, second), **options())
        assert one != two


def neutral(field: str) -> dict[str, Any]:
    """Return the sample without the field: what is around it stays."""
    spec = sample(field)
    place: Any = spec
    *parents, last = field.split(".")
    for name in parents:
        place = place[name.removesuffix("[]")]
        place = place[0] if name.endswith("[]") else place
    del place[last]
    return spec


def test_proofs_and_verdicts_name_fields_of_the_spec() -> None:
    assert set(PROOFS) <= set(FIELDS)
    for verdict in VERDICTS:
        assert any(f"{field}.".startswith(f"{verdict}") for field in FIELDS), verdict


def test_unknown_fields_are_reported() -> None:
    spec = spec_with("linux.resources.cpu", {"sharez": 5})
    spec["colour"] = "blue"
    found = {finding.field for finding in review(spec)}
    assert {"linux.resources.cpu.sharez", "colour"} <= found


def test_empty_fields_say_nothing() -> None:
    spec = spec_with("hooks", {"prestart": [], "poststop": None})
    spec["linux"].update(intelRdt={"closID": ""}, uidMappings=[], netDevices={})
    spec["windows"] = None
    before = json.dumps(spec)
    assert compile_spec(spec) == compile_spec(spec_with())
    assert review(copy.deepcopy(spec)) == review(spec_with())
    assert json.dumps(spec) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("linux.netDevices", {"eth0": {}}),
        ("linux.resources", {"rdma": {"mlx5_0": {}}}),
        ("hooks", {"prestart": [{"path": "/bin/x"}]}),
    ],
)
def test_a_field_that_says_little_says_something(field: str, value: object) -> None:
    with pytest.raises(InputError):
        compile_spec(spec_with(field, value))
