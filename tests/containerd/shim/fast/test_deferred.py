"""A module whose import is put off is itself as soon as it is used."""

from __future__ import annotations

import subprocess
import sys

from tests.containerd.shim.fast.conftest import ROOT

CODE = """
import sys
from shims.containerd.shim.deferred import defer_import
defer_import("colorsys")
defer_import("google.protobuf.internal.python_message")
defer_import("sys")
import colorsys
assert type(sys.modules["colorsys"]).__name__ == "_Deferred"
assert colorsys.ONE_THIRD == 1 / 3
assert type(sys.modules["colorsys"]).__name__ == "module"
assert colorsys.rgb_to_hsv(0, 0, 0) == (0.0, 0.0, 0)
try:
    colorsys.nothing
except AttributeError:
    pass
else:
    raise SystemExit("an attribute that is not there")

from protos.gen.containerd.task.v3 import task_pb2
from google.protobuf import any_pb2, timestamp_pb2
packed = any_pb2.Any()
packed.Pack(task_pb2.StateRequest(id="c"))
assert packed.Is(task_pb2.StateRequest.DESCRIPTOR)
assert "c" in str(task_pb2.StateRequest.FromString(packed.value))
now = timestamp_pb2.Timestamp()
now.FromNanoseconds(5)
assert now.ToNanoseconds() == 5
"""


def test_deferred_imports() -> None:
    subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, check=True, timeout=30)


def test_protobuf_without_its_implementation_in_c() -> None:
    """Where protobuf is pure Python, the deferred module is the one that does all the work."""
    subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=ROOT,
        check=True,
        timeout=30,
        env={"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"},
    )
