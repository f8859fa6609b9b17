"""What a report rests on: the instances it read, the order it fulfils, the reports it replaces."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from pydicom import Dataset

from pacs_ai.encode.identity import request_items

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pacs_ai.dicom.evidence import Evidence
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.encode.provenance import Work


def cite(report: Dataset, evidence: Mapping[str, Evidence], source: Dataset, segmentation: Encoded | None) -> None:
    """List every instance that was read, and the SEG, as evidence (PS3.3 C.17.2.3)."""
    read = {str(ds.SOPInstanceUID): ds for one in evidence.values() for ds in one.datasets}
    cited = [
        (str(ds.StudyInstanceUID), str(ds.SeriesInstanceUID), str(ds.SOPClassUID), uid) for uid, ds in read.items()
    ]
    study = str(source.StudyInstanceUID)
    if segmentation is not None:
        cited.append(
            (study, segmentation.series_instance_uid, segmentation.sop_class_uid, segmentation.sop_instance_uid)
        )
    report.CurrentRequestedProcedureEvidenceSequence = references([one for one in cited if one[0] == study])
    other = [one for one in cited if one[0] != study]
    if other:
        report.PertinentOtherEvidenceSequence = references(other)


def references(cited: Sequence[tuple[str, str, str, str]]) -> list[Dataset]:
    """Return a Hierarchical SOP Instance Reference (PS3.3 Table C.17-3) of (study, series, class, instance)."""
    studies = []
    ordered = sorted(cited, key=lambda one: one[:2])
    for study_uid, of_study in groupby(ordered, key=lambda one: one[0]):
        study = Dataset()
        study.StudyInstanceUID = study_uid
        study.ReferencedSeriesSequence = [
            _series_reference(series_uid, [(one[2], one[3]) for one in instances])
            for series_uid, instances in groupby(of_study, key=lambda one: one[1])
        ]
        studies.append(study)
    return studies


def _series_reference(series_instance_uid: str, instances: Sequence[tuple[str, str]]) -> Dataset:
    series = Dataset()
    series.SeriesInstanceUID = series_instance_uid
    items = []
    for sop_class_uid, sop_instance_uid in instances:
        item = Dataset()
        item.ReferencedSOPClassUID = sop_class_uid
        item.ReferencedSOPInstanceUID = sop_instance_uid
        items.append(item)
    series.ReferencedSOPSequence = items
    return series


def add_order(report: Dataset, source: Dataset) -> None:
    """State the order that the study fulfils, where the source does (Referenced Request, PS3.3 C.17.2)."""
    requests = []
    for given in request_items(source):
        item = Dataset()
        item.StudyInstanceUID = given.get("StudyInstanceUID") or source.StudyInstanceUID
        item.ReferencedStudySequence = given.get("ReferencedStudySequence") or []
        item.AccessionNumber = given.get("AccessionNumber") or source.get("AccessionNumber")
        item.PlacerOrderNumberImagingServiceRequest = given.get("PlacerOrderNumberImagingServiceRequest")
        item.FillerOrderNumberImagingServiceRequest = given.get("FillerOrderNumberImagingServiceRequest")
        item.RequestedProcedureID = given.get("RequestedProcedureID")
        item.RequestedProcedureDescription = given.get("RequestedProcedureDescription")
        item.RequestedProcedureCodeSequence = given.get("RequestedProcedureCodeSequence") or []
        requests.append(item)
    if requests:
        report.ReferencedRequestSequence = requests


def add_predecessors(report: Dataset, work: Work) -> None:
    """Name the delivered reports that this one replaces (Predecessor Documents, PS3.3 C.17.2)."""
    if work.predecessors:
        report.PredecessorDocumentsSequence = references(
            [
                (one.study_instance_uid, one.series_instance_uid, one.sop_class_uid, one.sop_instance_uid)
                for one in work.predecessors
            ]
        )
