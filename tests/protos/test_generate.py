"""The committed generated code is what the .proto files say, and imports without side effects."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GEN = ROOT / "protos" / "gen"

FULL_NAMES = {
    "protos.gen.containerd.task.v2.task_pb2": "containerd.task.v2.CreateTaskRequest",
    "protos.gen.containerd.task.v3.task_pb2": "containerd.task.v3.CreateTaskRequest",
    "protos.gen.containerd.events.task_pb2": "containerd.events.TaskExit",
    "protos.gen.containerd.types.mount_pb2": "containerd.types.Mount",
    "protos.gen.containerd.types.introspection_pb2": "containerd.types.RuntimeInfo",
    "protos.gen.containerd.v1.types.task_pb2": "containerd.v1.types.ProcessInfo",
    "protos.gen.containerd.services.events.ttrpc.v1.events_pb2": (
        "containerd.services.events.ttrpc.v1.ForwardRequest"
    ),
    "protos.gen.containerd.runc.v1.options_pb2": "containerd.runc.v1.ProcessDetails",
    "protos.gen.runtimeoptions.v1.options_pb2": "runtimeoptions.v1.Options",
    "protos.gen.io.containerd.cgroups.v2.metrics_pb2": "io.containerd.cgroups.v2.Metrics",
    "protos.gen.containerd.runtime.bootstrap.v1.bootstrap_pb2": (
        "containerd.runtime.bootstrap.v1.BootstrapParams"
    ),
    "protos.gen.containerd.runtime.sandbox.v1.sandbox_pb2": (
        "containerd.runtime.sandbox.v1.CreateSandboxRequest"
    ),
}
"""Names that travel: type urls and what containerd expects to find."""


def test_generated_code_is_up_to_date() -> None:
    grpc_tools = pytest.importorskip("grpc_tools", reason="grpcio-tools generates the code")
    assert grpc_tools
    check = subprocess.run(
        [sys.executable, ROOT / "protos" / "generate.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert check.stderr == ""
    assert check.returncode == 0


@pytest.mark.parametrize(("module", "full_name"), FULL_NAMES.items())
def test_full_names(module: str, full_name: str) -> None:
    message = getattr(importlib.import_module(module), full_name.rpartition(".")[2])
    assert message.DESCRIPTOR.full_name == full_name


def test_imports_are_rooted() -> None:
    """Nothing generated may import, or be mistaken for, a top-level package."""
    for path in (*GEN.rglob("*.py"), *GEN.rglob("*.pyi")):
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] == ["from"] and words[1].split(".")[0] in {"containerd", "io", "voidbox"}:
                pytest.fail(f"{path}: {line}")


def test_standard_library_is_not_shadowed() -> None:
    code = (
        "import protos.gen.containerd.task.v3.task_pb2, protos.gen.io.containerd.cgroups.v2."
        "metrics_pb2, types, io; assert types.__name__ == 'types' and io.StringIO"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=30)


def test_other_libraries_may_register_google_rpc() -> None:
    """The pool of descriptors is one per process: googleapis' own Status must still fit in."""
    code = """
from google.protobuf import descriptor_pb2, descriptor_pool
import protos.gen.voidbox.ttrpc.v1.wire_pb2
file = descriptor_pb2.FileDescriptorProto(name="google/rpc/status.proto", package="google.rpc")
file.message_type.add(name="Status")
descriptor_pool.Default().Add(file)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=30)
