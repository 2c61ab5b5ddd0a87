"""How each containerd starts a shim and what answer it understands.

==============  =============================  =========================================
containerd      says so by                     answer on standard output
==============  =============================  =========================================
1.6             nothing                        the address
1.7, 2.0-2.2    MAX_SHIM_VERSION in the        JSON, version 2 (3 would be refused by 1.7,
                environment                    and the two cannot be told apart)
2.3 and later   BootstrapParams on standard    BootstrapResult, version 3
                input
==============  =============================  =========================================

Task v2 and v3 are served on the same socket whatever the answer was. Source: containerd
pkg/shim/util.go and core/runtime/v2 of each version.
"""

from __future__ import annotations

import os

from shims.containerd.shim import pb

__all__ = ["Bootstrap", "read_bootstrap", "render_answer"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shims.containerd.shim.invocation import Invocation

INPUT_LIMIT = 10 << 20
_DEBUG = -4
_SIGN = 1 << 63


class Bootstrap:
    """What came on standard input, and the dialect: "address", "json" or "protobuf"."""

    __slots__ = ("debug", "dialect", "grpc_address", "options", "socket_dir", "ttrpc_address")

    def __init__(self, dialect: str, options: bytes = b"") -> None:
        self.dialect = dialect
        self.options = options
        """A serialized Any with the runtime options; empty when there are none."""
        self.socket_dir = ""
        self.ttrpc_address = ""
        self.grpc_address = ""
        self.debug = False


def read_input(fd: int = 0) -> bytes:
    """Return everything on standard input, unless a person sits there; at most 10 MiB."""
    if os.isatty(fd):
        return b""
    parts: list[bytes] = []
    size = 0
    while part := os.read(fd, 1 << 16):
        size += len(part)
        if size > INPUT_LIMIT:
            raise ValueError(f"more than {INPUT_LIMIT} bytes on standard input")
        parts.append(part)
    return b"".join(parts)


def read_bootstrap(call: Invocation, data: bytes) -> Bootstrap:
    """Return how this containerd wants to be answered."""
    try:
        parsed = _parse_params(data)
    except ValueError:
        parsed = None
    if parsed is not None and parsed[0] == (call.id, call.namespace):
        return parsed[1]
    dialect = "json" if call.environ.get("MAX_SHIM_VERSION") else "address"
    return Bootstrap(dialect, data)


def _parse_params(data: bytes) -> tuple[tuple[str, str], Bootstrap]:
    """Return ((id, namespace), parameters); raise ValueError when this is another message."""
    found = Bootstrap("protobuf")
    names = {1: "", 2: "", 5: "", 6: "", 9: ""}
    for field, value in pb.fields(data):
        if field in names and isinstance(value, bytes):
            names[field] = value.decode()
        elif field == 3 and isinstance(value, int):
            level = value - (1 << 64) if value & _SIGN else value
            found.debug = level <= _DEBUG
        elif field == 8 and isinstance(value, bytes):
            found.options = found.options or _extension(value)
    found.ttrpc_address, found.grpc_address, found.socket_dir = names[5], names[6], names[9]
    return (names[1], names[2]), found


def _extension(data: bytes) -> bytes:
    """Return the Any inside an Extension."""
    for field, value in pb.fields(data):
        if field == 1 and isinstance(value, bytes):
            return value
    return b""


def render_answer(dialect: str, address: str) -> bytes:
    """Return what start prints: that ttrpc is spoken at ``address``."""
    if dialect == "protobuf":
        return pb.number(1, 3) + pb.text(2, address) + pb.text(3, "ttrpc")
    if dialect == "json":
        from shims.containerd.shim.quickjson import dump_flat

        return dump_flat({"version": 2, "address": address, "protocol": "ttrpc"}).encode()
    return address.encode()
