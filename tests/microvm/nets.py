"""Network namespaces as CNI leaves them, made for one test: a pod's, and its neighbour's."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

POD = "10.97.8.2"
PEER = "10.97.8.1"
POD6 = "fd97::2"
PEER6 = "fd97::1"


@dataclass(frozen=True)
class Pair:
    """A pod's namespace and the one at the other end of its link."""

    pod: str
    peer: str

    @property
    def path(self) -> str:
        """Where the pod's namespace is."""
        return f"/run/netns/{self.pod}"

    def in_pod(self, *words: str) -> str:
        """Run ``ip`` in the pod's namespace."""
        return run("ip", "-n", self.pod, *words)

    def filters(self, *words: str) -> str:
        """Run ``tc`` in the pod's namespace."""
        return run("tc", "-n", self.pod, *words)

    def at_peer(self, *words: str, stdin: str = "") -> str:
        """Run any program in the peer's namespace."""
        return run("ip", "netns", "exec", self.peer, *words, stdin=stdin)


def run(*words: str, stdin: str = "") -> str:
    """Run a program to its end, which must be good, and return its output."""
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=30, input=stdin
    )
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def make_pair(*, mtu: int = 1440) -> Iterator[Pair]:
    """Make both namespaces, with a veth between them that has addresses and routes."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None:
        pytest.skip("needs root, ip and tc (iproute2)")
    unique = secrets.token_hex(3)
    pair = Pair(f"void-pod-{unique}", f"void-peer-{unique}")
    with ExitStack() as stack:
        for name in (pair.pod, pair.peer):
            run("ip", "netns", "add", name)
            stack.callback(run, "ip", "netns", "delete", name)
        veth = ("eth0", "mtu", str(mtu), "type", "veth", "peer", "name", "host0")
        pair.in_pod("link", "add", "name", *veth, "mtu", str(mtu), "netns", pair.peer)
        for namespace, link, address, address6 in (
            (pair.pod, "eth0", POD, POD6),
            (pair.peer, "host0", PEER, PEER6),
        ):
            ip = ("ip", "-n", namespace)
            run(*ip, "link", "set", "lo", "up")
            run(*ip, "link", "set", link, "up")
            run(*ip, "address", "add", f"{address}/24", "broadcast", "+", "dev", link)
            run(*ip, "address", "add", f"{address6}/64", "dev", link, "nodad")
        pair.in_pod("route", "add", "default", "via", PEER)
        pair.in_pod("-6", "route", "add", "default", "via", PEER6)
        yield pair
