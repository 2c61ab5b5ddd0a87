"""Bind mounts: which way each takes into the VM."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from shims.containerd.shim.volumes import PUSH_LIMIT, Way, classify_mounts, root_is_directory
from shims.core.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path


def _classify(source: Path | str, *options: str) -> Any:
    mount = {"type": "bind", "source": str(source), "destination": "/x", "options": list(options)}
    (volume,) = classify_mounts({"mounts": [{"type": "proc"}, mount]}, "/bundle")
    assert volume.index == 1
    return volume


@pytest.mark.parametrize(
    ("path", "options", "way"),
    [
        ("dir/", ("rbind",), Way.SHARE),
        ("dir/", ("rbind", "ro"), Way.SHARE),
        ("file", ("bind",), Way.SHARE),
        ("file", ("bind", "ro"), Way.PUSH),
        ("pods/1/volumes/kubernetes.io~configmap/c/", ("rbind", "ro"), Way.PUSH),
        ("pods/1/volumes/kubernetes.io~secret/s/", ("rbind", "ro"), Way.PUSH),
        ("pods/1/volumes/kubernetes.io~projected/p/", ("rbind", "ro"), Way.PUSH),
        ("pods/1/volumes/kubernetes.io~empty-dir/e/", ("rbind", "rw"), Way.GUEST),
        ("pods/1/volumes/kubernetes.io~csi/pvc/mount/", ("rbind", "rw"), Way.SHARE),
        # A sub-path says nothing about its volume: what may be written must reach the host.
        ("pods/1/volume-subpaths/pvc/c/0/", ("rbind", "rw"), Way.SHARE),
        ("pods/1/volume-subpaths/config/c/0", ("bind", "ro"), Way.PUSH),
        ("pods/1/etc-hosts", ("rbind", "rw"), Way.PUSH),
        ("io.containerd.grpc.v1.cri/sandboxes/1/shm/", ("rbind", "rw"), Way.GUEST),
        ("io.containerd.grpc.v1.cri/sandboxes/1/resolv.conf", ("rbind", "rw"), Way.PUSH),
        ("home/etc-hosts", ("rbind", "rw"), Way.SHARE),
    ],
)
def test_ways(tmp_path: Path, path: str, options: tuple[str, ...], way: Way) -> None:
    target = tmp_path / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.endswith("/"):
        target.mkdir()
    else:
        target.write_text("x")
    volume = _classify(target, *options)
    assert volume.way is way
    assert volume.is_file == (not path.endswith("/"))
    assert volume.readonly == ("ro" in options)


def test_a_large_file_is_shared(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, PUSH_LIMIT + 1)
    assert _classify(path, "ro").way is Way.SHARE


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    assert _classify(tmp_path / "link", "ro").is_file


def test_what_cannot_cross_is_refused_with_advice(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for name, advice in (("socket", "network"), ("fifo", "stdin")):
            with pytest.raises(InputError, match=advice) as caught:
                _classify(tmp_path / name)
            assert "mounts[1].source" in str(caught.value)
    with pytest.raises(InputError) as caught:
        _classify("/dev/null")
    assert "mount a disk's file system on the host, and give the directory" in caught.value.hint


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        _classify(tmp_path / "missing")


def test_the_root_directory() -> None:
    assert not root_is_directory({"root": {"path": "rootfs"}}, "/bundle")
    assert not root_is_directory({"root": {"path": "/bundle/rootfs"}}, "/bundle")
    assert not root_is_directory({}, "/bundle")
    assert root_is_directory({"root": {"path": "/srv/root"}}, "/bundle")
