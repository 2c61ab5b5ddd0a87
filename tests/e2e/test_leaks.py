"""The counting of leaks: what it must see, or every test that counts sees nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.e2e.leaks import Scope, is_cgroup_of, take_snapshot

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
