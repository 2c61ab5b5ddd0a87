"""Find the containerd releases that the tests drive.

Debian 12's own release is the one that is installed. The newer ones come from newer Debian
suites: apt fetches them with a configuration folder of our own, whose sources are the host's with
the suite's name replaced, so a mirror or a proxy that this host uses is used for them too. The
packages are unpacked beside the system and never installed.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CACHE", "RELEASES", "Release", "Unavailable", "find_release", "installed_release"]

# Fetched packages outlive a run: the download is 60 MB.
CACHE = Path(os.environ.get("VOID_TEST_CACHE", "/var/tmp/void-shims-tests"))
_FETCH_TIMEOUT = 300.0  # seconds for one apt call; an index is 10 MB


class Unavailable(Exception):
    """A release cannot be had on this host; the text says why and becomes a skip's reason."""


@dataclass(frozen=True)
class Release:
    """One containerd: its version as it reports it, and the directory of its programs."""

    version: str
    bin: Path

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    def program(self, name: str) -> Path:
        """Return a program of this release: ``containerd``, ``ctr``, runc's shim."""
        return self.bin / name


@dataclass(frozen=True)
class _Wanted:
    version: str  # what we test against; a suite may have moved on within the same minor
    suites: tuple[str, ...]  # in this order; empty = the installed one

    @property
    def minor(self) -> str:
        return ".".join(self.version.split(".")[:2])


RELEASES: dict[str, _Wanted] = {
    "1.6": _Wanted("1.6.20", ()),
    "1.7": _Wanted("1.7.24", ("trixie",)),
    "2.1": _Wanted("2.1.9", ("forky", "sid")),
}


def find_release(name: str, cache: Path) -> Release:
    """Return the release ``name`` (a key of ``RELEASES``), fetching it into ``cache`` if needed.

    Raises ``Unavailable`` when neither the host nor its package mirror has it.
    """
    wanted = RELEASES[name]
    if not wanted.suites:
        return _installed(wanted)
    cache.mkdir(parents=True, exist_ok=True)
    reasons = []
    with _locked(cache / f"{name}.lock"):
        for suite in wanted.suites:
            try:
                return _unpacked(wanted, suite, cache / f"containerd-{name}-{suite}")
            except Unavailable as problem:
                reasons.append(f"{suite}: {problem}")
    raise Unavailable(f"containerd {name} cannot be fetched ({'; '.join(reasons)})")


def installed_release() -> Release:
    """Return the containerd that is installed on this host, whichever it is."""
    found = shutil.which("containerd")
    if found is None:
        raise Unavailable("containerd is not installed; apt-get install containerd")
    return _examined(Path(found).parent)


def _installed(wanted: _Wanted) -> Release:
    release = installed_release()
    if not release.version.startswith(wanted.minor + "."):
        raise Unavailable(f"containerd {release.version} is installed, not {wanted.minor}")
    return release


def _unpacked(wanted: _Wanted, suite: str, target: Path) -> Release:
    binaries = target / "root" / "usr" / "bin"
    if not (binaries / "containerd").exists():
        _fetch(suite, target)
    release = _examined(binaries)
    if not release.version.startswith(wanted.minor + "."):
        raise Unavailable(f"it has containerd {release.version}")
    return release


def _examined(directory: Path) -> Release:
    """Ask a containerd for its version; a binary that this host's libraries cannot run fails."""
    try:
        answer = subprocess.run(
            [directory / "containerd", "--version"], capture_output=True, text=True, timeout=30
        )
    except OSError as problem:
        raise Unavailable(str(problem)) from problem
    found = re.search(r" v?(\d+\.\d+\.\d+)", answer.stdout)
    if answer.returncode or found is None:
        raise Unavailable((answer.stderr or answer.stdout).strip() or "it does not start")
    return Release(found[1], directory)


def _fetch(suite: str, target: Path) -> None:
    """Download containerd's package of ``suite`` and unpack it below ``target``/root."""
    if shutil.which("apt-get") is None:
        raise Unavailable("there is no apt-get to fetch it with")
    for name in ("lists/partial", "archives/partial", "sources", "download"):
        (target / name).mkdir(parents=True, exist_ok=True)
    sources = _sources_for(suite, Path("/etc/apt"), _codename())
    for number, (kind, text) in enumerate(sources):
        (target / "sources" / f"{number}.{kind}").write_text(text)
    if not sources:
        raise Unavailable("the host's apt has no source of its own release to derive one from")
    options = [
        "-oDir::Etc::sourcelist=/dev/null",
        f"-oDir::Etc::sourceparts={target}/sources",
        f"-oDir::State::lists={target}/lists",
        f"-oDir::Cache={target}",
        "-oAcquire::Languages=none",
        # The unprivileged download user cannot enter a private directory.
        "-oAPT::Sandbox::User=root",
    ]
    _apt([*options, "update"], target)
    download = target / "download"
    _apt([*options, "download", f"containerd/{suite}"], download)
    package = next(iter(sorted(download.glob("containerd_*.deb"))), None)
    if package is None:
        raise Unavailable("apt-get download left no package")
    # The root appears at once or not at all: an interrupted unpacking must not look finished.
    partial = target / "root.partial"
    shutil.rmtree(partial, ignore_errors=True)
    subprocess.run(["dpkg-deb", "-x", package, partial], check=True, timeout=_FETCH_TIMEOUT)
    os.replace(partial, target / "root")
    for name in ("lists", "archives", "download"):
        shutil.rmtree(target / name, ignore_errors=True)


def _apt(arguments: list[str], directory: Path) -> None:
    try:
        answer = subprocess.run(
            ["apt-get", "-q", *arguments],
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=_FETCH_TIMEOUT,
        )
    except subprocess.TimeoutExpired as problem:
        raise Unavailable(f"apt-get took more than {_FETCH_TIMEOUT:.0f} s") from problem
    if answer.returncode:
        lines = answer.stderr.strip().splitlines() or ["apt-get failed and did not say why"]
        raise Unavailable(lines[-1])


def _codename() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    raise Unavailable("/etc/os-release names no Debian release")


def _sources_for(suite: str, etc: Path, codename: str) -> list[tuple[str, str]]:
    """Derive sources of ``suite`` from the host's: pairs of file extension and content.

    Only entries of the release itself count: its updates and its security archive have no
    counterpart in every suite, and the release has what we need.
    """
    found: list[tuple[str, str]] = []
    parts = sorted((etc / "sources.list.d").glob("*"))
    for path in [etc / "sources.list", *parts]:
        if not path.is_file():
            continue
        if path.suffix == ".sources":
            for stanza in re.split(r"\n\s*\n", path.read_text()):
                suites = re.search(r"(?m)^Suites:(.*)$", stanza)
                if suites and codename in suites[1].split():
                    text = stanza.replace(suites[0], f"Suites: {suite}").strip()
                    found.append(("sources", text + "\n"))
        elif path.suffix == ".list":
            lines = [
                re.sub(rf"(\s){codename}(\s)", rf"\1{suite}\2", line)
                for line in path.read_text().splitlines()
                if re.match(rf"\s*deb\s(.*\s)?{codename}\s", line)
            ]
            if lines:
                found.append(("list", "\n".join(lines) + "\n"))
    return found


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two test runs on one cache take turns."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
