"""Show it: real containerd starts containers, each inside its own microVM.

Everything is private and goes away at the end: a containerd with its own root, state and socket
(one that runs on this host is not touched), the shim's runtime directory, and an image that is
made here from the host's busybox. The guest image is kept, as it would be on a real node.
"""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.e2e.containerds import Containerd, start_containerd
from tests.e2e.ctr import Answer, CtrError
from tests.e2e.images import IMAGE, build_image, find_busybox
from tests.e2e.leaks import assert_clean, command_line, remove_cgroups, take_snapshot
from tests.e2e.packages import Unavailable, installed_release
from tests.e2e.runtimes import VOIDBOX, build_guest, install_programs, shim_environment
from tests.e2e.workbench import Site

_BOLD, _DIM, _GREEN, _RED, _PLAIN = "\033[1m", "\033[2m", "\033[32m", "\033[31m", "\033[0m"
_LOOK = "uname -sr; cat /etc/greeting; grep MemTotal /proc/meminfo; ls /sys/class/net"


class Stage:
    """What the reader sees: headings, commands, and their output; colours on a terminal only."""

    def __init__(self) -> None:
        self._colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._number = 0

    def paint(self, style: str, text: str) -> str:
        return f"{style}{text}{_PLAIN}" if self._colours else text

    def heading(self, text: str) -> None:
        self._number += 1
        _say(f"\n{self.paint(_BOLD, f'{self._number}. {text}')}")

    def note(self, text: str) -> None:
        _say(f"   {text}")

    def command(self, *words: str) -> None:
        shown = " ".join(f"'{word}'" if " " in word else word for word in words)
        _say(f"   {self.paint(_DIM, '$ ' + shown)}")

    def output(self, text: str) -> None:
        for line in text.rstrip().splitlines():
            _say(f"   | {line}")


class Demo:
    """The acts, in their order, on one private containerd."""

    def __init__(self, stage: Stage, site: Site) -> None:
        self.stage = stage
        self.site = site
        self.ctr = site.ctr

    def run(self, name: str, script: str) -> tuple[Answer, float]:
        """Run one container to its end, show it, and return how long it took in seconds."""
        self.stage.command(
            "ctr", "run", "--rm", "--runtime", VOIDBOX.name, IMAGE, name, "sh", "-c", script
        )
        begin = time.monotonic()
        words = self.site.run_words(name, "sh", "-c", script, options=("--rm",))
        answer = self.ctr(*words, timeout=120)
        took = time.monotonic() - begin
        self.stage.output(answer.text)
        return answer, took

    def starts(self) -> None:
        """Two containers: the first start builds the template, the second is a clone of it."""
        self.stage.heading("The first container: a VM boots, and is kept as a template")
        self.run_times = [self.run("first", _LOOK)[1]]
        self.stage.note(f"took {self.run_times[0]:.2f} s, boot and template included")
        self.stage.heading("The second container: a VM of its own, cloned from the template")
        self.run_times.append(self.run("second", _LOOK)[1])
        self.stage.note(f"took {self.run_times[1]:.2f} s")

    def proof(self) -> None:
        """Show that it is a VM: another kernel, another boot."""
        self.stage.heading("The proof that it is a VM")
        look = "uname -r; uname -v; cat /proc/sys/kernel/random/boot_id"
        words = self.site.run_words("proof", "sh", "-c", look, options=("--rm",))
        guest = self.ctr(*words).text.splitlines()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        for what, ours, theirs in (
            ("kernel release", platform.release(), guest[0]),
            ("kernel build", platform.version()[:44], guest[1][:44]),
            ("boot id", boot, guest[2]),
        ):
            self.stage.note(f"{what:<15} host  {ours}")
            self.stage.note(f"{'':<15} guest {theirs}")
        if guest[2] == boot:
            raise CtrError("the container runs on the host's own kernel")

    def verbs(self) -> None:
        """A container in the background: exec, ps, metrics, kill."""
        self.stage.heading("A container in the background, and what one does with it")
        ctr, name = self.ctr, "third"
        ctr(*self.site.run_words(name, "sh", "-c", "sleep 1000", options=("-d",)))
        for words in (
            ("task", "exec", "--exec-id", "e1", name, "sh", "-c", "echo hello from exec; id"),
            ("task", "ls"),
            ("task", "ps", name),
            ("task", "metrics", name),
        ):
            self.stage.command("ctr", *words)
            self.stage.output("\n".join(ctr(*words).text.splitlines()[:12]))
        self.stage.command("ctr", "task", "kill", "-s", "SIGKILL", name)
        ctr.remove(name)

    def summary(self, left: str) -> None:
        stage, (first, second) = self.stage, self.run_times
        stage.heading("Summary")
        stage.note(f"first start   {first:6.2f} s   (cold boot, template built)")
        stage.note(f"second start  {second:6.2f} s   (clone)")
        stage.note(f"left behind   {left}")


def _say(text: str, stream: TextIO = sys.stdout) -> None:
    # Flushed, so that a log shows each line when it happened.
    stream.write(text + "\n")
    stream.flush()


def main() -> int:
    stage = Stage()
    try:
        _play(stage)
    except (CtrError, Unavailable, RuntimeError, AssertionError) as problem:
        _say(stage.paint(_RED, f"error: {problem}"), sys.stderr)
        return 1
    _say(stage.paint(_GREEN, "\nDone: containers in microVMs, by real containerd."))
    return 0


def _play(stage: Stage) -> None:
    if reason := VOIDBOX.missing():
        raise Unavailable(reason)
    busybox = find_busybox()
    if busybox is None:
        raise Unavailable("no static busybox; apt-get install busybox-static")
    demo, helpers = _act(stage, busybox)
    if left := [line for pid in helpers if (line := command_line(pid))]:
        raise RuntimeError(f"still running: {', '.join(left)}")
    demo.summary(f"nothing but {demo.site.void_state}: guest image, layers, logs")


def _act(stage: Stage, busybox: Path) -> tuple[Demo, list[int]]:
    """Play all acts, and end everything; return the pids of what served all containers together."""
    with ExitStack() as stack:
        root = Path(tempfile.mkdtemp(prefix="vd-", dir="/tmp"))
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        state = Path(os.environ.get("VOID_SHIMS_STATE", "/var/lib/void-shims"))
        _build_guest(stage, state)
        site = _start(stage, stack, root, state, busybox)
        before = take_snapshot(site.scope())
        demo = Demo(stage, site)
        try:
            demo.starts()
            demo.proof()
            demo.verbs()
        except CtrError:
            stage.output(site.daemon.log_tail(15))
            raise
        assert_clean(site.scope(), before)
        helpers = site.daemon.descendants()
        stage.heading("The end")
        stage.note("no process, mount, socket, cgroup or file of a container is left")
        stage.note(f"containerd ends, and {len(helpers)} processes that all containers shared:")
        stage.note("keeper of templates, nursery of shims, and the shim that it has in reserve")
    return demo, [*helpers, site.daemon.pid]


def _build_guest(stage: Stage, state: Path) -> None:
    stage.heading("The guest image: the host's kernel package and our PID 1")
    begin = time.monotonic()
    stage.output(build_guest(state))
    stage.note(f"ready after {time.monotonic() - begin:.2f} s")


def _start(stage: Stage, stack: ExitStack, root: Path, state: Path, busybox: Path) -> Site:
    release = installed_release()
    stage.heading(f"A private containerd {release.version}, with the shim on its PATH")
    namespace = f"demo{secrets.token_hex(2)}"
    stack.callback(remove_cgroups, namespace)
    environ = shim_environment() | {
        "VOID_SHIMS_RUN": str(root / "vr"),
        "VOID_SHIMS_STATE": str(state),
    }
    daemon: Containerd = stack.enter_context(
        start_containerd(
            release,
            root,
            programs=install_programs(root / "bin"),
            namespace=namespace,
            environ=environ,
        )
    )
    stage.note(f"root, state and socket below {root}; it stops with this demo")
    site = Site(daemon, VOIDBOX, busybox, root / "vr", state)
    image = build_image(busybox, root / "image.tar")
    stage.command("ctr", "image", "import", "image.tar")
    site.ctr("image", "import", str(image))
    stage.note(f"{IMAGE}: busybox in three layers, {image.stat().st_size >> 10} KiB, made here")
    return site


if __name__ == "__main__":
    sys.exit(main())
