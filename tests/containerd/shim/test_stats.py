"""Statistics: cgroup files as a guest sends them, honest or not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protos.gen.voidbox.guest.v1 import guest_pb2
from shims.containerd.shim.stats import UNLIMITED, metrics_of

FILES = {
    "pids.current": "3\n",
    "pids.max": "max\n",
    "cpu.stat": "usage_usec 100\nuser_usec 60\nsystem_usec 40\nnr_periods 5\nnew_field 1\n",
    "cpu.pressure": "some avg10=1.50 avg60=0.20 avg300=0.00 total=77\n",
    "memory.current": "4096\n",
    "memory.max": "134217728\n",
    "memory.stat": (
        "anon 10\nfile 20\ninactive_file 5\nworkingset_refault_anon 1\nworkingset_refault_file 2\n"
    ),
    "memory.events": "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\n",
    "memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\nfull avg10=2.00 total=3\n",
    "io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n254:16 rbytes=9\n",
}


def _reply(files: dict[str, str]) -> guest_pb2.StatsReply:
    return guest_pb2.StatsReply(
        files=[guest_pb2.CgroupFile(name=n, content=c.encode()) for n, c in files.items()],
        interfaces=[guest_pb2.Interface(name="eth0", rx_bytes=11, tx_packets=12)],
    )


def test_the_files_of_a_kernel() -> None:
    metrics = metrics_of(_reply(FILES))
    assert (metrics.pids.current, metrics.pids.limit) == (3, UNLIMITED)
    assert (metrics.cpu.usage_usec, metrics.cpu.system_usec, metrics.cpu.nr_periods) == (100, 40, 5)
    assert metrics.cpu.psi.some.avg10 == 1.5
    assert metrics.cpu.psi.some.total == 77
    assert (metrics.memory.usage, metrics.memory.usage_limit) == (4096, 134217728)
    assert (metrics.memory.anon, metrics.memory.inactive_file) == (10, 5)
    assert metrics.memory.workingset_refault == 3
    assert metrics.memory.psi.full.avg10 == 2
    assert metrics.memory_events.oom_kill == 4
    assert [(entry.major, entry.minor, entry.rbytes) for entry in metrics.io.usage] == [
        (8, 0, 1),
        (254, 16, 9),
    ]
    assert (metrics.network[0].name, metrics.network[0].rx_bytes) == ("eth0", 11)


def test_nothing_gives_zeros() -> None:
    assert metrics_of(guest_pb2.StatsReply()).memory.usage == 0


@given(st.dictionaries(st.sampled_from(sorted(FILES)), st.text(max_size=200)))
def test_any_text_is_survived(files: dict[str, str]) -> None:
    metrics_of(_reply(files)).SerializeToString()


@given(st.sampled_from(sorted(FILES)), st.binary(max_size=200))
def test_any_bytes_are_survived(name: str, content: bytes) -> None:
    reply = guest_pb2.StatsReply(files=[guest_pb2.CgroupFile(name=name, content=content)])
    metrics_of(reply).SerializeToString()


def test_numbers_beyond_all_reason() -> None:
    metrics = metrics_of(_reply({"memory.current": "9" * 100_000, "pids.current": "9" * 20}))
    assert metrics.memory.usage == 0
    assert metrics.pids.current == UNLIMITED
