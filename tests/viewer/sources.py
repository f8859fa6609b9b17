"""What is opened in the viewer: real images, and what the node makes of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from pacs_ai.encode.provenance import Work
from pacs_ai.encode.results import encode
from pacs_ai.infer.analysis import Steps, analyse
from pacs_ai.pipeline import Volume
from pacs_ai.testing.pipelines import Everything

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from orthanc_bed import Orthanc

    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.infer.analysis import Material
    from pacs_ai.pipeline import Card, Findings, Pipeline
    from pacs_ai.profiles import Encoding

JOB = Work(
    job_key="",
    generation=1,
    created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    card=Everything.card,
    model_digest="a" * 64,
    settings_digest="b" * 64,
    parameters="device=cpu",
    node_name="node-1",
    software_version="0.1.0",
)
UID_ROOT = "1.2.826.0.1.3680043.8.498.4"


@dataclass(frozen=True)
class Source:
    """One series."""

    paths: tuple[Path, ...]
    study: str
    series: str

    @classmethod
    def of(cls, paths: Sequence[Path]) -> Source:
        """Read which series it is."""
        header = dcmread(paths[0], stop_before_pixels=True)
        return cls(tuple(paths), str(header.StudyInstanceUID), str(header.SeriesInstanceUID))


@dataclass(frozen=True)
class Shown:
    """Results that Orthanc has, of what was found in a source."""

    analysed: Analysed
    results: tuple[Encoded, ...]

    @property
    def only(self) -> Encoded:
        """The only object."""
        (one,) = self.results
        return one

    @property
    def study(self) -> str:
        """Study Instance UID."""
        return self.analysed.source.study

    @property
    def series(self) -> list[str]:
        """Series Instance UIDs of the source and of the objects."""
        return list(dict.fromkeys([self.analysed.source.series, *(one.series_instance_uid for one in self.results)]))


@dataclass(frozen=True)
class Analysed:
    """What a pipeline found in a source, whose images Orthanc gets too."""

    orthanc: Orthanc
    source: Source
    card: Card
    material: Material
    findings: Findings

    @classmethod
    def by(cls, pipeline: Pipeline, orthanc: Orthanc, source: Source) -> Analysed:
        """Have a pipeline analyse a source, as the node does, and store the source in Orthanc."""
        orthanc.upload(*source.paths)
        pipeline.prepare("cpu")
        files = [(path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in source.paths]
        found = analyse(
            pipeline.card.name,
            pipeline.card,
            lambda: pipeline,
            {"image": files},
            lambda card: replace(JOB, card=card),
            (),
            Steps(lambda _name: None, {}),
        )
        return cls(orthanc, source, pipeline.card, found.material, found.findings)

    def shown_as(self, key: str, *wanted: Encoding, findings: Findings | None = None) -> Shown:
        """Encode what was found (or other findings), and store it in Orthanc; `key` tells the job from others."""
        work = replace(JOB, card=self.card, job_key=key)
        results = encode(findings or self.findings, self.material.evidence, self.material.inputs, work, wanted)
        for one in results:
            self.orthanc.call("POST", "/instances", one.to_bytes())
        return Shown(self, results)

    @property
    def images(self) -> list[str]:
        """SOP Instance UIDs of the slices or images, in the order of the findings."""
        return [one.sop_instance_uid for one in self.material.evidence["image"].slices]

    def voxels(self, findings: Findings | None = None) -> dict[str, dict[str, list[int]]]:
        """Return image -> segment number -> how many voxels it has there, and the sum of their positions."""
        placed: dict[str, dict[str, list[int]]] = {}
        filled = [segment for segment in (findings or self.findings).segments if segment.mask.any()]
        for number, segment in enumerate(filled, start=1):
            for image, plane in zip(self.images, segment.mask, strict=True):
                positions = np.flatnonzero(plane)
                if len(positions):
                    placed.setdefault(image, {})[str(number)] = [len(positions), int(positions.sum())]
        return placed

    def place(self, image: int, row: int, column: int) -> list[float]:
        """Return where the centre of a voxel lies in the patient (LPS, mm)."""
        volume = self.material.inputs["image"]
        assert isinstance(volume, Volume)
        return [float(value) for value in (volume.affine @ (image, row, column, 1))[:3]]


def write_radiograph(folder: Path, picture: Path) -> Path:
    """Write a public chest radiograph as DX, For Presentation; its identity is made up."""
    with Image.open(picture) as opened:
        pixels = np.asarray(opened.convert("L"))
    ds = Dataset()
    ds.SOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID = f"{UID_ROOT}.3"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{UID_ROOT}.1", f"{UID_ROOT}.2"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Radiograph^Public", "DX-1", "", ""
    ds.StudyDate, ds.StudyTime, ds.ReferringPhysicianName = "20260102", "101112", ""
    ds.StudyID, ds.AccessionNumber, ds.Manufacturer = "1", "", ""
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "DX", 1, 1
    ds.SeriesDescription, ds.BodyPartExamined = "Chest PA", "CHEST"
    ds.PresentationIntentType, ds.ViewPosition, ds.ImageLaterality = "FOR PRESENTATION", "PA", "U"
    ds.ImageType, ds.PatientOrientation = ["ORIGINAL", "PRIMARY", ""], ["L", "F"]
    ds.ImagerPixelSpacing = [0.168, 0.168]
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.PresentationLUTShape, ds.LossyImageCompression = "IDENTITY", "00"
    ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "LOG", -1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "US"
    ds.WindowCenter, ds.WindowWidth = 128, 256
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.PixelData = pixels.tobytes()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = folder / "radiograph.dcm"
    ds.save_as(path, enforce_file_format=True)
    return path
