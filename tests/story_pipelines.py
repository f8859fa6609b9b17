"""Pipelines for the stories: one that works, and one for every way in which a researcher's code may go wrong.

`install` puts this module into a folder as an installed package that offers the pipeline ``story``.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import shutil
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import jpeg_ls
import numpy as np

from pacs_ai.pipeline import (
    MILLILITRE,
    MORPHOLOGIC_ABNORMALITY,
    VOLUME,
    Card,
    Code,
    Findings,
    Input,
    Label,
    Measurement,
    Segment,
    Volume,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SPARE_BYTES = 400_000_000
#: What `Deeds.hang` starts.
SLEEPER = ("sleep", "617.25")


class Story:
    """Segments what is denser than water, unless it was told to do something else.

    Parameters
    ----------
    do
        Name of a method of `Deeds`.
    hold
        `run` waits as long as there is a file of this name.
    codec_dies
        The JPEG-LS decoder of this process reads address 0 from now on, as a fault in its C code would.
    """

    card = Card(
        name="story",
        version="1.0",
        manufacturer="tests",
        title="Story",
        inputs={"image": Input(("CT", "MR"))},
        labels=(Label("Dense", MORPHOLOGIC_ABNORMALITY, Code("4147007", "SCT", "Mass")),),
        procedure=Code("25045-6", "LN", "CT unspecified body region"),
        intended_use="tests",
    )

    def __init__(self, do: str = "find", hold: str = "", *, codec_dies: bool = False) -> None:
        if codec_dies:
            jpeg_ls.decode_pixel_data = lambda _frame: ctypes.string_at(0)
        self._run: Callable[[Volume], Findings] = getattr(Deeds, do)
        self._hold = hold

    def prepare(self, device: str) -> None:
        """Nothing to load."""

    def run(self, inputs: Mapping[str, Volume]) -> Findings:
        """Do it."""
        pause = threading.Event()
        while self._hold and Path(self._hold).exists():
            pause.wait(0.02)
        return self._run(inputs["image"])


class Deeds:
    """What a pipeline may do when it is run."""

    @staticmethod
    def find(volume: Volume) -> Findings:
        """Answer rightly."""
        mask = volume.voxels > 0
        ml = float(np.count_nonzero(mask)) * volume.voxel_ml
        return Findings((Segment("Dense", mask),), (Measurement(VOLUME, ml, MILLILITRE, "Dense"),))

    @staticmethod
    def hang(volume: Volume) -> Findings:
        """Never come back, holding the GIL now and then, with a process of its own that never ends either."""
        subprocess.Popen(SLEEPER)
        while True:
            volume.voxels.sum()

    @staticmethod
    def share(volume: Volume) -> Findings:
        """Answer rightly, by processes of its own, as many frameworks do."""
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            return pool.map(Deeds.find, [volume])[0]

    @staticmethod
    def blow_up(volume: Volume) -> Findings:
        """Raise what nobody foresaw, with a text that belongs in no log line of others."""
        raise LookupError(f"unforeseen: {volume.header.get('SeriesDescription')}")

    @staticmethod
    def lie(volume: Volume) -> Findings:
        """Return a mask of another shape."""
        return Findings((Segment("Dense", volume.voxels[1:] > 0),))

    @staticmethod
    def leave(volume: Volume) -> Findings:
        """End the process without a word, as a fault in a C library does."""
        os._exit(7)

    @staticmethod
    def devour(volume: Volume) -> Findings:
        """Take memory until there is none."""
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + _SPARE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        taken = []
        while True:
            taken.append(np.ones((volume.voxels.shape[0], 1_000_000)))


def install(folder: Path) -> Path:
    """Make `folder` a place of installed packages with this module as a plugin; returns it for PYTHONPATH."""
    metadata = folder / "story_pipelines-1.0.dist-info"
    metadata.mkdir(parents=True)
    shutil.copy(__file__, folder / "story_pipelines.py")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: story-pipelines\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[pacs_ai.pipelines]\nstory = story_pipelines:Story\n")
    return folder
