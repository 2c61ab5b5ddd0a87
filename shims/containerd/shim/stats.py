"""cgroup v2 files of a guest, as text, to the Metrics message that containerd expects.

The text comes out of a VM that its container may have taken over, so it is read with suspicion: a
line or number that makes no sense is left out, nothing grows with the input, nothing raises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protos.gen.io.containerd.cgroups.v2 import metrics_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from protos.gen.voidbox.guest.v1 import guest_pb2

__all__ = ["UNKNOWN", "UNLIMITED", "metrics_of", "with_oom_kill"]

UNLIMITED = (1 << 64) - 1
"""How the Go implementation writes ``max``."""
UNKNOWN = metrics_pb2.Metrics(
    pids={}, cpu={}, memory={}, io={}, memory_events={}
)  # every part is there: consumers look into them unasked
"""What is said of a container of which nothing was seen."""
_LARGEST = UNLIMITED
_MOST_DEVICES = 256

_CPU = {
    name: name
    for name in ("usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled",
                 "throttled_usec", "nr_bursts", "burst_usec")
}  # fmt: skip
_MEMORY = {
    name: name
    for name in ("anon", "file", "kernel_stack", "slab", "sock", "shmem", "file_mapped",
                 "file_dirty", "file_writeback", "anon_thp", "inactive_anon", "active_anon",
                 "inactive_file", "active_file", "unevictable", "slab_reclaimable",
                 "slab_unreclaimable", "pgfault", "pgmajfault", "workingset_nodereclaim",
                 "pgrefill", "pgscan", "pgsteal", "pgactivate", "pgdeactivate", "pglazyfree",
                 "pglazyfreed", "thp_fault_alloc", "thp_collapse_alloc")
}  # fmt: skip
# Kernels since 5.9 count these for files and anonymous memory apart; the message has one field.
_MEMORY |= {
    f"workingset_{what}_{kind}": f"workingset_{what}"
    for what in ("refault", "activate")
    for kind in ("anon", "file")
}
_EVENTS = {name: name for name in ("low", "high", "max", "oom", "oom_kill")}
_IO = {"rbytes": "rbytes", "wbytes": "wbytes", "rios": "rios", "wios": "wios"}
_NETWORK = ("rx_bytes", "rx_packets", "rx_errors", "rx_dropped",
            "tx_bytes", "tx_packets", "tx_errors", "tx_dropped")  # fmt: skip


def metrics_of(reply: guest_pb2.StatsReply) -> metrics_pb2.Metrics:
    """Return the Metrics message for what the guest read from a container's cgroup."""
    files = {file.name: file.content.decode("ascii", "replace") for file in reply.files}
    metrics = metrics_pb2.Metrics()
    metrics.pids.current = _number(files.get("pids.current", ""))
    metrics.pids.limit = _limit(files.get("pids.max", ""))
    _fill(metrics.cpu, files.get("cpu.stat", ""), _CPU)
    _fill_memory(metrics.memory, files)
    _fill(metrics.memory_events, files.get("memory.events", ""), _EVENTS)
    _fill_io(metrics.io, files.get("io.stat", ""))
    for name, target in (("cpu", metrics.cpu), ("memory", metrics.memory), ("io", metrics.io)):
        if text := files.get(f"{name}.pressure"):
            _fill_pressure(target.psi, text)
    for interface in reply.interfaces[:_MOST_DEVICES]:
        entry = metrics.network.add(name=interface.name[:64])
        for counter in _NETWORK:
            setattr(entry, counter, getattr(interface, counter))
    return metrics


def with_oom_kill(metrics: metrics_pb2.Metrics) -> metrics_pb2.Metrics:
    """Return a copy that says that the kernel killed for want of memory: the VM itself went so.

    kubelet's reason OOMKilled is read from here when the event was missed.
    """
    found = metrics_pb2.Metrics()
    found.CopyFrom(metrics)
    found.memory_events.oom_kill = max(found.memory_events.oom_kill, 1)
    return found


def _fill_memory(target: metrics_pb2.MemoryStat, files: dict[str, str]) -> None:
    _fill(target, files.get("memory.stat", ""), _MEMORY)
    target.usage = _number(files.get("memory.current", ""))
    target.usage_limit = _limit(files.get("memory.max", ""))
    target.max_usage = _number(files.get("memory.peak", ""))
    target.swap_usage = _number(files.get("memory.swap.current", ""))
    target.swap_limit = _limit(files.get("memory.swap.max", ""))
    target.swap_max_usage = _number(files.get("memory.swap.peak", ""))


def _fill(target: object, text: str, fields: dict[str, str]) -> None:
    """Add every ``name value`` line whose name is in ``fields`` to its field."""
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if field := fields.get(name):
            setattr(target, field, min(getattr(target, field) + _number(value), _LARGEST))


def _fill_io(target: metrics_pb2.IOStat, text: str) -> None:
    for line in text.splitlines()[:_MOST_DEVICES]:
        device, *pairs = line.split() or [""]
        major, _, minor = device.partition(":")
        if not (major.isdecimal() and minor.isdecimal()):
            continue
        entry = target.usage.add(major=_number(major), minor=_number(minor))
        for name, value in _pairs(pairs):
            if field := _IO.get(name):
                setattr(entry, field, _number(value))


def _fill_pressure(target: metrics_pb2.PSIStats, text: str) -> None:
    for line in text.splitlines():
        kind, *pairs = line.split() or [""]
        if kind not in ("some", "full"):
            continue
        data = target.some if kind == "some" else target.full
        for name, value in _pairs(pairs):
            if name == "total":
                data.total = _number(value)
            elif name in ("avg10", "avg60", "avg300"):
                setattr(data, name, _share(value))


def _pairs(words: list[str]) -> Iterator[tuple[str, str]]:
    for word in words:
        name, _, value = word.partition("=")
        yield name, value


def _number(text: str) -> int:
    word = text.strip()
    # The length is checked first: int() of a text of megabytes takes its time.
    return min(int(word), _LARGEST) if len(word) <= 20 and word.isdecimal() else 0


def _limit(text: str) -> int:
    word = text.strip()
    return UNLIMITED if word == "max" else _number(word)


def _share(text: str) -> float:
    whole, _, rest = text.partition(".")
    return float(f"{whole}.{rest or 0}") if (whole + rest).isdecimal() and len(text) < 16 else 0.0
