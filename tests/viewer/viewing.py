"""OHIF in a headless Chromium in front of an Orthanc: what tests open, look into and photograph."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

REPOSITORY = Path(__file__).resolve().parents[2]
OHIF = REPOSITORY / "orthanc-test" / "ohif.py"
LOOK = Path(__file__).resolve().parent / "look.mjs"
#: Generous, because two cores draw in software while others compute.
DEADLINE_SECONDS = 90.0
#: Grey values up to this are black, and so much of the middle of a viewport that shows something is not.
_BLACK, _SEEN = 24, 0.03


class Site:
    """OHIF on a loopback port, in front of an Orthanc's DICOMweb."""

    def __init__(self, orthanc_http_port: int) -> None:
        command = [sys.executable, str(OHIF), "serve", "--orthanc-port", str(orthanc_http_port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = ""
        for line in self._process.stdout:
            if line.startswith("OHIF"):
                self.url = line.split()[1]
            if line.strip() == "ready":
                return
        _, errors = self._process.communicate(timeout=10)
        pytest.fail(f"OHIF is not served: {errors}")

    def close(self) -> None:
        """Serve no longer."""
        self._process.terminate()
        self._process.communicate(timeout=20)


class Browser:
    """One Chromium, driven by look.mjs; what it complains about is kept in `log`."""

    def __init__(self, playwright: Path, chromium: str, log: Path) -> None:
        self.log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                ["node", str(LOOK), str(playwright), chromium],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "HOME": str(log.parent)},  # its profile and crash reports
            )

    def __call__(self, order: str, **words: Any) -> dict[str, Any]:
        """Have an order carried out; AssertionError where it failed or took longer than twice the deadline."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"order": order, **words}).encode() + b"\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], 2 * DEADLINE_SECONDS)
        assert ready, f"the browser did not {order} within {2 * DEADLINE_SECONDS:g} s"
        line = self._process.stdout.readline()
        assert line, f"the browser ended: {self.log.read_text(encoding='utf-8', errors='replace')[-2000:]}"
        answer: dict[str, Any] = json.loads(line)
        assert answer.pop("ok"), f"{order} {words}: {answer}"
        return answer

    def close(self) -> None:
        """End the browser."""
        try:
            self._process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


class Viewer:
    """A study as a radiologist has it open.

    Parameters
    ----------
    site, browser
        Where it is served and shown.
    folder
        For the pictures.
    """

    def __init__(self, site: Site, browser: Browser, folder: Path) -> None:
        self.site, self.browser, self.folder = site, browser, folder

    def open(self, study: str, series: Sequence[str] = ()) -> None:
        """Open a study, or only some series of it, and wait until it has an image in the viewport."""
        url = f"{self.site.url}viewer?StudyInstanceUIDs={study}"
        if series:
            url += f"&SeriesInstanceUIDs={','.join(series)}"
        self.browser("open", url=url)

    def look(self) -> dict[str, Any]:
        """Return what the viewer has in its memory (look.mjs says what)."""
        return self.browser("look")

    def until(self, condition: Callable[[dict[str, Any]], Any], what: str, seconds: float = DEADLINE_SECONDS) -> Any:
        """Return what `condition` makes of the viewer's memory as soon as that is true."""
        deadline = time.monotonic() + seconds
        pause = threading.Event()
        while not (found := condition(memory := self.look())):
            if time.monotonic() > deadline:
                picture = self.photograph(f"failed-{what}")
                short = json.dumps({key: value for key, value in memory.items() if key != "annotations"})[:3000]
                pytest.fail(f"{what} did not come within {seconds:g} s; {picture} shows: {self.text()[:500]}\n{short}")
            pause.wait(0.5)
        return found

    def display_set(self, series: str) -> dict[str, Any]:
        """Return the display set of a series as soon as the viewer lists it."""
        return self.until(
            lambda memory: next((one for one in memory["displaySets"] if one["series"] == series), None),
            f"series {series[-8:]}",
        )

    def show(self, series: str) -> None:
        """Double-click a series' thumbnail."""
        self.browser("show", displaySet=self.display_set(series)["id"])

    def until_drawn(self, what: str) -> Path:
        """Keep a picture as soon as the viewport is not black, and return it."""
        return self.until(lambda memory: self._drawn(memory) and self.photograph(what), f"a picture of {what}")

    def _drawn(self, memory: dict[str, Any]) -> bool:
        (shown,) = memory["viewports"]
        if not shown["box"]:
            return False
        left, top, width, height = shown["box"]
        inner = (left + 0.2 * width, top + 0.2 * height, left + 0.8 * width, top + 0.8 * height)
        with Image.open(self.photograph("now")) as picture:
            grey = np.asarray(picture.convert("L").crop(tuple(map(round, inner))))
        return float(np.mean(grey > _BLACK)) > _SEEN

    def turn(self, image: str) -> None:
        """Go to the slice that is this SOP Instance."""
        self.browser("turn", image=image)
        self.until(
            lambda memory: memory["viewports"][0]["image"] == image and memory["viewports"][0]["status"] == "rendered",
            f"image {image[-8:]}",
        )

    def text(self, selector: str = "body") -> str:
        """Return what is to be read on the screen, or in a part of it."""
        return self.browser("text", selector=selector)["text"]

    def photograph(self, name: str) -> Path:
        """Keep a picture of the screen."""
        path = self.folder / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.png"
        self.browser("photograph", path=str(path))
        return path


def fetched(package: str) -> Path:
    """Return the folder of an npm package, fetched where it is not in the cache; a loud skip where it cannot be."""
    done = subprocess.run([sys.executable, str(OHIF), "fetch", package], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"VIEWER MISSING: {done.stderr.strip()}; so no result was looked at in a viewer")
    return Path(done.stdout.strip())


def program(name: str, package: str) -> str:
    """Return the path of a program; a loud skip where it is not installed."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"VIEWER MISSING: apt-get install {package}; so no result was looked at in a viewer")
    return found
