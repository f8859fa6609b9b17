"""Measure the chest-film package on films that it was not trained on, and print [[performance]] tables.

    python scripts/measure_chest_film.py --films /data/cxr_nih_png

Truth: labels of the NIH, mined from reports, and beside them the probabilities of a CheXNet replica. With one to three
films per finding no finding can be judged alone, so all answers are taken together; every film is listed. Intervals:
bootstrap by film, 95 %.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from train_chest_film import DRAWS, SEED, auc

from pacs_ai.models.package import ZOO, read
from pacs_ai.models.readings.chest_film import ChestFilm
from pacs_ai.models.readings.film_gate import objection
from pacs_ai.pipeline import Frame

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Numbers = npt.NDArray[np.float64]

PACKAGE = ZOO / "chest-film"


def within(scores: Numbers, labels: Numbers) -> float:
    """Return the area under the curve over pairs of one finding: mean over findings that some films have."""
    told = [k for k in range(labels.shape[1]) if 0 < labels[:, k].sum() < len(labels)]
    return float(np.mean([auc(scores[:, k], labels[:, k]) for k in told]))


def agreement(scores: Numbers, replica: Numbers) -> float:
    """Return the mean over findings of the correlation (Pearson) of the logits."""
    logits = [np.log(one / (1 - one)) for one in (np.clip(scores, 1e-4, 0.9999), np.clip(replica, 1e-4, 0.9999))]
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(logits[0].T, logits[1].T, strict=True)]))


def interval(figure: Callable[[Numbers, Numbers], float], scores: Numbers, other: Numbers) -> tuple[float, float]:
    """Return the 95 % interval, films drawn with replacement."""
    dice = np.random.default_rng(SEED)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = [figure(scores[rows], other[rows]) for rows in dice.integers(len(scores), size=(DRAWS, len(scores)))]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    package = read(PACKAGE)
    reading = ChestFilm(package)
    reading.prepare("cpu")
    names = [str(name) for name in package.model.settings["outputs"]]
    kept = [k for k, question in enumerate(package.card.questions) if question.reported]
    with (given.films / "labels.csv").open(encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    scores, labels, replica = (np.zeros((len(rows), len(names))) for _ in range(3))
    for number, row in enumerate(rows):
        frame = Frame(np.asarray(Image.open(given.films / row["name"]).convert("L")), None)
        seen, objected = reading.look(frame), objection(frame, reading.gate)
        against = objected.words if objected else ""
        scores[number] = seen.chances
        columns = [name.replace(" ", "_").replace("thickening", "Thickening") for name in names]
        labels[number] = [float(row[f"label_{name}"]) for name in columns]
        replica[number] = [float(row[f"chexnet_replica_{name}"]) for name in columns]
        true = ", ".join(names[k] for k in np.flatnonzero(labels[number])) or "none"
        found = [k for k in kept if scores[number, k] >= package.card.questions[k].threshold]
        told = ", ".join(f"{names[k]} {scores[number, k]:.2f}" for k in found) or "none"
        print(f"# {row['name']} distance {seen.distance:.2f} {against}| true: {true} | found: {told}")
    scores, labels, replica = scores[:, kept], labels[:, kept], replica[:, kept]
    on = f"{len(rows)} NIH films that were kept out, {len(kept)} findings together"
    for metric, figure, other in (
        ("AUC, mean of the findings", within, labels),
        ("correlation of logits with the CheXNet replica's, mean of the findings", agreement, replica),
    ):
        low, high = interval(figure, scores, other)
        value, best = figure(scores, other), within(replica, labels)
        print(f'[[performance]]\non = "{on}"\ncases = {len(rows)}\nmetric = "{metric}"\nvalue = {value:.3f}')
        print(f"low = {low:.3f}\nhigh = {high:.3f}")
        print(f'note = "the replica reaches an AUC of {best:.2f} on these films"\n' if other is labels else "")


if __name__ == "__main__":
    main()
