"""Train the PET reconstruction on simulated sinograms.

    python scripts/train_pet_reconstruction.py prepare --shared FOLDER --to FOLDER
    python scripts/train_pet_reconstruction.py train --to FOLDER --minutes 7   # again: goes on
    python scripts/train_pet_reconstruction.py export --to FOLDER   # writes weights.safetensors there
    python scripts/compare_pet_reconstruction.py --to FOLDER

The images are those of a patient's FDG PET (QIN-HEADNECK, CC BY 3.0) and of a brain phantom (BrainWeb as simulated by
pyapetnet, MIT). Training uses slices of the patient and random ellipses; blocks of the patient's slices with a gap on
both sides, and the whole phantom, are kept for the comparison. Sinograms are sums along lines with Poisson noise.
"""

from __future__ import annotations

import argparse
import hashlib
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from pacs_ai.infer.volume import load_volume
from pacs_ai.models.convert import safetensors
from pacs_ai.models.networks.pet_reconstruction import Refiner
from pacs_ai.models.readings.pet_sinogram import SIZE, refiner_input, scale_of
from pacs_ai.models.readings.tomography import scanner

if TYPE_CHECKING:
    from pacs_ai.pipeline import Array

#: Coincidences in a plane.
COUNTS = (5e4, 2e6)
#: Slices of the patient that are kept for the comparison, and slices on each side of them that nobody sees.
KEPT = ((40, 55), (100, 115), (160, 175), (250, 265))
GAP = 5
BATCH = 8
ELLIPSES = 2
SEED = 20240501


def prepare(shared: Path, to: Path) -> None:
    """Write the images of patient and phantom, each with its largest value 1."""
    patient = _volume(shared / "data/pet_qin_headneck/pet")
    phantom = _volume(shared / "data/pet_t1_brainweb/osem").reshape(129, 2, SIZE, 2, SIZE, 2).mean((1, 3, 5))
    kept = np.zeros(len(patient), bool)
    near = np.zeros(len(patient), bool)
    for first, end in KEPT:
        kept[first:end] = True
        near[first - GAP : end + GAP] = True
    circle = scanner(SIZE, SIZE).circle
    to.mkdir(parents=True, exist_ok=True)
    for name, images in (("train", patient[~near]), ("patient", patient[kept]), ("phantom", phantom)):
        seen = np.maximum(images, 0) * circle
        bright = seen[seen.reshape(len(seen), -1).mean(1) > 0.02 * seen.mean((1, 2)).max()]
        np.save(to / f"{name}.npy", (bright / bright.max((1, 2), keepdims=True)).astype(np.float32))
        print(name, len(bright), "slices")


def _volume(folder: Path) -> Array:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(load_volume(sorted(folder.iterdir())).volume.voxels, np.float32)


def noisy(images: Array, counts: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return sinograms of so many counts each, and the images in the same units (counts per pixel and angle)."""
    clean = scanner(SIZE, SIZE).project(images)
    factor = (counts / clean.sum((1, 2))).astype(np.float32)[:, None, None]
    return rng.poisson(clean * factor).astype(np.float32), images * factor


def batch(images: Array, rng: np.random.Generator) -> Array:
    """Return turned, flipped, scaled slices, and ellipses."""
    chosen = torch.from_numpy(images[rng.integers(0, len(images), BATCH - ELLIPSES)])[:, None]
    angle = torch.from_numpy(rng.uniform(0, 2 * np.pi, len(chosen))).float()
    size = torch.from_numpy(rng.uniform(0.75, 1.3, len(chosen))).float()
    flip = torch.from_numpy(rng.choice([-1.0, 1.0], len(chosen))).float()
    shift = torch.from_numpy(rng.uniform(-0.1, 0.1, (len(chosen), 2))).float()
    cosine, sine = angle.cos() * size, angle.sin() * size
    turn = torch.stack(
        [torch.stack([cosine * flip, -sine, shift[:, 0]], 1), torch.stack([sine * flip, cosine, shift[:, 1]], 1)], 1
    )
    grid = functional.affine_grid(turn, list(chosen.shape), align_corners=False)
    turned = functional.grid_sample(chosen, grid, align_corners=False)[:, 0].numpy()
    power = rng.uniform(0.6, 1.2, (len(turned), 1, 1))
    made = np.concatenate([turned**power, ellipses(rng)])
    return np.asarray(np.maximum(made * scanner(SIZE, SIZE).circle, 0) + 1e-6, np.float32)


def ellipses(rng: np.random.Generator) -> Array:
    """Return bodies of an ellipse with ellipses in it, hot and cold."""
    row, column = np.mgrid[:SIZE, :SIZE] / SIZE * 2 - 1
    made = np.zeros((ELLIPSES, SIZE, SIZE), np.float32)
    for image in made:
        for k in range(int(rng.integers(4, 16))):
            at = rng.uniform(-0.5, 0.5, 2) if k else np.zeros(2)
            half = rng.uniform(0.03, 0.25, 2) if k else rng.uniform(0.5, 0.9, 2)
            angle = rng.uniform(0, np.pi)
            along = (column - at[0]) * np.cos(angle) + (row - at[1]) * np.sin(angle)
            across = (row - at[1]) * np.cos(angle) - (column - at[0]) * np.sin(angle)
            image[(along / half[0]) ** 2 + (across / half[1]) ** 2 < 1] = rng.uniform(0, 1) ** 2 if k else 0.3
        image[:] = functional.avg_pool2d(torch.from_numpy(image)[None], 3, 1, 1)[0].numpy()
    return made


def network() -> Refiner:
    """Return the network, with seeded weights."""
    torch.manual_seed(SEED)
    return Refiner()


def train(to: Path, minutes: float) -> None:
    """Train for some minutes, from where the last run ended."""
    images = np.load(to / "train.npy")
    model = network()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-5)
    path, step, spent = to / "refiner.pt", 0, 0.0
    if path.exists():
        held = torch.load(path, weights_only=True)
        model.load_state_dict(held["model"])
        optimiser.load_state_dict(held["optimiser"])
        step, spent = held["step"], held["spent"]
    rng = np.random.default_rng(SEED + step)
    begun, worked, losses = time.monotonic(), time.process_time(), []
    circle = torch.from_numpy(scanner(SIZE, SIZE).circle)
    while time.monotonic() - begun < minutes * 60 and spent + time.process_time() - worked < TOTAL_MINUTES * 60:
        part = (spent + time.process_time() - worked) / 60 / TOTAL_MINUTES
        for group in optimiser.param_groups:
            group["lr"] = float(
                1e-3 * min(1, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * min(1, part))))
            )
        counts = np.exp(rng.uniform(np.log(COUNTS[0]), np.log(COUNTS[1]), BATCH))
        sinograms, truth = noisy(batch(images, rng), counts, rng)
        wanted = torch.from_numpy(truth / scale_of(sinograms)[:, None, None])[:, None]
        missed = (model(torch.from_numpy(refiner_input(sinograms))) - wanted)[..., circle]
        loss = functional.smooth_l1_loss(missed, torch.zeros_like(missed), beta=0.1)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
        step += 1
        if step % 50 == 0:
            print(f"{step} {np.mean(losses[-50:]):.5f}", flush=True)
    spent += time.process_time() - worked
    torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step, "spent": spent}, path)
    print(f"{step} steps in {spent / 60:.1f} core-minutes, loss {np.mean(losses[-100:]):.5f}")


def export(to: Path) -> None:
    """Write the weights that are served."""
    state = torch.load(to / "refiner.pt", weights_only=True)["model"]
    content = safetensors(state)
    (to / "weights.safetensors").write_bytes(content)
    print(len(content), hashlib.sha256(content).hexdigest())


#: After so many minutes of one core the rate of learning has fallen to its least; the committed weights had 22.4.
TOTAL_MINUTES = 25.0


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("act", choices=("prepare", "train", "export"))
    parser.add_argument("--shared", type=Path, help="folder that holds data/; prepare needs it")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=7.0)
    wanted = parser.parse_args()
    if wanted.act == "prepare":
        if wanted.shared is None:
            parser.error("prepare needs --shared")
        prepare(wanted.shared, wanted.to)
    elif wanted.act == "export":
        export(wanted.to)
    else:
        train(wanted.to, wanted.minutes)


if __name__ == "__main__":
    main()
