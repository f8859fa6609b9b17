"""Lesions in a CT by a three-dimensional RetinaNet: MONAI's ``lung_nodule_ct_detection``, or one trained like it.

Runtime ``lesion-detection``. The steps are those of the published configuration: axes along the patient's, 0.7 x 0.7 x
1.25 mm, -1024 to 300 HU onto 0 to 1, network in windows, boxes chosen over the whole series (so that two windows never
report one lesion twice), corners by the affine. What is reported of them is decided in `readings.lesions`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pacs_ai.errors import PipelineFault, Reason, Refused
from pacs_ai.models.bundle_findings import checked
from pacs_ai.models.readings.lesion_settings import LesionSettings
from pacs_ai.models.readings.lesions import Box, boxes_of, detection_of, reported
from pacs_ai.models.readings.seeded import said_of
from pacs_ai.pipeline import Card, Findings, Volume

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from pacs_ai.models.package import Package

WEIGHTS = "weights.safetensors"
#: Densest value of a CT in Hounsfield units would be below this: air.
AIR_HU = -300


class LesionDetection:
    """A package with a lesion detector: one input ``image``, one label.

    Parameters
    ----------
    package
        Its settings are `LesionSettings`.
    """

    def __init__(self, package: Package) -> None:
        self._package = package
        self._settings = LesionSettings.of(package.model.settings, package.model.name)
        self.card: Card = said_of(package.card, self._settings.seed_weights)
        if len(self.card.labels) != 1 or tuple(self.card.inputs) != ("image",):
            raise PipelineFault(f"model.toml of {self.card.name} must have one label and one input, image")
        self._detector: Any = None
        self._device = "cpu"

    def prepare(self, device: str) -> None:
        """Check every file's digest, then load the weights; `PipelineFault` where they are none or do not fit."""
        self._package.verify()
        import torch

        from pacs_ai.models.networks import retinanet

        seed = self._settings.seed_weights
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed or 0)
            network = retinanet.network(self._settings)
        if seed is None:
            network.load_state_dict(self._weights(network.state_dict()))
        self.install(network.to(device), device)

    def install(self, network: torch.nn.Module, device: str) -> None:
        """Detect with this network: (1, 1, x, y, z) -> {"classification": levels, "box_regression": levels}."""
        from pacs_ai.models.networks import retinanet

        self._detector, self._device = retinanet.detector(network, self._settings).to(device), device

    def _weights(self, wanted: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        if WEIGHTS not in self._package.model.files:
            raise PipelineFault(
                f"{self.card.name} needs the weights of your own checkpoint: turn it into {WEIGHTS} with "
                "pacs-ai models convert, put that beside model.toml, and name its digest in files"
            )
        state = self._package.tensors(WEIGHTS)
        unfit = [name for name, tensor in wanted.items() if name not in state or state[name].shape != tensor.shape]
        if unfit or len(state) != len(wanted):
            raise PipelineFault(
                f"{WEIGHTS} of {self.card.name} is of another network: {', '.join(unfit[:3]) or 'too many tensors'}"
            )
        return state

    def run(self, inputs: Mapping[str, Any]) -> Findings:
        """Detect in one CT.

        Returns
        -------
        Findings
            One detection per lesion, the likeliest first: outline of its box and extents on the slice of its centre,
            probability, sphere-equivalent diameter and volume.

        Raises
        ------
        Refused
            The series is missing, is no CT in Hounsfield units, or holds values that are no numbers.
        PipelineFault
            It was not prepared, or the network returned no numbers.
        OutOfResources
            There is no memory for it.
        """
        if self._detector is None:
            raise PipelineFault(f"{self.card.name} was run before it was prepared")
        volume = checked("image", inputs)
        if float(volume.voxels.min()) > AIR_HU:
            words = "there is no air in this series: its values are no Hounsfield units of a body in air"
            raise Refused(words, Reason.INTENSITY)
        boxes = reported(self.boxes(volume), volume, self._settings)
        (label,) = self.card.labels
        return Findings(detections=tuple(detection_of(box, label.name, volume) for box in boxes))

    def boxes(self, volume: Volume) -> tuple[Box, ...]:
        """Return every box from the candidate threshold on, of whatever size."""
        import numpy as np
        import torch

        from pacs_ai.models.bundle_chain import explained
        from pacs_ai.models.readings.lesion_grid import on_grid

        with explained(self.card.name, "running"), torch.no_grad():
            image, affine = on_grid(volume, self._settings)
            tensor = torch.from_numpy(image)[None, None].to(self._device)
            larger = any(have > most for have, most in zip(image.shape, self._settings.window, strict=True))
            found = self._detector(tensor, use_inferer=larger)[0]
            corners, chances = found["box"].cpu().numpy(), found["label_scores"].cpu().numpy()
        if not (np.isfinite(corners).all() and np.isfinite(chances).all()):
            raise PipelineFault(f"the network of {self.card.name} returned values that are no numbers")
        low, high = np.split(corners, 2, axis=1)
        inner = np.concatenate([np.clip(low, 0, image.shape), np.clip(high, 0, image.shape)], axis=1)
        return boxes_of(inner, chances, affine)
