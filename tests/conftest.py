"""What all tests share: markers for machines that we may lack, and how often hypothesis tries.

A test that carries one of the markers below runs wherever it can and is skipped with the reason
where it cannot. ``VOID_SHIMS_REQUIRE=kvm,containerd`` turns such a skip into a failure, for
machines that are meant to have the thing.
"""

from __future__ import annotations

import os
import shutil
import signal
from functools import cache
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Callable

# A run under nohup ignores SIGHUP, and so would every program that it starts.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

settings.register_profile(
    "suite",
    deadline=None,  # the machine's load is not the code's fault
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("long", parent=settings.get_profile("suite"), max_examples=5000)
settings.load_profile(os.environ.get("VOID_SHIMS_HYPOTHESIS", "suite"))


def _lacks_root() -> str:
    return "" if os.geteuid() == 0 else "needs root"


def _lacks_program(*names: str) -> str:
    missing = [name for name in names if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def _lacks_device(path: str) -> str:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{path}: {error.strerror}"
    return ""


def _lacks_virtiofsd() -> str:
    places = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", shutil.which("virtiofsd") or "")
    found = any(os.access(place, os.X_OK) for place in places if place)
    return "" if found else "not installed: virtiofsd"


_NEEDS: dict[str, Callable[[], str]] = {
    "root": _lacks_root,
    "qemu": lambda: _lacks_program("qemu-system-x86_64"),
    "kvm": lambda: _lacks_device("/dev/kvm"),
    "virtiofs": _lacks_virtiofsd,
    "containerd": lambda: _lacks_root() or _lacks_program("containerd", "ctr", "runc"),
    "go": lambda: _lacks_program("go"),
    "libvirtd": lambda: _lacks_program("libvirtd"),
    "kind": lambda: _lacks_program("kubectl"),
}


@cache
def _missing(marker: str) -> str:
    return _NEEDS[marker]()


def pytest_runtest_setup(item: pytest.Item) -> None:
    required = os.environ.get("VOID_SHIMS_REQUIRE", "").split(",")
    for marker in _NEEDS:
        if item.get_closest_marker(marker) and (reason := _missing(marker)):
            if marker in required:
                pytest.fail(f"{marker} is required here: {reason}", pytrace=False)
            pytest.skip(reason)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--regen`` rewrites golden files; the difference is then for a person to read."""
    parser.addoption("--regen", action="store_true", help="rewrite golden files")


@pytest.fixture
def regen(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be rewritten."""
    return bool(request.config.getoption("--regen"))
