"""The shim as containerd starts it, with a real VM behind it: for the same tests as the fake."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import uuid
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from protos.gen.containerd.types import mount_pb2
from shims.ttrpc.client import Client
from tests.containerd.shim.harness import NAMESPACES, Recorder, ShimUnderTest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

REPOSITORY = Path(__file__).resolve().parents[3]
LAUNCHER = REPOSITORY / "packaging" / "bin" / "containerd-shim-voidbox-v2"
_APPLETS = ("sh", "echo", "cat", "sleep", "true", "head", "dd", "stty", "uname", "seq")


def missing() -> str:
    """Return why there can be no real VM here; empty when there can."""
    if os.geteuid() != 0:
        return "needs root"
    for program in ("qemu-system-x86_64", "mkfs.erofs", "mke2fs", "busybox"):
        if shutil.which(program) is None:
            return f"needs {program}"
    return "" if any(Path("/boot").glob("vmlinuz-*")) else "needs a kernel in /boot"


def make_root(directory: Path) -> mount_pb2.Mount:
    """Make a busybox root file system, and return the overlay mount that containerd would send."""
    layer = directory / "layer"
    (layer / "bin").mkdir(parents=True)
    shutil.copy(str(shutil.which("busybox")), layer / "bin" / "busybox")
    for name in _APPLETS:
        (layer / "bin" / name).symlink_to("busybox")
    for name in ("proc", "dev", "sys", "tmp", "etc"):
        (layer / name).mkdir()
    for name in ("upper", "work"):
        (directory / name).mkdir()
    options = [f"lowerdir={layer}", f"upperdir={directory}/upper", f"workdir={directory}/work"]
    return mount_pb2.Mount(type="overlay", source="overlay", options=options)


def make_spec() -> dict[str, Any]:
    """Return what a container in a VM needs beyond a process."""
    devpts = ["newinstance", "ptmxmode=0666", "mode=0620"]
    return {
        "linux": {
            "cgroupsPath": f"/void-shims-tests/{uuid.uuid4().hex[:8]}",
            "namespaces": [{"type": kind} for kind in NAMESPACES],
        },
        "mounts": [
            {"type": "proc", "source": "proc", "destination": "/proc"},
            {"type": "devpts", "source": "devpts", "destination": "/dev/pts", "options": devpts},
        ],
    }


@dataclass(frozen=True)
class RealHost:
    """State and runtime directory of void shims, for one session of tests."""

    environ: dict[str, str]
    run_dir: Path


@contextmanager
def prepare_host(directory: Path) -> Iterator[RealHost]:
    """Build a guest image; in the end stop the helpers (keeper, nursery) that outlive a shim."""
    if reason := missing():
        pytest.skip(reason)
    run_dir = directory / "run"
    environ = dict(
        os.environ,
        VOID_SHIMS_STATE=str(directory / "state"),
        VOID_SHIMS_RUN=str(run_dir),
        VOID_SHIMS_VENV=sys.prefix,
        PYTHONPATH=str(REPOSITORY),
    )
    builder = [sys.executable, "-m", "shims.cli.guest", "build"]
    subprocess.run(builder, env=environ, cwd=directory, check=True, capture_output=True)
    try:
        yield RealHost(environ, run_dir)
    finally:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if any(str(run_dir) in word for word in process.cmdline()):
                    process.kill()


@asynccontextmanager
async def start_real_shim(host: RealHost, directory: Path) -> AsyncIterator[ShimUnderTest]:
    """Run ``start`` for a container ``c`` and yield its shim; ``delete`` it in the end."""
    shim = ShimUnderTest(None, directory, Recorder())  # type: ignore[arg-type]  # connected below
    shim.rootfs = [make_root(directory)]
    shim.spec = make_spec()
    bundle = shim.bundle("c", "true")
    words = [str(LAUNCHER), "-namespace", "tests", "-address", "/nowhere", "-id", "c",
             "-publish-binary", "/bin/true", "-bundle", str(bundle)]  # fmt: skip
    address = (await _run([*words, "start"], host.environ, bundle)).decode().strip()
    shim.client = await Client.connect(address.removeprefix("unix://"))
    try:
        yield shim
    finally:
        shim.close()
        await shim.client.close()
        await _run([*words, "delete"], host.environ, bundle)


async def _run(words: list[str], environ: dict[str, str], cwd: Path) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *words, env=environ, cwd=cwd,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, complaints = await asyncio.wait_for(process.communicate(), 300)
    assert process.returncode == 0, complaints.decode()
    return out
