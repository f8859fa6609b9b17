"""Images through a bundle: as its reader would have given them, and its output as label maps or probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor

from pacs_ai.errors import PipelineFault, Reason, Refused
from pacs_ai.models.bundle_chain import Chain, Result, explained
from pacs_ai.models.bundle_config import NOTHING, target
from pacs_ai.models.runtimes.declared import configuration_of, spec_of
from pacs_ai.pipeline import Array, Frame, Frames, Volume

if TYPE_CHECKING:
    from pacs_ai.models.package import Package
    from pacs_ai.models.runtimes.bundle_settings import BundleSettings

DECIDES = {"AsDiscreted", "AsDiscreteD", "AsDiscreteDict"}
ACTIVATES = {"Activationsd", "ActivationsD", "ActivationsDict"}
#: A sum of probabilities may differ from one by this much.
ROUNDING = 1e-4


def for_probabilities(package: Package, settings: BundleSettings) -> dict[str, Any]:
    """Return what to change in a classifier's postprocessing so that it leaves probabilities: no arg-max, no one-hot.

    Where it has no activation, the arg-max that is taken away had chosen the likeliest of several: a softmax.

    Raises
    ------
    PipelineFault
        Nothing tells how the output becomes probabilities.
    """
    configuration = configuration_of(package, spec_of(package, settings), "cpu")
    after = configuration.postprocessing
    steps = configuration.parser.get(f"{after}::transforms") if after else None
    if not isinstance(steps, list):
        steps = []
    names = [target(step) for step in steps]
    changes: dict[str, Any] = {
        f"{after}::transforms::{n}": dict(NOTHING) for n, name in enumerate(names) if name in DECIDES
    }
    if not settings.activation and not ACTIVATES & set(names):
        if not changes:
            raise PipelineFault(
                f"nothing in {package.model.name} says how its output becomes probabilities: set activation in "
                "settings to softmax, sigmoid or none"
            )
        changes[next(iter(changes))] = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
    return changes


def image_of(frame: Frame) -> MetaTensor:
    """Return an image as MONAI's PIL reader does: (columns, rows), or (columns, rows, 3), float32."""
    pixels = np.asarray(frame.pixels, dtype=np.float32)
    channels = pixels.ndim == 3
    turned = np.ascontiguousarray(pixels.transpose(1, 0, 2) if channels else pixels.T)
    meta = {
        "original_affine": np.eye(4),
        "spatial_shape": np.asarray(turned.shape[:2]),
        "original_channel_dim": -1 if channels else float("nan"),
        "filename_or_obj": "image",
    }
    return MetaTensor(torch.from_numpy(turned), affine=torch.eye(4, dtype=torch.float64), meta=meta)


def _predicted(chain: Chain, frame: Frame) -> torch.Tensor:
    image = image_of(frame)
    with explained(chain.name, "running"):
        prediction = chain.predict({chain.parts.keys[0]: image}, tuple(image.shape[:2]))
    if not isinstance(prediction, torch.Tensor):
        raise PipelineFault(f"the postprocessing of {chain.name} returns {type(prediction).__name__}, not one tensor")
    return prediction.detach().cpu()


def label_maps(chain: Chain, images: Frames) -> Result:
    """Segment images of one size; the result's axes are image, row, column."""
    if images.shape is None:
        raise Refused("the images are not of one size, so that they cannot be one segmentation", Reason.GEOMETRY)
    masks = [np.asarray(_predicted(chain, frame)) for frame in images.images]
    planes = [_plane(mask, frame, chain.name) for mask, frame in zip(masks, images.images, strict=True)]
    stacked = np.stack(planes, axis=1)
    if len(stacked) == 1:
        return Result(stacked[0])
    return Result(np.empty((0, 0, 0), np.uint8), tuple(channel == 1 for channel in stacked))


def _plane(values: Array, frame: Frame, name: str) -> Array:
    """Return one image's channels as uint8, (channels, rows, columns)."""
    whole = values.astype(np.uint8)
    if values.ndim != 3 or not np.array_equal(whole, values):
        raise PipelineFault(f"{name} returns no whole labels for an image: let its postprocessing end in AsDiscreted")
    turned = np.ascontiguousarray(whole.transpose(0, 2, 1))
    if turned.shape[1:] != frame.pixels.shape[:2]:
        raise PipelineFault(
            f"{name} returns labels of {turned.shape[1]} x {turned.shape[2]} pixels for an image of "
            f"{frame.pixels.shape[0]} x {frame.pixels.shape[1]}: let its postprocessing have Invertd"
        )
    return turned


def probabilities(chain: Chain, given: Frames | Volume, activation: str, wanted: int) -> list[float]:
    """Return the mean probability over the images, or that of the volume; one for each question.

    A network of two classes and a card of one question: the second class is the positive answer.
    """
    if isinstance(given, Frames):
        rows = [_chances(_predicted(chain, frame), activation) for frame in given.images]
    else:
        with explained(chain.name, "running"):
            rows = [_chances(chain.predict_volume(given), activation)]
    mean = np.mean(rows, axis=0)
    if len(mean) == wanted + 1 == 2 and abs(mean.sum() - 1.0) < ROUNDING:
        mean = mean[1:]
    return [min(max(float(chance), 0.0), 1.0) for chance in mean]


def _chances(prediction: torch.Tensor, activation: str) -> Array:
    values = prediction.detach().cpu().float().reshape(-1)
    if activation == "softmax":
        values = torch.softmax(values, 0)
    elif activation == "sigmoid":
        values = torch.sigmoid(values)
    return np.asarray(values.numpy(), dtype=np.float64)
