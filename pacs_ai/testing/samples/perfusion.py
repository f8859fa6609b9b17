"""A dynamic CT of a head phantom: a bolus that reaches one side later than the other, with known times to peak."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pacs_ai.dicom.identifiers import derive_uid
from pacs_ai.testing.phantom import Phantom
from pacs_ai.testing.series import phantom_datasets

if TYPE_CHECKING:
    from pathlib import Path

Array = npt.NDArray[Any]

_BASE_HU, _PEAK_HU = 35.0, 60.0
_INTERCEPT = -1024


@dataclass(frozen=True)
class Bolus:
    """What the series shows; these are the truth.

    Parameters
    ----------
    times, step_s
        Phases, and seconds between them.
    slices, rows, columns
        Of each.
    early_s, late_s
        When the bolus is highest on the patient's right (low columns) and on the left.
    width_s
        Standard deviation of the bolus in time.
    """

    times: int = 12
    step_s: float = 2.0
    slices: int = 3
    rows: int = 24
    columns: int = 32
    early_s: float = 8.0
    late_s: float = 14.0
    width_s: float = 3.0


def peaks_s(bolus: Bolus) -> Array:
    """Return (slices, rows, columns) float64: when each voxel is brightest; NaN outside of the head."""
    rows, columns = np.mgrid[: bolus.rows, : bolus.columns]
    inside = ((rows + 0.5) / bolus.rows - 0.5) ** 2 + ((columns + 0.5) / bolus.columns - 0.5) ** 2 < 0.2
    peak = np.where(columns < bolus.columns // 2, bolus.early_s, bolus.late_s)
    return np.repeat(np.where(inside, peak, np.nan)[None], bolus.slices, axis=0)


def values(bolus: Bolus) -> Array:
    """Return (times, slices, rows, columns) int16 HU."""
    peaks = peaks_s(bolus)
    seconds = np.arange(bolus.times)[:, None, None, None] * bolus.step_s
    curve = _BASE_HU + _PEAK_HU * np.exp(-0.5 * ((seconds - peaks) / bolus.width_s) ** 2)
    return np.asarray(np.where(np.isnan(peaks), -1000, np.rint(curve)), np.int16)


def write(folder: Path) -> None:
    """Write the series of `Bolus`'s defaults, enlarged."""
    write_perfusion(folder, Bolus(times=20, slices=8, rows=128, columns=128))


def write_perfusion(folder: Path, bolus: Bolus) -> list[Path]:
    """Write one CT image for each slice and phase, and return the files, phase by phase."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    phantom = Phantom(slices=bolus.slices, rows=bolus.rows, columns=bolus.columns)
    for phase, volume in enumerate(values(bolus)):
        for place, ds in enumerate(sorted(phantom_datasets(phantom), key=_height)):
            stored = volume[place].astype(np.int32) - _INTERCEPT
            ds.PixelData = np.clip(stored, 0, 4095).astype("<u2").tobytes()
            ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
            ds.RescaleSlope, ds.RescaleIntercept = "1", str(_INTERCEPT)
            for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
                ds.pop(keyword, None)
            number = phase * bolus.slices + place + 1
            ds.SOPInstanceUID = derive_uid("perfusion phantom", ds.SeriesInstanceUID, number)
            ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
            ds.InstanceNumber, ds.TemporalPositionIdentifier = number, phase + 1
            ds.NumberOfTemporalPositions = bolus.times
            ds.BodyPartExamined = "HEAD"
            ds.SeriesDescription = "Perfusion"
            ds.AcquisitionTime = _clock(phase * bolus.step_s)
            paths.append(folder / f"{number:04d}.dcm")
            ds.save_as(paths[-1], enforce_file_format=True)
    return paths


def _height(ds: Any) -> float:
    return float(ds.ImagePositionPatient[2])


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"12{int(minutes):02d}{rest:09.6f}"
