"""What ``ctr run`` asks of a container: its process, its identity, its files, its limits."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.images import unpack_rootfs
from tests.e2e.runtimes import RUNC, VOIDBOX, Runtime

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.workbench import Workbench

    Only = Callable[[Runtime, str], None]

pytestmark = [pytest.mark.root, pytest.mark.containerd, pytest.mark.qemu]


# ------------------------------------------------------------------------------------- statuses
@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_the_status_of_the_first_process(bench: Workbench, status: int) -> None:
    assert bench.status("sh", "-c", f"exit {status}") == status


def test_a_missing_program_is_an_error_that_names_it(bench: Workbench) -> None:
    words = bench.site.run_words(bench.name(), "/no/such/program", options=("--rm",))
    answer = bench.ctr(*words, check=False)
    assert answer.status != 0
    assert "/no/such/program" in answer.complaint


# ------------------------------------------------------------------------------------- identity
def test_environment_and_directory(bench: Workbench) -> None:
    text = bench.run(
        "sh", "-c", "pwd; echo $GIVEN; echo $IMAGE_SAYS",
        options=("--cwd", "/tmp", "--env", "GIVEN=two words"),
    )  # fmt: skip
    assert text == "/tmp\ntwo words\nyes\n"


def test_user_and_hostname(bench: Workbench) -> None:
    if "--user" not in bench.ctr("run", "--help").stdout.decode():
        pytest.skip("ctr of this release has no --user")
    text = bench.run(
        "sh", "-c", "id -u; id -g; hostname; touch /home/void/mine && echo may; "
        "touch /root/not 2>/dev/null || echo may not",
        options=("--user", "1000:1000", "--hostname", "chosen"),
    )  # fmt: skip
    assert text == "1000\n1000\nchosen\nmay\nmay not\n"


def test_capabilities_limits_and_new_privileges(bench: Workbench) -> None:
    text = bench.run(
        "sh", "-c", "grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status; ulimit -n",
        options=("--cap-drop", "CAP_CHOWN", "--cap-add", "CAP_SYS_TIME"),
    )  # fmt: skip
    found = dict(line.split(":\t") for line in text.splitlines() if ":" in line)
    expected = 0xA80425FB & ~(1 << 0) | (1 << 25)
    assert int(found["CapEff"], 16) == expected
    assert int(found["CapBnd"], 16) == expected
    assert found["NoNewPrivs"] == "1"
    assert text.splitlines()[-1] == "1024"


def test_seccomp_filters(bench: Workbench) -> None:
    text = bench.run(
        "sh", "-c", "grep ^Seccomp: /proc/self/status; unshare -n true 2>&1 || echo refused",
        options=("--seccomp",),
    )  # fmt: skip
    assert text.splitlines()[0].split() == ["Seccomp:", "2"]
    assert text.splitlines()[-1] == "refused"


def test_masked_and_read_only_paths(bench: Workbench) -> None:
    text = bench.run(
        "sh", "-c",
        "wc -c < /proc/keys; ls /proc/acpi 2>/dev/null | wc -l; "
        "echo 1 2>/dev/null > /proc/sys/kernel/printk || echo kept",
    )  # fmt: skip
    assert text.split() == ["0", "0", "kept"]


def test_privileged_may_do_more(bench: Workbench) -> None:
    text = bench.run(
        "sh", "-c",
        "grep CapEff /proc/self/status; mount -t tmpfs none /tmp && echo mounted; "
        "echo 4 > /proc/sys/kernel/printk && echo written",
        options=("--privileged",),
    )  # fmt: skip
    assert int(text.split()[1], 16) & (1 << 21)  # CAP_SYS_ADMIN
    assert text.split()[2:] == ["mounted", "written"]


def test_clock_and_devices(bench: Workbench) -> None:
    text = bench.run("sh", "-c", "date +%s; ls /dev; echo x > /dev/null; head -c4 /dev/zero")
    lines = text.splitlines()
    assert abs(int(lines[0]) - time.time()) < 5
    assert {"null", "zero", "full", "random", "urandom", "tty", "pts", "shm", "fd"} <= set(lines)


def test_privileged_shows_no_device_of_the_host(bench: Workbench, only: Only) -> None:
    only(VOIDBOX, "its kernel is the host's, and so are its devices")
    disks = {path.name for path in Path("/sys/class/block").iterdir()}
    shown = set(bench.run("ls", "/dev", options=("--privileged",)).split())
    assert not shown & (disks | {"kvm", "vhost-net", "net"})


# ---------------------------------------------------------------------------------- it is a VM
def test_each_container_has_a_kernel_of_its_own(bench: Workbench, only: Only) -> None:
    only(VOIDBOX, "containers share the host's kernel")
    look = ("sh", "-c", "cat /proc/sys/kernel/random/boot_id; cat /proc/cmdline; uname -r")
    first, second = bench.run(*look).splitlines(), bench.run(*look).splitlines()
    host = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert host not in {first[0], second[0]}
    assert first[1] != Path("/proc/cmdline").read_text().strip()
    assert re.match(r"\d+\.\d+", first[2])


def test_clones_do_not_share_their_randomness(bench: Workbench, only: Only) -> None:
    only(VOIDBOX, "there is no template to clone")
    look = ("sh", "-c", "head -c 32 /dev/urandom | md5sum; cat /proc/sys/kernel/random/uuid")
    seen = [line for _ in range(3) for line in bench.run(*look).splitlines()]
    assert len(set(seen)) == len(seen)


def test_only_loopback_without_a_network_to_join(bench: Workbench) -> None:
    assert bench.run("ls", "/sys/class/net").split() == ["lo"]


def test_the_hosts_network_is_refused(bench: Workbench, only: Only) -> None:
    only(VOIDBOX, "a container of the host's kernel shares it")
    words = bench.site.run_words(bench.name(), "true", options=("--rm", "--net-host"))
    answer = bench.ctr(*words, check=False)
    assert answer.status != 0
    assert "linux.namespaces: got 'no network namespace" in answer.complaint
    assert "leave out --net-host" in answer.complaint


# ---------------------------------------------------------------------------------------- files
def test_layers_are_what_the_image_says(bench: Workbench) -> None:
    text = bench.run("sh", "-c", "cat /etc/greeting; ls /opaque; ls -d /old 2>/dev/null; true")
    assert text == "hello from the second layer\nshown\n"


def test_the_root_file_system_is_writable_and_private(bench: Workbench) -> None:
    look = ("sh", "-c", "ls /etc/new 2>/dev/null; echo new > /etc/new; rm -r /opaque; ls -d /o*")
    assert bench.status(*look) == 1  # nothing left that begins with o
    assert bench.run("sh", "-c", "ls /etc/new 2>/dev/null; ls /opaque") == "shown\n"


def test_read_only(bench: Workbench) -> None:
    text = bench.run(
        "sh", "-c", "touch /etc/x 2>&1; touch /bin/busybox 2>&1; true", options=("--read-only",)
    )
    assert text.count("Read-only file system") == 2


def test_a_plain_directory_as_root(bench: Workbench, plain_rootfs: Path) -> None:
    (plain_rootfs / "etc" / "marker").write_text("from the host\n")
    name = bench.name()
    own = ("--runtime", bench.site.runtime.name, "--rm", "--rootfs")
    command = "cat /etc/marker; id -u; echo written > /etc/back; ln -s x /etc/link; mkdir /etc/d"
    answer = bench.ctr("run", *own, plain_rootfs, name, "/bin/sh", "-c", command)
    assert answer.text == "from the host\n0\n"
    assert (plain_rootfs / "etc" / "back").read_text() == "written\n"
    assert os.readlink(plain_rootfs / "etc" / "link") == "x"
    assert (plain_rootfs / "etc" / "d").is_dir()


def _bind(source: Path, target: str, mode: str) -> tuple[str, str]:
    return "--mount", f"type=bind,src={source},dst={target},options=rbind:{mode}"


def test_bind_mounts_of_directories(bench: Workbench, tmp_path: Path) -> None:
    shared, fixed = tmp_path / "shared", tmp_path / "fixed"
    for directory in (shared, fixed):
        directory.mkdir()
        (directory / "in").write_text(f"{directory.name}\n")
    text = bench.run(
        "sh", "-c",
        "cat /mnt/a/in /mnt/b/in; echo out > /mnt/a/out; mkdir /mnt/a/sub; "
        "touch /mnt/b/out 2>/dev/null || echo fixed stays",
        options=(*_bind(shared, "/mnt/a", "rw"), *_bind(fixed, "/mnt/b", "ro")),
    )  # fmt: skip
    assert text == "shared\nfixed\nfixed stays\n"
    assert (shared / "out").read_text() == "out\n"
    assert (shared / "sub").is_dir()
    assert sorted(path.name for path in fixed.iterdir()) == ["in"]


def test_bind_mounts_of_single_files(bench: Workbench, tmp_path: Path) -> None:
    for name in ("fixed", "shared", "secret"):
        (tmp_path / name).write_text(f"{name}\n")
    text = bench.run(
        "sh", "-c",
        "cat /etc/fixed /etc/shared; echo more >> /etc/shared; "
        "touch /etc/fixed 2>/dev/null || echo fixed stays; find / -xdev -name secret | wc -l",
        options=(
            *_bind(tmp_path / "fixed", "/etc/fixed", "ro"),
            *_bind(tmp_path / "shared", "/etc/shared", "rw"),
        ),
    )  # fmt: skip
    assert text == "fixed\nshared\nfixed stays\n0\n"
    assert (tmp_path / "shared").read_text() == "shared\nmore\n"


def test_a_bind_mount_shows_later_changes(bench: Workbench, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    name = bench.start(options=_bind(tmp_path / "d", "/mnt", "rw"))
    (tmp_path / "d" / "late").write_text("late\n")
    assert bench.exec(name, "cat", "/mnt/late") == "late\n"
    bench.exec(name, "sh", "-c", "echo back > /mnt/late")
    assert (tmp_path / "d" / "late").read_text() == "back\n"


# --------------------------------------------------------------------------------------- limits
def test_the_memory_limit_is_the_containers(bench: Workbench, only: Only) -> None:
    only(VOIDBOX, "the host's cgroup layout decides what runc's container sees")
    text = bench.run(
        "sh", "-c", "cat /sys/fs/cgroup/memory.max",
        options=(
            *("--memory-limit", str(64 << 20)),
            *("--mount", "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro"),
        ),
    )  # fmt: skip
    assert int(text) == 64 << 20


def test_out_of_memory_ends_with_137_and_an_event(bench: Workbench) -> None:
    with bench.ctr.events() as events:
        name = bench.start(
            "tail", "/dev/zero", options=("--memory-limit", str(48 << 20)), stem="oom"
        )
        exited = events.wait("/tasks/exit", name, process=name, timeout=60)
        assert exited.body["exit_status"] == 137
        events.wait("/tasks/oom", name)
        if bench.site.runtime is not RUNC:  # which watches the kernel and the process apart
            order = events.topics(name)
            assert order.index("/tasks/oom") < order.index("/tasks/exit")


# ------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--with-ns", "pid:/proc/1/ns/pid"), ["pid"]),
        (("--device", "/dev/kmsg"), ["/dev/kmsg", "volume"]),
        (
            (
                *("--annotation", "dev.void-box.vm.machine=microvm"),
                *("--mount", "type=bind,src=/tmp,dst=/mnt,options=rbind:rw"),
            ),
            ["machine: got 'microvm'", "q35 or auto"],
        ),
    ],
    ids=["host-pids", "host-device", "share-without-pci"],
)
def test_what_no_vm_can_do_is_refused_by_name(
    bench: Workbench, only: Only, options: tuple[str, ...], words: list[str]
) -> None:
    only(VOIDBOX, "a container of the host's kernel can do it")
    name = bench.name()
    answer = bench.ctr(*bench.site.run_words(name, "true", options=options), check=False)
    assert answer.status != 0
    for word in words:
        assert word in answer.complaint
    assert bench.ctr.state(name) == "ABSENT"


def test_a_senseless_size_is_refused_with_its_field(bench: Workbench, only: Only) -> None:
    only(VOIDBOX, "it has no VM to size")
    options = ("--annotation", "dev.void-box.vm.memory=plenty")
    answer = bench.ctr(*bench.site.run_words(bench.name(), "true", options=options), check=False)
    assert answer.status != 0
    assert "dev.void-box.vm.memory" in answer.complaint
    assert "plenty" in answer.complaint


_SIZE = "grep -c ^processor /proc/cpuinfo; cat /sys/fs/cgroup/memory.max"


def test_the_runtimes_options_are_settings(bench: Workbench, only: Only, tmp_path: Path) -> None:
    """A file named to ctr, as the options of a runtime's entry are to the CRI."""
    only(VOIDBOX, "it has no VM to set")
    config = tmp_path / "config.toml"
    config.write_text("[vm]\nvcpus = 2\nmemory = '300Mi'\n")
    given = ("--runtime-config-path", str(config))
    see = ("--mount", "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro")
    sizes = bench.run("sh", "-c", _SIZE, options=(*given, *see)).split()
    assert sizes == ["2", str(300 << 20)]
    mine = ("--annotation", "dev.void-box.vm.vcpus=1")
    sizes = bench.run("sh", "-c", _SIZE, options=(*given, *see, *mine)).split()
    assert sizes == ["1", str(300 << 20)]


@pytest.mark.parametrize("text", ["vcpu = 2", None], ids=["unknown-name", "no-file"])
def test_senseless_options_are_refused_with_their_file(
    bench: Workbench, only: Only, tmp_path: Path, text: str | None
) -> None:
    only(VOIDBOX, "it has no VM to set")
    config = tmp_path / "config.toml"
    if text is not None:
        config.write_text(text)
    options = ("--runtime-config-path", str(config))
    answer = bench.ctr(*bench.site.run_words(bench.name(), "true", options=options), check=False)
    assert answer.status != 0
    assert f"{config}: {'no such' if text is None else 'vcpu'}" in answer.complaint


def test_checkpoint_is_refused_clearly(bench: Workbench, only: Only) -> None:
    only(VOIDBOX, "it needs criu")
    answer = bench.ctr("task", "checkpoint", bench.start(), check=False)
    assert answer.status != 0
    assert "checkpoint" in answer.complaint  # ctr 2 shows our sentence, earlier ones the code too


def test_a_container_from_a_hand_made_config(
    bench: Workbench, busybox: Path, tmp_path: Path
) -> None:
    """``ctr run --config`` hands our own config.json over, fields that ctr cannot set included."""
    rootfs = unpack_rootfs(busybox, tmp_path / "r")
    config = {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0, "additionalGids": [29]},
            "args": ["/bin/sh", "-c", "ulimit -n; id -G; cat /proc/self/oom_score_adj; "
                                      "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99}],
            "oomScoreAdj": 123,
        },
        "root": {"path": str(rootfs)},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "cgroupsPath": f"/{bench.site.daemon.namespace}/{bench.name()}",
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")],
            "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0"},
        },
    }  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    own = ("--runtime", bench.site.runtime.name, "--rm", "--config", str(path))
    lines = bench.ctr("run", *own, bench.name()).text.splitlines()
    assert lines[0] == "77"
    assert set(lines[1].split()) == {"0", "29"}
    assert lines[-2:] == ["123", "0"]
