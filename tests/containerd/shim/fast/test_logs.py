"""The daemon's log: never in the way, bounded, and readable when something is wrong."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import TYPE_CHECKING

from shims.containerd.shim import logs
from shims.containerd.shim.logs import DaemonLog

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

log = logging.getLogger("void.test")


def test_lines_look_like_containerds(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "log"
    with DaemonLog(str(path), debug=False):
        log.info('a "quoted"\nline')
        log.debug("hidden")
        try:
            raise RuntimeError("boom")
        except RuntimeError:
            log.exception("it failed")
        log.warning("careful")
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith('time="20')
    assert 'level=info msg="a \\"quoted\\"\\nline" logger=void.test' in lines[0]
    assert "level=error" in lines[1]
    assert "RuntimeError: boom" in lines[1]
    assert "level=warning" in lines[2]
    assert path.stat().st_mode & 0o777 == 0o600


def test_debug(tmp_path: Path) -> None:
    with DaemonLog(str(tmp_path / "log"), debug=True):
        log.debug("shown")
    assert "shown" in (tmp_path / "log").read_text()


def test_the_fifo_gets_the_same_lines(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with DaemonLog(str(tmp_path / "log"), debug=False) as target:
        target.add_fifo(str(fifo))
        target.add_fifo(str(fifo))
        target.add_fifo(str(tmp_path / "missing"))
        log.info("hello")
        assert os.read(reader, 1000) == (tmp_path / "log").read_bytes()
        target.remove_fifo(str(fifo))
        target.remove_fifo(str(fifo))
        log.info("only in the file")
    assert os.read(reader, 1000) == b""
    os.close(reader)


def test_a_fifo_that_nobody_reads_does_not_block(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with DaemonLog(str(tmp_path / "log"), debug=False) as target:
        target.add_fifo(str(fifo))
        for _ in range(3000):
            log.info("x" * 100)
        assert "lines not written" in (tmp_path / "log").read_text() or target._lost > 0


def test_the_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LARGEST_FILE", 5000)
    path = tmp_path / "log"
    with DaemonLog(str(path), debug=False):
        for number in range(500):
            log.info("line %d", number)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log", "log.1"]
    assert path.stat().st_size <= 5000
    assert (tmp_path / "log.1").stat().st_size <= 5000
    assert "line 499" in path.read_text()


def test_a_file_that_was_removed_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "LARGEST_FILE", 5000)
    path = tmp_path / "log"
    with DaemonLog(str(path), debug=False) as target:
        log.info("first")
        path.unlink()
        for number in range(200):
            log.info("line %d", number)
        assert target._lost == 0
    assert "line 199" in path.read_text()


def test_standard_error_counts_and_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LARGEST_FILE", 5000)
    path = tmp_path / "log"
    saved = os.dup(2)
    try:
        with DaemonLog(str(path), debug=False) as target:
            os.dup2(target._file, 2)
            os.write(2, b"x" * 4990)
            log.info("makes it too long")
            os.write(2, b"after")
    finally:
        os.dup2(saved, 2)
        os.close(saved)
    assert (tmp_path / "log.1").stat().st_size == 4990
    assert path.read_bytes().endswith(b"after")


async def test_dump_on_signal(tmp_path: Path) -> None:
    path = tmp_path / "log"
    described = asyncio.Event()

    def describe() -> str:
        described.set()
        return "vm: running"

    async def stuck() -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(stuck(), name="the stuck one")
    await asyncio.sleep(0)
    with DaemonLog(str(path), debug=False) as target:
        target.dump_on_signal(asyncio.get_running_loop(), describe)
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
            async with asyncio.timeout(5):
                await described.wait()
        finally:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)
    task.cancel()
    text = path.read_text()
    assert "most recent call first" in text
    assert "vm: running" in text
    assert "the stuck one" in text


def test_a_description_that_fails(tmp_path: Path) -> None:
    async def dump() -> str:
        def describe() -> str:
            raise RuntimeError("no vm")

        return DaemonLog(str(tmp_path / "log"), debug=False).dump(describe)

    assert "no description: RuntimeError: no vm" in asyncio.run(dump())
