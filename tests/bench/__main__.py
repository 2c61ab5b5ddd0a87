"""``make bench``: measure against runc and raw QEMU, and print one table.

Everything in a line comes from the same run on the same host, in turns where it can be, so that
its ratio means something on a busy machine too. ``--only NAME`` runs one section.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import sys
import time

from tests.bench.boots import measure_boots
from tests.bench.data import measure_root, measure_streams
from tests.bench.density import measure_density
from tests.bench.place import open_place
from tests.bench.runs import measure_cold, measure_exec, measure_warm
from tests.bench.shims import measure_start
from tests.bench.table import Table
from tests.e2e.packages import Unavailable

_PR_SET_CHILD_SUBREAPER = 36
_SECTIONS = {
    "start": ("Shim binary", "containerd-shim-runc-v2", measure_start),
    "boots": ("Engine", "raw QEMU", measure_boots),
    "warm": ("Container, template and layers there", "runc", measure_warm),
    "cold": ("Container, no template", "runc", measure_cold),
    "exec": ("Exec", "runc", measure_exec),
    "streams": ("Streams", "runc", measure_streams),
    "root": ("Root file system", "runc on the host's", measure_root),
    "density": ("Idle containers", "", measure_density),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", choices=sorted(_SECTIONS), action="append", metavar="NAME",
                        help=f"one of {', '.join(_SECTIONS)}; may be repeated")  # fmt: skip
    chosen = parser.parse_args().only or list(_SECTIONS)
    # Shims that `start` leaves behind become our children, and are found and ended as such.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    table = Table()
    begin = time.monotonic()
    try:
        with open_place() as place:
            print(
                f"host {platform.release()}, {os.cpu_count()} processors, load "
                f"{os.getloadavg()[0]:.1f}, containerd {place.daemon.release.version}",
                file=sys.stderr,
            )
            for name in chosen:
                title, peer, measure = _SECTIONS[name]
                print(f"measuring: {title}", file=sys.stderr, flush=True)
                table.section(title, peer, measure(place))
    except Unavailable as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 5
    finally:
        if table.sections:
            print(table.render())
    print(f"\ntook {time.monotonic() - begin:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
