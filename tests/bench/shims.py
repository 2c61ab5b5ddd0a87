"""What the shim binary itself costs: ``start``, as containerd runs it for every container."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.table import Row, median
from tests.e2e.leaks import matching
from tests.e2e.reaper import descendants_of
from tests.e2e.runtimes import RUNC, VOIDBOX, Runtime

if TYPE_CHECKING:
    from tests.bench.place import Place

__all__ = ["measure_start"]

_REPEAT = 9
_SPEC = {"ociVersion": "1.0.2", "process": {"args": ["true"], "cwd": "/"}, "linux": {}}


def measure_start(place: Place) -> list[Row]:
    """Time ``start`` of both shims, in turns, each in a fresh bundle."""
    samples: dict[Runtime, list[float]] = {VOIDBOX: [], RUNC: []}
    for number in range(_REPEAT):
        for runtime, found in samples.items():
            found.append(_start_once(place, runtime, f"start-{runtime.label}-{number}"))
    ours, peer = (median(iter(samples[r]).__next__, _REPEAT) for r in (VOIDBOX, RUNC))
    return [Row("shim start", ours, "s", peer, limit=2.0)]


def _start_once(place: Place, runtime: Runtime, name: str) -> float:
    bundle: Path = place.daemon.root / "bundles" / name
    bundle.mkdir(parents=True)
    (bundle / "config.json").write_text(json.dumps(_SPEC))
    os.mkfifo(bundle / "log")
    log = os.open(bundle / "log", os.O_RDWR)  # containerd keeps it open, or the daemon waits
    address = place.daemon.address
    argv = [
        str(place.shim(runtime)), "-namespace", place.daemon.namespace, "-address", address,
        "-publish-binary", str(place.daemon.release.program("containerd")), "-id", name,
    ]  # fmt: skip
    env = {
        **place.daemon.environ,
        "TTRPC_ADDRESS": address + ".ttrpc",
        "MAX_SHIM_VERSION": "2",
        "GOMAXPROCS": "2",
    }
    try:
        begin = time.perf_counter()
        subprocess.run([*argv, "start"], cwd=bundle, env=env, check=True, capture_output=True,
                       timeout=30)  # fmt: skip
        return time.perf_counter() - begin
    finally:
        for pid in matching(descendants_of(os.getpid()), f"-id {name}"):
            os.kill(pid, signal.SIGKILL)
        subprocess.run([*argv, "-bundle", str(bundle), "delete"], cwd=bundle, env=env,
                       capture_output=True, timeout=30)  # fmt: skip
        os.close(log)
        _runc_socket(address, place.daemon.namespace, name).unlink(missing_ok=True)


def _runc_socket(address: str, namespace: str, group: str) -> Path:
    """Return where the shim of a group listens, as containerd's own shims name it."""
    name = hashlib.sha256(os.path.join(address, namespace, group).encode()).hexdigest()
    return Path("/run/containerd/s", name)
