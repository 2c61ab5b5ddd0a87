"""void-init as a process of this host: the binary, a running one, and a link to it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.guest.init.bundle import Box, make_rootfs
from tests.guest.init.harness import build, running_guest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shims.guest.link import GuestLink
    from tests.guest.init.harness import Guest


@pytest.fixture(scope="session")
def build_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this run's objects go; VOID_INIT_BUILD keeps them from one run to the next."""
    kept = os.environ.get("VOID_INIT_BUILD")
    return Path(kept) if kept else tmp_path_factory.mktemp("void-init")


@pytest.fixture(scope="session")
def binary(build_folder: Path) -> Path:
    """The static program as it is shipped; VOID_INIT_TARGET=sanitize takes the checked one."""
    target = os.environ.get("VOID_INIT_TARGET", "all")
    build(target, build_folder)
    return build_folder / ("void-init" if target == "all" else f"void-init-{target}")


@pytest.fixture
async def guest(binary: Path, tmp_path: Path) -> AsyncIterator[Guest]:
    """A running void-init; nobody has said hello yet."""
    async with running_guest(binary, tmp_path) as running:
        yield running


@pytest.fixture
async def link(guest: Guest) -> GuestLink:
    """A link to it, after hello."""
    return await guest.connect()


@pytest.fixture
async def box(binary: Path, tmp_path: Path) -> AsyncIterator[Box]:
    """A running void-init with a busybox root file system to launch containers from."""
    # The name becomes that of its cgroups: those of an earlier test may still be emptying.
    directory = tmp_path / f"guest-{os.urandom(4).hex()}"
    rootfs = make_rootfs(directory / "rootfs")
    async with running_guest(binary, directory) as running:
        yield Box(running, await running.connect(), rootfs)
    # Mount points of containers that a test did not delete.
    for point in Path("/run/void/c").glob(f"{running.cgroup.name}*"):
        shutil.rmtree(point)
