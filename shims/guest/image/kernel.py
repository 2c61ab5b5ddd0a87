"""Take the bootable ELF kernel out of a bzImage.

The layout of a bzImage is Documentation/arch/x86/boot.rst of Linux: a setup header at 0x1f1, whose
``payload_offset`` and ``payload_length`` (protocol 2.08) say where the compressed kernel lies.
QEMU boots an ELF kernel directly when it has the note XEN_ELFNOTE_PHYS32_ENTRY (PVH); under TCG
that saves 0.3 s, the time the guest would need to decompress itself.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

from shims.core.errors import InputError
from shims.guest.image.decompress import decompress

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["extract_vmlinux", "has_pvh_entry", "kernel_release"]

_ELF = b"\x7fELF"
_SETUP_SECTORS = 0x1F1
_HEADER_MAGIC = 0x202
_HEADER_VERSION = 0x206
_VERSION_STRING = 0x20E
_PAYLOAD = 0x248
_OLDEST_PROTOCOL = 0x0208
_SECTOR = 512
_PT_NOTE = 4
_PHYS32_ENTRY = 18
_BANNER = re.compile(rb"Linux version (\d[^ \0]*) ")


def kernel_release(image: bytes) -> str:
    """Return the release (``uname -r``) of a bzImage or an ELF kernel; empty when it has none."""
    if image.startswith(_ELF):
        banner = _BANNER.search(image)
        return banner.group(1).decode("ascii", "replace") if banner else ""
    if not _is_bzimage(image):
        return ""
    (pointer,) = struct.unpack_from("<H", image, _VERSION_STRING)
    start = pointer + _SECTOR
    text = image[start : start + 256].split(b"\0")[0] if pointer else b""
    return text.split(b" ")[0].decode("ascii", "replace")


def extract_vmlinux(image: bytes, *, what: str) -> bytes:
    """Return the ELF kernel in ``image``: a bzImage, or an ELF file that is returned as it is.

    ``what`` names the file in errors. Raises ``InputError`` when it is neither, or damaged.
    """
    if image.startswith(_ELF):
        return image
    if not _is_bzimage(image):
        raise InputError(what, f"a file that begins with {image[:4].hex()}", "a bzImage or an ELF")
    (version,) = struct.unpack_from("<H", image, _HEADER_VERSION)
    if version < _OLDEST_PROTOCOL:
        raise InputError(what, f"boot protocol {version >> 8}.{version & 255:02}", "2.08 or newer")
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    setup_sectors = image[_SETUP_SECTORS] or 4  # 0 means 4, says the boot protocol
    start = (setup_sectors + 1) * _SECTOR + offset
    if not length or start + length > len(image):
        raise InputError(what, f"{len(image)} bytes", "a whole bzImage (this one is cut short)")
    payload = image[start : start + length]
    if payload.startswith(_ELF):
        return payload
    kernel = decompress(payload, what=what)
    # The build takes the size from the payload's last 4 bytes, whatever the format (mkpiggy.c).
    if len(kernel) != int.from_bytes(payload[-4:], "little"):
        raise InputError(what, f"{len(kernel)} bytes of kernel", "as many as the payload promises")
    if not kernel.startswith(_ELF):
        raise InputError(what, f"a payload that begins with {kernel[:4].hex()}", "an ELF kernel")
    return kernel


def _is_bzimage(image: bytes) -> bool:
    return len(image) > _PAYLOAD + 8 and image[_HEADER_MAGIC : _HEADER_MAGIC + 4] == b"HdrS"


def has_pvh_entry(kernel: bytes, *, what: str = "kernel") -> bool:
    """Tell whether the 64-bit ELF ``kernel`` has the PVH entry by which QEMU boots it directly.

    ``what`` names the file in errors. Raises ``InputError`` when it is cut short.
    """
    if not kernel.startswith(_ELF + b"\x02\x01"):
        return False
    found = False
    try:
        for kind, offset, length in _segments(kernel):
            if offset + length > len(kernel):
                raise InputError(what, f"{len(kernel)} bytes", "a whole ELF file (cut short)")
            found |= kind == _PT_NOTE and _has_note(kernel[offset : offset + length])
    except struct.error as error:
        raise InputError(what, f"{len(kernel)} bytes", "a whole ELF file (cut short)") from error
    return found


def _segments(kernel: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the type, offset and length of each segment; raise struct.error beyond the end."""
    (table,) = struct.unpack_from("<Q", kernel, 0x20)
    size, count = struct.unpack_from("<HH", kernel, 0x36)
    for index in range(count):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", kernel, table + index * size)
        yield kind, offset, length


def _has_note(notes: bytes) -> bool:
    at = 0
    while at + 12 <= len(notes):
        name_size, data_size, kind = struct.unpack_from("<III", notes, at)
        name = notes[at + 12 : at + 12 + name_size]
        if kind == _PHYS32_ENTRY and name.rstrip(b"\0") == b"Xen":
            return True
        at += 12 + (name_size + 3 & ~3) + (data_size + 3 & ~3)
    return False
