"""What a test works with: a containerd with the image in it, and containers that go after it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shims.microvm.tsc import boot_id
from tests.e2e.ctr import eventually
from tests.e2e.images import IMAGE
from tests.e2e.leaks import Scope
from tests.microvm.nets import Pair, make_pair

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import ExitStack
    from pathlib import Path

    from tests.e2e.containerds import Containerd
    from tests.e2e.ctr import Ctr
    from tests.e2e.runtimes import Runtime

__all__ = ["Site", "Workbench", "joining"]


def joining(pair: Pair) -> tuple[str, ...]:
    """Return the options of ``ctr run`` for a container that has this network."""
    return ("--with-ns", f"network:{pair.path}")


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

    def scope(self, networks: Iterable[Pair] = ()) -> Scope:
        """Return where leaks of containers would be, some of which had these networks."""
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
            networks=tuple(pair.pod for pair in networks),
            lasting=(
                "shims/microvm/keeper.py",
                "shims/containerd/shim/main.py nursery",
                "shims/containerd/shim/main.py spare",
            ),
        )


class Workbench:
    """What one test works with: names for its containers, and their removal at its end.

    ``stack`` holds what has to be there until the leaks are counted.
    """

    def __init__(self, site: Site, stack: ExitStack) -> None:
        self.site = site
        self.ctr = site.ctr
        self.names: list[str] = []
        self.networks: list[Pair] = []
        self._stack = stack

    def add_network(self) -> Pair:
        """Make a network as CNI does, for containers of this test; see ``joining``."""
        self.networks.append(self._stack.enter_context(make_pair()))
        return self.networks[-1]

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
        """Run a process in a container to its end, which must be 0, and return its output.

        Without ``stdin`` the output goes through a file and holds both streams: ctr closes its
        fifos as soon as the process is deleted, whether it has read them or not, so on a busy host
        it loses the output of every few hundredth exec, runc's too.
        """
        if stdin is not None:
            return self.ctr(*self.exec_words(container, *command), stdin=stdin).text
        output = self.site.daemon.root / f"output-{secrets.token_hex(4)}"
        own = ("--log-uri", f"file://{output}", "--exec-id", secrets.token_hex(4))
        try:
            self.ctr("task", "exec", *own, container, *command)
            return output.read_text(errors="replace")
        finally:
            output.unlink(missing_ok=True)

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
