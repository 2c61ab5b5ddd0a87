"""The same spec by runc and by void-init: a process must not be able to tell the difference."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.guest.init.bundle import shell_spec
from tests.guest.init.harness import DEADLINE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.guest.init.bundle import Box

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("runc") is None, reason="runc is missing"),
]

LOOK = """
cut -d' ' -f2- /proc/mounts | sed 's/size=[0-9]*k,nr_inodes=[0-9]*,//'
grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:|Sig)' /proc/self/status
cat /proc/self/limits
find /dev | sort
for f in null zero full random urandom tty shm pts mqueue; do stat -c '%n %F %a %u:%g' /dev/$f; done
for f in fd stdin stdout stderr core ptmx; do readlink /dev/$f; done
env | sort
umask; pwd; id
cat /proc/self/oom_score_adj
hostname
ls -1 /
"""


async def by_runc(spec: dict[str, Any], rootfs: Path, bundle: Path) -> str:
    bundle.mkdir()
    spec["root"]["path"] = str(rootfs)
    del spec["linux"]["cgroupsPath"]
    (bundle / "config.json").write_text(json.dumps(spec))
    name = f"void-{os.urandom(4).hex()}"  # of its cgroups, too, which are the whole host's
    process = await asyncio.create_subprocess_exec(
        # What runc itself has to say, of a cgroup that is busy for a moment, is no output.
        "runc", "--root", str(bundle / "state"), "--log", str(bundle / "log"),
        "run", "--bundle", str(bundle), name,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(DEADLINE):
        output, _ = await process.communicate()
    return output.decode()


def comparable(text: str) -> list[str]:
    """Drop what differs for a reason: what a mask is made of, the order of mounts, and /dev/core,
    which runc leaves out where the kernel has no /proc/kcore."""
    left_out = ("/proc/", "/sys/firm", "/dev/core")
    return sorted(line for line in text.splitlines() if not line.startswith(left_out))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"user": {"uid": 1000, "gid": 1000, "additionalGids": [5, 6]}, "cwd": "/made/here"},
        {"noNewPrivileges": False, "oomScoreAdj": 500, "env": ["PATH=/bin", "A=b c"]},
    ],
)
async def test_a_process_cannot_tell(box: Box, tmp_path: Path, change: dict[str, Any]) -> None:
    spec = shell_spec(LOOK, **change)
    spec["hostname"] = "same"
    ours = await box.run(spec)
    theirs = await by_runc(spec, box.rootfs, tmp_path / "runc")
    assert comparable(ours.stdout + ours.stderr) == comparable(theirs)
