"""Measure the fetal-head package on fetuses that it was not trained on, and print [[performance]] tables.

    python scripts/measure_fetal_head.py --data /data/train --frames /data/us_fetal_hc18 [--part tune]

Truth: the outlines and head circumferences of HC18 (van den Heuvel et al. 2018). Intervals: bootstrap by fetus, 95 %.
A frame without a result (no head found, outlines that disagree) is counted, and left out of the errors.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from train_fetal_head import load, split

from pacs_ai.models.package import ZOO, read
from pacs_ai.models.readings.fetal_head import FetalHead, Head, measurements_of
from pacs_ai.pipeline import Frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

SEED, DRAWS = 7, 2000


@dataclass(frozen=True)
class Result:
    """One frame: Dice, and head circumference found and true in mm; None without a result, which `reason` explains."""

    name: str
    dice: float | None
    found_mm: float | None
    true_mm: float
    reason: str = ""
    fill: float = 0.0
    agreement: float = 0.0


def read_frame(reading: FetalHead, name: str, frame: Frame, truth: npt.NDArray[np.bool_], true_mm: float) -> Result:
    """Run the reading on one frame."""
    head = reading.judged(frame)
    if not isinstance(head, Head):
        return Result(name, None, None, true_mm, head)
    drawn = head.ellipse.mask(*truth.shape)
    dice = 2 * float((drawn & truth).sum()) / float(drawn.sum() + truth.sum())
    assert frame.spacing is not None
    found = measurements_of(head, frame.spacing)[0].value
    return Result(name, dice, found, true_mm, "", head.fill, head.agreement)


def of_archive(reading: FetalHead, data: Path, frames: Path, part: str) -> Iterator[Result]:
    """Yield the results of one part of the training archive."""
    content = np.load(data / "hc18_192x128.npz")
    images, outlines, _ = load(data)
    for index in np.flatnonzero(split(content["name"], frames) == part):
        spacing = tuple(float(value) for value in content["pixel_mm_row_col"][index])
        frame = Frame(images[index], (spacing[0], spacing[1]))
        name, true_mm = str(content["name"][index]), float(content["head_circumference_mm"][index])
        yield read_frame(reading, name, frame, outlines[index] > 0, true_mm)


def of_frames(reading: FetalHead, folder: Path) -> Iterator[Result]:
    """Yield the results of the full frames."""
    with (folder / "hc18.csv").open(encoding="utf-8") as table:
        for row in csv.DictReader(table):
            pixels = np.asarray(Image.open(folder / "image" / row["image"]).convert("L"))
            (mask,) = (folder / "mask").glob(f"{row['image'][:-4]}*")
            truth = np.asarray(Image.open(mask).convert("L")) > 127
            size, true_mm = float(row["pixel_mm"]), float(row["head_circumference_mm"])
            yield read_frame(reading, row["image"], Frame(pixels, (size, size)), truth, true_mm)


def interval(
    results: list[Result], value: Callable[[Result], float], middle: Callable[[npt.NDArray[np.float64]], float]
) -> tuple[float, float, float]:
    """Return the figure and its 95 % interval, fetuses drawn with replacement."""
    by_fetus: dict[str, list[float]] = {}
    for one in results:
        by_fetus.setdefault(one.name[:3], []).append(value(one))
    groups, dice = list(by_fetus.values()), np.random.default_rng(SEED)
    drawn = [
        middle(np.concatenate([groups[k] for k in dice.integers(len(groups), size=len(groups))])) for _ in range(DRAWS)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return middle(np.asarray([value(one) for one in results])), float(low), float(high)


def report(on: str, results: list[Result]) -> None:
    """Print the figures of one set of frames."""
    told = [one for one in results if one.dice is not None]
    print(f"# {on}: {len(results)} frames of {len({one.name[:3] for one in results})} fetuses, {len(told)} measured")
    for reason, count in Counter(one.reason.split(" (")[0] for one in results if one.reason).items():
        print(f"#   {count} x {reason}")
    figures: dict[str, tuple[Callable[[Result], float], Callable[[npt.NDArray[np.float64]], float]]] = {
        "Dice of the head": (lambda one: one.dice or 0.0, lambda values: float(values.mean())),
        "HC error in mm (mean absolute)": (lambda one: abs(_error(one)), lambda values: float(values.mean())),
        "HC error in mm (mean, found minus true)": (_error, lambda values: float(values.mean())),
        "HC error in % (mean absolute)": (
            lambda one: 100 * abs(_error(one)) / one.true_mm,
            lambda values: float(values.mean()),
        ),
        "HC error in % (95th percentile)": (
            lambda one: 100 * abs(_error(one)) / one.true_mm,
            lambda values: float(np.percentile(values, 95)),
        ),
    }
    for metric, (value, middle) in figures.items():
        figure, low, high = interval(told, value, middle)
        print(f'[[performance]]\non = "{on}"\ncases = {len(told)}\nmetric = "{metric}"')
        print(f"value = {figure:.4g}\nlow = {low:.4g}\nhigh = {high:.4g}\n")
    for one in sorted(told, key=lambda one: -abs(_error(one)) / one.true_mm)[:8]:
        print(f"# worst: {one.name} {one.found_mm:.1f} for {one.true_mm:.1f} mm, Dice {one.dice:.3f}", end=" ")
        print(f"fill {one.fill:.3f} agreement {one.agreement:.3f}")


def _error(one: Result) -> float:
    return (one.found_mm or 0.0) - one.true_mm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--frames", type=Path, required=True)
    parser.add_argument("--part", choices=("tune", "test"), default="test")
    given = parser.parse_args()
    torch.set_num_threads(1)
    reading = FetalHead(read(ZOO / "fetal-head"))
    reading.prepare("cpu")
    report(
        f"HC18, {given.part} fetuses, 192 x 128 pixels", list(of_archive(reading, given.data, given.frames, given.part))
    )
    if given.part == "test":
        report("HC18, full frames of 36 test fetuses", list(of_frames(reading, given.frames)))


if __name__ == "__main__":
    main()
