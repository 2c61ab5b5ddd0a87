"""Leases on user ids."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shims.core.errors import Conflict, InputError
from shims.microvm.config import QemuUser
from shims.microvm.uids import UserLease


def test_no_two_leases_are_equal_and_a_closed_one_is_free(tmp_path: Path) -> None:
    users = QemuUser(first=5000, count=3)
    leases = [UserLease.take(users, tmp_path, "vm") for _ in range(3)]
    assert {lease.uid for lease in leases} == {5000, 5001, 5002}
    with pytest.raises(Conflict, match="all 3"):
        UserLease.take(users, tmp_path, "vm")
    freed = leases[1].uid
    leases[1].close()
    leases[1].close()
    leases[1] = UserLease.take(users, tmp_path, "vm")
    assert leases[1].uid == freed
    for lease in leases:
        lease.close()


def test_a_lease_ends_with_its_process(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from shims.microvm.config import QemuUser\n"
        "from shims.microvm.uids import UserLease\n"
        "lease = UserLease.take(QemuUser(5000, 1), Path(sys.argv[1]), 'x')\n"
        "print(lease.uid, flush=True); sys.stdin.read()\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=root,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "5000\n"
        with pytest.raises(Conflict):
            UserLease.take(QemuUser(5000, 1), tmp_path, "y")
        holder.kill()
    UserLease.take(QemuUser(5000, 1), tmp_path, "y").close()


@pytest.mark.parametrize(("first", "count"), [(0, 10), (999, 1), (5000, 0), (2**32 - 2, 2)])
def test_ranges_that_cannot_be(first: int, count: int) -> None:
    with pytest.raises(InputError):
        QemuUser(first, count)
