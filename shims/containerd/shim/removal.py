"""Take away mounts, cgroups and files that a dead daemon left, without trusting their content."""

from __future__ import annotations

import os
import time

from shims.containerd.shim.processes import SIGKILL, Process, end_processes, find_process

__all__ = ["mounts_below", "remove_cgroup", "remove_tree", "unmount_below"]

_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_CGROUP_STEP = 0.01
_ROUNDS = 8
"""How often to look again: something may have been mounted, or forked, while we worked."""


def mounts_below(path: str) -> list[str]:
    """Return the mount points at and below ``path`` in our mount namespace, deepest last."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        points = [_unescape(line.split(" ", 5)[4]) for line in file]
    return [point for point in points if point == path or point.startswith(f"{path}/")]


def _unescape(text: str) -> str:
    """Undo the octal escapes that the kernel writes for blanks and backslashes."""
    if "\\" not in text:
        return text
    for code in ("040", "011", "012"):
        text = text.replace(f"\\{code}", chr(int(code, 8)))
    return text.replace("\\134", "\\")


def unmount_below(path: str) -> None:
    """Unmount everything at and below ``path``, even while it is in use; may be repeated."""
    for _ in range(_ROUNDS):
        points = mounts_below(path)
        if not points:
            return
        for point in reversed(points):
            _unmount(point)


def _unmount(point: str) -> None:
    # Loaded only when there is something to unmount: it costs more than a whole delete.
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(point), _MNT_DETACH | _UMOUNT_NOFOLLOW) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), point)


def remove_cgroup(path: str, deadline: float) -> None:
    """Kill every process of a cgroup (version 1 or 2), then remove it and its children."""
    while True:
        try:
            _empty_cgroup(path, deadline)
            _remove_cgroup_tree(path)
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() >= deadline:
                raise
            # Version 1 does not tell when a cgroup has become empty.
            time.sleep(_CGROUP_STEP)
        else:
            return


def _cgroup_tree(path: str) -> list[str]:
    return [folder for folder, _, _ in os.walk(path, topdown=False)]


def _empty_cgroup(path: str, deadline: float) -> None:
    found: list[Process] = []
    for folder in _cgroup_tree(path):
        with open(f"{folder}/cgroup.procs", encoding="ascii") as file:
            processes = [find_process(int(line)) for line in file]
        found += [process for process in processes if process is not None]
    end_processes(found, SIGKILL, deadline)


def _remove_cgroup_tree(path: str) -> None:
    for folder in _cgroup_tree(path):
        os.rmdir(folder)
    if os.path.exists(path):
        os.rmdir(path)


def remove_tree(path: str) -> None:
    """Remove a file or a directory tree; symbolic links are removed, never followed."""
    parent, name = os.path.split(path.rstrip("/"))
    try:
        directory = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        _remove_at(directory, name)
    finally:
        os.close(directory)


def _remove_at(directory: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        pass
    else:
        return
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        inner = os.open(name, flags, dir_fd=directory)
    except FileNotFoundError:
        return
    try:
        for entry in os.listdir(inner):
            _remove_at(inner, entry)
    finally:
        os.close(inner)
    try:
        os.rmdir(name, dir_fd=directory)
    except FileNotFoundError:
        pass
