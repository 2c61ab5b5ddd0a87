"""A small spec, and plans of it, for the compiler's tests."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from shims.guest.plan import GuestSource, Rootfs, compile_plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from protos.gen.voidbox.guest.v1 import guest_pb2 as pb

LAYER = GuestSource("disk", "e-1", fstype="erofs")
BASE: dict[str, Any] = {
    "ociVersion": "1.2.0",
    "process": {"args": ["/bin/true"], "cwd": "/", "env": ["PATH=/bin"]},
    "root": {"path": "rootfs"},
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
    "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]},
}


def spec_with(path: str = "", value: object = None) -> dict[str, Any]:
    """Return the small spec with one field set; ``a.b.c`` names it, objects appear as needed."""
    spec = copy.deepcopy(BASE)
    if not path:
        return spec
    *parents, last = path.split(".")
    place = spec
    for name in parents:
        place = place.setdefault(name, {})
    place[last] = copy.deepcopy(value)
    return spec


def compile_spec(spec: Mapping[str, Any], **options: Any) -> pb.LaunchPlan:
    """Compile with one image layer and no host content unless ``options`` say otherwise."""
    options.setdefault("container_id", "c1")
    options.setdefault("rootfs", Rootfs(layers=(LAYER,)))
    options.setdefault("sources", {})
    return compile_plan(spec, **options)
