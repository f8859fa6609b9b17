"""H4: the power is cut under a working node, again and again, and what was answered Success is still there."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prove import bench, kill

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Cuts over one store; then a new one.
PER_STORE = 120
PER_CHECK = 24


def missing() -> str:
    """Say what this machine lacks for a file system in user space; "" where it lacks nothing."""
    if importlib.util.find_spec("mfusepy") is None:
        return "FUSE MISSING: no mfusepy (pip install mfusepy), so no power was cut here"
    if shutil.which("fusermount3") is None:
        return "FUSE MISSING: no fusermount3 (Debian's fuse3), so no power was cut here"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "FUSE MISSING: /dev/fuse is not there or not ours, so no power was cut here"
    return ""


class Mount:
    """A mounted `prove.powerfs`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.generation = 0
        folder.mkdir(parents=True)
        self._log = folder.with_suffix(".log").open("ab")
        command = [sys.executable, str(Path(__file__).with_name("powerfs.py")), str(folder)]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        limit = time.monotonic() + bench.PATIENCE_SECONDS
        while not os.path.ismount(folder):
            if self._process.poll() is not None or time.monotonic() > limit:
                self._log.close()
                raise OSError(f"cannot mount: {folder.with_suffix('.log').read_text()[-500:]}")
            time.sleep(0.01)

    @property
    def tree(self) -> Path:
        """The root as it is since the last cut."""
        return self.folder / f"g{self.generation}"

    def cut(self, seed: int, mode: str = "random") -> None:
        """Cut the power, and give it back."""
        self._say(f"cut {seed} {mode}")
        self.generation += 1

    def keep(self) -> None:
        """Make all durable that is there, and remember it."""
        self._say("keep 0 0")

    def reset(self) -> None:
        """Bring back what `keep` remembers, all of it durable."""
        self._say("reset 0 0")
        self.generation += 1

    def fail(self, error: int, at: int = 1) -> None:
        """Have all writes, syncs and new files fail from the at-th on; 0 ends that."""
        self._say(f"fail {error} {at if error else 0}")

    def _say(self, words: str) -> None:
        control = os.open(self.folder / ".ctl", os.O_WRONLY)
        os.write(control, words.encode())
        os.close(control)

    def close(self) -> None:
        """Unmount."""
        subprocess.run(["fusermount3", "-u", "-z", str(self.folder)], check=False, capture_output=True)
        self._process.wait(bench.PATIENCE_SECONDS)
        self._log.close()


@contextmanager
def mounted(folder: Path) -> Iterator[Mount]:
    """Mount one, and unmount it again."""
    mount = Mount(folder)
    try:
        yield mount
    finally:
        mount.close()


def run(
    folder: Path, cuts: int, seed: int, seconds: float, *, bug: str = "", per_check: int = PER_CHECK
) -> kill.Outcome:
    """Do so many cuts, or as many as fit into the time; stop at the first broken promise."""
    outcome, begin = kill.Outcome("H4 power cut", cuts), time.monotonic()
    choice = random.Random(seed)
    made = bench.Bench(folder, bug)
    while outcome.done < cuts and time.monotonic() - begin < seconds and not outcome.violations:
        peers = made.new_peers(choice.getrandbits(32))
        with mounted(folder / f"mount{outcome.done}") as mount:
            made.new_store(mount.tree / "store")
            mount.keep()
            count = min(PER_STORE, cuts - outcome.done)
            _one_store(made, mount, peers, choice, outcome, count, begin + seconds, per_check)
        peers.close()
    if not outcome.violations:
        outcome.violations += kill.in_vain(outcome, *kill.FIGURES)
    outcome.seconds = time.monotonic() - begin
    return outcome


def _one_store(made, mount, peers, choice, outcome, count, until, per_check) -> None:
    try:
        for number in range(1, count + 1):
            kill.cycle(made, mount.tree / "store", peers, choice)
            mount.cut(choice.getrandbits(32), choice.choice(("random", "random", "drop")))
            outcome.done += 1
            outcome.violations += peers.wrong()
            over = time.monotonic() > until
            if number % per_check == 0 or number == count or over:
                made.settle(mount.tree / "store", peers)
                outcome.violations += made.violations(mount.tree / "store", peers)
            if over or outcome.violations:
                break
    except bench.Stuck as stuck:
        outcome.violations += made.broken_by(stuck, mount.tree / "store", peers)
    outcome.count(**kill.figures(peers))
