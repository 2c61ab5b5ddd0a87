"""What of a spec has no effect in the VM, or another one than on the host: for the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shims.guest.plan.devices import left_out_devices
from shims.guest.plan.fields import Finding, ignored_fields
from shims.guest.plan.reading import Reader

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["review"]


def review(spec: Mapping[str, Any]) -> list[Finding]:
    """List the fields that are left out, with their reasons; unknown ones among them.

    Takes any spec that :func:`compile_plan` takes; of others it may raise :class:`InputError`.
    """
    linux = Reader(spec, "").get("linux")
    findings = ignored_fields(spec)
    left_out = left_out_devices(linux)
    if left_out:
        findings.append(
            Finding("linux.devices", f"the VM has no {', '.join(left_out)}; those are the host's")
        )
    present = {entry.text("type") for entry in linux.objects("namespaces")}
    findings.extend(
        Finding(
            "linux.namespaces", f"without a {name} namespace it shares the VM's, not the host's"
        )
        for name in ("network", "pid", "ipc", "uts")
        if name not in present
    )
    return findings
