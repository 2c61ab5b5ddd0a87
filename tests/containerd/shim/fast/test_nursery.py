"""The nursery: its daemons are like any other, and nothing depends on it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.containerd.shim.fast.conftest import NAMESPACE, ROOT, elapsed, is_alive, kill
from tests.e2e.ctr import eventually

if TYPE_CHECKING:
    from tests.containerd.shim.fast.conftest import Node


def start(node: Node, name: str, **environ: str) -> dict[str, Any]:
    """Start a container and return what its daemon says about itself."""
    node.bundle(name)
    return node.ask(node.start(name, **environ))


def start_first(node: Node, name: str = "c1") -> dict[str, Any]:
    """Start a container whose daemon begins the nursery, and wait until that takes requests."""
    about = start(node, name, FAKE_NURSERY="1")
    (path,) = (node.run / "n").glob("*[!k]")
    eventually(lambda: listens(path), "the nursery listens")
    return about


def listens(path: Path) -> bool:
    """Return whether connections are taken; listen() announces itself to nobody."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        return client.connect_ex(str(path)) == 0


def nursery_of(node: Node) -> int:
    """Return the pid of the nursery, once its spare has taken its own name."""
    found: list[int] = []

    def alone() -> bool:
        found[:] = [pid for pid in node.daemons() if b"nursery" in command_line(pid)]
        return len(found) == 1

    eventually(alone, "one nursery")
    return found[0]


def command_line(pid: int) -> list[bytes]:
    """Return the words; of a process that has ended, none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return []


def stat_of(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith(f"{name}:"))


def test_its_daemon_is_like_a_launched_one(node: Node) -> None:
    launched = start_first(node)
    forked = start(node, "c2")
    assert (launched["nursery"], forked["nursery"]) == (False, True)
    pid = forked["pid"]
    assert forked["sid"] == pid
    assert forked["cwd"] == "/"
    assert forked["ttrpc"] == launched["ttrpc"]
    same = {"c1": "c2"}
    expected = [same.get(word, word).replace("/c1", "/c2") for word in launched["arguments"]]
    assert forked["arguments"][:-4] == expected[:-4]
    assert set(forked["fds"]) >= {"0", "1", "2", "3"}
    assert set(forked["fds"]) - set(launched["fds"]) == set()
    assert forked["fds"]["2"].endswith(f"/log/{NAMESPACE}/c2.log")
    assert int(stat_of(pid, "PPid")) != nursery_of(node)


def test_ps_shows_the_daemon_it_is(node: Node) -> None:
    launched = start_first(node)
    forked = start(node, "c2")
    words = [word for word in command_line(forked["pid"]) if word]
    assert words[-1] == b"daemon"
    assert b"nursery" not in words
    assert words[words.index(b"-id") + 1] == b"c2"
    assert len(words) == len([word for word in command_line(launched["pid"]) if word])


def test_the_environment_is_the_callers(node: Node) -> None:
    start_first(node)
    forked = start(node, "c2", TTRPC_ADDRESS="/run/another.ttrpc")
    assert forked["nursery"]
    assert forked["ttrpc"] == "/run/another.ttrpc"


def test_it_may_be_switched_off(node: Node) -> None:
    start_first(node)
    assert not start(node, "c2", VOID_SHIMS_NURSERY="off")["nursery"]
    kill(nursery_of(node))
    start(node, "c3", FAKE_NURSERY="1", VOID_SHIMS_NURSERY="off")
    assert not any(b"nursery" in command_line(pid) for pid in node.daemons())


def test_it_may_die(node: Node) -> None:
    start_first(node)
    about = start(node, "c2")
    kill(nursery_of(node))
    assert is_alive(about["pid"])
    assert not start_first(node, "c3")["nursery"]
    assert start(node, "c4")["nursery"]


def test_one_that_hangs_delays_one_start_and_is_killed(node: Node) -> None:
    start_first(node)
    assert start(node, "c2")["nursery"]
    nursery = nursery_of(node)
    os.kill(nursery, signal.SIGSTOP)
    began = time.monotonic()
    assert not start(node, "c3")["nursery"]
    assert elapsed(began) < 10
    assert not is_alive(nursery)
    eventually(lambda: len(node.daemons()) == 3, "two daemons and the nursery")


def test_other_code_is_another_nursery(node: Node) -> None:
    start_first(node)
    changed = node.launcher.parents[2] / "shims" / "containerd" / "shim" / "stats.py"
    before = changed.stat()
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    try:
        assert not start(node, "c2")["nursery"]
    finally:
        os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert start(node, "c3")["nursery"]


def test_a_request_that_is_none_makes_nothing(node: Node) -> None:
    start_first(node)
    (path,) = (node.run / "n").glob("*[!k]")
    for request in (b"", b"x", b"999\0a\0", b"1\0\xff\0=\0", os.urandom(200)):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.settimeout(10)
            client.connect(str(path))
            client.send(request or b"\0")
            assert client.recv(64) == b""
    assert start(node, "c2")["nursery"]
    eventually(lambda: len(node.daemons()) == 3, "two daemons and the nursery")


def spares_of(node: Node) -> list[int]:
    """Return the processes that wait to become a daemon."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            words = command_line(int(entry.name))
            if b"spare" in words and str(node.launcher.parents[2]).encode() in b"".join(words[:5]):
                found.append(int(entry.name))
    return found


def test_the_spare_ends_with_the_nursery_however_that_ends(node: Node) -> None:
    start_first(node)
    eventually(lambda: len(spares_of(node)) == 1, "a spare waits")
    kill(nursery_of(node))
    eventually(lambda: not spares_of(node), "the spare has ended")


def test_a_spare_that_was_killed_costs_one_start_its_speed(node: Node) -> None:
    start_first(node)
    eventually(lambda: len(spares_of(node)) == 1, "a spare waits")
    kill(spares_of(node)[0])
    assert not start(node, "c2")["nursery"]
    assert start(node, "c3")["nursery"]


def test_it_ends_when_nobody_asks(node: Node) -> None:
    code = (
        "import sys, socket; sys.path.insert(0, sys.argv[1])\n"
        "from shims.containerd.shim import nurse\n"
        "nurse.PRELOADED = ()\n"
        "listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "listener.bind(sys.argv[2])\n"
        "sys.exit(nurse.serve(sys.argv[2], listener, 0.05))\n"
    )
    path = node.directory / "nursery.sock"
    words = [sys.executable, "-c", code, str(ROOT), str(path)]
    assert subprocess.run(words, timeout=20, check=False).returncode == 0
    assert not path.exists()


def test_one_at_a_time_and_nobodys_child(node: Node) -> None:
    about = start_first(node)
    nursery = nursery_of(node)
    assert int(stat_of(nursery, "PPid")) != about["pid"]
    start(node, "c3", FAKE_NURSERY="1")
    assert nursery_of(node) == nursery


def test_sigterm_ends_it_and_takes_its_name_away(node: Node) -> None:
    start_first(node)
    kill(nursery_of(node), signal.SIGTERM)
    assert list((node.run / "n").glob("*[!k]")) == []
    assert not start(node, "c2")["nursery"]


def test_a_daemon_that_fails_says_why_in_its_log(node: Node) -> None:
    start_first(node)
    node.bundle("c2")
    node.call("start", "c2", FAKE_FAILURE="1")
    log = node.directory / "state" / "log" / NAMESPACE / "c2.log"
    eventually(lambda: "no such luck" in log.read_text(), "the daemon's last words")
    assert "RuntimeError: no such luck" in log.read_text()


def test_what_it_preloads_is_there_and_light() -> None:
    from shims.containerd.shim.nurse import PRELOADED

    code = (
        "import sys, importlib\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print([n for n in ('pydantic', 'grpc', 'click', 'rich', 'yaml') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *PRELOADED],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("word", ["", "=a=\n", "ä\udcff", " ", "-id"])
def test_words_survive_the_way(node: Node, word: str) -> None:
    start_first(node)
    about = start(node, "c2", FAKE_WORD=word)
    assert about["nursery"]
    assert about["word"] == word


def test_a_dump_that_is_asked_for_too_early_ends_nobody(node: Node) -> None:
    """These daemons never get as far as to arm it. What they execute has the signal's default."""
    launched = start_first(node)
    forked = start(node, "c2")
    pids = [launched["pid"], forked["pid"], nursery_of(node)]
    for pid in pids:
        os.kill(pid, signal.SIGUSR1)
    assert start(node, "c3")["nursery"]
    for name, pid in (("c1", launched["pid"]), ("c2", forked["pid"])):
        assert node.ask(node.start(name))["pid"] == pid
    bit = 1 << (signal.SIGUSR1 - 1)
    for pid in pids:
        assert is_alive(pid)
        assert int(stat_of(pid, "SigCgt"), 16) & bit
        assert not int(stat_of(pid, "SigIgn"), 16) & bit
