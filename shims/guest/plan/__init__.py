"""From an OCI spec to a launch plan: pure functions, no I/O, no policy that is not written here.

The host compiles, void-init executes. What a plan cannot express is refused by name
(:class:`shims.core.errors.InputError` with the path of the field), what does not apply inside a VM
is left out with its reason (:func:`review`); :mod:`shims.guest.plan.fields` holds the verdict on
every field of the OCI runtime spec.
"""

from shims.guest.plan.compiler import compile_plan, compile_process, compile_update
from shims.guest.plan.fields import Finding
from shims.guest.plan.model import GuestSource, Rootfs, Streams
from shims.guest.plan.review import review

__all__ = [
    "Finding",
    "GuestSource",
    "Rootfs",
    "Streams",
    "compile_plan",
    "compile_process",
    "compile_update",
    "review",
]
