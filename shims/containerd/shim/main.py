"""The shim's entry point: ``python -I -S main.py FLAGS start|delete|daemon``, or ``-info``, ``-v``.

The launcher (packaging/bin/containerd-shim-voidbox-v2) starts it without site processing, so the
import path is completed here. This file is short because Python does not cache the compiled form
of a script: what it imports is cached.
"""

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
_ROOT = _HERE.rpartition("/shims/containerd/shim")[0]


def main() -> int:
    """Run one command; return the exit status."""
    if _ROOT not in sys.path:
        sys.path.insert(0, _ROOT)
    from shims.containerd.shim import entry

    return entry.run(sys.argv[1:])


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # Taking the interpreter apart would cost a tenth of a start, and free what the kernel frees.
    os._exit(status)
