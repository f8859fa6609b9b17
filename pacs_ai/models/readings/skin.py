"""What a pigmented skin lesion on a photograph is likely to be, of seven kinds, and what is no such photograph at all.

The network sees the photograph and, where the header says them, age, sex and site of the patient, as its authors feed
it: 254 x 254 pixels by bilinear sampling without smoothing; ages as parts of 90 years, a missing one as the mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pacs_ai.dicom.age import years_of
from pacs_ai.errors import PipelineFault, Reason, Refused
from pacs_ai.models.readings.answers import answers
from pacs_ai.pipeline import PERCENT, Code, Findings, Measurement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pacs_ai.models.package import Package
    from pacs_ai.pipeline import Array, Card, Frame, Frames

#: Classes in the order of the network's outputs, with what its authors call malignant.
CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
MALIGNANT = ("akiec", "bcc", "mel")
_MALIGNANCY = Code("P-MALIGNANT", "99PACSAI", "Probability of malignancy or its precursor")
_SIDE = 254
#: Mean difference of the strongest and the weakest of red, green and blue that a photograph in colour has at least.
_LEAST_COLOUR = 8.0
_MEAN_AGE, _MOST_AGE = 51.90180032733224, 90.0
_SEXES = {"F": 0, "M": 1}
_SITES = ("arm", "head-or-neck", "leg-or-genital", "trunk", "unknown")
#: Body Part Examined (PS3.16 Annex L) -> site as the network knows them.
_PARTS = {
    "arm": ("ARM", "UPPERARM", "FOREARM", "ELBOW", "WRIST", "HAND", "FINGER", "THUMB", "SHOULDER"),
    "head-or-neck": ("HEAD", "NECK", "HEADNECK", "FACE", "SCALP", "EAR", "NOSE", "CHEEK", "LIP", "EYELID"),
    "leg-or-genital": ("LEG", "THIGH", "KNEE", "CALF", "LOWERLEG", "ANKLE", "FOOT", "TOE", "HIP", "PENIS", "SCROTUM"),
    "trunk": ("TRUNK", "CHEST", "BACK", "ABDOMEN", "BREAST", "FLANK", "BUTTOCK"),
}
_SITE_OF = {part: site for site, parts in _PARTS.items() for part in parts}


def known_of(header: Mapping[str, str]) -> Array:
    """Return what the network is told of the patient.

    Parameters
    ----------
    header
        PatientSex, PatientAge and BodyPartExamined, where the photograph states them.

    Returns
    -------
    array
        (10,) float32: three for the sex, five for the site, the age in parts of 90 years, whether it is missing.
    """
    told = np.zeros(10, np.float32)
    told[_SEXES.get(header.get("PatientSex", ""), 2)] = 1
    site = _SITE_OF.get(header.get("BodyPartExamined", "").upper().replace(" ", ""), "unknown")
    told[3 + _SITES.index(site)] = 1
    years = years_of(header.get("PatientAge", ""))
    told[8], told[9] = (_MEAN_AGE if years is None else years) / _MOST_AGE, years is None
    return told


class SkinLesion:
    """The classifier of one package."""

    def __init__(self, package: Package) -> None:
        settings = package.model.settings
        try:
            self._farthest = float(settings["farthest"])
            self._reddest = float(settings["most_colour_deviations"])
        except (KeyError, TypeError, ValueError) as error:
            raise PipelineFault(
                f"[settings] of {package.model.name} has to state numbers: farthest, most_colour_deviations ({error})"
            ) from error
        if tuple(one.name for one in package.card.questions) != CLASSES:
            raise PipelineFault(f"{package.model.name} has to ask the questions {', '.join(CLASSES)}, in this order")
        self._package = package
        self._network: Any = None

    @property
    def card(self) -> Card:
        """The package's card."""
        return self._package.card

    def prepare(self, device: str) -> None:
        """Load the weights onto the device."""
        import torch

        from pacs_ai.models.networks.xception import Familiarity, LesionClassifier

        network = LesionClassifier()
        lost = network.load_state_dict(self._package.tensors(), strict=False)
        if lost.unexpected_keys or any(not key.endswith("num_batches_tracked") for key in lost.missing_keys):
            raise PipelineFault(f"the weights of {self._package.model.name} are of another network")
        self._device = torch.device(device)
        self._network = network.eval().to(self._device)
        self._familiarity = Familiarity(self._network)

    def run(self, inputs: Mapping[str, Frames]) -> Findings:
        """Return the most probable kind, where it is more probable than not, and all probabilities in %, highest first.

        Raises
        ------
        Refused
            The series has several photographs, or what it shows is unlike the photographs that the network knows.
        """
        frames = inputs["image"]
        if len(frames.images) != 1:
            raise Refused(
                f"the series has {len(frames.images)} photographs, and nothing says whether they show one lesion: "
                "send one photograph of one lesion per series",
                Reason.DIMENSIONS,
            )
        chances, distance = self.chances(frames.images[0])
        if distance > self._farthest:
            raise Refused(
                f"this does not look like a close photograph of a skin lesion (distance {distance:.2f} from those that "
                f"the classifier knows, at most {self._farthest:g}), and it would name a kind for anything: not read",
                Reason.OUT_OF_DISTRIBUTION,
            )
        named = sorted(zip(self.card.questions, chances, strict=True), key=lambda pair: -pair[1])
        measured = [Measurement(_of(one.name, one.positive), 100 * chance, PERCENT) for one, chance in named]
        malignant = sum(chance for name, chance in zip(CLASSES, chances, strict=True) if name in MALIGNANT)
        return Findings(
            measurements=(Measurement(_MALIGNANCY, 100 * malignant, PERCENT), *measured),
            classifications=answers(self.card.questions, chances),
        )

    def chances(self, frame: Frame) -> tuple[list[float], float]:
        """Return the probability of each of `CLASSES`, and how far the photograph lies from those trained on.

        Parameters
        ----------
        frame
            The photograph, (rows, columns, 3) RGB 0 to 255.

        Raises
        ------
        Refused
            It is not in colour, or its mean colour is not that of skin.
        """
        import torch

        if frame.pixels.ndim != 3 or float(np.ptp(frame.pixels, axis=2).mean()) < _LEAST_COLOUR:
            raise Refused("the photograph is not in colour", Reason.OUT_OF_DISTRIBUTION)
        pixels = torch.from_numpy(np.array(frame.pixels)).permute(2, 0, 1)[None].float()
        size = (_SIDE, _SIDE)
        small = torch.nn.functional.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=False)
        self._check_colour(small[0].mean(dim=(1, 2)).numpy())
        told = torch.from_numpy(known_of(frame.header))[None]
        with torch.inference_mode():
            chances = self._network(small.to(self._device), told.to(self._device))[0]
        return [float(chance) for chance in chances.cpu()], self._familiarity.taken()

    def _check_colour(self, mean: Array) -> None:
        """Refuse a photograph whose mean colour lies far from that of the training photographs."""
        usual, variance = (getattr(self._network, name).cpu().numpy() for name in ("mean", "variance"))
        off = float((np.abs(mean - usual) / np.sqrt(variance)).max())
        if off > self._reddest:
            raise Refused(
                f"the mean colour of the photograph, {', '.join(f'{value:.0f}' for value in mean)} (RGB), is not that "
                "of the photographs that the classifier was trained on, which show lesions on light skin: not read",
                Reason.OUT_OF_DISTRIBUTION,
            )


def _of(name: str, kind: Code) -> Code:
    return Code(f"P-{name.upper()}", "99PACSAI", f"Probability of {kind.meaning[0].lower()}{kind.meaning[1:]}")
