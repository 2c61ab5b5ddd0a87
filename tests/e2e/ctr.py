"""Drive containerd by its own client, ``ctr``, as a person at a terminal would."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

__all__ = ["READS", "Answer", "Ctr", "CtrError", "Event", "Events", "eventually"]

# Put before a command, it makes the command's readiness visible to ``Ctr.feed``.
READS = ("sh", "-c", 'echo reading >&2; exec "$@"', "sh")

_TIMEOUT = 60.0
_LOOK_AGAIN = 0.05  # seconds between two looks at something that sends no event


class CtrError(Exception):
    """A call failed that had to succeed; the text has its streams."""


@dataclass(frozen=True)
class Answer:
    """What one call of ctr gave back."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")

    @property
    def complaint(self) -> str:
        return self.stderr.decode(errors="replace")

    @property
    def rows(self) -> list[list[str]]:
        """The columns of a table, without its header."""
        return [line.split() for line in self.text.splitlines()[1:] if line.strip()]


@dataclass(frozen=True)
class Ctr:
    """One client: which ctr, which daemon, which namespace."""

    program: Path
    address: str
    namespace: str
    fifos: Path
    environ: Mapping[str, str]

    def argv(self, *arguments: str | os.PathLike[str]) -> list[str]:
        words = [os.fspath(word) for word in arguments]
        return [str(self.program), "-a", self.address, "-n", self.namespace, *words]

    def __call__(
        self,
        *arguments: str | os.PathLike[str],
        stdin: bytes | None = None,
        timeout: float = _TIMEOUT,
        check: bool = True,
    ) -> Answer:
        """Run ``ctr`` to its end. ``check`` raises ``CtrError`` unless it ended with 0."""
        argv = self.argv(*arguments)
        try:
            done = subprocess.run(
                argv,
                env=dict(self.environ),
                capture_output=True,
                timeout=timeout,
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
            )
        except subprocess.TimeoutExpired as late:
            raise CtrError(
                f"{' '.join(argv)}: no end after {timeout:.0f} s\n{late.stdout!r}\n{late.stderr!r}"
            ) from late
        answer = Answer(tuple(argv), done.returncode, done.stdout, done.stderr)
        if check and answer.status:
            raise CtrError(
                f"{' '.join(argv)} ended with {answer.status}\n{answer.text}\n{answer.complaint}"
            )
        return answer

    def feed(self, words: list[str], data: bytes, *, timeout: float = _TIMEOUT) -> Answer:
        """Run ``ctr`` with ``data`` on its stdin and end stdin once the container reads it.

        The container says so by a first line on stderr (``READS`` before its command). Without
        that, ctr may meet the end of a short stdin before it knows the task, and then never
        closes the task's stdin: a race of the client that is none of the runtime's.
        """
        with self.background(*words, stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            late = threading.Timer(timeout, process.kill)
            late.start()
            try:
                with ThreadPoolExecutor(2) as pool:
                    output = pool.submit(process.stdout.read)
                    written = pool.submit(_write, process.stdin, data)
                    first = process.stderr.readline()
                    written.result()
                    process.stdin.close()
                    complaint = process.stderr.read()
                    answer = Answer(tuple(words), process.wait(), output.result(), complaint)
            finally:
                late.cancel()
        if answer.status < 0 or first != b"reading\n":
            raise CtrError(f"{' '.join(words)}: {first!r} {complaint!r}, status {answer.status}")
        return answer

    @contextmanager
    def background(
        self, *arguments: str | os.PathLike[str], stdin: int | IO[bytes] = subprocess.DEVNULL
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run ``ctr`` beside the test; it is killed when the block ends."""
        with subprocess.Popen(
            self.argv(*arguments),
            env=dict(self.environ),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def tasks(self) -> dict[str, tuple[int, str]]:
        """Return every task's pid and state: RUNNING, STOPPED, CREATED, PAUSED or UNKNOWN."""
        return {row[0]: (int(row[1]), row[2]) for row in self("task", "ls").rows}

    def containers(self) -> list[str]:
        return [row[0] for row in self("containers", "ls").rows]

    def state(self, container: str) -> str:
        """Return the state of one task, ABSENT if there is none."""
        return self.tasks().get(container, (0, "ABSENT"))[1]

    def remove(self, container: str) -> None:
        """Take a container away, whatever state it is in. May be repeated."""
        self("task", "kill", "-s", "SIGKILL", container, check=False, timeout=30)
        self("task", "delete", "-f", container, check=False, timeout=30)
        self("containers", "delete", container, check=False, timeout=30)

    @contextmanager
    def events(self, *, wait: bool = True) -> Iterator[Events]:
        """Record the daemon's events from here on; without ``wait``, from the subscription on."""
        with self.background("events") as process:
            events = Events(process)
            if wait:
                self._await_subscription(events)
            try:
                yield events
            finally:
                process.kill()
                events.close()

    def _await_subscription(self, events: Events) -> None:
        # ctr says nothing when it has subscribed, so an event of ours shows that it has.
        for attempt in range(100):
            name = f"probe-{attempt}"
            self("namespaces", "create", name)
            self("namespaces", "remove", name)
            if events.seen_within(0.1, lambda event: event.topic.startswith("/namespaces/")):
                return
        raise CtrError("ctr events shows nothing")


@dataclass(frozen=True)
class Event:
    """One event as ``ctr events`` prints it."""

    namespace: str
    topic: str
    body: dict[str, Any]
    at: float  # seconds since the epoch, by the daemon's clock

    @property
    def container(self) -> str:
        return str(self.body.get("container_id", ""))


class Events:
    """A growing record of events, read by a thread from ``ctr events``."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.seen: list[Event] = []
        self._queue: queue.Queue[Event] = queue.Queue()
        assert process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[bytes]) -> None:
        for line in stream:
            # Date, time, zone, zone name, namespace, topic, JSON.
            words = line.decode().split(None, 6)
            if len(words) == 7:
                day, second = words[0], words[1].partition(".")
                whole = datetime.fromisoformat(f"{day}T{second[0]}+00:00").timestamp()
                at = whole + float(f"0.{second[2] or 0}")
                self._queue.put(Event(words[4], words[5], json.loads(words[6]), at))

    def close(self) -> None:
        """Wait for the reader, whose pipe ends with the client."""
        self._reader.join(5)

    def wait(
        self, topic: str, container: str = "", *, process: str | None = None, timeout: float = 20.0
    ) -> Event:
        """Return the first event of ``topic``, seen already or still to come."""

        def matches(event: Event) -> bool:
            return (
                event.topic == topic
                and container in {"", event.container}
                and process in {None, event.body.get("id")}
            )

        if self.seen_within(timeout, matches):
            return next(event for event in self.seen if matches(event))
        raise CtrError(f"no {topic} of {container} in {timeout} s; seen: {self.topics(container)}")

    def seen_within(self, timeout: float, matches: Callable[[Event], bool]) -> bool:
        deadline = time.monotonic() + timeout
        if any(matches(event) for event in self.seen):
            return True
        while True:
            try:
                event = self._queue.get(timeout=max(deadline - time.monotonic(), 0.001))
            except queue.Empty:
                return False
            self.seen.append(event)
            if matches(event):
                return True

    def topics(self, container: str) -> list[str]:
        """Return the topics of one container's events in their order."""
        return [event.topic for event in self.seen if event.container == container]


def eventually(check: Callable[[], bool], what: str, *, timeout: float = 10.0) -> float:
    """Look until ``check`` holds and return the seconds that it took.

    For what sends no event: another process's files, a table of containerd's. A failure names
    ``what`` did not come true.
    """
    begin = time.monotonic()
    pause = threading.Event()
    while not check():
        if time.monotonic() - begin > timeout:
            raise AssertionError(f"not within {timeout:.0f} s: {what}")
        pause.wait(_LOOK_AGAIN)
    return time.monotonic() - begin


def _write(stream: IO[bytes], data: bytes) -> None:
    """Write to a client that may end before it has read everything."""
    try:
        stream.write(data)
        stream.flush()
    except BrokenPipeError:
        pass
