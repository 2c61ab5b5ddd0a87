"""Bytes in and out: all of them, in order, however many and however fast."""

from __future__ import annotations

import hashlib
import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.e2e.ctr import READS

if TYPE_CHECKING:
    from tests.e2e.ctr import Answer
    from tests.e2e.workbench import Workbench

pytestmark = [pytest.mark.root, pytest.mark.containerd, pytest.mark.qemu]

_MIB = 1 << 20
_DATA = random.Random(20).randbytes(20 * _MIB)  # the same bytes in every run
_DIGEST = hashlib.sha256(_DATA).hexdigest()


def test_20_mib_through_run(bench: Workbench) -> None:
    words = bench.site.run_words(bench.name(), *READS, "cat", options=("--rm",))
    answer = bench.ctr.feed(words, _DATA)
    assert hashlib.sha256(answer.stdout).hexdigest() == _DIGEST


def test_20_mib_through_exec(bench: Workbench) -> None:
    box = bench.start()
    answer = bench.ctr.feed(bench.exec_words(box, *READS, "cat"), _DATA)
    assert hashlib.sha256(answer.stdout).hexdigest() == _DIGEST
    answer = bench.ctr.feed(bench.exec_words(box, *READS, "sha256sum"), _DATA)
    assert answer.text.split()[0] == _DIGEST


def test_no_byte_is_lost_when_a_process_ends_at_once(bench: Workbench) -> None:
    script = "head -c 8388608 /dev/zero; echo end; echo error >&2"
    name = bench.name()
    answer = bench.ctr(*bench.site.run_words(name, "sh", "-c", script, options=("--rm",)))
    assert answer.stdout == bytes(8 * _MIB) + b"end\n"
    assert answer.stderr.endswith(b"error\n")


def test_the_end_of_stdin_comes_after_its_last_byte(bench: Workbench) -> None:
    box = bench.start()
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(
            lambda size: bench.ctr.feed(bench.exec_words(box, *READS, "wc", "-c"), bytes(size)),
            [0, 1, 65536, 300_001],
        )
        assert [int(answer.text) for answer in answers] == [0, 1, 65536, 300_001]


def test_a_stalled_reader_stalls_only_itself(bench: Workbench) -> None:
    box = bench.start()
    with bench.ctr.background(*bench.exec_words(box, "cat", "/dev/zero")) as stalled:
        assert stalled.stdout is not None
        assert stalled.stdout.read(65536) == bytes(65536)  # and nobody reads on
        assert bench.exec(box, "echo", "others go on") == "others go on\n"
        words = bench.exec_words(box, *READS, "cat")
        assert bench.ctr.feed(words, _DATA[:_MIB]).stdout == _DATA[:_MIB]


def test_output_to_a_file(bench: Workbench, tmp_path: pytest.TempPathFactory) -> None:
    target = f"{tmp_path}/logs/out"
    name = bench.start(
        "sh", "-c", "echo out; echo err >&2", options=("--log-uri", f"file://{target}")
    )
    bench.await_stopped(name)
    with open(target) as handle:
        assert sorted(handle.read().split()) == ["err", "out"]


def test_output_to_nowhere(bench: Workbench) -> None:
    name = bench.start("sh", "-c", "head -c 4194304 /dev/zero; exit 3", options=("--null-io",))
    bench.await_stopped(name)


@pytest.mark.timeout(240)
def test_ten_containers_at_once(bench: Workbench) -> None:
    names = [bench.name("ten") for _ in range(10)]

    def run(name: str) -> Answer:
        script = f"echo {name}; echo reading >&2; cat | md5sum; exit {10 + names.index(name)}"
        words = bench.site.run_words(name, "sh", "-c", script, options=("--rm",))
        return bench.ctr.feed(words, name.encode(), timeout=200)

    with ThreadPoolExecutor(len(names)) as pool:
        for number, answer in enumerate(pool.map(run, names)):
            digest = hashlib.md5(names[number].encode()).hexdigest()
            assert answer.text == f"{names[number]}\n{digest}  -\n"
            assert answer.status == 10 + number
