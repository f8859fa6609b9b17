"""Refuses sources that are not of one patient and one study, and remembers what was received."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from pydicom import Dataset, config
from pydicom.multival import MultiValue

from pacs_ai.dicom.reading import READING_FAULTS, read_text
from pacs_ai.encode.case import PRIOR
from pacs_ai.errors import Reason, Refused
from pacs_ai.pipeline import TimeSeries, Volume

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pacs_ai.dicom.evidence import Evidence
    from pacs_ai.pipeline import Given

#: What all sources of one result must agree on, by the name that people know it by.
ONE_PATIENT = {
    "PatientID": "Patient ID",
    "IssuerOfPatientID": "Issuer of Patient ID",
    "PatientBirthDate": "Patient's Birth Date",
    "PatientSex": "Patient's Sex",
}
ONE_SERIES = {"SeriesInstanceUID": "Series Instance UID"}
#: Of a series that is one volume; the images of a radiograph or ultrasound series may differ in them.
ONE_GRID = {"FrameOfReferenceUID": "Frame of Reference UID", "Rows": "Rows", "Columns": "Columns"}
#: Pixel Spacing of two images of one series, relative: half a pixel over 512 columns.
PIXEL_SPACING_TOLERANCE = 1e-3


def check_sources(evidence: Mapping[str, Evidence], inputs: Mapping[str, Given] | None = None) -> None:
    """Refuse sources that are not of one patient and study, or series that are not one series; costs about 20 ms.

    Parameters
    ----------
    evidence
        By name of input. Names that begin with "prior" may be of another study.
    inputs
        What was made of them; instances of an input that is no volume may differ in size and spacing. None: volumes.

    Raises
    ------
    Refused
        In words, without any patient's value.
    """
    everything = [ds for one in evidence.values() for ds in one.datasets]
    if not everything:
        raise Refused("there is no source image", Reason.TOO_FEW)
    with config.disable_value_validation():
        for keyword, name in ONE_PATIENT.items():
            _agree(everything, keyword, f"the images carry more than one {name}: they may not be of one patient")
        current = [ds for name, one in evidence.items() if not name.startswith(PRIOR) for ds in one.datasets]
        _agree(current, "StudyInstanceUID", "the images are of more than one study")
        for name, one in evidence.items():
            is_volume = inputs is None or isinstance(inputs[name], Volume | TimeSeries)
            for keyword, meaning in (ONE_SERIES | ONE_GRID if is_volume else ONE_SERIES).items():
                _agree(one.datasets, keyword, f"the images of the input '{name}' have more than one {meaning}")
            if is_volume:
                _agree_on_spacing(name, one)
            _check_references(name, one)


def _agree(datasets: Sequence[Dataset], keyword: str, message: str) -> None:
    if len({read_text(ds, keyword) for ds in datasets}) > 1:
        raise Refused(message, Reason.IDENTITY)


def _agree_on_spacing(name: str, evidence: Evidence) -> None:
    """Compare Pixel Spacing as numbers: 0.7 and 0.700000 are one."""
    given = [ds.PixelSpacing for ds in evidence.datasets if ds.get("PixelSpacing")]
    if 0 < len(given) < len(evidence.datasets):
        raise Refused(f"some images of the input '{name}' have no Pixel Spacing", Reason.GEOMETRY)
    spacings = np.array([[float(value) for value in one] for one in given]).reshape(-1, 2)
    if len(spacings) and np.any(np.ptp(spacings, axis=0) > PIXEL_SPACING_TOLERANCE * spacings.min(axis=0)):
        raise Refused(f"the images of the input '{name}' have more than one Pixel Spacing", Reason.GEOMETRY)


def _check_references(name: str, evidence: Evidence) -> None:
    known = {str(ds.SOPInstanceUID) for ds in evidence.datasets}
    if len(known) < len(evidence.datasets):
        raise Refused(f"an image of the input '{name}' came twice under one SOP Instance UID", Reason.IDENTITY)
    if not evidence.slices or not {reference.sop_instance_uid for reference in evidence.slices} <= known:
        raise Refused(f"the slices of the input '{name}' are not among its images", Reason.IDENTITY)


class Sources:
    """What was received, as the gate asks for it."""

    def __init__(self, evidence: Mapping[str, Evidence]) -> None:
        self._datasets = [ds for one in evidence.values() for ds in one.datasets]

    @cached_property
    def frames(self) -> dict[str, int]:
        """SOP Instance UID -> number of frames of every instance."""
        return {str(ds.SOPInstanceUID): int(ds.get("NumberOfFrames") or 1) for ds in self._datasets}

    @cached_property
    def datasets(self) -> dict[str, Dataset]:
        """SOP Instance UID -> data set of every instance."""
        return {str(ds.SOPInstanceUID): ds for ds in self._datasets}

    def hold(self, uid: str) -> bool:
        """Tell whether any instance has this UID anywhere."""
        return uid in self._frequent or uid in self._all

    @cached_property
    def _frequent(self) -> set[str]:
        named = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
        return {*self.frames, *(read_text(ds, keyword) for ds in self._datasets for keyword in named)}

    @cached_property
    def _all(self) -> set[str]:
        return {uid for ds in self._datasets for uid in _uids(ds)}


def _uids(ds: Dataset) -> Iterator[str]:
    """Yield every UID of a data set, those in sequences too; what cannot be read has none."""
    for tag in list(ds.keys()):
        try:
            element = ds[tag]
        except READING_FAULTS:
            continue
        if element.VR == "SQ":
            for item in element.value:
                yield from _uids(item)
        elif element.VR == "UI" and element.value:
            values = element.value if isinstance(element.value, MultiValue) else (element.value,)
            yield from (str(value) for value in values)
