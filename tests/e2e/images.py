"""Make the container image that the tests run: busybox, as an OCI image tar in pure Python.

Three layers show what an image store has to get right: a plain one, a gzip-compressed one that
replaces a file and takes a directory away (whiteouts), and an empty one. The same tar comes out
for the same busybox, byte for byte.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["IMAGE", "build_image", "find_busybox", "unpack_rootfs"]

IMAGE = "void-box.test/busybox:latest"

_PASSWD = "root:x:0:0:root:/root:/bin/sh\nvoid:x:1000:1000:void:/home/void:/bin/sh\n"
_GROUP = "root:x:0:\nvoid:x:1000:\naudio:x:29:void\n"
_GREETING = "hello from the second layer\n"


@dataclass
class _Layer:
    """One layer under construction: entries in the order in which they are added."""

    compressed: bool = False
    _raw: io.BytesIO = field(default_factory=io.BytesIO)
    _tar: tarfile.TarFile = field(init=False)

    def __post_init__(self) -> None:
        self._tar = tarfile.TarFile(fileobj=self._raw, mode="w")

    def directory(self, name: str, mode: int = 0o755, owner: int = 0) -> None:
        self._add(name, tarfile.DIRTYPE, mode=mode, owner=owner)

    def file(self, name: str, content: bytes | str, mode: int = 0o644, owner: int = 0) -> None:
        data = content.encode() if isinstance(content, str) else content
        self._add(name, tarfile.REGTYPE, mode=mode, owner=owner, data=data)

    def link(self, name: str, target: str) -> None:
        self._add(name, tarfile.SYMTYPE, mode=0o777, target=target)

    def _add(
        self, name: str, kind: bytes, *, mode: int, owner: int = 0, target: str = "",
        data: bytes = b"",
    ) -> None:  # fmt: skip
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.linkname, entry.size = kind, mode, target, len(data)
        entry.uid = entry.gid = owner
        entry.mtime = 1_600_000_000
        self._tar.addfile(entry, io.BytesIO(data))

    def finish(self) -> tuple[bytes, str, str]:
        """Return the blob, its media type, and the digest of the uncompressed tar."""
        self._tar.close()
        raw = self._raw.getvalue()
        kind = "application/vnd.oci.image.layer.v1.tar"
        if self.compressed:
            return gzip.compress(raw, 6, mtime=0), kind + "+gzip", _digest(raw)
        return raw, kind, _digest(raw)


def find_busybox() -> Path | None:
    """Return a busybox that needs no library (Debian: busybox-static), or None."""
    for path in (Path("/bin/busybox"), Path("/usr/bin/busybox")):
        if path.exists() and b"/lib64/ld-linux" not in path.read_bytes()[:4096]:
            return path
    return None


def build_image(busybox: Path, target: Path, files: Mapping[str, bytes] | None = None) -> Path:
    """Write the image's OCI layout as a tar to ``target`` and return ``target``.

    ``files`` are added in a layer of their own, each by its path in the container.
    """
    blobs: dict[str, bytes] = {}
    descriptors: list[dict[str, Any]] = []
    chain: list[str] = []
    for layer in (_base(busybox), _changes(), _extra(files or {})):
        blob, kind, uncompressed = layer.finish()
        descriptors.append(_descriptor(blobs, blob, kind))
        chain.append(uncompressed)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Env": ["PATH=/bin:/usr/bin", "IMAGE_SAYS=yes"],
            "Cmd": ["/bin/sh"],
            "WorkingDir": "/home",
        },
        "rootfs": {"type": "layers", "diff_ids": chain},
    }
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _descriptor(blobs, _json(config), "application/vnd.oci.image.config.v1+json"),
        "layers": descriptors,
    }
    listed = _descriptor(blobs, _json(manifest), manifest["mediaType"])
    listed["annotations"] = {
        "io.containerd.image.name": IMAGE,
        "org.opencontainers.image.ref.name": IMAGE,
    }
    listed["platform"] = {"architecture": "amd64", "os": "linux"}
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [listed],
    }
    layout = _Layer()
    layout.file("oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
    layout.directory("blobs")
    layout.directory("blobs/sha256")
    for digest, blob in sorted(blobs.items()):
        layout.file(f"blobs/{digest.replace(':', '/')}", blob)
    layout.file("index.json", _json(index))
    target.write_bytes(layout.finish()[0])
    return target


def unpack_rootfs(busybox: Path, target: Path) -> Path:
    """Lay the image's content out as a plain directory, for ``ctr run --rootfs``."""
    target.mkdir(parents=True)
    raw, _, _ = _base(busybox).finish()
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        # Debian 12's Python has no filters yet; where there are some, none is to warn.
        tar.extraction_filter = getattr(tarfile, "tar_filter", None)
        tar.extractall(target)
    return target


def _base(busybox: Path) -> _Layer:
    layer = _Layer()
    for name in ("bin", "dev", "etc", "home", "proc", "root", "run", "sys", "usr", "usr/bin"):
        layer.directory(name)
    layer.directory("home/void", owner=1000)
    layer.directory("tmp", mode=0o1777)
    layer.file("bin/busybox", busybox.read_bytes(), mode=0o755)
    for applet in _applets(busybox):
        layer.link(f"bin/{applet}", "/bin/busybox")
    layer.file("etc/passwd", _PASSWD)
    layer.file("etc/group", _GROUP)
    layer.file("etc/greeting", "hello from the first layer\n")
    layer.directory("old")
    layer.file("old/file", "the second layer takes me away\n")
    layer.directory("opaque")
    layer.file("opaque/hidden", "the second layer hides me\n")
    return layer


def _changes() -> _Layer:
    layer = _Layer(compressed=True)
    layer.file("etc/greeting", _GREETING)
    layer.file(".wh.old", "")
    layer.directory("opaque")
    layer.file("opaque/.wh..wh..opq", "")
    layer.file("opaque/shown", "only me\n")
    return layer


def _extra(files: Mapping[str, bytes]) -> _Layer:
    layer = _Layer()
    for name, content in files.items():
        layer.file(name, content)
    return layer


def _applets(busybox: Path) -> list[str]:
    listing = subprocess.run(
        [busybox, "--list"], capture_output=True, text=True, check=True, timeout=30
    )
    return [name for name in listing.stdout.split() if name != "busybox"]


def _descriptor(blobs: dict[str, bytes], blob: bytes, kind: str) -> dict[str, Any]:
    digest = _digest(blob)
    blobs[digest] = blob
    return {"mediaType": kind, "digest": digest, "size": len(blob)}


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True).encode()
