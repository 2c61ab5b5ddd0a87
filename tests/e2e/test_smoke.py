"""Every verb of ctr once, on every containerd release that we support."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from tests.e2e.ctr import READS
from tests.e2e.runtimes import VOIDBOX

if TYPE_CHECKING:
    from tests.e2e.workbench import Workbench

pytestmark = [pytest.mark.root, pytest.mark.containerd, pytest.mark.qemu]


def test_run_shows_the_image_and_its_status(any_bench: Workbench) -> None:
    name = any_bench.name()
    words = any_bench.site.run_words(
        name, "sh", "-c", "cat /etc/greeting; pwd; echo $IMAGE_SAYS; exit 7", options=("--rm",)
    )
    answer = any_bench.ctr(*words, check=False)
    assert (answer.text, answer.status) == ("hello from the second layer\n/home\nyes\n", 7)


def test_a_detached_container_through_all_verbs(any_bench: Workbench) -> None:
    ctr = any_bench.ctr
    with ctr.events() as events:
        name = any_bench.start("sleep", "1000")
        assert ctr.state(name) == "RUNNING"
        assert any_bench.exec(name, "echo", "from inside") == "from inside\n"
        assert len(ctr("task", "ps", name).rows) >= 1
        assert ctr("task", "metrics", name).text.strip()
        ctr("task", "pause", name)
        assert ctr.state(name) == "PAUSED"
        ctr("task", "resume", name)
        assert ctr.state(name) == "RUNNING"
        ctr("task", "kill", "-s", "SIGKILL", name)
        exit_event = events.wait("/tasks/exit", name, process=name)
        assert exit_event.body["exit_status"] == 128 + 9
        any_bench.await_stopped(name)
        ctr("task", "delete", name)
        ctr("containers", "delete", name)
        if any_bench.site.runtime is VOIDBOX:  # runc's shim may be gone before it was sent
            events.wait("/tasks/delete", name)
        order = [topic for topic in events.topics(name) if topic.startswith("/tasks/")]
    assert [topic for topic in order if topic != "/tasks/delete"] == [
        "/tasks/create", "/tasks/start",
        "/tasks/exec-added", "/tasks/exec-started", "/tasks/exit",
        "/tasks/paused", "/tasks/resumed",
        "/tasks/exit",
    ]  # fmt: skip


def test_bytes_through_stdin_and_stdout(any_bench: Workbench) -> None:
    data = bytes(range(256)) * 4096  # 1 MiB with every byte value
    words = any_bench.site.run_words(any_bench.name(), *READS, "md5sum", options=("--rm",))
    answer = any_bench.ctr.feed(words, data)
    assert answer.text.split()[0] == hashlib.md5(data).hexdigest()


def test_the_daemon_restarts_and_finds_its_task(any_bench: Workbench) -> None:
    name = any_bench.start()
    before = any_bench.ctr.tasks()[name]
    any_bench.site.daemon.restart()
    assert any_bench.ctr.tasks()[name] == before
    assert any_bench.exec(name, "echo", "still here") == "still here\n"
