"""Measure the encoding of segmentations: speed, size, memory and content, beside highdicom in the same run.

    scripts/bench_encode.py compare
    scripts/bench_encode.py limits

`compare` writes segmentations of 500 slices of 512 x 512: of 102 seeded ellipsoids and, where the real data are beside
this checkout, of a TotalSegmentator label map enlarged to that size. This node and highdicom get the same array (a
label map, the form that highdicom is fastest with) and the same 500 source headers, and take turns; each measurement is
a process of its own, which has encoded a small segmentation before, because highdicom reads its tables once for each
process. The time runs from the array to the closed file, synced. Memory is the peak of the resident set beyond what the
process had when the time began, so beyond the input. Then both files are read again and compared attribute by
attribute and frame by frame.

`limits` encodes 120 labels on 2,000 slices.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from highdicom.seg import Segmentation, SegmentationTypeValues
from pydicom import Dataset, dcmread
from pydicom.uid import UID, JPEGLSLossless, RLELossless
from rich.console import Console
from rich.table import Table

from pacs_ai import profiles
from pacs_ai.dicom.evidence import Evidence, FrameReference
from pacs_ai.encode.case import Case
from pacs_ai.encode.provenance import MANUFACTURER, MODEL_NAME, Work
from pacs_ai.encode.voxels.segmentation import encode_segmentation
from pacs_ai.encode.voxels.template import describe
from pacs_ai.pipeline import (
    ANATOMICAL_STRUCTURE,
    Card,
    Code,
    Findings,
    Input,
    Label,
    Segment,
    Volume,
)
from pacs_ai.profiles import Kind, Profile, Wanted
from pacs_ai.testing import Phantom, phantom_datasets

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TOTALSEGMENTATOR = (
    Path(__file__).resolve().parents[2] / "shared" / "data" / "ct_abdomen_nifti_totalseg" / "example_seg.nii.gz"
)
SHAPE = (500, 512, 512)
LABELS = 102
MAKERS = ("highdicom", "pacs_ai")
SYNTAXES = {"native": profiles.EXPLICIT, "RLE": "RLELossless", "JPEG-LS": "JPEGLSLossless"}
FORMS = (("binary", "native"), ("labelmap", "native"), ("labelmap", "RLE"), ("labelmap", "JPEG-LS"))
#: What the two state differently on purpose: UIDs and times, who made it on whose order, and what part of the body.
NOT_COMPARED = frozenset(
    (
        "SOPInstanceUID", "SeriesInstanceUID", "InstanceCreationDate", "InstanceCreationTime", "ContentDate",
        "ContentTime", "SeriesDate", "SeriesTime", "DimensionOrganizationSequence", "DimensionIndexSequence",
        "ContributingEquipmentSequence", "SoftwareVersions", "SeriesDescription", "ContentQualification",
        "ContentCreatorName", "BodyPartExamined",
    )
)  # fmt: skip

Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Figures:
    """One measurement: seconds to encode and to write, the file's MB, MB of memory beyond the input."""

    encoding: float
    writing: float
    size: float
    memory: float

    @property
    def seconds(self) -> float:
        """From the array to the synced file."""
        return self.encoding + self.writing


# What is encoded


def ellipsoids(count: int, shape: tuple[int, ...]) -> Labels:
    """Return a label map of seeded ellipsoids with semi-axes of 15 to 60 voxels; earlier ones lie before later ones."""
    rng = np.random.default_rng(4)
    labels = np.zeros(shape, np.uint8)
    number = 1
    while number <= count:
        radius = rng.uniform(15, 60, 3)
        centre = rng.uniform(radius + 1, np.array(shape) - radius - 1)
        low, high = np.floor(centre - radius).astype(int), np.ceil(centre + radius).astype(int) + 1
        z, y, x = np.ix_(*(((np.arange(low[n], high[n]) - centre[n]) / radius[n]) ** 2 for n in range(3)))
        box = labels[tuple(slice(*ends) for ends in zip(low, high, strict=True))]
        visible = (z + y + x < 1) & (box == 0)
        box[visible] = number
        number += bool(visible.any())
    return labels


def enlarged(shape: tuple[int, ...]) -> Labels:
    """Return TotalSegmentator's labels of an abdomen as (slices, rows, columns), nearest neighbours, from 1 on."""
    import nibabel as nib

    volume = np.asanyarray(nib.load(TOTALSEGMENTATOR).dataobj)
    _, numbered = np.unique(volume.transpose(2, 1, 0), return_inverse=True)
    places = [np.arange(size) * old // size for size, old in zip(shape, numbered.shape, strict=True)]
    return np.ascontiguousarray(numbered.astype(np.uint8)[np.ix_(*places)])


def make_case(labels: npt.NDArray[Any]) -> Case:
    """Return findings with a segment for each number in the label map, over as many source slices."""
    numbers = range(1, int(labels.max()) + 1)
    organ = Code("91723000", "SCT", "Anatomical structure")
    card = Card(
        name="bench",
        version="1",
        manufacturer="Example",
        title="Organs",
        inputs={"image": Input(("CT",))},
        labels=tuple(Label(f"Organ {n}", ANATOMICAL_STRUCTURE, organ, colour=(n, 255 - n, 128)) for n in numbers),
        procedure=Code("25045-6", "LN", "CT unspecified body region"),
        intended_use="measuring",
    )
    work = Work("bench", 1, datetime(2026, 1, 2, tzinfo=UTC), card, "a" * 64, "b" * 64, "", "bench", "1")
    slices, rows, columns = labels.shape
    phantom = Phantom(slices=slices, rows=8, columns=8, spacing=(1.5, 20.0, 20.0))
    datasets = sorted(phantom_datasets(phantom), key=lambda ds: float(ds.ImagePositionPatient[2]))
    for ds in datasets:
        ds.Rows, ds.Columns = rows, columns
        ds.AccessionNumber = ds.AccessionNumber or ""
        del ds.PixelData
    references = tuple(FrameReference(ds.SOPClassUID, ds.SOPInstanceUID) for ds in datasets)
    volume = Volume(np.broadcast_to(np.int16(0), labels.shape), phantom.affine, "CT")
    segments = tuple(Segment(f"Organ {n}", labels, n) for n in numbers)
    return Case(Findings(segments), {"image": Evidence(tuple(datasets), references)}, {"image": volume}, work)


# Who encodes


def by_node(case: Case, form: str, syntax: str, path: Path) -> tuple[float, float]:
    """Write the file; return the seconds for encoding and for writing."""
    (choice,) = profiles.plan(Profile("one", (Wanted(Kind.SEGMENTATION, form, SYNTAXES[syntax]),)), 9001)
    began = time.perf_counter()
    (result,) = encode_segmentation(case, choice.encoding, None)
    encoded = time.perf_counter()
    with path.open("wb") as target:
        target.writelines(result.parts)
        target.flush()
        os.fsync(target.fileno())
    return encoded - began, time.perf_counter() - encoded


def by_highdicom(case: Case, form: str, syntax: str, path: Path) -> tuple[float, float]:
    """As `by_node`."""
    labels = case.findings.segments[0].voxels
    began = time.perf_counter()
    result = Segmentation(
        source_images=list(case.own.datasets),
        pixel_array=labels,
        segmentation_type=SegmentationTypeValues[form.upper()],
        segment_descriptions=[describe(one.label, one.number, case.work) for one in case.findings.segments],
        series_instance_uid=UID("1.2.3"),
        series_number=9001,
        sop_instance_uid=UID("1.2.3.4"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=MODEL_NAME,
        device_serial_number=case.work.device_serial_number,
        content_label="SEGMENTATION",
        content_description=case.work.series_description,
        transfer_syntax_uid={"RLE": RLELossless, "JPEG-LS": JPEGLSLossless}.get(syntax, UID("1.2.840.10008.1.2.1")),
    )
    encoded = time.perf_counter()
    with path.open("wb") as target:
        result.save_as(target)
        target.flush()
        os.fsync(target.fileno())
    return encoded - began, time.perf_counter() - encoded


def memory(key: str) -> float:
    """Return a row of this process's memory, MB: VmRSS is now, VmHWM the peak."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(rows[key].split()[0]) / 1000


def one(arguments: argparse.Namespace) -> None:
    """Measure once, in this process, and print the figures as JSON."""
    write = {"pacs_ai": by_node, "highdicom": by_highdicom}[arguments.maker]
    small = np.zeros((8, 16, 16), np.uint8)
    small[2:5, 3:9, 4:7], small[4:7, 10:14, 4:7] = 1, 2
    write(make_case(small), arguments.form, arguments.syntax, arguments.path)
    case = make_case(np.load(arguments.labels))
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = memory("VmRSS")
    encoding, writing = write(case, arguments.form, arguments.syntax, arguments.path)
    size = arguments.path.stat().st_size / 1e6
    print(json.dumps([encoding, writing, size, memory("VmHWM") - before]))


def measure(maker: str, form: str, syntax: str, labels: Path, path: Path) -> Figures:
    """Run `one` in a process of its own."""
    command = [sys.executable, __file__, "one", maker, form, syntax, str(labels), str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Figures(*json.loads(done.stdout))


# The same content


def differences(ours: Dataset, theirs: Dataset) -> Iterator[str]:
    """Yield the keywords in which two segmentations differ that should not; the order of Background aside."""
    for ds in (ours, theirs):
        ds.SegmentSequence = sorted(ds.SegmentSequence, key=lambda one: one.SegmentNumber)
    for keyword in sorted({*ours.dir(), *theirs.dir()} - NOT_COMPARED - {"PixelData"}):
        if ours.get(keyword) != theirs.get(keyword):
            yield keyword
    dimensions = [[one.DimensionIndexPointer for one in ds.DimensionIndexSequence] for ds in (ours, theirs)]
    if dimensions[0] != dimensions[1]:
        yield "DimensionIndexSequence"
    if ours.file_meta.TransferSyntaxUID.is_encapsulated:
        same = np.array_equal(ours.pixel_array, theirs.pixel_array)
    else:
        same = ours.PixelData == theirs.PixelData
    if not same:
        yield "PixelData"


def compare(arguments: argparse.Namespace) -> None:
    """Print a table for each input."""
    console = Console(width=118)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        scratch = Path(name)
        for title, labels in inputs(arguments.inputs, console):
            stored = scratch / "labels.npy"
            np.save(stored, labels)
            found: dict[tuple[str, str, str], list[Figures]] = {}
            content: dict[tuple[str, str], str] = {}
            for turn in range(arguments.rounds):
                for form, syntax in FORMS:
                    for maker in MAKERS:
                        figures = measure(maker, form, syntax, stored, scratch / f"{maker}.dcm")
                        found.setdefault((form, syntax, maker), []).append(figures)
                    if turn == 0:
                        read = [dcmread(scratch / f"{maker}.dcm") for maker in reversed(MAKERS)]
                        content[form, syntax] = ", ".join(differences(*read)) or "the same"
            console.print(table(title, found, content))


def inputs(names: Sequence[str], console: Console) -> Iterator[tuple[str, Labels]]:
    """Yield what is encoded."""
    size = " x ".join(map(str, SHAPE))
    if "ellipsoids" in names:
        yield f"{LABELS} ellipsoids, {size}", ellipsoids(LABELS, SHAPE)
    if "organs" in names and TOTALSEGMENTATOR.exists():
        labels = enlarged(SHAPE)
        yield f"TotalSegmentator, {labels.max()} labels, {size}", labels
    elif "organs" in names:
        console.print("[yellow]REAL LABEL MAP MISSING: no shared/data beside this checkout[/]")


def table(title: str, found: dict[tuple[str, str, str], list[Figures]], content: dict[tuple[str, str], str]) -> Table:
    """Return the medians of the rounds."""
    printed = Table(title=title, title_justify="left")
    for column in ("form", "by"):
        printed.add_column(column)
    for column in ("encode s", "write s", "in all s", "to highdicom", "MB", "memory MB", "content"):
        printed.add_column(column, justify="right")
    for form, syntax in FORMS:
        stock = statistics.median(one.seconds for one in found[form, syntax, MAKERS[0]])
        for maker in MAKERS:
            each = found[form, syntax, maker]
            seconds = statistics.median(one.seconds for one in each)
            printed.add_row(
                f"{form}, {syntax}",
                maker,
                f"{statistics.median(one.encoding for one in each):.2f}",
                f"{statistics.median(one.writing for one in each):.2f}",
                f"{seconds:.2f}",
                f"{stock / seconds:.1f}x",
                f"{each[0].size:.2f}",
                f"{max(one.memory for one in each):.0f}",
                content[form, syntax] if maker == MAKERS[1] else "",
            )
    return printed


def limits(arguments: argparse.Namespace) -> None:
    """Print seconds, size and memory of 120 labels on 2,000 slices."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        stored = Path(name) / "labels.npy"
        labels = ellipsoids(arguments.labels, (arguments.slices, 512, 512))
        np.save(stored, labels)
        size = labels.nbytes / 1e6
        del labels
        for form, syntax in FORMS:
            figures = measure("pacs_ai", form, syntax, stored, Path(name) / "one.dcm")
            print(
                f"{arguments.labels} labels, {arguments.slices} slices, {form}, {syntax}: {figures.seconds:.1f} s, "
                f"{figures.size:.1f} MB, {figures.memory:.0f} MB of memory beyond the label map's {size:.0f} MB"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the encoding of segmentations.")
    commands = parser.add_subparsers(required=True)
    comparing = commands.add_parser("compare", help="beside highdicom")
    comparing.add_argument("--rounds", type=int, default=3)
    comparing.add_argument("--inputs", nargs="+", choices=("ellipsoids", "organs"), default=("ellipsoids", "organs"))
    comparing.set_defaults(run=compare)
    limiting = commands.add_parser("limits", help="as large as it gets")
    limiting.add_argument("--slices", type=int, default=2000)
    limiting.add_argument("--labels", type=int, default=120)
    limiting.set_defaults(run=limits)
    for command in (comparing, limiting):
        command.add_argument("--folder", type=Path, help="on the disk to measure; default the system's folder")
    measuring = commands.add_parser("one", help="measure once (called by the others)")
    measuring.add_argument("maker", choices=MAKERS)
    measuring.add_argument("form")
    measuring.add_argument("syntax", choices=SYNTAXES)
    measuring.add_argument("labels", type=Path)
    measuring.add_argument("path", type=Path)
    measuring.set_defaults(run=one)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
