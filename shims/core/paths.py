"""Where void shims keep what must survive a process, and what must not survive a reboot.

=============  ========================================  ===================================
               root                                      other users
=============  ========================================  ===================================
runtime        ``/run/void-shims``                       ``$XDG_RUNTIME_DIR/void-shims``
state          ``/var/lib/void-shims``                   ``$XDG_STATE_HOME/void-shims``
=============  ========================================  ===================================

``VOID_SHIMS_RUN`` and ``VOID_SHIMS_STATE`` replace them, which is how tests stay apart from a
system in use. Entry points call these functions once and hand the result on. The ``*_path``
functions deal in strings, because the shim's start path cannot afford to import pathlib.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False  # typing would cost the start path more than this whole module
if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["ensure_private_dir", "runtime_dir", "runtime_path", "state_dir", "state_path"]

_PRIVATE = 0o700
_FOREIGN_BITS = 0o077
_FOREIGN_WRITE = 0o022


def runtime_path(*parts: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return the path of ``parts`` below the runtime directory (gone after a reboot)."""
    return os.path.join(_runtime_root(environ), *parts)


def state_path(*parts: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return the path of ``parts`` below the state directory (kept over a reboot)."""
    return os.path.join(_state_root(environ), *parts)


def runtime_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the runtime directory. It may not exist yet; see ``ensure_private_dir``."""
    from pathlib import Path

    return Path(_runtime_root(environ))


def state_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the state directory. It may not exist yet; see ``ensure_private_dir``."""
    from pathlib import Path

    return Path(_state_root(environ))


def _runtime_root(environ: Mapping[str, str]) -> str:
    if chosen := environ.get("VOID_SHIMS_RUN"):
        return os.path.abspath(chosen)
    uid = os.geteuid()
    if uid == 0:
        return "/run/void-shims"
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(runtime, "void-shims")
    # No login session (cron, a bare container): a directory of our own that ensure_private_dir
    # refuses to use when somebody else made it first.
    return f"/tmp/void-shims-{uid}"  # noqa: S108


def _state_root(environ: Mapping[str, str]) -> str:
    if chosen := environ.get("VOID_SHIMS_STATE"):
        return os.path.abspath(chosen)
    if os.geteuid() == 0:
        return "/var/lib/void-shims"
    home = environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(home, "void-shims")


def ensure_private_dir(path: str | os.PathLike[str]) -> None:
    """Make ``path`` a directory with mode 0700 that belongs to us, with its parents.

    Raises ``Conflict`` when something else stands there: a symbolic link, a file, or a directory
    of another user, into which secrets must not go; also when another user could put something
    else in its place, because a directory above it, from our runtime or state directory on, is
    theirs. May be repeated.
    """
    name = os.path.abspath(path)
    for level in _own_levels(os.path.dirname(name)):
        _check_level(level)
    os.makedirs(os.path.dirname(name), mode=_PRIVATE, exist_ok=True)
    try:
        os.mkdir(name, _PRIVATE)
    except FileExistsError:
        pass
    found = os.lstat(name)
    if not stat.S_ISDIR(found.st_mode):
        raise _conflict(f"{name} is not a directory")
    if found.st_uid != os.geteuid():
        raise _conflict(f"{name} belongs to user {found.st_uid}, not to {os.geteuid()}")
    if found.st_mode & _FOREIGN_BITS:
        os.chmod(name, _PRIVATE)


def _own_levels(path: str) -> list[str]:
    """Return our runtime or state directory and what is on the way from there to ``path``."""
    for root in (_runtime_root(os.environ), _state_root(os.environ)):
        if path == root or path.startswith(f"{root}/"):
            names = path[len(root) :].split("/")[1:]
            return [os.path.join(root, *names[:count]) for count in range(len(names) + 1)]
    return []


def _check_level(name: str) -> None:
    """Make a directory that is on the way to another, or see that only we can change it.

    The system's administrator may have made it, or a link to it.
    """
    os.makedirs(os.path.dirname(name), mode=_PRIVATE, exist_ok=True)
    try:
        os.mkdir(name, _PRIVATE)
    except FileExistsError:
        pass
    if not os.path.isdir(name):
        raise _conflict(f"{name} is not a directory")
    found = os.stat(name)
    for uid in (os.lstat(name).st_uid, found.st_uid):
        if uid not in (0, os.geteuid()):
            raise _conflict(f"{name} belongs to user {uid}, not to {os.geteuid()}")
    if found.st_mode & _FOREIGN_WRITE and not found.st_mode & stat.S_ISVTX:
        if found.st_uid != os.geteuid():
            raise _conflict(f"{name} can be changed by other users")
        os.chmod(name, stat.S_IMODE(found.st_mode) & ~_FOREIGN_WRITE)


def _conflict(message: str) -> Exception:
    from shims.core.errors import Conflict

    return Conflict(message, hint="move it away")
