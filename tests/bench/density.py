"""Many idle containers: what each costs in memory, and how the start slows down."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.table import Row
from tests.e2e.leaks import command_line

if TYPE_CHECKING:
    from tests.bench.place import Place
    from tests.e2e.workbench import Workbench

__all__ = ["measure_density"]

_COUNTS = (1, 8, 32)
_SHIM_BUDGET = 20.0
_ALL_TOLD_BUDGET = 80.0


def measure_density(place: Place) -> list[Row]:
    """Start 32 idle containers; look after 1, 8 and 32. PSS, so shared pages count once."""
    names: list[str] = []
    starts: list[float] = []
    rows: list[Row] = []
    bench = place.ours
    try:
        for count in range(1, _COUNTS[-1] + 1):
            begin = time.perf_counter()
            names.append(bench.start("sleep", "100000", stem=f"many{count}"))
            starts.append(time.perf_counter() - begin)
            if count in _COUNTS:
                rows.extend(_memory_rows(bench, count))
        rows.extend(
            Row(f"start of container {n} against the first 3", starts[n - 1], "s", min(starts[:3]))
            for n in _COUNTS[1:]
        )
    finally:
        for name in names:
            bench.ctr.remove(name)
    return rows


def _memory_rows(bench: Workbench, count: int) -> list[Row]:
    kinds = {"shim": 0.0, "qemu": 0.0, "keeper": 0.0, "virtiofsd": 0.0, "other": 0.0}
    for pid in bench.site.daemon.descendants():
        kinds[_kind(pid)] += _pss_mib(pid)
    each = {kind: total / count for kind, total in kinds.items()}
    last = count == _COUNTS[-1]
    return [
        Row(f"{count}: shim, each", each["shim"], "MiB", limit=_SHIM_BUDGET),
        Row(f"{count}: QEMU, each", each["qemu"], "MiB"),
        Row(f"{count}: keeper and helpers, all", sum(kinds[k] for k in ("keeper", "virtiofsd",
                                                                      "other")), "MiB"),
        Row(f"{count}: all told, each", sum(each.values()), "MiB",
            limit=_ALL_TOLD_BUDGET if last else None),
    ]  # fmt: skip


def _kind(pid: int) -> str:
    line = command_line(pid)
    for word, kind in (
        ("qemu-system", "qemu"),
        ("virtiofsd", "virtiofsd"),
        ("keeper.py", "keeper"),
        ("-publish-binary", "shim"),
    ):
        if word in line:
            return kind
    return "other"


def _pss_mib(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024
