"""What the demo PACS got of a reading: read again, compared with what was found, its picture and its text shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image
from pydicom import dcmread

from pacs_ai.demo import derived, proof, readback
from pacs_ai.encode.pictures.montage import montage
from pacs_ai.infer.volume import load_volume
from pacs_ai.pipeline import Findings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pydicom import Dataset

    from pacs_ai.demo.proof import Check
    from pacs_ai.demo.reading import Reading
    from pacs_ai.demo.study import Study
    from pacs_ai.pipeline import Measurement
    from pacs_ai.store.views import JobView, ResultView


@dataclass(frozen=True)
class Outcome:
    """What came of one job.

    Parameters
    ----------
    files
        Where the demo PACS keeps the results.
    values
        As read from the SR.
    checks
        What was looked at.
    picture
        The montage, or the page that the node drew; None where nothing arrived that could be drawn.
    text
        Lines of the text report, where that is what is looked at.
    """

    files: tuple[Path, ...]
    values: tuple[Measurement, ...]
    checks: tuple[Check, ...]
    picture: Path | None
    text: tuple[str, ...] = ()


def examine(
    job: JobView,
    results: Sequence[ResultView],
    kept: Mapping[str, Path],
    sent: Study,
    picture: Path,
    reading: Reading,
) -> Outcome:
    """Read one job's results from the PACS, compare them with the pipeline's and with the truth, and draw them.

    Parameters
    ----------
    job, results
        What the node did.
    kept
        SOP Instance UID -> file in the demo PACS.
    sent
        The study, with the truth where there is one.
    picture
        Where the picture is written.
    reading
        What was run.
    """
    wanted = {"SEG", "SR"} if reading.is_default else {"SR"}
    arrival = proof.check_arrival(results, kept, wanted)
    files = tuple(kept[result.sop_instance_uid] for result in results if result.sop_instance_uid in kept)
    if not arrival.holds:
        return Outcome(files, (), (arrival,), None)
    if reading.is_default:
        return _lungs(job, results, kept, sent, picture, reading)
    return _any(job, results, kept, sent, picture, arrival)


def _lungs(
    job: JobView,
    results: Sequence[ResultView],
    kept: Mapping[str, Path],
    sent: Study,
    picture: Path,
    reading: Reading,
) -> Outcome:
    """Compare every voxel, and the volumes with the phantom's; draw what was read."""
    by_kind = {result.kind: kept[result.sop_instance_uid] for result in results}
    loaded = load_volume(_sources(by_kind["SEG"], sent))
    received = readback.read_segmentation(by_kind["SEG"], loaded.evidence.slices)
    values = readback.read_values(by_kind["SR"], received.labels)
    checks = [proof.check_arrival(results, kept), *proof.check_voxels(_segments(job), received.segments)]
    if sent.truth_ml is not None:
        checks += proof.check_volumes(sent.truth_ml, values, received.segments, loaded.volume.voxel_ml)
    montage(loaded.volume, Findings(received.segments, values), reading.card, picture)
    return Outcome(tuple(by_kind.values()), values, tuple(checks), picture)


def _any(
    job: JobView,
    results: Sequence[ResultView],
    kept: Mapping[str, Path],
    sent: Study,
    picture: Path,
    arrival: Check,
) -> Outcome:
    """Compare voxels where there are any, and answers with the text; show new images, or the page that was drawn."""
    paths = [(result.kind, kept[result.sop_instance_uid]) for result in results]
    by_kind = dict(reversed(paths))
    checks, labels = [arrival], {}
    if "SEG" in by_kind:
        loaded = load_volume(_sources(by_kind["SEG"], sent))
        received = readback.read_segmentation(by_kind["SEG"], loaded.evidence.slices)
        labels = received.labels
        checks += proof.check_voxels(_segments(job), received.segments)
    values = readback.read_values(by_kind["SR"], labels)
    text = readback.read_text_report(by_kind["text-report"]) if "text-report" in by_kind else ()
    checks += proof.check_answers(job.findings.get("classifications", ()), text)
    made = [path for kind, path in paths if kind == "derived-images"]
    page = by_kind.get("secondary-capture")
    if made:
        derived.draw(made, picture, [instance.path for instance in sent.instances])
    elif page is not None:
        _drawn(dcmread(page)).save(picture)
    drawn = picture if made or page else None
    shown = () if values and "SEG" in by_kind else text
    return Outcome(tuple(path for _, path in paths), values, tuple(checks), drawn, shown)


def _sources(segmentation: Path, sent: Study) -> list[Path]:
    paths = {instance.sop_instance_uid: instance.path for instance in sent.instances}
    return [paths[uid] for uid in readback.cited(segmentation) if uid in paths]


def _segments(job: JobView) -> tuple[Mapping[str, Any], ...]:
    return tuple(job.findings.get("segments", ()))


def _drawn(ds: Dataset) -> Image.Image:
    """Return the pixels of a colour Secondary Capture."""
    return Image.fromarray(ds.pixel_array)
