"""Kernels and module trees small enough to make in a test."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PHYS32_ENTRY = 18
SETUP_SECTORS = 4


def elf_kernel(release: str = "6.1.0-test", *, pvh: bool = True, filler: int = 100_000) -> bytes:
    """Return an ELF file as a loader sees a kernel: one note segment, a banner, some bulk."""
    note = struct.pack("<III4sI", 4, 4, PHYS32_ENTRY if pvh else 1, b"Xen\0", 0x1000)
    banner = f"Linux version {release} (void@shims) #1 SMP\n".encode()
    offset = 64 + 56
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, 0x1000, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    program = struct.pack("<IIQQQQQQ", 4, 4, offset, 0, 0, len(note), len(note), 4)
    return header + program + note + banner + bytes(range(256)) * (filler // 256)


def bzimage(payload: bytes, release: str = "6.1.0-test", *, protocol: int = 0x020F) -> bytes:
    """Wrap a compressed kernel as Linux's build does: setup code, some code, the payload, more."""
    setup = bytearray((SETUP_SECTORS + 1) * 512)
    setup[0x1F1] = SETUP_SECTORS
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, protocol)
    struct.pack_into("<H", setup, 0x20E, 0x300)
    text = f"{release} (void@shims) #1".encode() + b"\0"
    setup[0x500 : 0x500 + len(text)] = text
    # A decoy before and after: whoever searches for a magic instead of reading the header fails.
    code = b"\x1f\x8b\x08decoy" + bytes(700)
    struct.pack_into("<II", setup, 0x248, len(code), len(payload))
    return bytes(setup) + code + payload + b"\x02\x21\x4c\x18 not this one"


def compressed(kind: str, data: bytes) -> bytes:
    """Compress with the options of Linux's scripts/Makefile.lib, size trailer included."""
    trailer = struct.pack("<I", len(data))
    match kind:
        case "gzip":
            return gzip.compress(data, mtime=0)
        case "bzip2":
            return bz2.compress(data) + trailer
        case "xz":
            filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6}]
            return lzma.compress(data, check=lzma.CHECK_CRC32, filters=filters) + trailer
        case "lzma":
            return lzma.compress(data, format=lzma.FORMAT_ALONE) + trailer
        case "lz4":
            return _tool("lz4", "-l", "-9", "-c", data=data) + trailer
        case "zstd":
            return _tool("zstd", "-q", "-19", "-c", data=data) + trailer
        case "lzo":
            return _tool("lzop", "-9", "-c", data=data) + trailer
        case _:
            raise ValueError(kind)


def _tool(*argv: str, data: bytes) -> bytes:
    return subprocess.run(argv, input=data, capture_output=True, check=True, timeout=60).stdout


BUILTIN = ("ext4", "virtio_blk")
DEPENDENCIES = {
    "virtio_ring": (),
    "virtio": ("virtio_ring",),
    "virtio_mmio": ("virtio", "virtio_ring"),
    "virtio_console": ("virtio", "virtio_ring"),
    "scsi_mod": (),
    "virtio_scsi": ("scsi_mod", "virtio", "virtio_ring"),
    "sd_mod": ("scsi_mod",),
    "crc32c-intel": (),
    "libcrc32c": (),
    "erofs": ("libcrc32c",),
    "overlay": (),
    "virtio-rng": ("virtio", "virtio_ring"),
    "unwanted": (),
}


def install_kernel(
    root: Path, release: str = "6.1.0-test", *, kernel: bytes | None = None, suffix: str = ""
) -> Path:
    """Install a kernel and its modules below ``root``; return the bzImage's path.

    ``suffix`` is how modules are compressed: ``.xz``, ``.gz``, ``.zst`` or nothing.
    """
    boot, tree = root / "boot", root / "lib/modules" / release
    boot.mkdir(parents=True, exist_ok=True)
    (tree / "kernel").mkdir(parents=True)
    path = boot / f"vmlinuz-{release}"
    path.write_bytes(kernel or bzimage(compressed("gzip", elf_kernel(release)), release))
    kinds = {".xz": "xz", ".gz": "gzip", ".zst": "zstd"}
    lines = []
    for name, needs in DEPENDENCIES.items():
        content = b"\x7fELF module " + name.encode() + bytes(1000)
        if suffix:
            content = compressed(kinds[suffix], content)
        (tree / f"kernel/{name}.ko{suffix}").write_bytes(content)
        files = " ".join(f"kernel/{other}.ko{suffix}" for other in needs)
        lines.append(f"kernel/{name}.ko{suffix}: {files}".rstrip())
    (tree / "modules.dep").write_text("\n".join(lines) + "\n")
    (tree / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name in BUILTIN))
    (tree / "modules.softdep").write_text(
        "# Soft dependencies extracted from modules themselves.\n"
        "softdep libcrc32c pre: crc32c absent post: unwanted\nsoftdep erofs post: unwanted\n"
    )
    (tree / "modules.alias").write_text(
        "# Aliases extracted from modules themselves.\n"
        "alias crypto-crc32c-intel crc32c_intel\nalias crc32c crc32c_intel\n"
        "alias crc32c crc32c_generic\nalias virtio:d00000004v* virtio_rng\n"
    )
    return path


def static_program(path: Path) -> Path:
    """Write something that passes for void-init."""
    path.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(500))
    return path
