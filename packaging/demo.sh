#!/bin/sh
# Start containers in microVMs with a private containerd, and show it. `make demo` runs this after
# it installed what is missing; PYTHON is the interpreter that has our libraries.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cd "$root"
python=${PYTHON:-$root/.venv/bin/python}
if [ "$(id -u)" -ne 0 ]; then
    echo "error: containerd needs root; run: sudo make demo" >&2
    exit 2
fi
exec "$python" packaging/demo.py "$@"
