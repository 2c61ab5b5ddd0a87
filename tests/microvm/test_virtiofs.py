"""virtiofsd on real directories: what it can see, what it may do, and that it goes away."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from shims.core.errors import InputError, NotSupported
from shims.microvm.cgroup import machine_cgroup
from shims.microvm.virtiofs import (
    Share,
    ShareOptions,
    Virtiofsd,
    _argv,
    find_virtiofsd,
    start_share,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.virtiofs]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    mounts = Path("/proc/self/mountinfo").read_text()
    yield
    assert Path("/proc/self/mountinfo").read_text() == mounts
    run = tmp_path / "run"
    assert not run.exists() or not list(run.iterdir())


async def _worker(share: Share) -> psutil.Process:
    """Return the confined process, which virtiofsd starts once it is set up."""
    async with asyncio.timeout(10):
        while True:
            assert not share.exited.done(), share.said()
            for child in psutil.Process(share.pid).children():
                status = Path(f"/proc/{child.pid}/status").read_text()
                if "Seccomp:\t2" in status:
                    return child
            await asyncio.sleep(0.01)  # no event tells when another process confined itself


@contextlib.contextmanager
def _watched(pid: int) -> Iterator[asyncio.Event]:
    """Yield what is set when the process has ended, reaped or not."""
    gone = asyncio.Event()
    pidfd = os.pidfd_open(pid)
    loop = asyncio.get_running_loop()
    loop.add_reader(pidfd, gone.set)
    yield gone
    loop.remove_reader(pidfd)
    os.close(pidfd)


def _mounts(process: psutil.Process) -> dict[str, list[str]]:
    lines = Path(f"/proc/{process.pid}/mountinfo").read_text().splitlines()
    return {line.split()[4]: line.split()[5].split(",") for line in lines}


async def test_a_directory_is_all_that_virtiofsd_sees(tmp_path: Path) -> None:
    source = tmp_path / "a,b:c\nd"
    source.mkdir()
    (source / "file").write_text("x")
    async with start_share(str(source), "v0", run_dir=tmp_path / "run") as share:
        worker = await _worker(share)
        assert os.listdir(f"/proc/{worker.pid}/root") == ["file"]
        assert list(_mounts(worker)) == ["/"]
        assert {"rw", "nosuid", "nodev"} <= set(_mounts(worker)["/"])
        assert share.path == ""
        status = Path(f"/proc/{worker.pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status
        assert os.readlink(f"/proc/{worker.pid}/ns/net") != os.readlink("/proc/self/ns/net")
        with _watched(worker.pid) as gone:
            share.socket.close()
            await asyncio.wait_for(gone.wait(), 10)
    assert share.exited.done()


async def test_a_file_does_not_bring_its_directory_along(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("not for you")
    (tmp_path / "shared").write_text("for you")
    source = str(tmp_path / "shared")
    options = ShareOptions(readonly=False)
    async with start_share(source, "v0", run_dir=tmp_path / "run", options=options) as share:
        worker = await _worker(share)
        assert os.listdir(f"/proc/{worker.pid}/root") == [share.path]
        assert Path(f"/proc/{worker.pid}/root/{share.path}").read_text() == "for you"
        # The directory around it is ours, and nobody may fill it.
        assert "ro" in _mounts(worker)["/"]
        assert "rw" in _mounts(worker)[f"/{share.path}"]


async def test_read_only_holds_on_the_host(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    options = ShareOptions(readonly=True, noexec=True)
    async with start_share(str(source), "v0", run_dir=tmp_path / "run", options=options) as share:
        worker = await _worker(share)
        assert {"ro", "noexec"} <= set(_mounts(worker)["/"])
        # Through its own root even we, with every capability, are refused.
        with pytest.raises(OSError, match="Read-only file system"):
            Path(f"/proc/{worker.pid}/root/new").touch()
        (source / "new").touch()
        assert _status(worker.pid)["CapEff"] == READING


READING = 1 << 1 | 1 << 3
"""DAC_OVERRIDE, FOWNER"""
WRITING = READING | 1 << 0 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 31
"""And CHOWN, FSETID, SETGID, SETUID, SETFCAP."""
CONFINING = 1 << 8 | 1 << 21
"""SETPCAP, SYS_ADMIN"""


def _status(pid: int) -> dict[str, int]:
    """Return the sets of capabilities of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    words = [line.split() for line in lines]
    return {word[0].rstrip(":"): int(word[1], 16) for word in words if word[0].startswith("Cap")}


@pytest.mark.parametrize("readonly", [False, True])
async def test_it_is_root_in_a_user_namespace_of_its_own(tmp_path: Path, readonly: bool) -> None:
    (tmp_path / "source").mkdir()
    options = ShareOptions(readonly=readonly)
    needed = READING if readonly else WRITING
    async with start_share(
        str(tmp_path / "source"), "v0", run_dir=tmp_path / "run", options=options
    ) as share:
        worker = await _worker(share)
        sets = _status(worker.pid)
        assert sets["CapEff"] == sets["CapPrm"] == needed
        for pid in (share.pid, worker.pid):
            assert os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")
            for held in _status(pid).values():
                assert held & ~(needed | CONFINING) == 0
            for kind in ("uid", "gid"):
                # Every id means what it means outside.
                ours = Path(f"/proc/self/{kind}_map").read_text().split()
                assert Path(f"/proc/{pid}/{kind}_map").read_text().split() == ours


WITHOUT = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from shims.microvm.virtiofs import start_share
async def main():
    async with start_share(sys.argv[2], "v0", run_dir=Path(sys.argv[3])) as share:
        print(await share.exited, share.said())
asyncio.run(main())
"""


async def test_without_a_user_namespace_there_is_no_share(tmp_path: Path) -> None:
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    shim = await asyncio.create_subprocess_exec(
        *("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", forbid, "sh"),
        *(sys.executable, "-c", WITHOUT, str(ROOT), str(tmp_path), str(tmp_path / "run")),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await asyncio.wait_for(shim.communicate(), 10)
    assert said.startswith(b"1 cannot enter a user namespace (is user.max_user_namespaces 0?)")


async def test_a_link_exchanged_after_the_check_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "good/good").touch()
    (tmp_path / "bad").mkdir()
    link = tmp_path / "link"
    link.symlink_to("good")
    async with start_share(str(link), "v0", run_dir=tmp_path / "run") as share:
        link.unlink()
        link.symlink_to("bad")
        worker = await _worker(share)
        assert os.listdir(f"/proc/{worker.pid}/root") == ["good"]


@pytest.mark.parametrize("victim", ["parent", "worker"])
async def test_no_process_outlives_a_killed_virtiofsd(tmp_path: Path, victim: str) -> None:
    async with start_share(str(tmp_path), "v0", run_dir=tmp_path / "run") as share:
        worker = await _worker(share)
        with _watched(worker.pid) as gone:
            os.kill(share.pid if victim == "parent" else worker.pid, signal.SIGKILL)
            async with asyncio.timeout(10):
                await asyncio.shield(share.exited)
                await gone.wait()


async def test_it_lives_in_a_cgroup_of_its_own(tmp_path: Path) -> None:
    group = machine_cgroup(f"fs-{os.getpid()}", f"/void-test-{os.getpid()}/c")
    assert group is not None
    places = [Path(f"{hierarchy.mount}{group.path}") for hierarchy in group.hierarchies]
    run = tmp_path / "run"
    async with start_share(str(tmp_path), "v0", run_dir=run, cgroup=group) as one:
        async with start_share(str(tmp_path), "v1", run_dir=run, cgroup=group) as two:
            workers = [await _worker(share) for share in (one, two)]
            expected = {one.pid, two.pid, *(worker.pid for worker in workers)}
            assert group.processes() == expected
        assert all(place.exists() for place in places)
    assert not any(place.exists() for place in places)


SHIM = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from shims.microvm.virtiofs import start_share
async def main():
    async with start_share(sys.argv[2], "v0", run_dir=Path(sys.argv[3])) as share:
        print(share.pid, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_no_process_outlives_a_killed_shim(tmp_path: Path) -> None:
    shim = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SHIM, str(ROOT), str(tmp_path), str(tmp_path / "run"),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert shim.stdout is not None
    pid = int(await asyncio.wait_for(shim.stdout.readline(), 10))
    with _watched(pid) as gone:
        shim.kill()
        await shim.wait()
        await asyncio.wait_for(gone.wait(), 10)


async def test_an_end_of_the_connection_ends_virtiofsd(tmp_path: Path) -> None:
    async with start_share(str(tmp_path), "v0", run_dir=tmp_path / "run") as share:
        await _worker(share)
        share.socket.close()
        await asyncio.wait_for(asyncio.shield(share.exited), 10)


async def test_sockets_of_dead_shims_are_swept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in (".share-old", ".share-new", "other"):
        (run / name).touch()
    for name in (".share-old", "other"):
        os.utime(run / name, (0, 0))
    async with start_share(str(tmp_path), "v0", run_dir=run) as share:
        await _worker(share)
    assert sorted(os.listdir(run)) == [".share-new", "other"]
    for path in run.iterdir():
        path.unlink()


async def test_what_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    cases = [("absent", "v0", "No such file"), ("fifo", "v0", "a file or directory")]
    cases.append((".", "x" * 37, "1 to 36 bytes"))
    for name, tag, says in cases:
        with pytest.raises(InputError, match=says):
            await start_share(str(tmp_path / name), tag, run_dir=tmp_path / "run").__aenter__()
    with pytest.raises(NotSupported, match="virtiofsd"):
        find_virtiofsd(str(tmp_path / "nothing"))


async def test_a_virtiofsd_that_cannot_start_says_why(tmp_path: Path) -> None:
    daemon = Virtiofsd("/bin/ls", "c")  # which has no option --fd
    async with start_share(
        str(tmp_path), "v0", run_dir=tmp_path / "run", virtiofsd=daemon
    ) as share:
        assert await asyncio.wait_for(asyncio.shield(share.exited), 10) == 2
        assert "--fd" in share.said()


def test_both_dialects_are_spoken() -> None:
    options = ShareOptions(readonly=True)
    c = _argv(Virtiofsd("/v", "c"), 7, options)
    assert "--fd=7" in c
    assert "source=@SHARE@" in c
    assert "modcaps=-chown:-fsetid:-mknod:-setfcap:-setgid:-setuid" in c
    rust = _argv(Virtiofsd("/v", "rust"), 7, ShareOptions())
    assert {"--fd=7", "--shared-dir=@SHARE@", "--sandbox=namespace"} <= set(rust)
    assert "--modcaps=-mknod" in rust
