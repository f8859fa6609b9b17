"""What a pipeline is given: a volume, images, images over time, or a waveform."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Volume:
    """One series as a regular grid.

    Parameters
    ----------
    voxels
        (slices, rows, columns), modality values (HU for CT) after the Modality LUT; int16 where exact, else float32.
    affine
        (4, 4) float64: (slice, row, column, 1) -> (x, y, z, 1) in mm in the patient's LPS system
        (PS3.3 C.7.6.2.1.1: +x to the patient's left, +y to the back, +z to the head).
    modality
        Modality (0008,0060).
    header
        DICOM keyword -> value, as text, of attributes that pipelines judge by (BodyPartExamined, SeriesDescription,
        ConvolutionKernel, PatientAge, PatientPosition, ...), absent where the series has none.
    frame_of_reference_uid
        Frame of Reference UID (0020,0052), "" where there is none: volumes of one share the patient's coordinates.
    """

    voxels: Array
    affine: Array
    modality: str
    header: Mapping[str, str] = field(default_factory=dict)
    frame_of_reference_uid: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns), the shape of a segment."""
        slices, rows, columns = self.voxels.shape
        return slices, rows, columns

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring slices, rows and columns in mm."""
        s, r, c = (float(np.linalg.norm(self.affine[:3, axis])) for axis in range(3))
        return s, r, c

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in mL."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000.0


@dataclass(frozen=True)
class Frame:
    """One image of a `Frames` input: a radiograph, a mammogram, one frame of an ultrasound clip.

    Parameters
    ----------
    pixels
        (rows, columns), or (rows, columns, 3) RGB uint8; greyscale after the Modality LUT, MONOCHROME1 turned so that
        high is bright; int16, uint16 or float32.
    spacing
        Distance of neighbouring rows and columns in mm; None where the image says none that holds in the patient.
    header
        DICOM keyword -> value, as text (ViewPosition, ImageLaterality, PatientOrientation, BodyPartExamined ...).
    """

    pixels: Array
    spacing: tuple[float, float] | None
    header: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Frames:
    """One series of projection or ultrasound images, which need not be of one size.

    Parameters
    ----------
    images
        In the order of Instance Number, the frames of a multi-frame image one after another.
    modality
        Modality (0008,0060): CR, DX, MG, US, ...
    header
        As `Volume.header`, of the first image.
    """

    images: tuple[Frame, ...]
    modality: str
    header: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(images, rows, columns), the shape of a segment; None where the images are not of one size."""
        sizes = {image.pixels.shape[:2] for image in self.images}
        if len(sizes) != 1:
            return None
        ((rows, columns),) = sizes
        return len(self.images), rows, columns


@dataclass(frozen=True)
class TimeSeries:
    """One series of a volume, or of one plane, that was acquired again and again: perfusion, dynamic MR, gated cine.

    Parameters
    ----------
    voxels
        (times, slices, rows, columns), modality values as `Volume.voxels`.
    affine
        As `Volume.affine`; the same at all times.
    times_s
        (times,) float64, seconds after the first, ascending.
    modality, header, frame_of_reference_uid
        As `Volume`.
    """

    voxels: Array
    affine: Array
    times_s: Array
    modality: str
    header: Mapping[str, str] = field(default_factory=dict)
    frame_of_reference_uid: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns), the shape of a segment."""
        _, slices, rows, columns = self.voxels.shape
        return slices, rows, columns

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring slices, rows and columns in mm."""
        s, r, c = (float(np.linalg.norm(self.affine[:3, axis])) for axis in range(3))
        return s, r, c


@dataclass(frozen=True)
class Waveform:
    """One multiplex group of a waveform: the twelve leads of an ECG.

    Parameters
    ----------
    samples
        (channels, samples) float32 in `unit`, after Channel Sensitivity and Baseline (PS3.3 C.10.9.1.4.2).
    frequency_hz
        Sampling Frequency (003A,001A).
    channels
        Name of each channel for people ("I", "aVR", "V6"), from its Channel Source (CID 3001).
    unit
        UCUM unit of the samples ("mV").
    modality
        Modality (0008,0060): ECG.
    header
        As `Volume.header`.
    group
        Which Multiplex Group of the Waveform Sequence, from 1.
    """

    samples: Array
    frequency_hz: float
    channels: tuple[str, ...]
    unit: str
    modality: str
    header: Mapping[str, str] = field(default_factory=dict)
    group: int = 1


#: What a pipeline is given under each name.
Given = Volume | Frames | TimeSeries | Waveform
