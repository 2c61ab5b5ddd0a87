"""``-info`` and ``-v``: what this runtime is and what it can do."""

from __future__ import annotations

from shims.containerd.shim import pb
from shims.containerd.shim.features import FEATURES

__all__ = ["RUNTIME", "VERSION", "render_info"]

RUNTIME = "io.containerd.voidbox.v2"
VERSION = "0.1.0"
_FEATURES_URL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


def render_info(options: bytes) -> bytes:
    """Return a RuntimeInfo; ``options`` is the serialized Any that came in, echoed."""
    echoed = pb.message(3, options) if options and _is_message(options) else b""
    return (
        pb.text(1, RUNTIME)
        + pb.message(2, pb.text(1, VERSION))
        + echoed
        + pb.any_message(4, _FEATURES_URL, FEATURES.encode())
    )


def _is_message(data: bytes) -> bool:
    try:
        return all(field > 0 for field, _ in pb.fields(data))
    except ValueError:
        return False
