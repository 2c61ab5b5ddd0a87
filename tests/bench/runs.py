"""``ctr run`` from its first instruction to its last, phase by phase, and ``ctr task exec``.

The phases are what containerd's own events show from outside:
  prepare   ctr's start until the container exists: the image's snapshot
  create    until the task exists: shim start, VM, root file system
  start     until its process runs
  run       until its process has ended
  end       until ctr has ended: task, shim, VM and snapshot are gone
"""

from __future__ import annotations

import itertools
import os
import signal
import statistics
import time
from typing import TYPE_CHECKING

from tests.bench.table import Row
from tests.e2e.leaks import matching
from tests.e2e.reaper import descendants_of

if TYPE_CHECKING:
    from tests.bench.place import Place
    from tests.e2e.ctr import Events
    from tests.e2e.workbench import Workbench

__all__ = ["measure_cold", "measure_exec", "measure_warm"]

_REPEAT = 7
_COLD_REPEAT = 3
_PHASES = ("prepare", "create", "start", "run", "end")
_MARKS = ("/containers/create", "/tasks/create", "/tasks/start", "/tasks/exit")
_WARM_BUDGET = 4.0


def measure_warm(place: Place) -> list[Row]:
    """Compare runs of ``true`` when template and layers are there."""
    with place.daemon.ctr().events() as events:
        for bench in place.both:
            _run_once(bench, events)
        ours, peer = _alternate(place, events, _REPEAT)
    return _rows("ctr run, warm", ours, peer, _WARM_BUDGET)


def measure_cold(place: Place) -> list[Row]:
    """The same when no template exists: the keeper of templates was killed before."""
    with place.daemon.ctr().events() as events:
        samples = []
        for _ in range(_COLD_REPEAT):
            for pid in matching(descendants_of(os.getpid()), "shims/microvm/keeper.py"):
                os.kill(pid, signal.SIGKILL)
            samples.append(_run_once(place.ours, events))
        ours = {phase: statistics.median(s[phase] for s in samples) for phase in samples[0]}
        peer = _run_once(place.peer, events)
    return _rows("ctr run, cold", ours, peer, None)


def measure_exec(place: Place) -> list[Row]:
    """Compare ``ctr task exec true``, from ctr's start to its end."""
    found = []
    for bench in place.both:
        name = bench.start()
        bench.exec(name, "true")
        times = []
        for _ in range(_REPEAT):
            begin = time.perf_counter()
            bench.exec(name, "true")
            times.append(time.perf_counter() - begin)
        found.append(statistics.median(times))
        bench.ctr.remove(name)
    return [Row("ctr task exec", found[0], "s", found[1])]


def _alternate(
    place: Place, events: Events, repeat: int
) -> tuple[dict[str, float], dict[str, float]]:
    samples: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
    for _ in range(repeat):
        for bench, found in zip(place.both, samples, strict=True):
            found.append(_run_once(bench, events))
    ours, peer = (
        {phase: statistics.median(sample[phase] for sample in found) for phase in found[0]}
        for found in samples
    )
    return ours, peer


def _run_once(bench: Workbench, events: Events) -> dict[str, float]:
    name = bench.name("run")
    words = bench.site.run_words(name, "true", options=("--rm",))
    begin = time.time()
    bench.ctr(*words)
    end = time.time()
    marks = [begin]
    for topic in _MARKS:
        if topic == _MARKS[0]:
            marks.append(events.wait(topic, process=name).at)
        else:
            marks.append(events.wait(topic, name).at)
    marks.append(end)
    phases = dict(zip(_PHASES, (b - a for a, b in itertools.pairwise(marks)), strict=True))
    return {"whole": end - begin, **phases}


def _rows(
    title: str, ours: dict[str, float], peer: dict[str, float], limit: float | None
) -> list[Row]:
    return [
        Row(title, ours["whole"], "s", peer["whole"], limit=limit),
        *(Row(f"  {phase}", ours[phase], "s", peer[phase]) for phase in _PHASES),
    ]
