"""Choose the command, run it, print its answer. Imports are made where they are needed.

containerd reads standard error of ``start`` as part of the answer: nothing is printed there
unless the command failed, and then it is one line that containerd shows to the user.
"""

from __future__ import annotations

import os
import sys

from shims.containerd.shim.invocation import Invocation, UsageError, parse_invocation

__all__ = ["run"]


def run(words: list[str]) -> int:
    """Run the command that ``words`` name; return the exit status."""
    if words[:1] == ["nursery"]:
        return _nursery(words[1])
    if words[:1] == ["courier"]:
        return _courier(words[1:])
    if words == ["guest-image"]:
        return _build_guest_image()
    try:
        call = parse_invocation(words, os.environ)
    except (UsageError, FileNotFoundError) as error:
        return _fail(str(error))
    if call.action == "daemon":
        return _daemon(call)
    try:
        return _command(call)
    except (OSError, ValueError) as error:  # TimeoutError included
        return _fail(f"{call.action or 'info'}: {error}")


def _command(call: Invocation) -> int:
    if call.show_version:
        from shims.containerd.shim.info import RUNTIME, VERSION

        _answer(f"{RUNTIME}\nVersion: {VERSION}\n".encode())
    elif call.info:
        from shims.containerd.shim.bootstrap import read_input
        from shims.containerd.shim.info import render_info

        _answer(render_info(read_input()))
    elif call.action == "start":
        from shims.containerd.shim.start import start

        _answer(start(call))
    else:
        from shims.containerd.shim.delete import delete

        response, problems = delete(call)
        _answer(response)
        for problem in problems:
            sys.stderr.write(f"containerd-shim-voidbox-v2: delete: {problem}\n")
    return 0


def _daemon(call: Invocation) -> int:
    """Serve until the last container is gone. Standard error is the log file by now."""
    _survive_early_dump()
    from shims.containerd.shim.start import LISTENER_FD

    os.closerange(LISTENER_FD + 1, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    os.umask(0o022)
    _complete_path()
    import socket

    from shims.containerd.shim.deferred import defer_import

    # protobuf imports its pure Python implementation even when it uses the one in C: 7 ms and 1 MB
    # that nobody needs. Should a release use it after all, it is there at the first use.
    defer_import("google.protobuf.internal.python_message")

    from shims.containerd.shim.daemon import serve

    listener = socket.socket(fileno=LISTENER_FD)
    listener.set_inheritable(False)
    return serve(call, listener)


def _nursery(path: str) -> int:
    """Fork daemons for later starts. ``path`` is where descriptor 3 listens."""
    _survive_early_dump()
    from shims.containerd.shim.nursery import LOCK_FD
    from shims.containerd.shim.start import LISTENER_FD

    os.closerange(LOCK_FD + 1, os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(LOCK_FD, False)
    os.chdir("/")
    _complete_path()
    import socket

    from shims.containerd.shim.nurse import serve

    listener = socket.socket(fileno=LISTENER_FD)
    listener.set_inheritable(False)
    return serve(path, listener)


def _survive_early_dump() -> None:
    """Pass over SIGUSR1, which asks for a dump, until there is a log to dump to (``logs``).

    By a handler and not by ignoring it: that would pass on to QEMU and every other program.
    """
    import signal

    signal.signal(signal.SIGUSR1, lambda *_: None)


def _courier(words: list[str]) -> int:
    """Deliver the events of a dead daemon."""
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    _complete_path()
    from shims.containerd.shim.courier import deliver

    return deliver(words)


def _build_guest_image() -> int:
    """Build the guest image of this host; the daemon waits for it."""
    _complete_path()
    from shims.core.errors import ShimError
    from shims.guest.image import build_guest_image

    try:
        build_guest_image()
    except (ShimError, OSError) as error:
        sys.stderr.write(f"no guest image: {error}\n")
        return 1
    return 0


def _complete_path() -> None:
    """Let the daemon import libraries although the interpreter was started without site.

    In a venv they are where we are; the launcher of a checkout says where; in an installation for
    the whole system Python's own rules decide.
    """
    if not sys.flags.no_site:
        return
    libraries = os.environ.get("VOID_SHIMS_LIBRARIES", "")
    if libraries and libraries not in sys.path:
        sys.path.append(libraries)
    if not any(os.path.isdir(f"{folder}/google/protobuf") for folder in sys.path):
        import site

        site.main()


def _answer(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def _fail(reason: str) -> int:
    sys.stderr.write(f"containerd-shim-voidbox-v2: {reason}\n")
    return 1
