"""Where the benchmarks run: one private containerd with both runtimes on its PATH."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.containerds import Containerd, start_containerd
from tests.e2e.images import build_image, find_busybox
from tests.e2e.leaks import remove_cgroups
from tests.e2e.packages import Unavailable, installed_release
from tests.e2e.runtimes import (
    RUNC,
    VOIDBOX,
    build_guest,
    install_programs,
    shim_environment,
)
from tests.e2e.workbench import Site, Workbench

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.runtimes import Runtime

__all__ = ["BIG_FILE_MIB", "SMALL_FILES", "Place", "open_place"]

BIG_FILE_MIB = 64
SMALL_FILES = 2000


@dataclass(frozen=True)
class Place:
    """One daemon, a workbench for each runtime, and the shims' directories."""

    daemon: Containerd
    ours: Workbench
    peer: Workbench
    programs: Path
    void_run: Path
    void_state: Path

    @property
    def both(self) -> tuple[Workbench, Workbench]:
        return self.ours, self.peer

    def shim(self, runtime: Runtime) -> Path:
        """Return the shim binary of a runtime."""
        if runtime is RUNC:
            return self.daemon.release.program("containerd-shim-runc-v2")
        return self.programs / "containerd-shim-voidbox-v2"


@contextmanager
def open_place() -> Iterator[Place]:
    """Start the daemon and import an image with a big file and many small ones."""
    for runtime in (RUNC, VOIDBOX):
        if reason := runtime.missing():
            raise Unavailable(reason)
    busybox = find_busybox()
    if busybox is None:
        raise Unavailable("no static busybox; apt-get install busybox-static")
    root = Path(tempfile.mkdtemp(prefix="vb-", dir="/tmp"))
    namespace = f"vb{secrets.token_hex(3)}"
    state = root / "vs"
    try:
        build_guest(state)
        environ = shim_environment() | {
            "VOID_SHIMS_RUN": str(root / "vr"),
            "VOID_SHIMS_STATE": str(state),
        }
        programs = install_programs(root / "bin")
        files = {"data/big": os.urandom(BIG_FILE_MIB << 20)} | {
            f"data/many/{n % 40}/{n}": b"x" * 100 for n in range(SMALL_FILES)
        }
        image = build_image(busybox, root / "image.tar", files)
        with (
            start_containerd(
                installed_release(), root, programs=programs, namespace=namespace, environ=environ
            ) as daemon,
            ExitStack() as stack,
        ):
            daemon.ctr()("image", "import", image)
            ours = Site(daemon, VOIDBOX, busybox, root / "vr", state)
            yield Place(
                daemon,
                Workbench(ours, stack),
                Workbench(replace(ours, runtime=RUNC), stack),
                programs,
                root / "vr",
                state,
            )
    finally:
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(f"/run/containerd/runc/{namespace}", ignore_errors=True)
        remove_cgroups(namespace)
