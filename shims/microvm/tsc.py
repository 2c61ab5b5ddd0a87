"""The frequency of the host's time-stamp counter.

QEMU's microvm machine under TCG hands the guest the host's TSC and nothing to calibrate it
against, so the guest is told the frequency (``tsc_early_khz``) or hangs in boot. The kernel does
not publish it, so we measure: rdtsc against CLOCK_MONOTONIC_RAW. The value is part of the
template's key, so it is measured once per boot of the host and kept.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from shims.core.errors import NotSupported

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["boot_id", "host_tsc_khz", "measure_tsc_khz"]

_MEASURE_NS = 100_000_000
# rdtsc; shl rdx, 32; or rax, rdx; ret
_RDTSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")


def boot_id() -> str:
    """Return the id of this boot of the host."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def host_tsc_khz(state_dir: Path) -> int:
    """Return the TSC frequency in kHz, measured at the first call after the host's boot (0.1 s).

    Of several that measure at once, the first one's value is everybody's: two would mean two
    templates. So it is kept as a symbolic link to a number: it appears whole, or not at all, under
    a name that no earlier boot has used, and somebody who is killed leaves nothing half-done.
    """
    path = state_dir / f"tsc-{boot_id()}"
    if khz := _read(path):
        return khz
    khz = measure_tsc_khz()
    try:
        path.symlink_to(str(khz))
    except FileExistsError:
        return _read(path) or khz
    for old in state_dir.glob("tsc*"):
        if old != path:
            old.unlink(missing_ok=True)
    return khz


def _read(path: Path) -> int:
    """Return what was measured during this boot of the host; 0 for nothing."""
    try:
        return int(os.readlink(path))
    except (OSError, ValueError):
        return 0


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
