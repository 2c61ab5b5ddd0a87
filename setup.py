"""The part of the build that pyproject.toml cannot say: void-init is compiled and carried along.

A wheel holds a program, so it is one for Linux on this machine's architecture, but for any Python
from 3.11 on. An editable install compiles nothing: ``void-guest`` does that when it is needed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SOURCE = ROOT / "shims" / "guest" / "init"
PROGRAM = "void-init"


class BuildWithInit(build_py):
    """Copies the Python files and puts a freshly compiled void-init among them."""

    def run(self) -> None:
        """Build; ends with one line when there is nothing to compile with."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "shims" / "guest" / "init"
            compile_init(Path(self.get_finalized_command("build").build_temp) / "init", target)


def compile_init(work: Path, target: Path) -> None:
    """Compile void-init from a copy of its source in ``work`` and place it in ``target``."""
    if not any(map(shutil.which, ("musl-gcc", "gcc", "cc"))) or not shutil.which("make"):
        sys.exit("error: void-init needs a C compiler and make; install musl-tools, gcc and make")
    shutil.rmtree(work, ignore_errors=True)
    # The source tree is nobody's to write to: it may be read-only, or in use by another build.
    shutil.copytree(SOURCE, work, ignore=shutil.ignore_patterns(PROGRAM, "*.o", "build"))
    command = ["make", "--silent", "-C", work, PROGRAM]
    if not shutil.which("musl-gcc"):
        command.append("MUSL_CC=gcc")  # larger, and as static
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.stderr.write(done.stderr)
        sys.exit(f"error: void-init does not compile (make exited with {done.returncode})")
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy2(work / PROGRAM, target / PROGRAM)
    (target / PROGRAM).chmod(0o755)


class PlatformWheel(bdist_wheel):
    """Tags the wheel with the platform of void-init, and with no Python ABI."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return what the file name says about where the wheel can be installed."""
        _, _, platform = super().get_tag()
        return "py3", "none", platform


class DistributionWithProgram(Distribution):
    """Makes setuptools choose the directory for platform-dependent files."""

    def has_ext_modules(self, *_: Any) -> bool:
        """Return True: void-init is no extension module, but as bound to its platform."""
        return True


setup(
    cmdclass={"build_py": BuildWithInit, "bdist_wheel": PlatformWheel},
    distclass=DistributionWithProgram,
)
