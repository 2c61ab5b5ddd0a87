"""Helper processes: how they end, and whom that must not hit."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shims.microvm import child as child_module
from shims.microvm.cgroup import find_hierarchies
from shims.microvm.child import Child

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 10.0


async def test_the_end_of_a_reaped_child_hits_no_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    child = Child(["true"], {"PATH": os.defpath}, ())
    assert await asyncio.wait_for(asyncio.shield(child.exited), PATIENCE) == 0
    # Its number is free now: a group that has it is somebody else's.
    hit: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda group, _: hit.append(group))
    assert await child.end() == 0
    assert hit == []


async def test_a_child_is_ended_with_what_it_started() -> None:
    child = Child(["sh", "-c", "sleep 60 & echo $!; wait"], {"PATH": os.defpath}, ())
    pidfd = os.pidfd_open(int(await asyncio.wait_for(child.answer(), PATIENCE)))
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, gone.set)
    try:
        assert await child.end() == -signal.SIGKILL
        await asyncio.wait_for(gone.wait(), PATIENCE)
    finally:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)


async def test_a_child_that_cannot_be_watched_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def refuse(pid: int) -> int:
        started.append(pid)
        raise OSError(errno.EMFILE, "Too many open files")

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(OSError, match="Too many"):
        Child(["sleep", "60"], {"PATH": os.defpath}, ())
    assert not Path(f"/proc/{started[0]}").exists()
    assert os.listdir("/proc/self/fd") == before


@pytest.fixture
def freezer() -> Iterator[Path]:
    """A cgroup whose processes do not even die while it is frozen, as in a sleep on a dead disk."""
    mounts = [h.mount for h in find_hierarchies() if "freezer" in h.controllers]
    if not mounts:
        pytest.skip("no freezer of cgroup v1 is mounted here")
    group = Path(mounts[0], f"void-test-{os.getpid()}-frozen")
    group.mkdir()
    yield group
    group.rmdir()


@pytest.mark.root
async def test_a_child_that_does_not_die_is_reported_and_not_waited_for(
    freezer: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(child_module, "_END_TIMEOUT", 0.2)
    child = Child(["sleep", "60"], {"PATH": os.defpath}, ())
    (freezer / "cgroup.procs").write_text(str(child.pid))
    (freezer / "freezer.state").write_text("FROZEN")
    try:
        assert await asyncio.wait_for(child.end(), PATIENCE) is None
        assert f"sleep (process {child.pid}) does not die" in caplog.text
    finally:
        (freezer / "freezer.state").write_text("THAWED")
    assert await asyncio.wait_for(child.exited, PATIENCE) == -signal.SIGKILL
