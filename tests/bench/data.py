"""Bytes: through stdin and stdout, and out of the root file system."""

from __future__ import annotations

import statistics
import subprocess
import time
from typing import TYPE_CHECKING

from tests.bench.place import BIG_FILE_MIB, SMALL_FILES
from tests.bench.table import Row
from tests.e2e.ctr import READS

if TYPE_CHECKING:
    from tests.bench.place import Place
    from tests.e2e.workbench import Workbench

__all__ = ["measure_root", "measure_streams"]

_STREAM_MIB = 192
_REPEAT = 3
_STDOUT_BUDGET = 100.0


def measure_streams(place: Place) -> list[Row]:
    """Compare throughput between ctr and a process, in MiB a second."""
    found: list[tuple[float, float]] = []
    for bench in place.both:
        name = bench.start()
        out = statistics.median(_stdout_rate(bench, name) for _ in range(_REPEAT))
        into = statistics.median(_stdin_rate(bench, name) for _ in range(_REPEAT))
        found.append((out, into))
        bench.ctr.remove(name)
    (our_out, our_in), (peer_out, peer_in) = found
    return [
        Row("stdout", our_out, "MiB/s", peer_out, limit=_STDOUT_BUDGET, at_least=True,
            judge_ours=True),
        Row("stdin", our_in, "MiB/s", peer_in),
    ]  # fmt: skip


def _stdout_rate(bench: Workbench, name: str) -> float:
    script = ("dd", "if=/dev/zero", "bs=1M", f"count={_STREAM_MIB}")
    with bench.ctr.background(*bench.exec_words(name, *script)) as client:
        assert client.stdout is not None
        left = _STREAM_MIB << 20
        left -= len(client.stdout.read(1 << 20))
        begin = time.perf_counter()
        measured = left
        while left:
            piece = client.stdout.read(min(left, 1 << 20))
            if not piece:
                raise RuntimeError(f"stdout ended {left} bytes early")
            left -= len(piece)
        took = time.perf_counter() - begin
        client.wait(30)
    return (measured >> 20) / took


def _stdin_rate(bench: Workbench, name: str) -> float:
    words = bench.exec_words(name, *READS, "sh", "-c", "cat > /dev/null; echo done")
    with bench.ctr.background(*words, stdin=subprocess.PIPE) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stderr is not None
        client.stderr.readline()
        block = bytes(1 << 20)
        begin = time.perf_counter()
        for _ in range(_STREAM_MIB):
            client.stdin.write(block)
        client.stdin.close()
        client.stdout.readline()
        return _STREAM_MIB / (time.perf_counter() - begin)


def measure_root(place: Place) -> list[Row]:
    """Compare reads and metadata operations of the root file system: first and second time.

    runc's container is on the host's own file system: it is the host's figure. Each is the time of
    an exec less that of an exec which does nothing.
    """
    jobs = {
        f"read {BIG_FILE_MIB} MiB, first": "cat /data/big > /dev/null",
        f"read {BIG_FILE_MIB} MiB, again": "cat /data/big > /dev/null",
        f"stat {SMALL_FILES} files, first": "find /data/many -size +9000 | wc -l",
        f"stat {SMALL_FILES} files, again": "find /data/many -size +9000 | wc -l",
        f"read {SMALL_FILES} files": "cat /data/many/*/* > /dev/null",
        "make and remove 500 files": (
            "mkdir /n; cd /n; for i in $(seq 500); do > $i; done; rm -r /n"
        ),
    }
    times: list[list[float]] = []
    for bench in place.both:
        name = bench.start()
        nothing = statistics.median(_timed(bench, name, "true") for _ in range(5))
        times.append([max(_timed(bench, name, job) - nothing, 1e-4) for job in jobs.values()])
        bench.ctr.remove(name)
    return [Row(what, ours, "s", peer) for what, ours, peer in zip(jobs, *times, strict=True)]


def _timed(bench: Workbench, name: str, script: str) -> float:
    begin = time.perf_counter()
    bench.exec(name, "sh", "-c", script)
    return time.perf_counter() - begin
