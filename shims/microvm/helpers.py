"""How helper processes of this package are started: Python without site packages, 15 ms.

A helper does in a namespace, or with privileges, what the shim process must not do itself. It dies
with the process that started it.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["helper_argv", "helper_environment", "helper_request"]

_SITE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_START = "import sys; sys.path.insert(0, sys.argv[1]); from {} import main; main()"


def helper_argv(module: str, request: Mapping[str, Any]) -> list[str]:
    """Return the command line that runs ``main()`` of ``module``, which reads ``request``.

    The request is JSON; file names in it are ``os.fsdecode``d strings, whatever their bytes.
    """
    document = json.dumps({**request, "parent": os.getpid()})
    return [sys.executable, "-I", "-S", "-c", _START.format(module), _SITE, document]


def helper_environment() -> dict[str, str]:
    """Return the environment of helpers: a search path, and messages in English."""
    path = os.environ.get("PATH", os.defpath)
    return {"PATH": f"{path}:/usr/local/sbin:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8"}


def helper_request() -> dict[str, Any]:
    """Return, inside a helper, what ``helper_argv`` was given."""
    request: dict[str, Any] = json.loads(sys.argv[2])
    return request
