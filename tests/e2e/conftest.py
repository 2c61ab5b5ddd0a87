"""Fixtures: a private containerd of each release, the test image, and a count of leaks."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.containerds import start_containerd
from tests.e2e.images import build_image, find_busybox, unpack_rootfs
from tests.e2e.leaks import assert_clean, remove_cgroups, take_snapshot
from tests.e2e.packages import CACHE, RELEASES, Unavailable, find_release
from tests.e2e.runtimes import (
    Runtime,
    build_guest,
    chosen_runtimes,
    install_programs,
    shim_environment,
)
from tests.e2e.workbench import Site, Workbench

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# The release on which faults are tried; everything else runs on each of them.
_MAIN_RELEASE = "1.7"
_REST = 10.0  # seconds within which everything of a test must be gone


def _site(
    name: str, runtime: Runtime, busybox: Path, image: Path, void_state: Path
) -> Iterator[Site]:
    if reason := runtime.missing():
        pytest.skip(reason)
    if runtime.is_vm:
        build_guest(void_state)
    try:
        release = find_release(name, CACHE)
    except Unavailable as problem:
        pytest.skip(str(problem))
    # A short path: a unix socket's may have 107 bytes.
    with ExitStack() as stack:
        root = Path(tempfile.mkdtemp(prefix="vt-", dir="/tmp"))
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        namespace = f"vt{secrets.token_hex(3)}"
        stack.callback(remove_cgroups, namespace)
        # runc's own records, were a test to end before its containers did.
        stack.callback(shutil.rmtree, f"/run/containerd/runc/{namespace}", ignore_errors=True)
        void_run = root / "vr"
        environ = shim_environment() | {
            "VOID_SHIMS_RUN": str(void_run),
            "VOID_SHIMS_STATE": str(void_state),
        }
        daemon = stack.enter_context(
            start_containerd(
                release,
                root,
                programs=install_programs(root / "bin"),
                namespace=namespace,
                environ=environ,
            )
        )
        daemon.ctr()("image", "import", image)
        yield Site(daemon, runtime, busybox, void_run, void_state)


@pytest.fixture(scope="session")
def busybox() -> Path:
    found = find_busybox()
    if found is None:
        pytest.skip("no static busybox: apt-get install busybox-static")
    return found


@pytest.fixture(scope="session")
def image(busybox: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tar of the test image."""
    return build_image(busybox, tmp_path_factory.mktemp("image") / "image.tar")


@pytest.fixture
def plain_rootfs(busybox: Path, tmp_path: Path) -> Path:
    """A root file system as a plain directory."""
    return unpack_rootfs(busybox, tmp_path / "rootfs")


@pytest.fixture(scope="session")
def void_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this run's shims keep guest images, layers and logs; built once for all of them."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="session", params=chosen_runtimes(), ids=lambda runtime: runtime.label)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    chosen: Runtime = request.param
    return chosen


@pytest.fixture(scope="session", params=list(RELEASES))
def site(
    request: pytest.FixtureRequest,
    runtime: Runtime,
    busybox: Path,
    image: Path,
    void_state: Path,
) -> Iterator[Site]:
    """A containerd of each release, shared by all tests that leave it as they found it."""
    yield from _site(request.param, runtime, busybox, image, void_state)


@pytest.fixture(scope="module")
def own_site(runtime: Runtime, busybox: Path, image: Path, void_state: Path) -> Iterator[Site]:
    """A containerd of the main release for one module, whose tests may kill and restart it."""
    yield from _site(_MAIN_RELEASE, runtime, busybox, image, void_state)


@pytest.fixture(scope="module", params=list(RELEASES))
def any_site(
    request: pytest.FixtureRequest,
    runtime: Runtime,
    busybox: Path,
    image: Path,
    void_state: Path,
) -> Iterator[Site]:
    """A containerd of each release in turn."""
    yield from _site(request.param, runtime, busybox, image, void_state)


def _workbench(site: Site) -> Iterator[Workbench]:
    """Remove the test's containers and insist that nothing of them is left."""
    with ExitStack() as stack:
        bench = Workbench(site, stack)
        before = take_snapshot(site.scope())
        yield bench
        for name in bench.names:
            bench.ctr.remove(name)
        assert_clean(site.scope(bench.networks), before, within=_REST)


@pytest.fixture
def bench(site: Site) -> Iterator[Workbench]:
    yield from _workbench(site)


@pytest.fixture
def own_bench(own_site: Site) -> Iterator[Workbench]:
    yield from _workbench(own_site)


@pytest.fixture
def any_bench(any_site: Site) -> Iterator[Workbench]:
    yield from _workbench(any_site)


@pytest.fixture
def only(runtime: Runtime) -> Callable[[Runtime, str], None]:
    """``only(VOIDBOX, reason)`` skips the test on every other runtime."""

    def skip_unless(wanted: Runtime, reason: str) -> None:
        if runtime is not wanted:
            pytest.skip(f"not on {runtime.label}: {reason}")

    return skip_unless
