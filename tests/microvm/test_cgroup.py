"""Cgroups: paths in both dialects, the mounts of a host, and the real thing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from shims.core.errors import InputError, TargetError
from shims.microvm.cgroup import (
    Cgroup,
    Hierarchy,
    find_hierarchies,
    group_for,
    machine_cgroup,
    machine_cgroups,
    parent_of,
    parse_mountinfo,
)


@pytest.mark.parametrize(
    ("path", "parent"),
    [
        (None, "/void-shims"),
        ("", "/void-shims"),
        ("/a/b/c", "/a/b"),
        ("a//b/./c/", "/a/b"),
        ("/alone", "/void-shims"),
        ("kubepods-burstable-pod1.slice:cri:id", None),
        ("system.slice:runc:x", "/system.slice"),
        (":runc:x", "/system.slice"),
        ("-.slice:runc:x", ""),
    ],
)
def test_parent(path: str | None, parent: str | None) -> None:
    if parent is None:
        parent = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice"
    assert parent_of(path) == parent


@pytest.mark.parametrize("path", ["/a/../../b", "no-slice:p:n", "a/b.slice:p:n", "a--b.slice:p:n"])
def test_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    with pytest.raises(InputError, match=r"linux\.cgroupsPath"):
        parent_of(path)


HYBRID = """\
24 20 0:21 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
25 24 0:22 / /sys/fs/cgroup/memory rw,relatime shared:10 - cgroup cgroup rw,memory
26 24 0:23 / /sys/fs/cgroup/cpu,cpuacct rw shared:11 - cgroup cgroup rw,cpu,cpuacct
27 24 0:24 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/,name=systemd
28 24 0:25 / /sys/fs/cgroup/unified rw shared:13 - cgroup2 cgroup2 rw
29 24 0:22 / /elsewhere rw shared:10 - cgroup cgroup rw,memory
"""


def test_mountinfo_of_a_hybrid_host() -> None:
    found = parse_mountinfo(HYBRID.splitlines())
    assert found == [
        Hierarchy("/sys/fs/cgroup/memory", 1, frozenset({"memory"})),
        Hierarchy("/sys/fs/cgroup/cpu,cpuacct", 1, frozenset({"cpu", "cpuacct"})),
        Hierarchy("/sys/fs/cgroup/systemd", 1, frozenset({"name=systemd"})),
        Hierarchy("/sys/fs/cgroup/unified", 2),
    ]


def test_a_v2_host_with_a_blank_in_the_mount_point() -> None:
    line = "30 1 0:26 / /sys/fs/cg\\040roup rw - cgroup2 cgroup2 rw"
    assert parse_mountinfo([line]) == [Hierarchy("/sys/fs/cg roup", 2)]


@pytest.mark.parametrize(
    ("beside", "controllers", "versions"),
    [(True, "hugetlb misc\n", [1]), (True, "memory pids\n", [1, 2]), (False, "", [2])],
)
def test_a_v2_hierarchy_that_is_of_no_use_is_left_out(
    tmp_path: Path, beside: bool, controllers: str, versions: list[int]
) -> None:
    (tmp_path / "cgroup.controllers").write_text(controllers)
    lines = [f"30 1 0:26 / {tmp_path} rw - cgroup2 cgroup2 rw"]
    if beside:
        lines.append("25 1 0:22 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory")
    (tmp_path / "mountinfo").write_text("\n".join(lines))
    found = find_hierarchies(str(tmp_path / "mountinfo"))
    assert [hierarchy.version for hierarchy in found] == versions


def test_a_group_of_v2_is_delegated_and_limited(tmp_path: Path) -> None:
    """On plain files: which ones are written, and with what."""
    (tmp_path / "cgroup.subtree_control").touch()
    group = Cgroup("/vm", (Hierarchy(str(tmp_path), 2),))
    (tmp_path / "vm").mkdir()
    (tmp_path / "vm" / "memory.max").touch()
    group.create(memory_limit=1 << 30)
    assert (tmp_path / "vm" / "memory.max").read_text() == str(1 << 30)
    assert (tmp_path / "cgroup.subtree_control").read_text().startswith("+cpu")  # the last one
    (tmp_path / "vm" / "memory.events").write_text("low 0\noom 2\noom_kill 2\n")
    assert group.oom_kills() == 2


@pytest.mark.root
def test_join_kill_and_remove_on_this_host() -> None:
    group = group_for(f"/void-test-{os.getpid()}/x", "vm", find_hierarchies())
    group.create()
    group.create()  # may be repeated
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        group.join()
        os.write(tell, b"!")
        signal.pause()
    os.close(tell)
    assert os.read(ready, 1) == b"!"
    os.close(ready)
    assert group.processes() == {pid}
    for hierarchy in group.hierarchies:
        assert Path(hierarchy.mount + group.path, "cgroup.procs").read_text().split() == [str(pid)]
    group.remove()  # busy: stays
    assert group.processes() == {pid}
    group.kill()
    os.waitpid(pid, 0)
    group.remove()
    group.remove()
    assert group.processes() == set()
    for hierarchy in group.hierarchies:
        assert not Path(hierarchy.mount + group.path).exists()


@pytest.mark.root
def test_a_parent_that_another_vm_has_just_made_is_filled_before_it_is_joined() -> None:
    top = f"void-test-{os.getpid()}/new"
    group = group_for(f"/{top}/x", "vm", find_hierarchies())
    cpusets = [h for h in group.hierarchies if "cpuset" in h.controllers]
    if not cpusets:
        pytest.skip("no cpuset of cgroup v1 is mounted here")
    Path(cpusets[0].mount, top).mkdir(parents=True)  # as between two steps of a creation
    group.create()
    try:
        assert Path(cpusets[0].mount + group.path, "cpuset.cpus").read_text().strip()
        pid = os.fork()
        if pid == 0:
            group.join()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        group.remove()


@pytest.mark.root
def test_many_that_come_and_go_do_not_disturb_each_other() -> None:
    """Each makes its group, joins it and removes it, many times, in a parent that all share."""
    groups = [
        group_for(f"/void-test-{os.getpid()}/x", f"vm{n}", find_hierarchies()) for n in range(4)
    ]
    children = []
    for group in groups:
        pid = os.fork()
        if pid == 0:
            os._exit(_come_and_go(group))
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 4
    for group in groups:
        assert not any(Path(h.mount + group.path).exists() for h in group.hierarchies)


def _come_and_go(group: Cgroup) -> int:
    """Return 0 when every turn succeeded. Runs in a forked child."""
    try:
        for _ in range(30):
            group.create()
            child = os.fork()
            if child == 0:
                group.join()
                os._exit(0)
            if os.waitpid(child, 0)[1]:
                return 2
            group.remove()
    except TargetError:
        return 1
    return 0


@pytest.mark.root
@pytest.mark.parametrize("parent", ["tenant", "kubepods/pod"])
def test_parents_stay_with_their_limits(parent: str) -> None:
    group = group_for(f"/void-test-{os.getpid()}/{parent}/c", "vm", find_hierarchies())
    places = [Path(hierarchy.mount + group.path) for hierarchy in group.hierarchies]
    limits = [place.parent / "memory.limit_in_bytes" for place in places]
    for place in places:
        place.parent.mkdir(parents=True)  # by an operator
    for limit in limits:
        if limit.exists():
            limit.write_text(str(1 << 30))
    group.create()
    assert all(place.is_dir() for place in places)
    group.remove()
    assert not any(place.exists() for place in places)
    assert all(place.parent.is_dir() for place in places)
    assert {limit.read_text().strip() for limit in limits if limit.exists()} <= {str(1 << 30)}


def test_a_refused_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    group = Cgroup("/taken/vm", (Hierarchy(str(tmp_path), 1),))
    with pytest.raises(TargetError, match="taken"):
        group.create()


def test_only_root_gets_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert machine_cgroup("vm", "/a/b") is None


@pytest.mark.root
def test_whoever_cleans_up_learns_of_every_group() -> None:
    paths = [group.path for group in machine_cgroups("vm", "/pod/container")]
    assert paths == ["/pod/void-vm", "/void-shims/void-vm-template"]
