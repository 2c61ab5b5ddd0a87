"""A guest image and directories of our own for tests that boot real VMs, and a count of leaks."""

from __future__ import annotations

import asyncio
import os
import subprocess
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from shims.core.errors import ShimError
from shims.guest.image import GuestImage, build_guest_image
from shims.microvm.cgroup import find_hierarchies
from shims.microvm.config import MachineConfig, QemuUser
from shims.microvm.shelf import connect_shelf
from shims.microvm.templates import stop_keeper

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

ROOT = Path(__file__).parents[2]
KEEPER_TIMEOUT = 10.0


@pytest.fixture(scope="session", autouse=True)
def no_cgroup_parents() -> Iterator[None]:
    """Remove the parents of the tests' cgroups, which nobody else does."""
    yield
    for hierarchy in find_hierarchies():
        for name, _, _ in os.walk(f"{hierarchy.mount}/void-test-{os.getpid()}", topdown=False):
            os.rmdir(name)


@pytest.fixture(scope="session")
def guest_image(tmp_path_factory: pytest.TempPathFactory) -> GuestImage:
    """The guest image of this host's kernel and this tree's void-init, built once a session."""
    try:
        return build_guest_image(state=tmp_path_factory.mktemp("image"))
    except ShimError as error:
        pytest.skip(f"no guest image: {error}")


@dataclass
class Host:
    """Directories that stand for a host's, and what runs on behalf of them."""

    state_dir: Path
    run_dir: Path
    image: GuestImage
    _count: int = field(default=0)

    def config(self, **changes: Any) -> MachineConfig:
        """A configuration with a name of its own; under root with all the confinement."""
        self._count += 1
        given: dict[str, Any] = {
            "image": self.image,
            "name": f"t{os.getpid()}-{self._count}",
            "state_dir": self.state_dir,
            "run_dir": self.run_dir,
            "cgroup": f"/void-test-{os.getpid()}/container",
            "user": QemuUser() if os.geteuid() == 0 else None,
            "boot_timeout": 40.0,
        }
        return MachineConfig(**{**given, **changes})


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory, guest_image: GuestImage) -> Iterator[Host]:
    """One host for the session, so that tests share templates. Its keeper ends with it."""
    base = tmp_path_factory.mktemp("host")
    made = Host(base / "state", base / "run", guest_image)
    yield made
    asyncio.run(end_keeper(made.run_dir))


@pytest.fixture
def fresh_host(tmp_path: Path, guest_image: GuestImage) -> Iterator[Host]:
    """A host without templates, for one test."""
    made = Host(tmp_path / "state", tmp_path / "run", guest_image)
    yield made
    asyncio.run(end_keeper(made.run_dir))


async def keeper_pid(run_dir: Path) -> int:
    """Process id of the keeper, 0 without one."""
    try:
        async with await connect_shelf(run_dir, start=False) as shelf:
            answer, _ = await shelf.ask({"op": "list"})
    except (ShimError, OSError):
        return 0
    return int(answer["pid"])


async def end_keeper(run_dir: Path) -> None:
    """End the keeper and wait until it is gone."""
    if not (pid := await keeper_pid(run_dir)):
        return
    pidfd = os.pidfd_open(pid)
    await stop_keeper(run_dir)
    await until_gone(pidfd)


async def until_gone(pidfd: int) -> None:
    """Wait for the end of any process, and close its pidfd."""
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    loop.add_reader(pidfd, gone.set)
    try:
        await asyncio.wait_for(gone.wait(), KEEPER_TIMEOUT)
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def _snapshot(run_dir: Path) -> dict[str, set[str]]:
    children = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.splitlines()
    fds = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            fds[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
    # Not the parents, which stay; of the one that all VMs share, what has a name of ours.
    patterns = (f"void-test-{os.getpid()}/void-*", f"void-shims/void-t{os.getpid()}-*")
    groups = {
        str(path)
        for hierarchy in find_hierarchies()
        for pattern in patterns
        for path in Path(hierarchy.mount).glob(pattern)
    }
    return {
        "processes": {line for line in children if "ps -o" not in line},
        "descriptors": {f"{name} {link}" for name, link in fds.items()},
        "cgroups": groups,
        "files": {str(path) for path in run_dir.glob("vm/*")},
    }


@pytest.fixture
def no_leaks() -> Callable[[Path], Any]:
    """``async with no_leaks(run_dir):`` what is there afterwards was there before."""

    @asynccontextmanager
    async def check(run_dir: Path) -> AsyncIterator[None]:
        before = _snapshot(run_dir)
        yield
        after = _snapshot(run_dir)
        assert {kind: after[kind] - before[kind] for kind in after} == {
            kind: set() for kind in after
        }

    return check
