"""The frequency of the host's time-stamp counter.

QEMU's microvm machine under TCG hands the guest the host's TSC and nothing to calibrate it
against, so the guest is told the frequency (``tsc_early_khz``) or hangs in boot. The kernel does
not publish it, so we measure: rdtsc against CLOCK_MONOTONIC_RAW. The value is part of the
template's key, so it is measured once per boot of the host and kept.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from typing import TYPE_CHECKING

from shims.core.errors import NotSupported

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["boot_id", "host_tsc_khz", "measure_tsc_khz"]

_MEASURE_NS = 100_000_000
_LOCK_TIMEOUT, _LOCK_INTERVAL = 2.0, 0.01
# rdtsc; shl rdx, 32; or rax, rdx; ret
_RDTSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")


def boot_id() -> str:
    """Return the id of this boot of the host."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def host_tsc_khz(state_dir: Path) -> int:
    """Return the TSC frequency in kHz, measured at the first call after the host's boot (0.1 s).

    Of several that come first at once, one measures: two values would mean two templates.
    """
    path = state_dir / "tsc.json"
    boot = boot_id()
    if khz := _read(path, boot):
        return khz
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _take(fd)
        if khz := _read(path, boot):
            return khz
        khz = measure_tsc_khz()
        # In place, for the lock is the file's; who reads half of it comes here and waits.
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps({"boot_id": boot, "khz": khz}).encode(), 0)
        return khz
    finally:
        os.close(fd)


def _read(path: Path, boot: str) -> int:
    """Return what was measured during this boot of the host; 0 for nothing, or for a torn file."""
    try:
        known = json.loads(path.read_text())
        return int(known["khz"]) if known["boot_id"] == boot else 0
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0


def _take(fd: int) -> None:
    """Take the lock, whose holder needs a tenth of a second; one that hangs is not waited for."""
    deadline = time.monotonic() + _LOCK_TIMEOUT
    while time.monotonic() < deadline:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_INTERVAL)
        else:
            return


def measure_tsc_khz() -> int:
    """Measure for 0.1 s. The thread spins: a sleep would let the clock and the counter drift."""
    if os.uname().machine != "x86_64":
        raise NotSupported("the time-stamp counter is measured on x86-64 only")
    read_tsc, release = _rdtsc_function()
    try:
        first_ns, first = _sample(read_tsc)
        while time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW) - first_ns < _MEASURE_NS:
            pass
        last_ns, last = _sample(read_tsc)
    finally:
        release()
    return round((last - first) * 1_000_000 / (last_ns - first_ns))


def _sample(read_tsc: Callable[[], int]) -> tuple[int, int]:
    """Return (ns, counter) taken together: the tightest of several tries."""
    best: tuple[int, int, int] | None = None
    for _ in range(32):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        counter = read_tsc()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        if best is None or after - before < best[0]:
            best = (after - before, (before + after) // 2, counter)
    assert best is not None
    return best[1], best[2]


def _rdtsc_function() -> tuple[Callable[[], int], Callable[[], None]]:
    import ctypes
    import mmap

    page = mmap.mmap(
        -1,
        mmap.PAGESIZE,
        flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
        prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC,
    )
    page.write(_RDTSC)
    anchor = ctypes.c_char.from_buffer(page)
    function = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(anchor))

    def release() -> None:
        nonlocal anchor, function
        del anchor, function
        page.close()

    return lambda: int(function()), release
