"""What the plans of an nnU-Net say of one configuration: spacing, normalisation, resampling, network, labels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pacs_ai.errors import PipelineFault

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pacs_ai.models.package import Package

PLANS = "plans.json"
DATASET = "dataset.json"
_RESAMPLING = "resample_data_or_seg_to_shape"
_NORMALISATIONS = frozenset(
    ("CTNormalization", "ZScoreNormalization", "RescaleTo01Normalization", "NoNormalization", "RGBTo01Normalization")
)
#: Reader of the training images -> axes to which it turned them, "" for as they were stored.
_READERS = {
    "SimpleITKIO": "",
    "NibabelIO": "",
    "SimpleITKIOWithReorient": "RAS",
    "NibabelIOWithReorient": "RAS",
    "NaturalImage2DIO": "",
    "Tiff3DIO": "",
}


@dataclass(frozen=True)
class Plans:
    """One configuration, read and understood.

    Parameters
    ----------
    name
        "2d", "3d_fullres", "3d_lowres".
    spacing
        Voxel size in mm after `transpose`; a 2d configuration has the two of a plane.
    patch_size
        Of the windows.
    transpose
        Order of the image's axes that the network sees.
    normalisations, masked
        Of each channel: the scheme, and whether it looks at the nonzero part alone.
    intensities
        Of each channel: the training set's ``mean``, ``std``, ``percentile_00_5``, ``percentile_99_5``.
    order, order_z
        Of the splines by which images are resampled, and along the coarse axis.
    output_order, output_order_z
        The same of the network's output.
    separate_z
        Whether the coarse axis is resampled on its own; None: where it is three times as coarse.
    network
        Class and keyword arguments of the network, as stated.
    channels
        Names of the image channels, in order.
    names
        Value in the label map -> name.
    regions
        None, or the value that each output channel paints.
    heads
        How many channels the network puts out.
    orientation
        Axes to which training images were turned, "" where they were not.
    """

    name: str
    spacing: tuple[float, ...]
    patch_size: tuple[int, ...]
    transpose: tuple[int, int, int]
    normalisations: tuple[str, ...]
    masked: tuple[bool, ...]
    intensities: tuple[Mapping[str, float], ...]
    order: int
    order_z: int
    output_order: int
    output_order_z: int
    separate_z: bool | None
    network: Mapping[str, Any]
    channels: tuple[str, ...]
    names: Mapping[int, str]
    regions: tuple[int, ...] | None
    heads: int
    orientation: str


def read(package: Package, configuration: str) -> Plans:
    """Read ``plans.json`` and ``dataset.json`` of a package, digests checked.

    Raises
    ------
    PipelineFault
        They are none of nnU-Net's, or want what is not supported; the message names it.
    """
    return understand(_object(package, PLANS), _object(package, DATASET), configuration)


def _object(package: Package, name: str) -> dict[str, Any]:
    path = next((one for one in package.model.files if one == name or one.endswith(f"/{name}")), name)
    try:
        found = json.loads(package.read(path))
    except (ValueError, RecursionError) as error:
        raise PipelineFault(f"{name} of {package.model.name} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise PipelineFault(f"{name} of {package.model.name} is no JSON object")
    return found


def configurations(plans: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the configurations in ``plans.json``."""
    found = plans.get("configurations")
    return tuple(found) if isinstance(found, dict) else ()


def understand(plans: Mapping[str, Any], dataset: Mapping[str, Any], configuration: str) -> Plans:
    """Return one configuration of the content of both files; errors as `read`."""
    try:
        return _understood(plans, dataset, configuration)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise PipelineFault(
            f"{PLANS} or {DATASET} is not as nnU-Net v2 writes it ({type(error).__name__}: {error}): get the originals"
        ) from error


def _understood(plans: Mapping[str, Any], dataset: Mapping[str, Any], name: str) -> Plans:
    chosen = _inherited(plans["configurations"], name, ())
    if chosen.get("previous_stage"):
        raise PipelineFault(
            f"{name} is the second stage of a cascade, which takes the first stage's labels as input: cascades are "
            "not supported; use 3d_fullres or 3d_lowres of this model"
        )
    image, output = _resampling(chosen, "data"), _resampling(chosen, "probabilities")
    channels = dataset.get("channel_names") or dataset["modality"]
    names, regions = _labels(dataset)
    intensities = plans.get("foreground_intensity_properties_per_channel") or plans.get(
        "foreground_intensity_properties_by_modality", {}
    )
    reader = str(plans.get("image_reader_writer", "SimpleITKIO"))
    one, two, three = (int(axis) for axis in plans["transpose_forward"])
    return Plans(
        name=name,
        spacing=tuple(float(mm) for mm in chosen["spacing"]),
        patch_size=tuple(int(size) for size in chosen["patch_size"]),
        transpose=(one, two, three),
        normalisations=_normalisations(chosen),
        masked=tuple(bool(flag) for flag in chosen["use_mask_for_norm"]),
        intensities=tuple(dict(intensities.get(str(channel), {})) for channel in range(len(channels))),
        order=int(image.get("order", 3)),
        order_z=int(image.get("order_z", 0)),
        output_order=int(output.get("order", 1)),
        output_order_z=int(output.get("order_z", 0)),
        separate_z=output.get("force_separate_z"),
        network=_network(chosen),
        channels=tuple(str(channels[key]) for key in sorted(channels, key=int)),
        names=names,
        regions=regions,
        heads=len(regions) if regions is not None else len(names) + 1,
        orientation=_orientation(reader),
    )


def _inherited(found: Mapping[str, Any], name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    if name not in found:
        raise PipelineFault(f"{PLANS} has no configuration {name!r}: there are {', '.join(found)}")
    if name in seen:
        raise PipelineFault(f"the configurations {', '.join(seen)} inherit from each other in a circle")
    own = dict(found[name])
    parent = own.pop("inherits_from", None)
    return own if parent is None else {**_inherited(found, str(parent), (*seen, name)), **own}


def _resampling(chosen: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    function = chosen.get(f"resampling_fn_{what}", _RESAMPLING)
    if function != _RESAMPLING:
        raise PipelineFault(f"the resampling {function} of {what} is not supported; {_RESAMPLING} is")
    keywords: Mapping[str, Any] = chosen.get(f"resampling_fn_{what}_kwargs", {})
    order, order_z = keywords.get("order"), keywords.get("order_z", 0)
    if what == "probabilities" and order not in (None, 0, 1):
        raise PipelineFault(f"resampling the output by splines of order {order} is not supported; order 1 is")
    if order_z != 0:
        raise PipelineFault(f"resampling the coarse axis by splines of order {order_z} is not supported; order 0 is")
    return keywords


def _normalisations(chosen: Mapping[str, Any]) -> tuple[str, ...]:
    schemes = tuple(str(scheme) for scheme in chosen["normalization_schemes"])
    for scheme in schemes:
        if scheme not in _NORMALISATIONS:
            raise PipelineFault(f"the normalisation {scheme} is not known: {', '.join(sorted(_NORMALISATIONS))} are")
    return schemes


def _orientation(reader: str) -> str:
    if reader not in _READERS:
        raise PipelineFault(f"the image reader {reader} is not known: {', '.join(sorted(_READERS))} are")
    return _READERS[reader]


def _labels(dataset: Mapping[str, Any]) -> tuple[dict[int, str], tuple[int, ...] | None]:
    """Return value -> name without the background, and what the channels paint where it was trained on regions."""
    found = {name: value for name, value in dataset["labels"].items() if name != "ignore"}
    foreground = {name: value for name, value in found.items() if value not in (0, [0])}
    if not any(isinstance(value, list) and len(value) > 1 for value in found.values()):
        named = {int(value[0] if isinstance(value, list) else value): str(name) for name, value in foreground.items()}
        if sorted(named) != list(range(1, len(named) + 1)):
            raise PipelineFault(f"the labels of {DATASET} are not numbered 1, 2, 3 ...: {sorted(named)}")
        return dict(sorted(named.items())), None
    order = tuple(int(value) for value in dataset["regions_class_order"])
    return dict(zip(order, foreground, strict=True)), order


def _network(chosen: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return class and arguments; plans before version 2.4 state them one by one."""
    stated = chosen.get("architecture")
    if stated is not None:
        return dict(stated)
    size = len(chosen["patch_size"])
    stages = len(chosen["n_conv_per_stage_encoder"])
    name = str(chosen["UNet_class_name"])
    widest, first = int(chosen["unet_max_num_features"]), int(chosen["UNet_base_num_features"])
    blocks = "n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [min(first * 2**stage, widest) for stage in range(stages)],
            "conv_op": f"torch.nn.modules.conv.Conv{size}d",
            "kernel_sizes": chosen["conv_kernel_sizes"],
            "strides": chosen["pool_op_kernel_sizes"],
            blocks: chosen["n_conv_per_stage_encoder"],
            "n_conv_per_stage_decoder": chosen["n_conv_per_stage_decoder"],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{size}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
    }
