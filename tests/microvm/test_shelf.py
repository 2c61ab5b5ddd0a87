"""The keeper: a real process, its rules, its end, and those who start it at the same time."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from shims.core.errors import TargetError, Unreachable
from shims.microvm import keeper
from shims.microvm.keeper import SEALS
from shims.microvm.shelf import KeeperGone, Shelf, connect_shelf
from tests.microvm.conftest import end_keeper, keeper_pid, until_gone

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TIMEOUT = 10.0


def memfd(content: bytes = b"x", seals: int = SEALS) -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(fd, content)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


@pytest.fixture
async def run_dir(tmp_path: Path) -> AsyncIterator[Path]:
    yield tmp_path / "run"
    await end_keeper(tmp_path / "run")


async def put(shelf: Shelf, key: str, content: bytes = b"x", **facts: Any) -> None:
    fds = [memfd(content), memfd(content)]
    try:
        await shelf.ask({"op": "put", "key": key, "facts": facts}, fds)
    finally:
        for fd in fds:
            os.close(fd)


async def test_what_one_stores_another_gets(run_dir: Path) -> None:
    async with await connect_shelf(run_dir) as shelf:
        assert await shelf.ask({"op": "get", "key": "k"}) == ({"found": False, "build": False}, [])
        await put(shelf, "k", b"memory", digest="d")
    async with await connect_shelf(run_dir) as other:
        answer, fds = await other.ask({"op": "get", "key": "k"})
        assert answer == {"found": True, "facts": {"digest": "d"}}
        assert [os.pread(fd, 100, 0) for fd in fds] == [b"memory", b"memory"]
        assert not any(os.get_inheritable(fd) for fd in fds)
        for fd in fds:
            os.close(fd)
        listed, _ = await other.ask({"op": "list"})
        assert [template["key"] for template in listed["templates"]] == ["k"]
        assert listed["templates"][0]["uses"] == 1
        dropped, _ = await other.ask({"op": "drop", "key": None})
        assert dropped == {"dropped": ["k"]}


async def test_of_many_that_ask_one_builds_and_the_others_wait(run_dir: Path) -> None:
    shelves = [await connect_shelf(run_dir) for _ in range(4)]
    request = {"op": "get", "key": "k", "build": True}
    first, _ = await shelves[0].ask(request)
    assert first == {"found": False, "build": True}
    for shelf in shelves[1:]:
        assert await shelf.ask(request) == ({"found": False, "wait": True}, [])
    others = [asyncio.ensure_future(shelf.receive(TIMEOUT)) for shelf in shelves[1:]]
    # A request for something else is not held up.
    async with await connect_shelf(run_dir) as free:
        assert (await free.ask({"op": "get", "key": "other"}))[0]["found"] is False
    assert not any(other.done() for other in others)
    await put(shelves[0], "k")
    async with asyncio.timeout(TIMEOUT):
        for answer, fds in await asyncio.gather(*others):
            assert answer["found"] is True
            for fd in fds:
                os.close(fd)
    for shelf in shelves:
        shelf.close()


async def test_a_builder_that_dies_is_replaced_by_the_next_in_line(run_dir: Path) -> None:
    request = {"op": "get", "key": "k", "build": True}
    dying, second, third = [await connect_shelf(run_dir) for _ in range(3)]
    assert (await dying.ask(request))[0]["build"] is True
    for shelf in (second, third):
        assert (await shelf.ask(request))[0] == {"found": False, "wait": True}
    dying.close()
    assert (await second.receive(TIMEOUT))[0] == {"found": False, "build": True}
    assert (await third.receive(TIMEOUT))[0] == {"found": False, "wait": True}
    with pytest.raises(TimeoutError):
        await third.receive(0.05)
    second.close()
    third.close()


@pytest.mark.parametrize(
    "fds",
    [
        lambda: [memfd()],
        lambda: [memfd(seals=0), memfd()],
        lambda: [memfd(seals=fcntl.F_SEAL_WRITE), memfd()],
        lambda: [os.open("/dev/null", os.O_RDONLY), memfd()],
    ],
)
async def test_only_what_is_sealed_is_stored(run_dir: Path, fds: Any) -> None:
    made = fds()
    async with await connect_shelf(run_dir) as shelf:
        with pytest.raises(TargetError, match="sealed"):
            await shelf.ask({"op": "put", "key": "k", "facts": {}}, made)
        assert (await shelf.ask({"op": "list"}))[0]["templates"] == []
    for fd in made:
        os.close(fd)


@pytest.mark.parametrize(
    "packet",
    [
        b"", b"{", b"[]", b'{"op": "shout"}', b'{"op": []}', b"\xff" * 1000, b'{"op": "get"}',
        b'{"op": "put"}', b'{"op": "get", "key": null}', b'{"op": "get", "key": ["k"]}',
    ],
)  # fmt: skip
async def test_nonsense_hurts_nobody(run_dir: Path, packet: bytes) -> None:
    async with await connect_shelf(run_dir) as shelf:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as raw:
            raw.connect(str(run_dir / "keeper.sock"))
            raw.settimeout(TIMEOUT)
            raw.send(packet)
            answer = raw.recv(4096)
        assert not answer or "error" in json.loads(answer)
        assert (await shelf.ask({"op": "list"}))[0]["templates"] == []


async def test_the_least_used_makes_room(run_dir: Path) -> None:
    async with await connect_shelf(run_dir) as shelf:
        for number in range(keeper.MOST_TEMPLATES):
            await put(shelf, f"k{number}")
        _, fds = await shelf.ask({"op": "get", "key": "k0"})
        for fd in fds:
            os.close(fd)
        await put(shelf, "new")
        listed, _ = await shelf.ask({"op": "list"})
        keys = {template["key"] for template in listed["templates"]}
    assert "k0" in keys
    assert "k1" not in keys
    assert len(keys) == keeper.MOST_TEMPLATES


async def test_it_leaves_our_session_and_group_and_cleans_up(run_dir: Path) -> None:
    async with await connect_shelf(run_dir):
        pid = await keeper_pid(run_dir)
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        assert int(status[1]) != os.getpid()  # its parent
        assert int(status[3]) != os.getsid(0)
        held = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)}
        assert held == {"/dev/null"}
        if os.geteuid() == 0:
            groups = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
            assert all(line.endswith(":/") for line in groups)
    await end_keeper(run_dir)
    assert not (run_dir / "keeper.sock").exists()


async def test_it_is_small(run_dir: Path) -> None:
    async with await connect_shelf(run_dir):
        rollup = Path(f"/proc/{await keeper_pid(run_dir)}/smaps_rollup").read_text()
        pss = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    assert pss < 12_000, "kB"


async def test_a_killed_keeper_is_replaced(run_dir: Path) -> None:
    shelf = await connect_shelf(run_dir)
    pid = await keeper_pid(run_dir)
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    await until_gone(pidfd)
    with pytest.raises(KeeperGone):
        await shelf.ask({"op": "list"})
    shelf.close()
    async with await connect_shelf(run_dir) as again:
        assert (await again.ask({"op": "list"}))[0]["pid"] != pid


async def test_a_keeper_that_hangs_is_not_waited_for(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = await keeper_pid_of_a_new_one(run_dir)
    monkeypatch.setattr("shims.microvm.shelf._ANSWER_TIMEOUT", 0.05)
    os.kill(pid, signal.SIGSTOP)
    try:
        async with await connect_shelf(run_dir) as shelf:
            with pytest.raises(Unreachable, match="said nothing"):
                await shelf.ask({"op": "list"})
        # Nobody takes the connections, until the queue is full.
        async with AsyncExitStack() as waiting:
            with pytest.raises(Unreachable, match="takes no connections"):
                await fill_the_queue(run_dir, waiting)
    finally:
        os.kill(pid, signal.SIGKILL)


async def fill_the_queue(run_dir: Path, waiting: AsyncExitStack) -> None:
    for _ in range(1000):
        await waiting.enter_async_context(await connect_shelf(run_dir))


async def keeper_pid_of_a_new_one(run_dir: Path) -> int:
    async with await connect_shelf(run_dir) as shelf:
        return int((await shelf.ask({"op": "list"}))[0]["pid"])


async def test_without_a_keeper_none_is_started_unless_wanted(tmp_path: Path) -> None:
    with pytest.raises(Unreachable):
        await connect_shelf(tmp_path, start=False)
    assert not (tmp_path / "keeper.sock").exists()


async def test_many_processes_that_start_it_at_once_get_one(run_dir: Path) -> None:
    run_dir.mkdir(mode=0o700)
    script = (
        "import asyncio, sys; from pathlib import Path\n"
        "from shims.microvm.shelf import connect_shelf\n"
        "async def main():\n"
        "    async with await connect_shelf(Path(sys.argv[1])) as shelf:\n"
        "        print((await shelf.ask({'op': 'list'}))[0]['pid'])\n"
        "asyncio.run(main())\n"
    )
    root = Path(__file__).parents[2]
    starters = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, str(run_dir), stdout=subprocess.PIPE, cwd=root
        )
        for _ in range(6)
    ]
    outputs = [(await starter.communicate())[0] for starter in starters]
    assert len(set(outputs)) == 1
    assert int(outputs[0]) == await keeper_pid(run_dir)


def test_it_ends_by_itself_when_idle() -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind("")
    listener.listen()
    keeper.serve_keeper(listener, idle_seconds=0.01)
    listener.close()


async def test_a_long_directory_name_is_no_obstacle(tmp_path: Path) -> None:
    run_dir = tmp_path / ("d" * 100) / "run"
    async with await connect_shelf(run_dir) as shelf:
        await put(shelf, "k")
    await end_keeper(run_dir)
