"""The files that a node installs are understood by the containerd they are for."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.e2e.packages import CACHE, RELEASES, Unavailable, find_release
from tests.e2e.runtimes import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

_PACKAGING = REPOSITORY / "packaging"


@pytest.mark.containerd
@pytest.mark.root
@pytest.mark.parametrize("name", RELEASES)
def test_containerd_takes_the_drop_in(name: str, tmp_path: Path) -> None:
    """``containerd config dump`` merges the drop-in and shows our runtime with its options."""
    try:
        release = find_release(name, CACHE)
    except Unavailable as problem:
        pytest.skip(str(problem))
    version = 2 if release.major == 1 else 3
    drop_in = _PACKAGING / "containerd" / f"void-shims-v{version}.toml"
    config = tmp_path / "config.toml"
    config.write_text(f'version = {version}\nimports = ["{drop_in}"]\n')
    dumped = subprocess.run(
        [release.program("containerd"), "--config", config, "config", "dump"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout
    _, _, table = dumped.partition("runtimes.void-box]")
    table = table.partition("\n\n")[0].replace('"', "'")
    assert "runtime_type = 'io.containerd.voidbox.v2'" in table
    assert "privileged_without_host_devices = true" in table
    assert "'dev.void-box.*'" in table


def test_the_runtime_class_names_the_table() -> None:
    document = yaml.safe_load((_PACKAGING / "kubernetes" / "runtimeclass.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == ("node.k8s.io/v1", "RuntimeClass")
    for version in (2, 3):
        text = (_PACKAGING / "containerd" / f"void-shims-v{version}.toml").read_text()
        assert f"runtimes.{document['handler']}]" in text
