"""A private containerd: its own root, state, socket, configuration and PATH.

It never meets a containerd of the host: every path is below one temporary directory, and the
plug-ins that would reach outside (CRI, NRI, the opt directory) are off. It runs under ``reaper``.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tests.e2e.ctr import Ctr
from tests.e2e.reaper import descendants_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.e2e.packages import Release

__all__ = ["Containerd", "start_containerd"]

_START_TIMEOUT = 30.0
_STOP_TIMEOUT = 30.0
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Left out: what listens on or writes to a place that belongs to the host, and snapshotters that
# only log that they cannot work here.
_DISABLED = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.nri.v1.nri",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
]


@dataclass
class Containerd:
    """One running daemon. ``ctr`` drives it; ``reaper_pid`` is the ancestor of all it started."""

    release: Release
    root: Path
    environ: Mapping[str, str]
    namespace: str
    pid: int = 0
    _reaper: subprocess.Popen[str] | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        return str(self.root / "c.sock")

    @property
    def log(self) -> Path:
        return self.root / "containerd.log"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def bundles(self) -> Path:
        """Where the bundles of this namespace's tasks are."""
        return self.state / "io.containerd.runtime.v2.task" / self.namespace

    @property
    def reaper_pid(self) -> int:
        assert self._reaper is not None
        return self._reaper.pid

    def ctr(self, namespace: str | None = None) -> Ctr:
        """Return a driver for this daemon's ``ctr``, of the same release."""
        return Ctr(
            program=self.release.program("ctr"),
            address=self.address,
            namespace=namespace or self.namespace,
            fifos=self.root / "fifo",
            environ=self.environ,
        )

    def descendants(self) -> list[int]:
        """Return the processes that came from this daemon: shims, VMs, helpers; not itself."""
        return [pid for pid in descendants_of(self.reaper_pid) if pid != self.pid]

    def start(self) -> None:
        """Start the daemon and return when it serves."""
        config = self.root / "config.toml"
        config.write_text(_config(self))
        answer = self._ask(
            do="start",
            argv=[str(self.release.program("containerd")), "--config", str(config)],
            env=dict(self.environ),
            log=str(self.log),
            timeout=_START_TIMEOUT,
        )
        self.pid = answer["pid"]

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the daemon alone; its shims live on, as on a host whose containerd restarts."""
        self._ask(do="stop", signal=int(number), timeout=_STOP_TIMEOUT)
        self.pid = 0

    def restart(self, number: int = signal.SIGTERM) -> None:
        self.stop(number)
        self.start()

    def log_tail(self, lines: int = 40) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def _ask(self, **command: Any) -> dict[str, Any]:
        assert self._reaper is not None
        assert self._reaper.stdin is not None
        assert self._reaper.stdout is not None
        self._reaper.stdin.write(json.dumps(command) + "\n")
        self._reaper.stdin.flush()
        line = _read_line(self._reaper.stdout, command["timeout"] + 5)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"containerd: {answer['error']}\n{self.log_tail()}")
        return answer


@contextmanager
def start_containerd(
    release: Release,
    root: Path,
    *,
    programs: Path,
    namespace: str,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Containerd]:
    """Run a private containerd below ``root``, an existing directory with a short path.

    ``programs`` is the directory of the shim under test, first on the daemon's PATH; ``environ``
    is added to the daemon's environment, which is otherwise ours. Everything ends with the block.
    """
    env = {
        **os.environ,
        **(environ or {}),
        "PATH": f"{programs}:{release.bin}:{_SYSTEM_PATH}",
    }
    reaper = subprocess.Popen(
        [sys.executable, "-I", str(Path(__file__).with_name("reaper.py")), str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Its own session: a signal to the tests' process group must not reach it.
        start_new_session=True,
    )
    daemon = Containerd(release, root, env, namespace, _reaper=reaper)
    try:
        daemon.start()
        yield daemon
    finally:
        assert reaper.stdin is not None
        assert reaper.stdout is not None
        reaper.stdin.close()
        reaper.wait(60)
        reaper.stdout.close()


def _read_line(stream: IO[str], timeout: float) -> str:
    ready, _, _ = select.select([stream], [], [], timeout)
    if not ready:
        raise RuntimeError("the reaper does not answer")
    return stream.readline()


def _config(daemon: Containerd) -> str:
    """Write the configuration; version 3 belongs to containerd 2."""
    version = 2 if daemon.release.major == 1 else 3
    return f"""version = {version}
root = {json.dumps(str(daemon.root / "root"))}
state = {json.dumps(str(daemon.state))}
temp = {json.dumps(str(daemon.root / "temp"))}
disabled_plugins = {json.dumps(_DISABLED)}

[grpc]
address = {json.dumps(daemon.address)}

[ttrpc]
address = {json.dumps(daemon.address + ".ttrpc")}

[debug]
address = {json.dumps(str(daemon.root / "debug.sock"))}
level = "debug"
"""
