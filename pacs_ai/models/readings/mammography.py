"""Breast composition and suspicion from the four standard mammograms, by a classifier that its user brings.

All four views are wanted, CC and MLO of both breasts: a classifier that was trained on four and sees three gives a
number that means nothing, so a study without one of them is refused with the name of what is missing. The views may
come as series of their own or in one; what counts is what each image says of itself, not the name that it came under.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pacs_ai.errors import PipelineFault, Reason, Refused
from pacs_ai.models.readings.answers import answers
from pacs_ai.models.readings.seeded import said_of, seed_of
from pacs_ai.pipeline import Array, Card, Findings, Frame, Frames

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from pacs_ai.models.package import Package

#: Name of an input -> View Position (0018,5101) and Image Laterality (0020,0062) that its image must state.
STATED = {"cc_left": ("CC", "L"), "cc_right": ("CC", "R"), "mlo_left": ("MLO", "L"), "mlo_right": ("MLO", "R")}
WORDS = {"CC": "craniocaudal", "MLO": "mediolateral oblique", "L": "left", "R": "right"}
#: Rows and columns of what the network sees.
SIZE = (512, 256)
#: Percentiles of the breast's grey values that become 0 and 1.
CUT = (2.0, 99.5)
#: Least part of an image that a breast covers.
LEAST_BREAST = 0.02
#: Questions of the card: four of composition, then suspicion of the left and of the right breast.
QUESTIONS = 6


class Mammography:
    """A package with a multi-view classifier: `networks.multiview.MultiView`.

    Parameters
    ----------
    package
        Its card asks for the four classes of breast composition, then for the left and the right breast.
    """

    def __init__(self, package: Package) -> None:
        self._package = package
        self._seed = seed_of(package)
        self.card: Card = said_of(package.card, self._seed)
        if len(self.card.questions) != QUESTIONS or set(self.card.inputs) != set(STATED):
            raise PipelineFault(
                f"model.toml of {self.card.name} must have the inputs {', '.join(STATED)} and {QUESTIONS} questions"
            )
        self._network: torch.nn.Module | None = None
        self._device = "cpu"

    def prepare(self, device: str) -> None:
        """Check every file's digest, then load the weights; `PipelineFault` where there are none or others."""
        self._package.verify()
        from pacs_ai.models.networks.multiview import MultiView
        from pacs_ai.models.readings.classifier_weights import loaded

        self._network, self._device = loaded(self._package, MultiView, device, self._seed), device

    def run(self, inputs: Mapping[str, Frames]) -> Findings:
        """Answer for one study.

        Raises
        ------
        Refused
            A view is missing, an image states no view or side, there is an implant, or an image shows no breast.
        PipelineFault
            It was not prepared.
        """
        if self._network is None:
            raise PipelineFault(f"{self.card.name} was run before it was prepared")
        import torch

        from pacs_ai.models.networks.multiview import VIEWS

        chosen = views_of(inputs)
        planes = [breast(chosen[name], name) for name in VIEWS]
        stacked = torch.from_numpy(np.stack(planes))[None, :, None].to(self._device)
        with torch.no_grad():
            density, suspicion = self._network(stacked)
        chances = [*torch.softmax(density[0], 0).tolist(), *torch.sigmoid(suspicion[0]).tolist()]
        return Findings(classifications=answers(self.card.questions, chances), grid=next(iter(self.card.inputs)))


def views_of(inputs: Mapping[str, Frames]) -> dict[str, Frame]:
    """Return the image of each view, by what the images state; the last one where a view was taken again.

    Spot compressions, magnifications and whatever else has a View Modifier (PS3.16 CID 4015), and views of part of a
    breast, are no standard views, and the detector's raw images none for presentation: they are left out.

    Raises
    ------
    Refused
        An image states no view or side, has an implant, or a view is missing; the message names it.
    """
    from pacs_ai.models.readings.radiograph import is_raw

    found: dict[str, Frame] = {}
    special = 0
    for name, frames in inputs.items():
        for frame in frames.images:
            place = _place(frame, name)
            modified = frame.header.get("ViewModifierCodeSequence") or frame.header.get("PartialView") == "YES"
            if modified or is_raw(frame.header):
                special += 1
            elif place is not None:
                found[place] = frame
    missing = [
        f"the {WORDS[view]} view of the {WORDS[side]} breast"
        for key, (view, side) in STATED.items()
        if key not in found
    ]
    if missing:
        words = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: all four are wanted"
        beside = f"; {special} images of special views, or for processing, do not count" if special else ""
        raise Refused(words + beside, Reason.MISSING_INPUT)
    return found


def _place(frame: Frame, name: str) -> str | None:
    """Return which of `STATED` an image is, None for another view; `Refused` as in `views_of`."""
    stated = (frame.header.get("ViewPosition", ""), side_of(frame))
    if not all(stated):
        what, reason = ("View Position", Reason.VIEW) if stated[1] else ("Image Laterality", Reason.LATERALITY)
        raise Refused(f"an image of {name} states no {what}, so that nobody knows which view it is", reason)
    if frame.header.get("BreastImplantPresent") == "YES":
        words = "there is a breast implant, with which the classifier was not trained"
        raise Refused(words, Reason.OUT_OF_DISTRIBUTION)
    return next((key for key, wanted in STATED.items() if wanted == stated), None)


def side_of(frame: Frame) -> str:
    """Return L or R, from Image Laterality (0020,0062) or else Laterality (0020,0060); "" for neither."""
    side = frame.header.get("ImageLaterality") or frame.header.get("Laterality", "")
    return side if side in {"L", "R"} else ""


def breast(frame: Frame, name: str) -> Array:
    """Return the breast alone, its chest wall on the left, as `SIZE` float32 from 0 to 1.

    Raises
    ------
    Refused
        The image shows no breast.
    """
    import torch
    from torch.nn import functional

    pixels = np.asarray(frame.pixels, dtype=np.float32)
    if pixels.ndim != 2:
        raise Refused(f"the image of {name} is in colour, which no mammogram is", Reason.OUT_OF_DISTRIBUTION)
    low, high = float(pixels.min()), float(pixels.max())
    inside = pixels > low + 0.05 * (high - low)
    if high <= low or inside.mean() < LEAST_BREAST:
        raise Refused(f"the image of {name} shows no breast: nearly all of it is black", Reason.INTENSITY)
    rows, columns = np.flatnonzero(inside.mean(1) > 0.01), np.flatnonzero(inside.mean(0) > 0.01)
    area = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    cut, mask = pixels[area], inside[area]
    half = mask.shape[1] // 2
    if mask[:, half:].sum() > mask[:, :half].sum():
        cut, mask = cut[:, ::-1], mask[:, ::-1]
    dark, bright = np.percentile(cut[mask], CUT)
    scaled = np.clip((cut - dark) / max(float(bright - dark), 1e-6), 0, 1) * mask
    plane = torch.from_numpy(np.ascontiguousarray(scaled))[None, None]
    resized = functional.interpolate(plane, size=SIZE, mode="bilinear", align_corners=False, antialias=True)
    return np.asarray(resized[0, 0].numpy(), dtype=np.float32)
