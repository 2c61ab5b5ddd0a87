"""Undo the compressions that Linux uses for kernels and modules, recognised by their magic.

gzip, bzip2, xz and lzma come with Python. LZ4 (in the old "legacy" frame, the only one that the
kernel's build writes) and zstd are decoded by their system libraries, which dpkg and apt depend
on; LZO by the tool, because its library is rarely there.

The kernel's build appends the uncompressed size, 4 bytes little endian, to every format but gzip
(scripts/Makefile.lib, ``size_append``); modules carry no such trailer. All decoders here accept
bytes after the end of the compressed stream for that reason.
"""

from __future__ import annotations

import bz2
import ctypes
import lzma
import shutil
import subprocess
import zlib
from typing import TYPE_CHECKING

from shims.core.errors import InputError, NotSupported

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["compression_of", "decompress"]

_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_LZ4_BLOCK = 8 << 20
"""What one block of the legacy frame holds at most once decompressed."""
_LONGEST_OUTPUT = 1 << 30
"""No kernel is larger; a stream that claims more is damaged or hostile."""
_TOOL_TIMEOUT = 60.0


def compression_of(data: bytes) -> str:
    """Return the name of the compression that ``data`` begins with, or an empty string."""
    for magic, name, _ in _FORMATS:
        if data.startswith(magic):
            return name
    return ""


def decompress(data: bytes, *, what: str) -> bytes:
    """Return ``data`` decompressed; ``what`` names it in errors.

    Raises ``InputError`` for an unknown or damaged stream, ``NotSupported`` where the host lacks
    the library or tool for it.
    """
    for magic, name, decode in _FORMATS:
        if not data.startswith(magic):
            continue
        try:
            return decode(data)
        except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
            raise InputError(what, f"{name} data", f"an intact stream ({error})") from error
    known = ", ".join(name for _, name, _ in _FORMATS)
    raise InputError(what, data[:6].hex(), f"a compressed stream ({known})")


def _gzip(data: bytes) -> bytes:
    decoder = zlib.decompressobj(wbits=31)
    return _whole(decoder.decompress(data, _LONGEST_OUTPUT), at_end=decoder.eof)


def _bzip2(data: bytes) -> bytes:
    decoder = bz2.BZ2Decompressor()
    return _whole(decoder.decompress(data, _LONGEST_OUTPUT), at_end=decoder.eof)


def _xz(data: bytes) -> bytes:
    decoder = lzma.LZMADecompressor()
    return _whole(decoder.decompress(data, _LONGEST_OUTPUT), at_end=decoder.eof)


def _lzma(data: bytes) -> bytes:
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_ALONE)
    return _whole(decoder.decompress(data, _LONGEST_OUTPUT), at_end=decoder.eof)


def _whole(output: bytes, *, at_end: bool = True) -> bytes:
    if not output or not at_end:
        raise ValueError("it is cut short")
    return output


def _lz4(data: bytes) -> bytes:
    library = _library("liblz4.so.1", package="liblz4-1")
    decode = library.LZ4_decompress_safe
    decode.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    decode.restype = ctypes.c_int
    buffer = ctypes.create_string_buffer(_LZ4_BLOCK)
    blocks: list[bytes] = []
    at = len(_LZ4_LEGACY)
    # What is left at the end may be the kernel's size trailer: too short for a block's length and
    # its data, or a length that reaches beyond the end.
    while at + 4 < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        at += 4
        if data[at - 4 : at] == _LZ4_LEGACY:  # concatenated frames
            continue
        if at + size > len(data):
            raise ValueError("its last block is cut short")
        written = decode(data[at : at + size], buffer, size, _LZ4_BLOCK)
        if written < 0:
            raise ValueError("one of its blocks is damaged")
        blocks.append(ctypes.string_at(buffer, written))
        at += size
    return _whole(b"".join(blocks))


def _zstd(data: bytes) -> bytes:
    library = _library("libzstd.so.1", package="libzstd1")
    size_t, pointer = ctypes.c_size_t, ctypes.c_char_p
    library.ZSTD_isError.argtypes = [size_t]
    library.ZSTD_findFrameCompressedSize.argtypes = [pointer, size_t]
    library.ZSTD_findFrameCompressedSize.restype = size_t
    library.ZSTD_decompressBound.argtypes = [pointer, size_t]
    library.ZSTD_decompressBound.restype = ctypes.c_ulonglong
    library.ZSTD_decompress.argtypes = [ctypes.c_void_p, size_t, pointer, size_t]
    library.ZSTD_decompress.restype = size_t
    frame = library.ZSTD_findFrameCompressedSize(data, len(data))
    if library.ZSTD_isError(frame):
        raise ValueError("its frame is damaged")
    bound = library.ZSTD_decompressBound(data, frame)
    if bound > _LONGEST_OUTPUT:
        raise ValueError("it claims to be larger than any kernel")
    buffer = ctypes.create_string_buffer(bound)
    written = library.ZSTD_decompress(buffer, bound, data, frame)
    if library.ZSTD_isError(written):
        raise ValueError("its content is damaged")
    return _whole(ctypes.string_at(buffer, written))


def _library(name: str, *, package: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise NotSupported(f"the host has no {name}", hint=f"apt-get install {package}") from error


def _lzo(data: bytes) -> bytes:
    tool = shutil.which("lzop")
    if tool is None:
        raise NotSupported("the host has no lzop", hint="apt-get install lzop")
    # lzop complains about the size trailer only after it has written everything.
    done = subprocess.run(
        [tool, "-d", "-c"], input=data, capture_output=True, timeout=_TOOL_TIMEOUT, check=False
    )
    if not done.stdout:
        raise ValueError(done.stderr.decode(errors="replace").strip() or "lzop wrote nothing")
    return done.stdout


_FORMATS: tuple[tuple[bytes, str, Callable[[bytes], bytes]], ...] = (
    (b"\x1f\x8b", "gzip", _gzip),
    (b"BZh", "bzip2", _bzip2),
    (b"\xfd7zXZ\x00", "xz", _xz),
    (b"\x5d\x00\x00", "lzma", _lzma),
    (_LZ4_LEGACY, "lz4", _lz4),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    (b"\x89LZO\x00\x0d\x0a\x1a\x0a", "lzo", _lzo),
)
