"""Layers with everything that image layers can hold, and what a tree looks like from outside.

Run as a program (in a mount namespace of its own) it mounts layers as runc would see them and an
erofs image of them, and prints both descriptions.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

LONGEST = b"a" * 255
ODD = [b"-dash", b"new\nline", b"\xff\xfe not utf-8", b"colon:comma,back\\slash", b" ", b"a" * 254]
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
"""cap_net_raw=ep, as ``struct vfs_cap_data`` of version 2."""


def make_layers(base: Path) -> list[str]:
    """Return three layer directories below ``base``, the topmost first; needs root."""
    low, middle, top = (base / name for name in ("low", "mid:dle,", "top"))
    for layer in (low, middle, top):
        layer.mkdir(parents=True)
    _fill_low(low)
    _hide(middle)
    (middle / "replaced").write_text("from the middle")
    (middle / "deep/a/b/c").mkdir(parents=True)
    os.mknod(top / "deleted-later", stat.S_IFCHR, os.makedev(0, 0))
    (top / "dir").mkdir(mode=0o711)
    (top / "dir/added").write_text("by the top layer")
    for layer in (low, middle, top):
        os.utime(layer, ns=(10**18, 10**18 + 123_456_789))
    return [str(top), str(middle), str(low)]


def _fill_low(low: Path) -> None:
    (low / "dir").mkdir()
    (low / "dir/below").write_text("in the lowest layer")
    (low / "dir/sub").mkdir()
    for name in ("deleted", "deleted-later", "replaced"):
        (low / name).write_text(name)
    for name in ("opaque", "gone"):
        (low / name).mkdir()
        (low / name / "hidden").write_text("must not be seen")
    (low / "file").write_bytes(bytes(range(256)) * 41)
    os.link(low / "file", low / "dir/hard-link")
    os.symlink("file", low / "link")
    os.symlink("/" + "x" * 4000, low / "long-link")
    odd = os.fsencode(low / "odd")
    os.mkdir(odd)
    for raw in ODD:
        Path(os.fsdecode(os.path.join(odd, raw))).write_bytes(raw)
    (low / "ids").write_text("large ids")
    os.chown(low / "ids", 3_000_000_000, 70_000)
    (low / "suid").write_text("setuid")
    (low / "suid").chmod(0o6755)
    (low / "sticky").mkdir(mode=0o755)
    (low / "sticky").chmod(0o1777)
    os.mknod(low / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(low / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 70_000))
    os.mkfifo(low / "fifo", 0o640)
    (low / "attributes").write_text("has some")
    os.setxattr(low / "attributes", "user.note", b"hello")
    os.setxattr(low / "attributes", "user.empty", b"")
    os.setxattr(low / "attributes", "trusted.own", b"\x00\xff" * 100)
    os.setxattr(low / "attributes", "security.capability", CAPABILITY)
    os.setxattr(low / "dir", "user.on-a-directory", b"yes")
    with (low / "sparse").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"an island")
    (low / "old").write_text("before 1970")
    os.utime(low / "old", ns=(0, 1))
    with (low / "big").open("wb") as file:
        for number in range(64):
            file.write(hashlib.sha256(bytes([number])).digest() * 4096)


def _hide(layer: Path) -> None:
    """Remove things of a lower layer, as overlay does."""
    for name in ("deleted", "gone"):
        os.mknod(layer / name, stat.S_IFCHR, os.makedev(0, 0))
    (layer / "opaque").mkdir()
    os.setxattr(layer / "opaque", "trusted.overlay.opaque", b"y")
    (layer / "opaque/new").write_text("seen")


def describe(root: str) -> dict[str, Any]:
    """Return all that programs can learn of the tree at ``root``, by path."""
    seen: dict[tuple[int, int], str] = {}
    found: dict[str, Any] = {}
    top = os.fsencode(root)
    paths = [top]
    for directory, directories, files in os.walk(top):
        paths += [os.path.join(directory, name) for name in (*directories, *files)]
    for path in sorted(paths):
        name = os.path.relpath(path, top).decode("latin-1")
        about = os.lstat(path)
        kind = stat.S_IFMT(about.st_mode)
        entry: dict[str, Any] = {"mode": oct(about.st_mode), "ids": [about.st_uid, about.st_gid]}
        if name != ".":  # the root's own time is the upper layer's
            entry["mtime"] = about.st_mtime_ns
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            entry["device"] = about.st_rdev
        elif kind == stat.S_IFLNK:
            entry["target"] = os.readlink(path).decode("latin-1")
        elif kind == stat.S_IFREG:
            entry["content"] = _hash(path)
            entry["same as"] = seen.setdefault((about.st_dev, about.st_ino), name)
        entry["attributes"] = {
            key: os.getxattr(path, key, follow_symlinks=False).hex()
            for key in sorted(os.listxattr(path, follow_symlinks=False))
        }
        found[name] = entry
    return found


def _hash(path: bytes) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _compare(image: str, place: Path, layers: list[str]) -> None:
    for name in ("image", "overlay", "upper", "work"):
        (place / name).mkdir()
    for number, layer in enumerate(layers):
        os.symlink(layer, place / str(number))
    # With an upper layer, as containerd mounts it for runc.
    lower = ":".join(str(number) for number in range(len(layers)))
    subprocess.run(
        ["mount", "-t", "overlay", "-o", f"lowerdir={lower},upperdir=upper,workdir=work",
         "none", "overlay"], cwd=place, check=True,
    )  # fmt: skip
    subprocess.run(["mount", "-o", "loop,ro", image, place / "image"], check=True)
    both = {name: describe(str(place / name)) for name in ("image", "overlay")}
    subprocess.run(["umount", place / "image"], check=True)
    json.dump(both, sys.stdout)


if __name__ == "__main__":
    _compare(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
