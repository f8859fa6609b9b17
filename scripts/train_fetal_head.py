"""Train the U-Net of the fetal-head package on HC18: deterministic, on one CPU core, in pieces that can be resumed.

    python scripts/train_fetal_head.py train --data /data/train --frames /data/us_fetal_hc18 --work /tmp/fetal
    python scripts/train_fetal_head.py write --work /tmp/fetal --package pacs_ai/models/zoo/fetal-head

Data: HC18 (van den Heuvel et al. 2018, doi 10.1371/journal.pone.0200412, CC BY 4.0), 192 x 128 pixels each. The first
three characters of a name are the fetus. Every fetus of the full frames in `--frames`, and one in six of the others
(by the digest of its number), is kept out for the test; one in twelve for setting the gates (`split`).
A sixteenth of each batch has its head painted over with speckle and another sixteenth are chest films: "no head".
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from pacs_ai.models.networks.fetal_unet import FetalUNet

if TYPE_CHECKING:
    import numpy.typing as npt

SEED = 20180823
BATCH = 16
EPOCHS = 32
#: The first epochs see half as many rows and columns, which takes a quarter of the time.
COARSE = 18
PEAK_RATE = 5e-3
DECAY = 1e-4
AVERAGE = 0.99
#: Of each batch.
PAINTED, FILMS = 1, 1


def split(names: npt.NDArray[np.str_], frames: Path) -> npt.NDArray[np.str_]:
    """Return "train", "tune" or "test" for each name, the same for all frames of a fetus."""
    kept = {path.name[:3] for path in (frames / "image").glob("*.png")}

    def part(fetus: str) -> str:
        number = hashlib.sha256(fetus.encode()).digest()[0]
        return "test" if fetus in kept or number < 43 else "tune" if number < 64 else "train"

    return np.array([part(name[:3]) for name in names])


def load(folder: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return frames (n, 128, 192), filled outlines of the same shape, and chest films (m, 160, 160)."""
    content = np.load(folder / "hc18_192x128.npz")
    films = np.load(folder / "nih_cxr_320.npz")["image"][:, ::2, ::2]
    return content["image"], np.unpackbits(content["mask_packed"], axis=-1), films


def paint_over(frame: torch.Tensor, head: torch.Tensor, dice: torch.Generator) -> torch.Tensor:
    """Fill the head (n, 1, rows, columns) with speckle of the brightness of what surrounds it."""
    grown = functional.max_pool2d(head, 9, 1, 4)
    outside = (frame * (1 - grown)).sum((2, 3), keepdim=True) / (1 - grown).sum((2, 3), keepdim=True).clamp(min=1)
    speckle = torch.randn((2, *frame.shape), generator=dice).square().sum(0).sqrt()
    smooth = functional.avg_pool2d(speckle, 3, 1, 1)
    return torch.where(grown > 0, (outside * smooth).clamp(0, 1), frame)


def warp(count: int, dice: torch.Generator) -> torch.Tensor:
    """Return random affine sampling grids (count, 128, 192, 2): turned, mirrored, scaled, shifted."""

    def spread(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, generator=dice)

    turn, scale, stretch = spread(-0.7, 0.7), torch.exp(spread(-0.3, 0.3)), torch.exp(spread(-0.08, 0.08))
    mirror = torch.where(torch.rand(count, generator=dice) < 0.5, -1.0, 1.0)
    upside = torch.where(torch.rand(count, generator=dice) < 0.3, -1.0, 1.0)
    cosine, sine, aspect = torch.cos(turn), torch.sin(turn), 1.5
    rows = (
        torch.stack(
            (cosine * mirror * scale * stretch, -sine * upside * scale / stretch / aspect, spread(-0.25, 0.25)), 1
        ),
        torch.stack(
            (sine * mirror * scale * stretch * aspect, cosine * upside * scale / stretch, spread(-0.25, 0.25)), 1
        ),
    )
    return functional.affine_grid(torch.stack(rows, 1), [count, 1, 128, 192], align_corners=False)


def shade(frames: torch.Tensor, dice: torch.Generator) -> torch.Tensor:
    """Change gain, gamma and speckle, and lay a shadow over some."""
    count = len(frames)
    gain, gamma, noise, shadow = torch.rand((4, count, 1, 1, 1), generator=dice)
    bent = frames.clamp(1e-4, 1) ** torch.exp((gamma - 0.5) * 1.2) * (0.6 + 0.8 * gain)
    bent = bent * (1 + 0.15 * noise * torch.randn(frames.shape, generator=dice))
    columns = torch.linspace(0, 1, frames.shape[-1])
    dark = torch.sigmoid((columns - torch.rand((count, 1, 1, 1), generator=dice)).abs() * 60 - 4)
    return torch.where(shadow < 0.2, bent * (0.3 + 0.7 * dark), bent).clamp(0, 1)


def batch(
    frames: torch.Tensor, heads: torch.Tensor, films: torch.Tensor, dice: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an augmented batch of frames and heads, some of which have none."""
    x, y = frames.float()[:, None] / 255, heads.float()[:, None]
    x[:PAINTED] = paint_over(x[:PAINTED], y[:PAINTED], dice)
    y[:PAINTED] = 0
    chosen = films[torch.randint(len(films), (FILMS,), generator=dice)].float()[:, None] / 255
    x[-FILMS:] = functional.interpolate(chosen, size=x.shape[2:], mode="bilinear", align_corners=False)
    y[-FILMS:] = 0
    grid = warp(len(x), dice)
    x = functional.grid_sample(x, grid, mode="bilinear", align_corners=False)
    y = functional.grid_sample(y, grid, mode="bilinear", align_corners=False)
    return shade(x, dice), y


def loss_of(logits: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    """Return cross-entropy plus soft Dice over the batch."""
    chance = torch.sigmoid(logits)
    dice = 1 - 2 * (chance * heads).sum() / (chance.square().sum() + heads.square().sum() + 1)
    return functional.binary_cross_entropy_with_logits(logits, heads) + dice


def train(data: Path, frames_folder: Path, work: Path, minutes: float) -> bool:
    """Train until done or for that many minutes; True when done."""
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    images, outlines, films = load(data)
    part = split(np.load(data / "hc18_192x128.npz")["name"], frames_folder) == "train"
    frames, heads, others = (torch.from_numpy(one) for one in (images[part], outlines[part], films))
    steps = len(frames) // BATCH
    network, averaged = FetalUNet().train(), FetalUNet()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    optimizer = torch.optim.AdamW(network.parameters(), PEAK_RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps * EPOCHS, pct_start=0.15)
    averaged.load_state_dict(network.state_dict())
    state: tuple[Any, ...] = (network, averaged, optimizer, schedule)
    path = work / "checkpoint.pt"
    first = 0
    if path.exists():
        content = torch.load(path, weights_only=True)
        first = content["epoch"]
        for one, saved in zip(state, content["state"], strict=True):
            one.load_state_dict(saved)
    start = time.monotonic()
    for epoch in range(first, EPOCHS):
        dice, total = torch.Generator().manual_seed(SEED + epoch), 0.0
        for chosen in torch.randperm(len(frames), generator=dice)[: steps * BATCH].view(steps, BATCH):
            x, y = batch(frames[chosen], heads[chosen], others, dice)
            if epoch < COARSE:
                x, y = functional.avg_pool2d(x, 2), functional.avg_pool2d(y, 2)
            loss = loss_of(network(x.to(memory_format=torch.channels_last)), y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            average(averaged, network)
            total += float(loss.detach())
        torch.save({"epoch": epoch + 1, "state": [one.state_dict() for one in state]}, path)
        print(f"epoch {epoch + 1} loss {total / steps:.4f} after {time.monotonic() - start:.0f} s", flush=True)
        if time.monotonic() - start > minutes * 60:
            return epoch + 1 == EPOCHS
    return True


def average(averaged: FetalUNet, network: FetalUNet) -> None:
    """Move the averaged weights towards the network's."""
    current = network.state_dict()
    with torch.no_grad():
        for name, tensor in averaged.state_dict().items():
            if tensor.dtype.is_floating_point:
                tensor.lerp_(current[name], 1 - AVERAGE)
            else:
                tensor.copy_(current[name])


def write(work: Path, package: Path) -> None:
    """Write the averaged weights as safetensors, without the counters that no inference reads."""
    from safetensors.torch import save_file

    content = torch.load(work / "checkpoint.pt", weights_only=True)
    kept = {name: tensor.contiguous() for name, tensor in content["state"][1].items() if "num_batches" not in name}
    path = package / "weights.safetensors"
    save_file(kept, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    print(f"{path}: epoch {content['epoch']}, {path.stat().st_size} bytes, {digest}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("train", "write"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--frames", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--package", type=Path)
    parser.add_argument("--minutes", type=float, default=7.0)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.action == "write":
        write(given.work, given.package)
    else:
        print("done" if train(given.data, given.frames, given.work, given.minutes) else "run again to go on")


if __name__ == "__main__":
    main()
