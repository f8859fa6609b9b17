"""Bone radiograph of an arm: normal or not, over all views of the study, by a checkpoint that its user brings.

Rajpurkar et al., "MURA: Large Dataset for Abnormality Detection in Musculoskeletal Radiographs", MIDL 2018
(arXiv:1712.06957): a DenseNet-169 on 320 x 320 pixels, and for the study the mean of its views' probabilities.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pacs_ai.errors import PipelineFault, Reason, Refused
from pacs_ai.models.readings.answers import answers
from pacs_ai.models.readings.seeded import said_of, seed_of
from pacs_ai.pipeline import Card, Findings, Frame, Frames

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from pacs_ai.models.package import Package

#: Most views of one study; more is no study of one joint.
MOST_VIEWS = 20
#: Rows and columns of what the network sees.
SIDE = 320


class BoneRadiograph:
    """A package with one question, one input ``image``, and the weights of `mura_network`."""

    def __init__(self, package: Package) -> None:
        self._package = package
        self._seed = seed_of(package)
        self.card: Card = said_of(package.card, self._seed)
        if len(self.card.questions) != 1 or tuple(self.card.inputs) != ("image",):
            raise PipelineFault(f"model.toml of {self.card.name} must have one question and one input, image")
        self._network: torch.nn.Module | None = None
        self._device = "cpu"

    def prepare(self, device: str) -> None:
        """Check every file's digest, then load the weights; `PipelineFault` where there are none or others."""
        self._package.verify()
        from pacs_ai.models.readings.classifier_weights import loaded

        self._network, self._device = loaded(self._package, mura_network, device, self._seed), device

    def run(self, inputs: Mapping[str, Any]) -> Findings:
        """Answer for the views of one series or study.

        Raises
        ------
        Refused
            There is no view, there are too many, or one is no radiograph.
        PipelineFault
            It was not prepared.
        """
        if self._network is None:
            raise PipelineFault(f"{self.card.name} was run before it was prepared")
        import torch

        from pacs_ai.models.readings.radiograph import is_raw

        frames: Frames = inputs["image"]
        views = [one for one in frames.images if not is_raw(one.header)]
        if not views:
            raise Refused("the detector's raw images alone are there, none for presentation", Reason.INTENSITY)
        if len(views) > MOST_VIEWS:
            words = f"there are {len(views)} views: from 1 to {MOST_VIEWS} are read as one study"
            raise Refused(words, Reason.DIMENSIONS)
        with torch.no_grad():
            chances = [float(torch.sigmoid(self._network(view(one).to(self._device)))) for one in views]
        return Findings(classifications=answers(self.card.questions, [float(np.mean(chances))]))


def view(frame: Frame) -> torch.Tensor:
    """Return (1, 3, 320, 320) as the network wants it: grey in three channels, mean and deviation of ImageNet."""
    import torch

    from pacs_ai.models.readings.radiograph import eight_bits, shrunk

    pixels = np.asarray(frame.pixels)
    if pixels.ndim != 2 or pixels.max() <= pixels.min():
        raise Refused("a view is no radiograph: it is in colour, or of one grey value", Reason.INTENSITY)
    grey = eight_bits(shrunk(pixels, SIDE), pixels)[None].expand(3, -1, -1)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((grey - mean[:, None, None]) / deviation[:, None, None])[None]


def mura_network() -> torch.nn.Module:
    """Build MONAI's DenseNet-169 with one answer, with the weights that its constructor draws."""
    from monai.networks.nets import DenseNet169

    network: torch.nn.Module = DenseNet169(spatial_dims=2, in_channels=3, out_channels=1)
    return network
