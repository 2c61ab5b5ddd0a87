"""A copy of the shim's package with a fake daemon in it, called as containerd calls the shim."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[4]
NAMESPACE = "default"
CONTAINERD = "/run/void-shims-test/containerd.sock"


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the launcher of a source checkout whose daemon is the fake one."""
    root = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("shims/core", "shims/containerd", "shims/ttrpc", "protos"):
        shutil.copytree(ROOT / name, root / name, ignore=ignore)
    shutil.copy(ROOT / "shims" / "__init__.py", root / "shims")
    (root / "packaging" / "bin").mkdir(parents=True)
    target = root / "packaging" / "bin" / "containerd-shim-voidbox-v2"
    shutil.copy(ROOT / "packaging" / "bin" / target.name, target)
    fake = Path(__file__).with_name("fake_daemon.py")
    shim = root / "shims" / "containerd" / "shim"
    shutil.copy(fake, shim / "daemon.py")
    for name in ("guest/plan", "guest/image", "microvm"):
        (root / "shims" / name).mkdir(parents=True, exist_ok=True)
    # A nursery of fakes: it preloads what this copy has.
    nurse = (shim / "nurse.py").read_text()
    first, rest = nurse.split("PRELOADED = (", 1)
    rest = rest.partition("\n)\n")[2]
    (shim / "nurse.py").write_text(f"{first}PRELOADED = ('shims.containerd.shim.daemon',)\n{rest}")
    libraries = root / ".venv" / "lib" / Path(sysconfig.get_path("purelib")).parent.name
    libraries.mkdir(parents=True)
    (libraries / "site-packages").symlink_to(sysconfig.get_path("purelib"))
    (root / ".venv" / "bin").mkdir()
    (root / ".venv" / "bin" / "python3").symlink_to(os.path.realpath(sys.executable))
    return target


class Node:
    """What a containerd is to the shim: bundles, a runtime directory, and calls."""

    def __init__(self, launcher: Path, directory: Path) -> None:
        self.launcher = launcher
        self.directory = directory
        self.run = directory / "run"
        self.containerd = CONTAINERD
        self.environ = {
            "PATH": os.environ["PATH"],
            "VOID_SHIMS_RUN": str(self.run),
            "VOID_SHIMS_STATE": str(directory / "state"),
            "TTRPC_ADDRESS": f"{CONTAINERD}.ttrpc",
        }

    def bundle(self, name: str, annotations: dict[str, str] | None = None) -> Path:
        """Make the bundle of a container, as containerd does before start."""
        bundle = self.directory / "bundles" / name
        (bundle / "rootfs").mkdir(parents=True, mode=0o711)
        spec = {"ociVersion": "1.1.0", "annotations": annotations or {}}
        (bundle / "config.json").write_text(json.dumps(spec))
        return bundle

    def popen(
        self, action: str, name: str, *flags: str, stdin: int = subprocess.DEVNULL, **environ: str
    ) -> subprocess.Popen[bytes]:
        """Call the shim; the caller waits."""
        bundle = self.directory / "bundles" / name
        words = [
            "-namespace", NAMESPACE, "-address", self.containerd, "-publish-binary", "/bin/false",
            "-id", name, *flags,
        ]  # fmt: skip
        if action == "delete":
            words += ["-bundle", str(bundle)]
        return subprocess.Popen(
            [self.launcher, *words, action],
            cwd=bundle,
            env=self.environ | environ,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )

    def call(
        self, action: str, name: str, *flags: str, data: bytes | None = None, **environ: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Call the shim and return what it printed."""
        stdin = subprocess.DEVNULL if data is None else subprocess.PIPE
        process = self.popen(action, name, *flags, stdin=stdin, **environ)
        out, err = process.communicate(data, timeout=20)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, name: str, **environ: str) -> str:
        """Start, in the plain dialect, and return the address."""
        done = self.call("start", name, data=None, **environ)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode()

    def ask(self, address: str) -> dict[str, Any]:
        """Return what the daemon at ``address`` says about itself."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(address.removeprefix("unix://"))
            data = b""
            while part := client.recv(65536):
                data += part
        answer: dict[str, Any] = json.loads(data)
        return answer

    def daemons(self) -> list[int]:
        """Return the pids of all daemons of this node, of a nursery and of couriers."""
        found = []
        for entry in os.scandir("/proc"):
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    words = Path(entry.path, "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                    if (
                        str(self.launcher.parents[2]).encode() in b"".join(words[:5])
                        and (words[-1] == b"daemon" or {b"nursery", b"courier"} & {*words})
                        and (str(self.directory).encode() in b"".join(words))
                    ):
                        found.append(int(entry.name))
        return found

    def state_files(self) -> list[str]:
        """Return everything below the runtime directory but the fixed folders."""
        return sorted(
            str(path.relative_to(self.run))
            for path in self.run.rglob("*")
            if str(path.relative_to(self.run)) not in ("s", "shim", "n")
        )


@pytest.fixture
def node(launcher: Path, tmp_path: Path) -> Iterator[Node]:
    """A node; every daemon that is left at the end is killed."""
    node = Node(launcher, tmp_path)
    yield node
    for pid in node.daemons():
        kill(pid)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Kill a process that need not be our child, and wait until it is gone."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        assert select.select([fd], [], [], 10)[0], f"process {pid} does not end"
    finally:
        os.close(fd)


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def elapsed(since: float) -> float:
    """Return the seconds since a time.monotonic()."""
    return time.monotonic() - since
