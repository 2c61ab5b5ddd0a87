"""A child process as the event loop sees it: what becomes of one that cannot be watched."""

from __future__ import annotations

import errno
import os
import signal

import pytest

from shims.core.errors import TargetError
from shims.microvm.process import Process


async def test_a_process_that_cannot_be_watched_is_not_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    before = os.listdir("/proc/self/fd")
    failures, report = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # in case that nobody ends us
        signal.pause()
        os._exit(0)
    os.close(report)
    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(TargetError, match="Too many open files"):
        Process(pid, failures)
    assert not os.path.exists(f"/proc/{pid}")  # not even as a zombie
    assert os.listdir("/proc/self/fd") == before
