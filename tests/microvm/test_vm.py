"""What became of a VM: the judgement from QEMU's exit, its events and the console."""

from __future__ import annotations

import pytest

from shims.microvm.config import ExitReason
from shims.microvm.vm import judge

PANIC = ["[    1.0] Kernel panic - not syncing: Attempted to kill init!", "[    1.1] CPU: 0"]


@pytest.mark.parametrize(
    ("code", "facts", "reason", "words"),
    [
        (0, {"shutdown": "guest-shutdown"}, ExitReason.POWEROFF, "powered off"),
        (0, {"shutdown": "guest-reset", "console": PANIC}, ExitReason.PANIC, "kill init"),
        (0, {"shutdown": "guest-panic", "console": PANIC}, ExitReason.PANIC, "kill init"),
        (0, {"shutdown": "guest-reset"}, ExitReason.PANIC, "without a word"),
        (
            0,
            {
                "shutdown": "guest-reset",
                "console": ["Kernel panic - not syncing: System is deadlocked on memory"],
            },
            ExitReason.GUEST_OOM,
            "deadlocked",
        ),
        (-9, {}, ExitReason.KILLED, "SIGKILL"),
        (-15, {"oom_kills": 3}, ExitReason.KILLED, "SIGTERM"),
        (-6, {"console": ["assertion failed"]}, ExitReason.ERROR, "SIGABRT): assertion failed"),
        (-9, {"oom_kills": 1}, ExitReason.OOM, "memory limit"),
        (0, {"shutdown": "host-signal"}, ExitReason.KILLED, "signal"),
        (1, {"console": ["qemu: no such machine"]}, ExitReason.ERROR, "no such machine"),
        (1, {}, ExitReason.ERROR, "said nothing"),
        (127, {"failure": "cannot run qemu: gone"}, ExitReason.ERROR, "cannot run qemu"),
    ],
)
def test_judge(code: int, facts: dict[str, object], reason: ExitReason, words: str) -> None:
    end = judge(code, **facts)  # type: ignore[arg-type]
    assert end.reason is reason
    assert words in end.detail
    assert end.status == code
