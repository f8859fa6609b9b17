"""Images made anew by a pipeline, as a series of the source's own kind that says what it was derived from, and how."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydicom import Dataset

from pacs_ai.encode.body_part import copy_body_part
from pacs_ai.encode.encoded import encoded
from pacs_ai.encode.grid import frame_of_reference
from pacs_ai.encode.pictures.picture import patient_orientation, plane_of
from pacs_ai.encode.pictures.secondary_capture import disclaimer
from pacs_ai.encode.provenance import DISCLAIMER, LONG_STRING, clean, stamp
from pacs_ai.encode.voxels.codecs import NATIVE, pixel_data
from pacs_ai.encode.voxels.derived_header import carried_over, describe_derivation
from pacs_ai.encode.voxels.stored_values import Scheme, choose
from pacs_ai.pipeline import Clearance

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pacs_ai.encode.case import Case
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.pipeline import Array, Derived
    from pacs_ai.profiles import Encoding

#: Images are greyscale; colour sources have none derived from them.
GREYSCALES = ("MONOCHROME1", "MONOCHROME2")


def encode_derived_images(case: Case, encoding: Encoding, _cited: Encoded | None) -> tuple[Encoded, ...]:
    """Return a series for each set of derived images: an instance for each received one that was read.

    Each has its source's SOP class, geometry, Frame of Reference and Instance Number. All series bear the encoding's
    Series Number; their UIDs differ by title and order. None of colour sources.
    """
    if any(ds.get("PhotometricInterpretation") not in GREYSCALES for ds in case.own.datasets):
        return ()
    return tuple(
        made
        for ordinal, one in enumerate(case.findings.images, 1)
        for made in _encode_series(case, encoding, one, ordinal)
    )


def _encode_series(case: Case, encoding: Encoding, one: Derived, ordinal: int) -> Iterator[Encoded]:
    scheme = choose(case, one.voxels)
    first = (ordinal - 1) * len(case.own.datasets) + 1
    for number, source in enumerate(case.own.datasets, first):
        indices = _frames_of(case, source)
        if not indices:
            continue
        result = _header(case, source, one, scheme, indices)
        result.SOPInstanceUID = case.work.uid(encoding.key, "instance", number)
        result.SeriesInstanceUID = case.work.uid(encoding.series, f"{one.title}-{ordinal}")
        result.InstanceNumber = source.get("InstanceNumber") or number
        stamp(result, source, case.work, encoding)
        result.SeriesDescription = _series_description(case, one)
        frames = [_pixels(case, source, scheme, one.voxels[index], index) for index in indices]
        yield encoded(encoding, result, *pixel_data(frames, NATIVE))


def _frames_of(case: Case, source: Dataset) -> list[int]:
    """Return the slices or images that lie in one received instance, in the order of its frames."""
    uid = str(source.SOPInstanceUID)
    found = [index for index, one in enumerate(case.own.slices) if one.sop_instance_uid == uid]
    return sorted(found, key=lambda index: case.own.slices[index].frame_number or 1)


def _series_description(case: Case, one: Derived) -> str:
    ending = f" ({DISCLAIMER})" if case.card.clearance == Clearance.RESEARCH else ""
    return clean(f"AI: {one.title}", LONG_STRING - len(ending)) + ending


def _header(case: Case, source: Dataset, one: Derived, scheme: Scheme, indices: Sequence[int]) -> Dataset:
    """Return the image without its UIDs, identity and pixels."""
    result = carried_over(source)
    done = clean(f"{one.title}: {case.card.name} {case.card.version}", 1024)
    describe_derivation(result, source, one.derivation, done, [case.own.slices[index] for index in indices])
    result.ImageComments = disclaimer(case)
    if "ImageLaterality" not in result and "SharedFunctionalGroupsSequence" not in result:
        copy_body_part(result, source)
    if "PatientOrientation" in result and patient_orientation(result.PatientOrientation) == ("", ""):
        result.PatientOrientation = None  # type 2C, and "CC" is none
    if case.has_volume:
        result.FrameOfReferenceUID = frame_of_reference(source)
        result.PositionReferenceIndicator = source.get("PositionReferenceIndicator") or None
        result.PositionReferenceIndicator = source.get("PositionReferenceIndicator") or None  # type 2, PS3.3 C.7.4.1
    storage = scheme.storage
    if "ModalityLUTSequence" in result:
        del result.ModalityLUTSequence
        _set_grey(result, source)
    result.Rows, result.Columns = one.voxels.shape[1:]
    result.SamplesPerPixel = 1
    result.BitsAllocated, result.BitsStored, result.HighBit = (
        storage.bits_allocated,
        storage.bits_stored,
        storage.bits_stored - 1,
    )
    if "NumberOfFrames" in source:
        result.NumberOfFrames = len(indices)
    same_sign = result.get("PixelRepresentation") == int(storage.signed)
    result.PixelRepresentation = int(storage.signed)
    if not (scheme.own and same_sign):
        for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
            if keyword in result:
                del result[keyword]
    if not scheme.own:
        _set_rescale(case, result, source, scheme, indices)
    return result


def _set_grey(result: Dataset, source: Dataset) -> None:
    """Turn an image to MONOCHROME2, as its values reach a pipeline, in place; a window of turned values goes."""
    if source.PhotometricInterpretation == "MONOCHROME2":
        return
    result.PhotometricInterpretation = "MONOCHROME2"
    if "PresentationLUTShape" in result:
        result.PresentationLUTShape = "IDENTITY"
    for keyword in ("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "VOILUTFunction", "VOILUTSequence"):
        if keyword in result:
            del result[keyword]


def _set_rescale(case: Case, result: Dataset, source: Dataset, scheme: Scheme, indices: Sequence[int]) -> None:
    """State the new rescale, in place: the same for all frames."""
    rescale = scheme.rescales[indices[0]]
    holder = result
    if "PerFrameFunctionalGroupsSequence" in result:
        holder = Dataset()
        for frame in result.PerFrameFunctionalGroupsSequence:
            if "PixelValueTransformationSequence" in frame:
                del frame.PixelValueTransformationSequence
        result.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = [holder]
    elif not case.has_volume:
        _set_grey(result, source)
    holder.RescaleSlope, holder.RescaleIntercept = rescale.slope, rescale.intercept
    if case.given.modality != "PT":
        holder.RescaleType = source.get("RescaleType") or ("HU" if case.given.modality == "CT" else "US")


def _pixels(case: Case, source: Dataset, scheme: Scheme, values: Array, index: int) -> Array:
    """Return one frame as it is stored; padding stays where the source has it."""
    pixels = scheme.pixels(values, index)
    padding = source.get("PixelPaddingValue")
    if (
        not isinstance(padding, int)
        or not scheme.own
        or scheme.storage.signed != bool(source.get("PixelRepresentation"))
    ):
        return pixels
    limit = source.get("PixelPaddingRangeLimit")
    low, high = sorted((padding, limit if isinstance(limit, int) else padding))
    was = scheme.pixels(plane_of(case.ground, index), index)
    return np.where((was >= low) & (was <= high), was, pixels)
