"""The vocabulary of the shims: run specifications, references, states, events, errors, ShimCore.

Rules of this package:

- Nothing in it does I/O on a target; it knows no container, no virtual machine, no cluster.
- Importing ``shims.core``, its errors or its paths costs next to nothing: the shim process, which
  containerd starts for every container, needs those and none of the models. So the names below
  are imported when they are first used.

======================  =====================================================================
module                  noun
======================  =====================================================================
``errors``              what can go wrong, whose fault it is, and the exit code
``paths``               where state lives on disk
``document, scalars``   a YAML or JSON text from anywhere, read safely
``runspec, rules``      the RunSpec: its fields, and the rules that span them
``findings, loading``   what is wrong with a spec, with its place; reading one
``runs, records``       a run's name, states and reasons; events, telemetry, report
``shimcore, backends``  the contract of a target; the targets that are installed
``conformance``         the contract as checks for any backend
``memory``              the smallest backend that passes them
======================  =====================================================================
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shims.core.backends import find_backend, list_backends
    from shims.core.errors import ExitCode, ShimError
    from shims.core.findings import Finding, SpecError
    from shims.core.loading import LoadedSpec, load_spec, parse_spec
    from shims.core.records import RunEvent, RunReport, Sample
    from shims.core.runs import Reason, RunRef, RunState, RunStatus
    from shims.core.runspec import RunSpec
    from shims.core.shimcore import Capability, RunOptions, ShimCore

__all__ = [
    "Capability",
    "ExitCode",
    "Finding",
    "LoadedSpec",
    "Reason",
    "RunEvent",
    "RunOptions",
    "RunRef",
    "RunReport",
    "RunSpec",
    "RunState",
    "RunStatus",
    "Sample",
    "ShimCore",
    "ShimError",
    "SpecError",
    "find_backend",
    "list_backends",
    "load_spec",
    "parse_spec",
]

_HOMES = {
    "backends": ("find_backend", "list_backends"),
    "errors": ("ExitCode", "ShimError"),
    "findings": ("Finding", "SpecError"),
    "loading": ("LoadedSpec", "load_spec", "parse_spec"),
    "records": ("RunEvent", "RunReport", "Sample"),
    "runs": ("Reason", "RunRef", "RunState", "RunStatus"),
    "runspec": ("RunSpec",),
    "shimcore": ("Capability", "RunOptions", "ShimCore"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
