"""Keep a private containerd, and guarantee that nothing of it survives.

A test process starts this program and talks to it over a pipe, one JSON object a line; when the
pipe ends, however the tests ended, everything is taken down. The program is a subreaper: shims,
VMs and their helpers leave containerd's process group and are orphaned on purpose, yet stay our
descendants, so that they can be counted while they live and ended when the daemon goes.

Commands, each answered with one object (``{"error": TEXT}`` when it failed):
  {"do": "start", "argv": [...], "env": {...}, "log": PATH, "timeout": S}   -> {"pid": N}
      returns when the daemon said READY=1 on NOTIFY_SOCKET
  {"do": "stop", "signal": N, "timeout": S}                                 -> {"status": N}
      returns when the daemon is gone
It imports the standard library only and runs as ``python -I reaper.py DIRECTORY``; what is mounted
below DIRECTORY is unmounted at the end.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_MNT_DETACH = 2
_TEARDOWN = 20.0  # seconds until we stop trying
_TICK = 0.05  # seconds between looks at processes that cannot be waited for

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    root = os.path.realpath(sys.argv[1])
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # A Control-C at the terminal is for the tests; we end when their pipe does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    keeper = Keeper(root)
    pending = b""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            keeper.reap()
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                break
            pending += data
            while b"\n" in pending:
                line, _, pending = pending.partition(b"\n")
                sys.stdout.write(json.dumps(keeper.answer(json.loads(line))) + "\n")
                sys.stdout.flush()
    keeper.teardown()
    return 0


class Keeper:
    """The daemon, its orphans, and the directory below which they mount things."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._daemon: subprocess.Popen[bytes] | None = None

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        try:
            if command["do"] == "start":
                return {"pid": self._start(command)}
            if command["do"] == "stop":
                return {"status": self._stop(command["signal"], command["timeout"])}
            return {"error": f"unknown command {command['do']}"}
        except (OSError, RuntimeError, subprocess.TimeoutExpired) as problem:
            return {"error": str(problem)}

    def _start(self, command: dict[str, Any]) -> int:
        notify = os.path.join(self._root, "notify")
        if os.path.exists(notify):
            os.unlink(notify)
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as listener,
            open(command["log"], "ab") as log,
        ):
            listener.bind(notify)
            self._daemon = subprocess.Popen(
                command["argv"],
                env={**command["env"], "NOTIFY_SOCKET": notify},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # Were we killed, the daemon would at least not run on alone.
                preexec_fn=lambda: _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0),
            )
            self._await_ready(listener, self._daemon, time.monotonic() + command["timeout"])
            return self._daemon.pid

    def _await_ready(
        self, listener: socket.socket, daemon: subprocess.Popen[bytes], deadline: float
    ) -> None:
        gone = os.pidfd_open(daemon.pid)
        try:
            while True:
                left = deadline - time.monotonic()
                ready, _, _ = select.select([listener.fileno(), gone], [], [], max(left, 0))
                if listener.fileno() in ready and b"READY=1" in listener.recv(4096):
                    return
                if gone in ready:
                    raise RuntimeError(f"the daemon ended with status {daemon.wait()}")
                if left <= 0:
                    raise RuntimeError("the daemon did not become ready in time")
        finally:
            os.close(gone)

    def _stop(self, number: int, timeout: float) -> int:
        if self._daemon is None:
            raise RuntimeError("no daemon runs")
        daemon, self._daemon = self._daemon, None
        daemon.send_signal(number)
        return daemon.wait(timeout)

    def reap(self) -> None:
        """Collect orphans. The daemon itself is left to ``subprocess``, which must see its end."""
        kept = self._daemon.pid if self._daemon else None
        for pid in children_of(os.getpid()):
            if pid != kept:
                try:
                    os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    continue

    def teardown(self) -> None:
        """End the daemon, then whatever it left, then unmount; each step may find nothing."""
        deadline = time.monotonic() + _TEARDOWN
        if self._daemon is not None:
            try:
                # First, and at once: a daemon that sees its shims die would start to clean up.
                self._stop(signal.SIGKILL, 5.0)
            except (RuntimeError, subprocess.TimeoutExpired):
                pass
        while time.monotonic() < deadline:
            left = descendants_of(os.getpid())
            if not left:
                break
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self.reap()
            select.select([], [], [], _TICK)
        for point in reversed(mounts_below(self._root)):
            _libc.umount2(point.encode(), _MNT_DETACH)


def children_of(parent: int) -> list[int]:
    """Return the children of one process, zombies included."""
    return _families().get(parent, [])


def descendants_of(ancestor: int) -> list[int]:
    """Return all processes below ``ancestor``, nearest first."""
    families = _families()
    found: list[int] = []
    level = families.get(ancestor, [])
    while level:
        found.extend(level)
        level = [child for pid in level for child in families.get(pid, [])]
    return found


def _families() -> dict[int, list[int]]:
    """Return every parent's children. Not every kernel lists them in /proc/PID/task."""
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat") as handle:
                # The name in parentheses may hold anything, a parenthesis too.
                parent = int(handle.read().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue  # it ended while we looked
        found.setdefault(parent, []).append(int(name))
    return found


def mounts_below(root: str) -> list[str]:
    """Return the mount points at and below ``root`` in the order in which they were made."""
    points = []
    with open("/proc/self/mountinfo") as handle:
        for line in handle:
            point = line.split()[4].encode().decode("unicode_escape")
            if point == root or point.startswith(root + "/"):
                points.append(point)
    return points


if __name__ == "__main__":
    sys.exit(main())
