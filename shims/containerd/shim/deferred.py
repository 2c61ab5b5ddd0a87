"""Put off the import of a module that others import and hardly ever use.

``importlib.util.LazyLoader`` of the standard library looks the module up at once, which imports its
packages first; this one does nothing at all until an attribute is asked for.
"""

from __future__ import annotations

import sys
from types import ModuleType

__all__ = ["defer_import"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Deferred(ModuleType):
    """Stands in ``sys.modules`` for a module until somebody looks into it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks for these
            raise AttributeError(name)
        import importlib

        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def defer_import(name: str) -> None:
    """Make ``import name`` free until an attribute of it is used; nothing if it was imported."""
    if name not in sys.modules:
        sys.modules[name] = _Deferred(name)
