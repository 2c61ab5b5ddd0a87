"""What a test works with: a containerd with the image in it, and containers that go after it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shims.microvm.tsc import boot_id
from tests.e2e.ctr import eventually
from tests.e2e.images import IMAGE
from tests.e2e.leaks import Scope, shim_socket

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.containerds import Containerd
    from tests.e2e.ctr import Ctr
    from tests.e2e.runtimes import Runtime

__all__ = ["Site", "Workbench"]


@dataclass(frozen=True)
class Site:
    """One private containerd with the image in it, and the runtime under test."""

    daemon: Containerd
    runtime: Runtime
    busybox: Path
    void_run: Path
    void_state: Path

    @property
    def ctr(self) -> Ctr:
        return self.daemon.ctr()

    def run_words(self, container: str, *command: str, options: tuple[str, ...] = ()) -> list[str]:
        """Return the words of ``ctr run`` for a container of the test image."""
        own = ("--runtime", self.runtime.name, "--fifo-dir", str(self.daemon.root / "fifo"))
        return ["run", *own, *options, IMAGE, container, *command]

    def scope(self, containers: list[str]) -> Scope:
        """Return where leaks of these containers would be."""
        daemon = self.daemon
        return Scope(
            reaper=daemon.reaper_pid,
            daemons=frozenset({daemon.pid}),
            namespace=daemon.namespace,
            directories=(daemon.bundles, self.void_run, self.void_state),
            kept=(
                *(self.void_state / name for name in ("guest", "images", "log", "templates")),
                *(self.void_state / name for name in ("scratch", "accelerator.json")),
                self.void_state / f"tsc-{boot_id()}",
                *(
                    self.void_run / name
                    for name in ("keeper.sock", "keeper.lock", "uids.lock", "n")
                ),
            ),
            standing=(
                *(self.void_run / name for name in ("s", "shim", "vm")),
                self.void_run / "shim" / daemon.namespace,
            ),
            sockets=frozenset(
                shim_socket(daemon.address, daemon.namespace, name)
                for name in containers
                if self.runtime.is_vm  # a killed runc shim leaves its socket's file for ever
            ),
            lasting=("shims/microvm/keeper.py", "shims/containerd/shim/main.py nursery"),
        )


class Workbench:
    """What one test works with: names for its containers, and their removal at its end."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.ctr = site.ctr
        self.names: list[str] = []

    def name(self, stem: str = "c") -> str:
        """Return a new container name, which the fixture removes when the test ends."""
        self.names.append(f"{stem}-{secrets.token_hex(3)}")
        return self.names[-1]

    def start(self, *command: str, options: tuple[str, ...] = (), stem: str = "c") -> str:
        """Start a detached container and return its name."""
        name = self.name(stem)
        words = command or ("sleep", "1000")
        self.ctr(*self.site.run_words(name, *words, options=("-d", *options)))
        return name

    def run(self, *command: str, options: tuple[str, ...] = (), stdin: bytes | None = None) -> str:
        """Run a container to its end, which must be 0, and return its output."""
        name = self.name()
        words = self.site.run_words(name, *command, options=("--rm", *options))
        return self.ctr(*words, stdin=stdin).text

    def status(self, *command: str, options: tuple[str, ...] = ()) -> int:
        """Run a container to its end and return its status."""
        words = self.site.run_words(self.name(), *command, options=("--rm", *options))
        return self.ctr(*words, check=False).status

    def exec(self, container: str, *command: str, stdin: bytes | None = None) -> str:
        """Run a process in a container to its end, which must be 0, and return its output."""
        return self.ctr(*self.exec_words(container, *command), stdin=stdin).text

    def exec_status(self, container: str, *command: str) -> int:
        """Run a process in a container to its end and return its status."""
        return self.ctr(*self.exec_words(container, *command), check=False).status

    def exec_words(self, container: str, *command: str, options: tuple[str, ...] = ()) -> list[str]:
        """Return the words of ``ctr task exec``; each has an exec id of its own."""
        fifos = str(self.site.daemon.root / "fifo")
        own = ("--fifo-dir", fifos, "--exec-id", secrets.token_hex(4))
        return ["task", "exec", *own, *options, container, *command]

    def stopped(self, container: str) -> bool:
        return self.ctr.state(container) in {"STOPPED", "ABSENT"}

    def await_stopped(self, container: str, timeout: float = 10.0) -> float:
        return eventually(lambda: self.stopped(container), f"{container} stopped", timeout=timeout)
