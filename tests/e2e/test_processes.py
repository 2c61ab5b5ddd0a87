"""What ``ctr task`` does to a running container: exec, terminals, signals, pause, tables."""

from __future__ import annotations

import json
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pexpect
import pytest

from tests.e2e.ctr import eventually
from tests.e2e.runtimes import VOIDBOX, Runtime

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.workbench import Workbench

    Only = Callable[[Runtime, str], None]

pytestmark = [pytest.mark.root, pytest.mark.containerd, pytest.mark.qemu]

_AT_ONCE = 6
_PATIENCE = 20  # seconds until a terminal has to show something
# Signals whose default action ends a process; the others stop it or are ignored.
_DEADLY = [
    number for number in range(1, 32)
    if number not in {signal.SIGQUIT,  # busybox's shell is deaf to it
                      signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH,
                      signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
]  # fmt: skip


@pytest.fixture
def box(bench: Workbench) -> str:
    """A container that waits for company."""
    return bench.start("sleep", "10000")


# -------------------------------------------------------------------------------------- execute
@pytest.mark.timeout(300)
@pytest.mark.slow
def test_every_status_of_an_exec(bench: Workbench, box: str) -> None:
    def status(wanted: int) -> int:
        return bench.exec_status(box, "sh", "-c", f"exit {wanted}")

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        assert list(pool.map(status, range(256))) == list(range(256))


@pytest.mark.timeout(240)
def test_every_deadly_signal_is_128_and_its_number(bench: Workbench, box: str) -> None:
    def status(number: int) -> int:
        return bench.exec_status(box, "sh", "-c", f"ulimit -c 0; kill -{number} $$")

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        assert list(pool.map(status, _DEADLY)) == [128 + number for number in _DEADLY]


def test_execs_keep_their_streams_apart(bench: Workbench, box: str) -> None:
    def speak(number: int) -> tuple[bytes, bytes]:
        # Under load, ctr 1.7 and later may not have opened its pipes when a process that ends at
        # once is over, and then drops what it wrote: with every runtime, so the process lingers.
        script = f"for i in 1 2 3; do echo out {number}; echo err {number} >&2; done; sleep 0.3"
        answer = bench.ctr(*bench.exec_words(box, "sh", "-c", script))
        return answer.stdout, answer.stderr

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for number, (out, err) in enumerate(pool.map(speak, range(_AT_ONCE))):
            assert out == f"out {number}\n".encode() * 3
            assert err == f"err {number}\n".encode() * 3


def test_an_exec_has_its_own_user_and_directory(bench: Workbench, box: str) -> None:
    options = ("--user", "1000:1000", "--cwd", "/home/void")
    words = bench.exec_words(box, "sh", "-c", "id -u; pwd", options=options)
    assert bench.ctr(*words).text == "1000\n/home/void\n"


def test_an_exec_of_a_missing_program_names_it(bench: Workbench, box: str) -> None:
    answer = bench.ctr(*bench.exec_words(box, "/no/such/program"), check=False)
    assert answer.status != 0
    assert "/no/such/program" in answer.complaint
    assert bench.exec(box, "echo", "unharmed") == "unharmed\n"


def test_a_detached_exec_runs_on(bench: Workbench, box: str) -> None:
    bench.ctr(*bench.exec_words(box, "sh", "-c", "sleep 1000", options=("-d",)))
    assert "sleep 1000\n" in bench.exec(box, "ps", "-o", "args")


# ------------------------------------------------------------------------------------ terminals
def _terminal(bench: Workbench, *words: str) -> pexpect.spawn[str]:
    argv = bench.ctr.argv(*words)
    return pexpect.spawn(
        argv[0], argv[1:], env=dict(bench.ctr.environ), timeout=_PATIENCE, encoding="utf-8",
        dimensions=(31, 97),
    )  # fmt: skip


def _converse(terminal: pexpect.spawn[str]) -> None:
    """Talk to a shell on a terminal: what it is, its size, a new size, a control-C, the end."""
    terminal.expect("# ")
    terminal.sendline("tty; stty size")
    terminal.expect(r"/dev/(pts/\d+|console)\r+\n31 97\r+\n")
    terminal.setwinsize(41, 123)
    terminal.sendline("while [ \"$(stty size)\" != '41 123' ]; do :; done; echo it is $((40+2))")
    terminal.expect("it is 42")
    terminal.sendline("sh -c 'echo wait here; sleep 1000'")
    terminal.expect(r"wait here\r")
    terminal.sendintr()
    terminal.expect("# ")
    terminal.sendline("exit 9")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 9


def test_run_on_a_terminal(bench: Workbench) -> None:
    words = bench.site.run_words(bench.name(), "sh", options=("--rm", "--tty"))
    _converse(_terminal(bench, *words))


def test_exec_on_a_terminal(bench: Workbench, box: str) -> None:
    _converse(_terminal(bench, *bench.exec_words(box, "sh", options=("--tty",))))


def test_attach_reads_and_writes_a_detached_container(bench: Workbench) -> None:
    script = 'while read line; do echo "heard $line"; [ "$line" = bye ] && exit 5; done'
    name = bench.start("sh", "-c", script)
    with bench.ctr.background("task", "attach", name, stdin=subprocess.PIPE) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        for word in ("one", "two", "bye"):
            client.stdin.write(word.encode() + b"\n")
            client.stdin.flush()
            assert client.stdout.readline() == f"heard {word}\n".encode()
        assert client.wait(_PATIENCE) == 5


# -------------------------------------------------------------------------------------- signals
@pytest.mark.parametrize(("signal_name", "status"), [("SIGUSR1", 11), ("SIGTERM", 12)])
def test_a_signal_reaches_the_first_process(
    bench: Workbench, signal_name: str, status: int
) -> None:
    script = 'trap "exit 11" USR1; trap "exit 12" TERM; > /ready; while :; do sleep 0.1; done'
    with bench.ctr.events() as events:
        name = bench.start("sh", "-c", script)
        eventually(lambda: bench.exec_status(name, "test", "-e", "/ready") == 0, "its traps")
        bench.ctr("task", "kill", "-s", signal_name, name)
        exited = events.wait("/tasks/exit", name, process=name)
    assert exited.body["exit_status"] == status


def test_a_signal_reaches_one_exec(bench: Workbench, box: str) -> None:
    words = bench.exec_words(box, "sleep", "1000")
    with bench.ctr.events() as events, bench.ctr.background(*words) as client:
        started = events.wait("/tasks/exec-started", box)
        exec_id = str(started.body["exec_id"])
        bench.ctr("task", "kill", "-s", "SIGQUIT", "--exec-id", exec_id, box)
        assert client.wait(_PATIENCE) == 128 + signal.SIGQUIT
    assert bench.ctr.state(box) == "RUNNING"


def test_kill_all_ends_the_container(bench: Workbench, box: str) -> None:
    words = bench.exec_words(box, "sleep", "1000")
    with bench.ctr.events() as events, bench.ctr.background(*words) as client:
        events.wait("/tasks/exec-started", box)
        bench.ctr("task", "kill", "--all", "-s", "SIGKILL", box)
        assert client.wait(_PATIENCE) == 137
        last = events.wait("/tasks/exit", box, process=box)
        assert last.body["exit_status"] == 137
        exits = [event for event in events.seen if event.topic == "/tasks/exit"]
        assert exits[-1] is last, "the first process's exit is the last of the container"


def test_an_unknown_process_and_a_second_name_are_errors(bench: Workbench, box: str) -> None:
    unknown = bench.ctr("task", "kill", "--exec-id", "nobody", box, check=False)
    assert unknown.status != 0
    # ctr 2 shows the shim's sentence, earlier ones the code too.
    assert "not found" in unknown.complaint or "no exec nobody" in unknown.complaint
    words = bench.site.run_words(box, "true", options=("-d",))
    assert "already exists" in bench.ctr(*words, check=False).complaint


# --------------------------------------------------------------------------------------- states
def test_a_paused_container_stands_still(bench: Workbench) -> None:
    name = bench.start("sh", "-c", "while :; do echo >> /count; sleep 0.05; done")
    eventually(lambda: bench.exec_status(name, "test", "-s", "/count") == 0, "it counts")
    bench.ctr("task", "pause", name)
    assert bench.ctr.state(name) == "PAUSED"
    refused = bench.ctr(*bench.exec_words(name, "true"), check=False, timeout=30)
    assert refused.status != 0
    bench.ctr("task", "resume", name)
    assert bench.ctr.state(name) == "RUNNING"
    before = int(bench.exec(name, "wc", "-l", "/count").split()[0])
    eventually(
        lambda: int(bench.exec(name, "wc", "-l", "/count").split()[0]) > before, "it goes on"
    )


def test_a_paused_container_can_be_killed(bench: Workbench, box: str) -> None:
    bench.ctr("task", "pause", box)
    bench.ctr("task", "kill", "-s", "SIGKILL", box)
    if bench.site.runtime is not VOIDBOX:
        bench.ctr("task", "resume", box, check=False)  # a frozen process cannot die on cgroup v1
    bench.await_stopped(box)


def test_ps_lists_the_containers_processes(bench: Workbench, box: str) -> None:
    with bench.ctr.background(*bench.exec_words(box, "sleep", "1000")):
        eventually(lambda: len(bench.ctr("task", "ps", box).rows) == 2, "two processes")
    pids = {int(row[0]) for row in bench.ctr("task", "ps", box).rows}
    assert all(pid > 0 for pid in pids)


def test_metrics_measure_the_container(bench: Workbench, only: Only) -> None:
    only(VOIDBOX, "a host with cgroup v1 has other fields")
    name = bench.start(
        "sh", "-c", "head -c 16777216 /dev/urandom > /dev/shm/x; sleep 1000",
        options=("--memory-limit", str(96 << 20)),
    )  # fmt: skip
    size = ("stat", "-c", "%s", "/dev/shm/x")
    eventually(
        lambda: (
            bench.ctr(*bench.exec_words(name, *size), check=False).text.strip() == str(16 << 20)
        ),
        "16 MiB are written",
    )
    metrics = json.loads(bench.ctr("task", "metrics", "--format", "json", name).text)
    assert int(metrics["memory"]["usage"]) > 16 << 20
    assert int(metrics["memory"]["usage_limit"]) == 96 << 20
    assert int(metrics["cpu"]["usage_usec"]) > 0
    assert int(metrics["pids"]["current"]) >= 1
