"""What we look at in a file system image: its superblock, at byte 1024, little endian.

erofs: fs/erofs/erofs_fs.h of Linux, ``struct erofs_super_block``. ext4: fs/ext4/ext4.h,
``struct ext4_super_block``.
"""

from __future__ import annotations

import os

__all__ = ["is_whole", "normalised"]

_AT = 1024
_SIZE = 128
_EROFS_MAGIC = 0xE0F5E1E2
_EXT4_MAGIC = 0xEF53
_CHECKSUM_FLAG = 1
_CASTAGNOLI = 0x82F63B78


def is_whole(fd: int, fstype: str) -> bool:
    """Tell whether the file looks like an image that was written to its end.

    Only the superblock is read: what lies inside is the business of a checksum, or of the guest's
    kernel, which trusts nothing in it.
    """
    block = os.pread(fd, _SIZE, _AT)
    if len(block) < _SIZE:
        return False
    if fstype == "erofs":
        size = _number(block, 36, 4) << block[12]
        return _number(block, 0, 4) == _EROFS_MAGIC and size == os.fstat(fd).st_size
    size = _number(block, 4, 4) << 10 + _number(block, 24, 4) % 8
    return _number(block, 56, 2) == _EXT4_MAGIC and size == os.fstat(fd).st_size


def normalised(head: bytes) -> bytes:
    """Return the first block of an erofs image with build time 0 and its checksum mended.

    The build time is all that differs between two images of the same tree. mkfs.erofs gives every
    inode whose time is not, to the nanosecond, the build time one of its own.
    """
    block = bytearray(head[_AT:])
    block[24:36] = bytes(12)
    if _number(block, 8, 4) & _CHECKSUM_FLAG:
        block[4:8] = bytes(4)
        block[4:8] = _crc32c(bytes(block)).to_bytes(4, "little")
    return head[:_AT] + bytes(block)


def _number(block: bytes | bytearray, at: int, size: int) -> int:
    return int.from_bytes(block[at : at + size], "little")


def _crc32c(data: bytes) -> int:
    """Return the CRC that Linux calls ``crc32c(~0, data)``: not inverted at the end."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_CASTAGNOLI if crc & 1 else 0)
    return crc
