"""Kill -9 of every part at every moment; afterwards containerd's view is right, and nothing stays.

Each test kills one victim (shim, QEMU, virtiofsd, the keeper of templates, PID 1 of the guest, or
containerd itself) at one moment of a container's life. Within ten seconds containerd must know
what became of the container and give every client an answer; the workbench fixture then counts
what is left of processes, mounts, sockets, taps and redirects, cgroups, files and descriptors. A
new container must start afterwards.
"""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.e2e.ctr import eventually
from tests.e2e.leaks import command_line, matching
from tests.e2e.runtimes import VOIDBOX, Runtime
from tests.e2e.workbench import joining

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.e2e.workbench import Workbench

    Only = Callable[[Runtime, str], None]

pytestmark = [
    pytest.mark.root,
    pytest.mark.containerd,
    pytest.mark.qemu,
    pytest.mark.slow,
    pytest.mark.timeout(90),
]

_RIGHT_WITHIN = 10.0  # seconds
_APPEARS_WITHIN = 20.0


@dataclass(frozen=True)
class Victim:
    """A process to kill: how it is found, and what the container needs for it to exist."""

    name: str
    words: tuple[str, ...]  # any of them in its command line; none for the shim
    needs_share: bool = False
    needs_network: bool = False
    container_dies: bool = True
    vm_only: bool = True


_SHIM = Victim("shim", (), vm_only=False)
_VICTIMS = (
    _SHIM,
    Victim("qemu", ("qemu-system-x86_64",)),
    Victim("virtiofsd", ("virtiofsd",), needs_share=True),
    # A host out of memory kills what it finds: everything of one container at once.
    Victim("all", ("{name}", "virtiofsd"), needs_share=True),
    Victim("keeper", ("shims/microvm/keeper.py",), container_dies=False),
    # Its VM's tap goes with QEMU, but nobody of its own is left to take the redirect away.
    Victim("networked-shim", (), needs_network=True),
)


class Stage:
    """One container on the way to its accident."""

    def __init__(self, bench: Workbench, victim: Victim, share: Path) -> None:
        self.bench = bench
        self.victim = victim
        self.name = bench.name("fault")
        mount = f"type=bind,src={share},dst=/mnt,options=rbind:rw"
        self.options: tuple[str, ...] = ("--mount", mount) if victim.needs_share else ()
        if victim.needs_network:
            self.options += joining(bench.add_network())

    def words(self, *options: str) -> list[str]:
        return self.bench.site.run_words(
            self.name, "sleep", "1000", options=(*options, *self.options)
        )

    def start(self) -> None:
        self.bench.ctr(*self.words("-d"))

    def find(self) -> list[int]:
        site = self.bench.site
        if not self.victim.words:
            found = site.runtime.shims(site.daemon.descendants(), self.name)
        else:
            pids = site.daemon.descendants()
            words = [word.format(name=self.name) for word in self.victim.words]
            found = [pid for word in words for pid in matching(pids, word)]
        # `start` itself is containerd's child: it tells nobody that it was killed.
        return [pid for pid in found if not command_line(pid).endswith((" start", " delete"))]

    def connected(self) -> bool:
        """Whether containerd is connected to the container's shim."""
        try:
            address = (self.bench.site.daemon.bundles / self.name / "address").read_text()
        except FileNotFoundError:
            return False
        path = address.removeprefix("unix://")
        with open("/proc/net/unix") as table:
            # One line for the listening socket, one for each connection.
            return sum(line.rstrip().endswith(path) for line in table) > 1

    def kill(self) -> None:
        """Wait until the victim is there, kill it, and return when it is gone.

        A shim counts once containerd is connected to it. Until then containerd knows of nothing
        that could have died, and asks nobody to clean up.
        """
        deadline = time.monotonic() + _APPEARS_WITHIN
        while not (self.connected() and (pids := self.find())):
            assert time.monotonic() < deadline, f"no {self.victim.name} appeared"
        for pid in pids:
            kill_process(pid)


def kill_process(pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        assert select.select([handle], [], [], 5)[0], f"process {pid} survives SIGKILL"
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)


@pytest.fixture
def stage_of(own_bench: Workbench, only: Only, tmp_path: Path) -> Callable[[Victim], Stage]:
    def prepare(victim: Victim) -> Stage:
        if victim.vm_only:
            only(VOIDBOX, f"it has no {victim.name}")
        return Stage(own_bench, victim, tmp_path)

    return prepare


@pytest.fixture(autouse=True)
def _still_works(own_bench: Workbench) -> Iterator[None]:
    """After every accident, a new container starts and ends as if nothing had happened."""
    yield
    assert own_bench.run("echo", "well") == "well\n"


def _await_end(client: subprocess.Popen[bytes]) -> None:
    assert client.wait(_RIGHT_WITHIN) is not None


def _expect(stage: Stage) -> None:
    """Within ten seconds, containerd must know what became of the container."""
    bench = stage.bench
    if stage.victim.container_dies:
        bench.await_stopped(stage.name, _RIGHT_WITHIN)
    else:
        assert bench.ctr.state(stage.name) == "RUNNING"
        assert bench.exec(stage.name, "echo", "unharmed") == "unharmed\n"


@pytest.mark.parametrize("victim", _VICTIMS, ids=lambda victim: victim.name)
def test_killed_while_a_container_is_created(
    stage_of: Callable[[Victim], Stage], victim: Victim
) -> None:
    stage = stage_of(victim)
    bench = stage.bench
    with bench.ctr.background(*stage.words("-d")) as client:
        stage.kill()
        _await_end(client)
        created = client.returncode == 0
    if victim.container_dies or not created:
        # The kill may have come a moment after Create's answer: then the container was there.
        bench.await_stopped(stage.name, _RIGHT_WITHIN)
    else:
        _expect(stage)


@pytest.mark.parametrize("victim", _VICTIMS, ids=lambda victim: victim.name)
def test_killed_while_a_container_runs(stage_of: Callable[[Victim], Stage], victim: Victim) -> None:
    stage = stage_of(victim)
    with stage.bench.ctr.events() as events:
        stage.start()
        stage.kill()
        _expect(stage)
        if victim.container_dies:
            exited = events.wait("/tasks/exit", stage.name, process=stage.name)
            assert exited.body["exit_status"] in {137, 255}


@pytest.mark.parametrize("victim", _VICTIMS, ids=lambda victim: victim.name)
def test_killed_while_an_exec_runs(stage_of: Callable[[Victim], Stage], victim: Victim) -> None:
    stage = stage_of(victim)
    bench = stage.bench
    stage.start()
    with bench.ctr.events() as events:
        with bench.ctr.background(*bench.exec_words(stage.name, "sleep", "1000")) as client:
            events.wait("/tasks/exec-started", stage.name)
            stage.kill()
            _expect(stage)
            if victim.container_dies:
                _await_end(client)


@pytest.mark.parametrize("victim", _VICTIMS, ids=lambda victim: victim.name)
def test_killed_while_a_container_exits(
    stage_of: Callable[[Victim], Stage], victim: Victim
) -> None:
    stage = stage_of(victim)
    bench = stage.bench
    with bench.ctr.events() as events:
        stage.start()
        pids = stage.find()
        with bench.ctr.background("task", "kill", "-s", "SIGKILL", stage.name) as client:
            for pid in pids:
                kill_process(pid)
            _await_end(client)
        exited = events.wait("/tasks/exit", stage.name, process=stage.name)
        assert exited.body["exit_status"] in {137, 255}
    bench.await_stopped(stage.name, _RIGHT_WITHIN)


def test_a_recorded_status_outlives_the_shim(
    stage_of: Callable[[Victim], Stage], only: Only
) -> None:
    """A shim that dies after a container's exit, before its delete, leaves the true status."""
    only(VOIDBOX, "runc's shim keeps no journal of exits")
    stage = stage_of(_SHIM)
    bench = stage.bench
    words = bench.site.run_words(stage.name, "sh", "-c", "exit 42", options=("-d",))
    with bench.ctr.events() as events:
        bench.ctr(*words)
        exited = events.wait("/tasks/exit", stage.name, process=stage.name)
        assert exited.body["exit_status"] == 42
        stage.kill()
        deleted = events.wait("/tasks/delete", stage.name)
        assert deleted.body["exit_status"] == 42


_PANIC = "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger"
"""The kernel panics when PID 1 dies; a privileged container can make it panic as well."""


@pytest.mark.parametrize("moment", ["running", "exec"])
def test_the_guests_first_process_dies(own_bench: Workbench, only: Only, moment: str) -> None:
    only(VOIDBOX, "the panic would be the host's")
    name = own_bench.start(options=("--privileged",), stem="panic")
    with own_bench.ctr.events() as events:
        with own_bench.ctr.background(*own_bench.exec_words(name, "sleep", "1000")) as other:
            if moment == "exec":
                events.wait("/tasks/exec-started", name)
            with own_bench.ctr.background(*own_bench.exec_words(name, "sh", "-c", _PANIC)) as c:
                _await_end(c)
            _await_end(other)
        own_bench.await_stopped(name, _RIGHT_WITHIN)
        exited = events.wait("/tasks/exit", name, process=name)
        assert exited.body["exit_status"] in {137, 255}


def test_the_guests_first_process_dies_as_a_container_starts(
    own_bench: Workbench, only: Only
) -> None:
    """Create has answered and Start has not: nothing earlier runs what a test could choose."""
    only(VOIDBOX, "the panic would be the host's")
    name = own_bench.name("panic")
    words = own_bench.site.run_words(name, "sh", "-c", _PANIC, options=("-d", "--privileged"))
    with own_bench.ctr.events() as events:
        with own_bench.ctr.background(*words) as client:
            _await_end(client)
        own_bench.await_stopped(name, _RIGHT_WITHIN)
        if client.returncode == 0:
            exited = events.wait("/tasks/exit", name, process=name)
            assert exited.body["exit_status"] in {137, 255}


def test_the_guests_first_process_dies_as_a_container_exits(
    own_bench: Workbench, only: Only
) -> None:
    only(VOIDBOX, "the panic would be the host's")
    script = f"trap '{_PANIC}; exit 0' TERM; touch /ready; while :; do sleep 0.1; done"
    name = own_bench.start("sh", "-c", script, options=("--privileged",), stem="panic")
    eventually(lambda: own_bench.exec_status(name, "test", "-e", "/ready") == 0, "the trap is set")
    with own_bench.ctr.events() as events:
        with own_bench.ctr.background("task", "kill", "-s", "SIGTERM", name) as client:
            _await_end(client)
        own_bench.await_stopped(name, _RIGHT_WITHIN)
        exited = events.wait("/tasks/exit", name, process=name)
        assert exited.body["exit_status"] in {137, 255}


def test_a_hung_vm_is_seen_and_can_be_killed(own_bench: Workbench, only: Only) -> None:
    """A VM that stands still answers nothing; containerd gets its answers all the same."""
    only(VOIDBOX, "it has no VM")
    name = own_bench.start(stem="hung")
    (qemu,) = matching(own_bench.site.daemon.descendants(), "qemu-system-x86_64")
    os.kill(qemu, signal.SIGSTOP)
    with own_bench.ctr.events() as events:
        assert own_bench.ctr.tasks()[name][1] == "RUNNING"
        own_bench.ctr("task", "kill", "-s", "SIGKILL", name, timeout=_RIGHT_WITHIN)
        # The guest has ten seconds to carry a SIGKILL out (kill-timeout), then the VM goes.
        own_bench.await_stopped(name, 2 * _RIGHT_WITHIN)
        assert events.wait("/tasks/exit", name, process=name).body["exit_status"] in {137, 255}


# ----------------------------------------------------------------------------------- containerd
def test_containerd_restarts_while_a_container_is_created(own_bench: Workbench, only: Only) -> None:
    only(VOIDBOX, "runc's half-made container may stay for ever")
    name = own_bench.name("restart")
    site = own_bench.site
    with own_bench.ctr.background(*site.run_words(name, "sleep", "9", options=("-d",))) as client:
        eventually(lambda: bool(site.runtime.shims(site.daemon.descendants())), "a shim")
        site.daemon.restart(signal.SIGKILL)
        _await_end(client)
    # Nobody asks for this container again: what was begun must go, or be there as a whole.
    own_bench.ctr.remove(name)


def test_containerd_restarts_while_containers_run(own_bench: Workbench) -> None:
    names = [own_bench.start(stem="restart") for _ in range(2)]
    before = own_bench.ctr.tasks()
    own_bench.site.daemon.restart(signal.SIGKILL)
    after = own_bench.ctr.tasks()
    assert [after[name] for name in names] == [before[name] for name in names]
    assert own_bench.exec(names[0], "echo", "here") == "here\n"
    with own_bench.ctr.events() as events:
        own_bench.ctr("task", "kill", "-s", "SIGKILL", names[1])
        exited = events.wait("/tasks/exit", names[1], process=names[1])
    assert exited.body["exit_status"] == 137


def test_containerd_restarts_while_an_exec_runs(own_bench: Workbench) -> None:
    name = own_bench.start(stem="restart")
    with own_bench.ctr.events() as events:
        with own_bench.ctr.background(*own_bench.exec_words(name, "sleep", "1000")) as client:
            events.wait("/tasks/exec-started", name)
            own_bench.site.daemon.restart(signal.SIGKILL)
            _await_end(client)
    assert own_bench.ctr.state(name) == "RUNNING"
    assert len(own_bench.ctr("task", "ps", name).rows) == 2, "the exec runs on"


def test_a_container_exits_while_containerd_is_away(any_bench: Workbench, only: Only) -> None:
    """The task is there with its status when containerd is back, and its events come then."""
    only(VOIDBOX, "a task of runc's may be gone when containerd is back")
    site, ctr = any_bench.site, any_bench.ctr
    name = any_bench.start("sh", "-c", "sleep 1; exit 42", stem="away")
    journal = site.void_run / "shim" / site.daemon.namespace / name / "events.jsonl"
    eventually(lambda: journal.stat().st_size == 0, "containerd has the events until now")
    site.daemon.stop(signal.SIGKILL)
    eventually(lambda: "/tasks/exit" in journal.read_text(), "the exit waits for containerd")
    site.daemon.start()
    # Asked of the journal: a client that listens may come later than the shim's next try.
    eventually(lambda: journal.stat().st_size == 0, "containerd has taken the exit")
    assert ctr.state(name) == "STOPPED"
    assert "exit code 42" in ctr("task", "delete", name).complaint
    ctr("containers", "delete", name)


def test_a_container_exits_while_containerd_hangs(own_bench: Workbench) -> None:
    """The exit event waits for as long as nobody takes it, and says the truth then."""
    name = own_bench.start("sh", "-c", "sleep 1; exit 42", stem="hang")
    daemon = own_bench.site.daemon
    with own_bench.ctr.events() as events:
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            _let_it_end()
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
        exited = events.wait("/tasks/exit", name, process=name)
    assert exited.body["exit_status"] == 42


def _let_it_end() -> None:
    """Wait for the end of a container of one second; nothing shows it while nobody listens."""
    select.select([], [], [], 3.0)
