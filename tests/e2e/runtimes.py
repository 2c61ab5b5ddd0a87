"""The runtimes that the suite runs on: ours, and runc's as the peer that shows what is meant.

``VOID_E2E_RUNTIME`` chooses (``voidbox``, ``runc`` or ``voidbox,runc``). A test that needs a
microVM or a behaviour that only we promise takes the fixture ``voidbox`` instead of ``runtime``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.leaks import matching

__all__ = [
    "REPOSITORY",
    "RUNC",
    "VOIDBOX",
    "Runtime",
    "chosen_runtimes",
    "install_programs",
    "shim_environment",
]

REPOSITORY = Path(__file__).resolve().parents[2]
_LAUNCHER = REPOSITORY / "packaging" / "bin" / "containerd-shim-voidbox-v2"


@dataclass(frozen=True)
class Runtime:
    """One runtime: its name for ``ctr --runtime``, and how its processes are told apart."""

    name: str
    label: str
    shim_words: tuple[str, ...]
    is_vm: bool

    def shims(self, pids: list[int], container: str = "") -> list[int]:
        """Return the shim daemons among ``pids``, of one container if given."""
        words = (*self.shim_words, f"-id {container}") if container else self.shim_words
        return matching(pids, *words)

    def missing(self) -> str:
        """Return why this runtime cannot be tested here, empty if it can."""
        if os.geteuid() != 0:
            return "containerd needs root"
        if not self.is_vm:
            return "" if shutil.which("runc") else "runc is not installed"
        if shutil.which("qemu-system-x86_64") is None:
            return "qemu-system-x86_64 is not installed"
        if not any(Path("/boot").glob("vmlinuz-*")):
            return "no kernel package is installed: /boot has no vmlinuz"
        if not _LAUNCHER.exists():
            return f"{_LAUNCHER} is missing"
        return ""


RUNC = Runtime("io.containerd.runc.v2", "runc", ("containerd-shim-runc-v2",), is_vm=False)
VOIDBOX = Runtime("io.containerd.voidbox.v2", "voidbox", ("-publish-binary",), is_vm=True)


def chosen_runtimes() -> list[Runtime]:
    """Return the runtimes that ``VOID_E2E_RUNTIME`` names; ours if it is not set."""
    known = {runtime.label: runtime for runtime in (RUNC, VOIDBOX)}
    names = os.environ.get("VOID_E2E_RUNTIME", VOIDBOX.label).split(",")
    return [known[name.strip()] for name in names]


def shim_environment() -> dict[str, str]:
    """Return what the launcher in the source tree needs: whose libraries the shim uses."""
    return {"VOID_SHIMS_VENV": sys.prefix}


def build_guest(state: Path) -> str:
    """Build the guest image below ``state``, in milliseconds if it is there; return the report.

    Raises ``RuntimeError`` with the builder's words if it cannot be built.
    """
    built = subprocess.run(
        [sys.executable, "-m", "shims.cli.guest", "build"],
        cwd=REPOSITORY,
        env={**os.environ, "VOID_SHIMS_STATE": str(state)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if built.returncode:
        raise RuntimeError(built.stdout + built.stderr)
    return built.stdout


def install_programs(directory: Path) -> Path:
    """Make a directory for containerd's PATH with the shim of this source tree in it."""
    directory.mkdir(parents=True, exist_ok=True)
    link = directory / _LAUNCHER.name
    if _LAUNCHER.exists() and not link.exists():
        link.symlink_to(_LAUNCHER)
    return directory
