"""The forked child: its confinement, its errors, and that it does not outlive us."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shims.core.errors import TargetError
from shims.microvm.cgroup import Cgroup, find_hierarchies
from shims.microvm.launcher import Launcher, LaunchFailed, Order, fork_task

ROOT = Path(__file__).parents[2]
TIMEOUT = 10.0


async def run(order: Order, isolate: bool = True) -> tuple[int, str]:
    """Run a program whose output is descriptor 1; return its exit code and the output."""
    read, write = os.pipe()
    process = Launcher.fork(isolate=isolate).execute(order, {1: write})
    os.close(write)
    code = await asyncio.wait_for(process.exited, TIMEOUT)
    output = os.read(read, 65536).decode()
    os.close(read)
    return code, output or process.failure


async def test_descriptors_land_where_they_were_ordered_and_no_others() -> None:
    spare = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    for fd in spare:
        os.set_inheritable(fd, True)  # as a careless library would leave them
    read, write = os.pipe()
    extra = os.memfd_create("extra")
    os.write(extra, b"hello")
    launcher = Launcher.fork()
    # Crossed over on purpose: 5 and 3 may be each other's source.
    process = launcher.execute(
        Order(("sh", "-c", "ls -1 /proc/self/fd; cat /proc/self/fd/5")), {1: write, 5: extra}
    )
    os.close(write)
    assert await asyncio.wait_for(process.exited, TIMEOUT) == 0
    seen = os.read(read, 4096).decode().split()
    assert seen[-1] == "hello"
    assert set(seen[:-1]) <= {"0", "1", "2", "3", "5"}  # 3: the listing's own
    for fd in (*spare, read, extra):
        os.close(fd)


@pytest.mark.root
async def test_identity_and_confinement() -> None:
    script = "grep -E '^(Uid|Gid|Groups|CapEff|NoNewPrivs)' /proc/self/status; ulimit -c; umask"
    order = Order(("sh", "-c", script), ids=(61234, 61235), groups=(61236,))
    code, output = await run(order)
    assert code == 0
    words = output.split()
    assert words[words.index("Uid:") + 1 : words.index("Gid:")] == ["61234"] * 4
    assert words[words.index("Gid:") + 1 : words.index("Groups:")] == ["61235"] * 4
    assert words[words.index("Groups:") + 1] == "61236"
    assert int(words[words.index("CapEff:") + 1], 16) == 0
    assert words[words.index("NoNewPrivs:") + 1] == "1"
    assert words[-2:] == ["0", "0077"]


@pytest.mark.root
async def test_the_network_namespace_is_empty() -> None:
    code, output = await run(Order(("cat", "/proc/net/dev")))
    assert code == 0
    assert [line.split(":")[0].strip() for line in output.splitlines()[2:]] == ["lo"]


@pytest.mark.root
async def test_the_hosts_shared_memory_is_out_of_reach() -> None:
    code, output = await run(Order(("readlink", "/proc/self/ns/ipc")))
    assert code == 0
    assert output.startswith("ipc:[")
    assert output.strip() != os.readlink("/proc/self/ns/ipc")


async def test_a_program_that_is_not_there_is_named() -> None:
    code, failure = await run(Order(("/no/such/program",)))
    assert code == 127
    assert "cannot run /no/such/program: [Errno 2]" in failure


async def test_an_exit_by_signal_is_told() -> None:
    process = Launcher.fork().execute(Order(("sleep", "100")), {})
    process.kill(signal.SIGTERM)
    # The child may get it before or after it became sleep; both die of it.
    assert await asyncio.wait_for(process.exited, TIMEOUT) == -signal.SIGTERM
    process.kill()
    assert await process.end(TIMEOUT) == -signal.SIGTERM


async def test_an_unused_launcher_leaves_nothing() -> None:
    before = set(os.listdir("/proc/self/fd"))
    launcher = Launcher.fork()
    launcher.close()
    launcher.close()
    with pytest.raises(ProcessLookupError):
        os.kill(launcher.pid, 0)
    with pytest.raises(LaunchFailed):
        launcher.execute(Order(("true",)), {})
    assert set(os.listdir("/proc/self/fd")) == before


async def test_a_launcher_that_died_is_noticed() -> None:
    launcher = Launcher.fork()
    os.kill(launcher.pid, signal.SIGKILL)
    pidfd = os.pidfd_open(launcher.pid)
    select.select([pidfd], [], [], TIMEOUT)
    os.close(pidfd)
    with pytest.raises(LaunchFailed, match="gone"):
        launcher.execute(Order(("true",)), {})


async def test_a_launcher_that_failed_says_at_what() -> None:
    launcher = Launcher.fork(Cgroup("/void-test/never-made", tuple(find_hierarchies())))
    pidfd = os.pidfd_open(launcher.pid)
    select.select([pidfd], [], [], TIMEOUT)
    os.close(pidfd)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(LaunchFailed, match=r"cannot join the cgroup: .*No such file"):
        launcher.execute(Order(("true",)), {})
    assert len(before - set(os.listdir("/proc/self/fd"))) == 2  # orders and failures


@pytest.mark.parametrize("ordered", [False, True])
def test_the_child_dies_with_its_parent(ordered: bool) -> None:
    """Before the order by end of file, after it by the death signal, even with other ids."""
    script = (
        "import asyncio, os, sys\n"
        "from shims.microvm.launcher import Launcher, Order\n"
        "async def main():\n"
        "    launcher = Launcher.fork()\n"
        "    if sys.argv[1] == 'True':\n"
        "        ids = (61234, 61234) if os.geteuid() == 0 else None\n"
        "        order = Order(('sh', '-c', 'echo up; exec sleep 1000'), ids)\n"
        "        launcher.execute(order, {1: 1})\n"
        "    os.write(1, b'%d\\n' % launcher.pid)\n"  # in one piece: the child writes there, too
        "    sys.stdin.read()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(ordered)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        lines = {parent.stdout.readline().strip() for _ in range(2 if ordered else 1)}
        child = os.pidfd_open(int((lines - {"up"}).pop()))
        parent.kill()
        parent.wait(TIMEOUT)
        ready, _, _ = select.select([child], [], [], TIMEOUT)
        os.close(child)
    assert ready, "the child outlived its parent"


async def test_a_forked_task_reports_its_failure() -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    process = fork_task(fail, None)
    assert await asyncio.wait_for(process.exited, TIMEOUT) == 127
    assert "No space left" in process.failure
    process = fork_task(lambda: None, None)
    assert await asyncio.wait_for(process.exited, TIMEOUT) == 0
    assert issubclass(LaunchFailed, TargetError)
