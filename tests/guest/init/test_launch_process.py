"""What a process is when it begins: ids, capabilities, limits, seccomp, and how it is found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from shims.guest.plan.capabilities import CAPABILITIES
from shims.ttrpc.errors import RpcError
from tests.guest.init.bundle import default_spec, nothing_left_behind, shell_spec
from tests.guest.init.harness import DEADLINE

if TYPE_CHECKING:
    from tests.guest.init.bundle import Box

pytestmark = pytest.mark.root

STATUS = "cat /proc/self/status"


def status_of(text: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def capability_bits(*names: str) -> str:
    return f"{sum(1 << CAPABILITIES[name] for name in names):016x}"


async def test_ids_and_groups(box: Box) -> None:
    user = {"uid": 1000, "gid": 1001, "additionalGids": [5, 1001, 70000], "umask": 0o027}
    outcome = await box.shell(
        STATUS + "; umask; touch /tmp/made; stat -c %u:%g /tmp/made", user=user
    )
    status = status_of(outcome.stdout)
    assert status["Uid"].split() == ["1000"] * 4
    assert status["Gid"].split() == ["1001"] * 4
    assert status["Groups"].split() == ["5", "1001", "70000"]
    assert outcome.stdout.splitlines()[-1] == "0027"
    assert "Permission denied" in outcome.stderr


async def test_home_comes_from_the_images_passwd(box: Box) -> None:
    for uid, home in ((0, "/root"), (1000, "/home/user"), (4711, "/")):
        outcome = await box.shell("echo $HOME", user={"uid": uid, "gid": 0})
        assert outcome.stdout == f"{home}\n"
    outcome = await box.shell("echo $HOME", env=["HOME=/elsewhere", "PATH=/bin"])
    assert outcome.stdout == "/elsewhere\n"


async def test_capability_sets(box: Box) -> None:
    sets = {
        "bounding": ["CAP_CHOWN", "CAP_NET_RAW", "CAP_KILL"],
        "permitted": ["CAP_CHOWN", "CAP_NET_RAW"],
        "effective": ["CAP_CHOWN"],
        "inheritable": ["CAP_NET_RAW"],
        "ambient": ["CAP_NET_RAW"],
    }
    user = {"uid": 1000, "gid": 1000}
    outcome = await box.shell(STATUS, user=user, capabilities=sets, noNewPrivileges=False)
    status = status_of(outcome.stdout)
    # execve by a user other than root: ambient capabilities are what is left.
    assert status["CapBnd"] == capability_bits("CAP_CHOWN", "CAP_NET_RAW", "CAP_KILL")
    assert status["CapPrm"] == status["CapEff"] == capability_bits("CAP_NET_RAW")
    assert status["CapAmb"] == status["CapInh"] == capability_bits("CAP_NET_RAW")


async def test_without_capabilities_root_has_none(box: Box) -> None:
    outcome = await box.shell(STATUS, capabilities=None)
    status = status_of(outcome.stdout)
    assert {status[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}


async def test_no_new_privileges(box: Box) -> None:
    for wanted in (True, False):
        outcome = await box.shell(STATUS, noNewPrivileges=wanted)
        assert status_of(outcome.stdout)["NoNewPrivs"] == str(int(wanted))


async def test_limits_priorities_and_affinity(box: Box) -> None:
    process: dict[str, Any] = {
        "rlimits": [
            {"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 2**64 - 1},
        ],
        "oomScoreAdj": 123,
        "scheduler": {"policy": "SCHED_BATCH", "nice": 7},
        "execCPUAffinity": {"initial": "0", "final": "0"},
    }
    outcome = await box.shell(
        "cat /proc/self/limits /proc/self/oom_score_adj /proc/self/status; cut -d' ' -f19,41"
        " /proc/self/stat",
        **process,
    )
    lines = [line.split() for line in outcome.stdout.splitlines()]
    assert ["Max", "open", "files", "77", "99", "files"] in lines
    assert ["Max", "core", "file", "size", "0", "unlimited", "bytes"] in lines
    assert ["123"] in lines
    assert status_of(outcome.stdout)["Cpus_allowed_list"] == "0"
    assert lines[-1] == ["7", "3"]  # nice, and SCHED_BATCH


async def test_an_impossible_limit_fails_by_name(box: Box) -> None:
    limits = [{"type": "RLIMIT_NOFILE", "soft": 2**40, "hard": 2**40}]
    with pytest.raises(RpcError, match="set resource limit 7 to"):
        await box.shell("true", rlimits=limits)


async def test_personality(box: Box) -> None:
    spec = shell_spec("uname -m; cat /proc/self/personality")
    spec["linux"]["personality"] = {"domain": "LINUX32"}
    outcome = await box.run(spec)
    assert outcome.stdout.split() == ["i686", "00000008"]


def profile(action: str, *names: str, **more: object) -> dict[str, Any]:
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": list(names), "action": action, **more}],
    }


@pytest.mark.parametrize("no_new_privileges", [True, False])
async def test_seccomp_kills_and_refuses(box: Box, no_new_privileges: bool) -> None:
    spec = shell_spec("mkdir /tmp/x; echo after", noNewPrivileges=no_new_privileges)
    spec["linux"]["seccomp"] = profile("SCMP_ACT_ERRNO", "mkdir", "mkdirat", errnoRet=95)
    outcome = await box.run(spec)
    assert outcome.stdout == "after\n"
    assert "Operation not supported" in outcome.stderr or "Not supported" in outcome.stderr
    spec["linux"]["seccomp"] = profile("SCMP_ACT_KILL_PROCESS", "mkdir", "mkdirat")
    spec["process"]["args"] = ["/bin/mkdir", "/tmp/x"]
    outcome = await box.run(spec)
    assert outcome.status == 128 + 31  # SIGSYS


async def test_a_strict_profile_needs_no_call_of_ours(box: Box) -> None:
    """With no_new_privileges the filter comes last: the profile allows what the program does."""
    spec = default_spec("/bin/true", noNewPrivileges=True)
    allowed = (
        "execve brk arch_prctl set_tid_address exit_group prctl getuid setuid getpid mmap ioctl"
    )
    allowed += (
        " set_robust_list rseq prlimit64 readlinkat readlink getrandom mprotect rt_sigprocmask"
    )
    spec["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_KILL_PROCESS",
        "syscalls": [{"names": allowed.split(), "action": "SCMP_ACT_ALLOW"}],
    }
    assert (await box.run(spec)).status == 0


async def test_the_program_is_found_along_path(box: Box) -> None:
    (box.rootfs / "first").mkdir()
    (box.rootfs / "first" / "echo").write_text("not executable")
    (box.rootfs / "first" / "ls").mkdir()
    spec = default_spec("echo", "found", env=["PATH=/absent:/first:/bin"])
    assert (await box.run(spec)).stdout == "found\n"
    spec = default_spec("../bin/echo", "relative", cwd="/tmp")
    assert (await box.run(spec)).stdout == "relative\n"
    spec = default_spec("echo", "default", env=[])
    assert (await box.run(spec)).stdout == "default\n"


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["absent"], 'exec: "absent": executable file not found in $PATH'),
        (["/absent"], 'exec: "/absent": no such file or directory'),
        (["/etc/passwd"], 'exec: "/etc/passwd": permission denied'),
        (["/etc"], 'exec: "/etc": is a directory'),
    ],
)
async def test_a_missing_program_fails_create(box: Box, args: list[str], text: str) -> None:
    async with nothing_left_behind(box):
        with pytest.raises(RpcError) as caught:
            await box.run(default_spec(*args))
        assert text in caught.value.message


async def test_execve_fails_at_start(box: Box) -> None:
    (box.rootfs / "bin" / "broken").write_text("no program at all")
    (box.rootfs / "bin" / "broken").chmod(0o755)
    (box.rootfs / "bin" / "orphan").write_text("#!/no/such/interpreter\n")
    (box.rootfs / "bin" / "orphan").chmod(0o755)
    for program, text in (("broken", "exec format error"), ("orphan", "no such file or directory")):
        plan = box.plan(default_spec(program))
        await box.link.create_container(plan, timeout=DEADLINE)
        with pytest.raises(RpcError, match=f'exec: "{program}": {text}'):
            await box.link.start_process(plan.container_id, timeout=DEADLINE)
        await box.link.delete_process(plan.container_id)


async def test_the_working_directory_is_made(box: Box) -> None:
    outcome = await box.run(default_spec("pwd", cwd="/new/place"))
    assert outcome.stdout == "/new/place\n"
    (box.rootfs / "file").write_text("")
    with pytest.raises(RpcError, match="file"):
        await box.run(default_spec("pwd", cwd="/file"))


# ---- exec --------------------------------------------------------------------------------------


async def running(box: Box) -> str:
    """Start a container that sleeps."""
    spec = default_spec("/bin/sleep", "1000")
    spec["hostname"] = "target"
    plan = box.plan(spec)
    await box.link.create_container(plan, timeout=DEADLINE)
    await box.link.start_process(plan.container_id, timeout=DEADLINE)
    return plan.container_id


def exec_process(*args: str, **more: object) -> dict[str, Any]:
    return {"args": list(args), "env": ["PATH=/bin"], "cwd": "/", **more}


async def stop(box: Box, name: str) -> None:
    await box.link.signal_process(name, signal=9)
    assert await box.exit_status(name) == 137
    await box.link.delete_process(name)


async def test_exec_joins_everything(box: Box) -> None:
    async with nothing_left_behind(box):
        name = await running(box)
        script = "hostname; for n in mnt pid ipc uts net cgroup; do readlink /proc/self/ns/$n;" \
                 " readlink /proc/1/ns/$n; done; cat /proc/self/cgroup | grep ^0"  # fmt: skip
        process = exec_process("sh", "-c", script, user={"uid": 0, "gid": 7})
        process["capabilities"] = {"permitted": ["CAP_SYS_PTRACE"], "bounding": ["CAP_SYS_PTRACE"],
                                   "effective": ["CAP_SYS_PTRACE"]}  # fmt: skip
        outcome = await box.exec(name, process)
        lines = outcome.stdout.split()
        assert lines[0] == "target"
        namespaces = lines[1:-1]
        assert len(namespaces) == 12, outcome
        assert namespaces[::2] == namespaces[1::2]
        assert lines[-1] == "0::/"
        await stop(box, name)


async def test_exec_status_ids_and_errors(box: Box) -> None:
    name = await running(box)
    user = {"uid": 1000, "gid": 1000, "additionalGids": [1, 2]}
    process = exec_process("sh", "-c", "id; pwd; exit 42", user=user, cwd="/home/user")
    outcome = await box.exec(name, process)
    assert outcome.status == 42
    assert outcome.stdout == "uid=1000(user) gid=1000 groups=1(daemon),2\n/home/user\n".replace(
        "(daemon)", ""
    )
    with pytest.raises(RpcError, match=r'exec: "absent": executable file not found in \$PATH'):
        await box.exec(name, exec_process("absent"), exec_id="absent")
    with pytest.raises(RpcError, match=r'chdir to cwd \("/nowhere"\): no such file or directory'):
        await box.exec(name, exec_process("pwd", cwd="/nowhere"), exec_id="nowhere")
    await stop(box, name)


async def test_exec_with_a_terminal(box: Box) -> None:
    name = await running(box)
    process = exec_process("sh", "-c", "tty; stty size", terminal=True,
                           consoleSize={"height": 5, "width": 6})  # fmt: skip
    outcome = await box.exec(name, process)
    assert outcome.stdout.replace("\r", "") == "/dev/pts/0\n5 6\n"
    await stop(box, name)


async def test_no_descriptor_leads_out(box: Box) -> None:
    """The working directory cannot be a descriptor that void-init had open (CVE-2024-21626)."""
    name = await running(box)
    for fd in range(3, 20):
        process = exec_process("pwd", cwd=f"/proc/self/fd/{fd}")
        with pytest.raises(RpcError):
            await box.exec(name, process, exec_id=f"fd{fd}")
    await stop(box, name)


async def test_exec_follows_into_cgroups_that_the_container_made(box: Box) -> None:
    name = await running(box)
    pid = next(p.pid for p in (await box.link.list_processes(name)) if p.declared)
    inner = box.guest.cgroup / name / "inner"
    inner.mkdir()
    (inner / "cgroup.procs").write_text(str(pid))
    assert (await box.exec(name, exec_process("true"))).status == 0
    await stop(box, name)
    assert not inner.exists()
