"""The backends that are installed, found by entry point.

Any distribution may add one::

    [project.entry-points."void_shims.backends"]
    mine = "my_package.backend:MyBackend"

where ``MyBackend`` is a subclass of ``ShimCore`` that can be created without arguments and then
passes ``shims.core.conformance``. Nothing is imported before a backend is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from shims.core.errors import NotFound, NotSupported
from shims.core.shimcore import ShimCore

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ENTRY_POINT_GROUP", "Backend", "find_backend", "list_backends", "list_names"]

ENTRY_POINT_GROUP = "void_shims.backends"


@dataclass(frozen=True, slots=True)
class Backend:
    """One registered backend; ``problem`` says why it cannot be used, or is empty."""

    name: str
    origin: str
    """Distribution and version that registered it."""
    type: type[ShimCore] | None
    problem: str = ""


def list_backends(found: Iterable[EntryPoint] | None = None) -> list[Backend]:
    """Return every registered backend, sorted by name, the unusable ones included."""
    return [_load(point) for point in sorted(_find_points(found), key=lambda p: p.name)]


def list_names(found: Iterable[EntryPoint] | None = None) -> list[str]:
    """Return the names of the registered backends, without importing any of them."""
    return sorted({point.name for point in _find_points(found)})


def find_backend(name: str, found: Iterable[EntryPoint] | None = None) -> type[ShimCore]:
    """Return the backend called ``name``. Raises ``NotFound`` and ``NotSupported``."""
    points = {point.name: point for point in _find_points(found)}
    if name not in points:
        known = ", ".join(sorted(points)) or "none"
        raise NotFound(f"there is no backend '{name}'", hint=f"installed: {known}")
    backend = _load(points[name])
    if backend.type is None:
        raise NotSupported(f"backend '{name}' cannot be used: {backend.problem}")
    return backend.type


def _find_points(found: Iterable[EntryPoint] | None) -> Iterable[EntryPoint]:
    return entry_points(group=ENTRY_POINT_GROUP) if found is None else found


def _load(point: EntryPoint) -> Backend:
    origin = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown"
    try:
        loaded = point.load()
    except ImportError as error:
        return Backend(point.name, origin, None, f"{error} (an extra may be missing)")
    except Exception as error:  # somebody else's module: it must not take the others with it
        return Backend(point.name, origin, None, f"{type(error).__name__}: {error}")
    if not (isinstance(loaded, type) and issubclass(loaded, ShimCore)):
        return Backend(point.name, origin, None, f"{point.value} is no ShimCore")
    if loaded.name != point.name:
        return Backend(point.name, origin, None, f"it calls itself '{loaded.name}'")
    return Backend(point.name, origin, loaded)
