"""The counting of leaks: what it must see, or every test that counts sees nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from shims.microvm.netns import TAP_NAME
from tests.e2e.leaks import Scope, is_cgroup_of, take_snapshot
from tests.microvm.nets import make_pair

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        ("/vt12/c-1", True),
        ("/vt12/void-vt12-c-1", True),
        ("/void-shims/void-vt12-c-1", True),
        ("/void-shims/void-vt12-c-1-template", True),
        ("/vt12", False),
        ("/void-shims", False),
        ("/void-shims/void-other-c-template", False),
    ],
)
def test_cgroups_of_containers_vms_and_templates_count(path: str, ours: bool) -> None:
    assert is_cgroup_of("vt12", path) is ours


def test_what_is_unfinished_in_a_cache_counts(tmp_path: Path) -> None:
    cache = tmp_path / "images"
    cache.mkdir()
    scope = Scope(os.getpid(), frozenset(), "vt12", (tmp_path,), kept=(cache,))
    (cache / "0123.image").touch()
    before = take_snapshot(scope)
    assert not before.files
    (cache / "4567.part").touch()
    (tmp_path / "stray").touch()
    left = take_snapshot(scope).beyond(before)
    assert left == [f"files: {cache}/4567.part", f"files: {tmp_path}/stray"]


@pytest.mark.root
def test_what_a_vm_leaves_in_a_network_counts() -> None:
    with make_pair() as pair:
        scope = Scope(os.getpid(), frozenset(), "vt12", (), networks=(pair.pod,))
        before = take_snapshot(scope)
        assert not before.networks
        pair.in_pod("tuntap", "add", "dev", TAP_NAME, "mode", "tap")
        pair.filters("qdisc", "add", "dev", "eth0", "ingress")
        tap, redirect = take_snapshot(scope).beyond(before)
        assert tap.startswith(f"networks: {pair.pod}: ")
        assert TAP_NAME in tap
        assert redirect.startswith(f"networks: {pair.pod}: qdisc ingress")
        pair.filters("qdisc", "delete", "dev", "eth0", "ingress")
        pair.in_pod("link", "delete", TAP_NAME)
        assert not take_snapshot(scope).beyond(before)
    assert not take_snapshot(scope).networks


_HELPER = """
import os, sys
for line in sys.stdin:
    kept = os.memfd_create("template") if "memory" in line else os.open("/dev/null", 0)
    print(flush=True)
"""


def test_descriptors_of_a_process_that_stays_count(tmp_path: Path) -> None:
    """One is enough there, for nothing else comes and goes. Templates in memory are its purpose."""
    words = [sys.executable, "-c", _HELPER, "void-helper-that-stays"]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as helper:
        assert helper.stdin is not None
        assert helper.stdout is not None

        def ask(word: str) -> None:
            assert helper.stdin is not None
            assert helper.stdout is not None
            helper.stdin.write(f"{word}\n")
            helper.stdin.flush()
            helper.stdout.readline()

        ask("memory")
        scope = Scope(os.getpid(), frozenset(), "vt12", (), lasting=(words[-1],))
        before = take_snapshot(scope)
        assert list(before.lasting_fds) == [helper.pid]
        ask("memory")
        assert not take_snapshot(scope).beyond(before)
        ask("file")
        ask("file")
        (left,) = take_snapshot(scope).beyond(before)
        assert left.startswith(f"fds: process {helper.pid} has ")
        helper.stdin.close()
