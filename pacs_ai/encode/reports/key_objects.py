"""Key Object Selection: the images that matter, listed with a title, for viewers that jump to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydicom import Dataset
from pydicom.uid import KeyObjectSelectionDocumentStorage

from pacs_ai.encode.encoded import encoded
from pacs_ai.encode.provenance import DISCLAIMER, Predecessor, Work, clean, concept, stamp
from pacs_ai.encode.reports.citations import add_order, references
from pacs_ai.encode.reports.content import dcm, root, text
from pacs_ai.encode.reports.document import observer
from pacs_ai.pipeline import Clearance, Code

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pacs_ai.encode.case import Case
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.profiles import Encoding

#: Key Object Selection Document Title (CID 7010).
OF_INTEREST = Code("113000", "DCM", "Of Interest")
KEY_OBJECT_DESCRIPTION = dcm("113012", "Key Object Description")
LONG_TEXT = 1024
#: Storage SOP Classes of what the node makes that is no image: SR and KOS, presentation states, PDF, RT.
_NO_IMAGE = tuple(f"1.2.840.10008.5.1.4.1.1.{part}" for part in ("88.", "11.", "104.", "481."))

#: Study, series, class and instance of one object that is referred to.
Cited = Predecessor


def encode_key_objects(case: Case, encoding: Encoding, _cited: Encoded | None) -> tuple[Encoded, ...]:
    """Return the list of the images that matter: of each segment its largest cross-section, of each detection its own.

    In the order of the findings, each image or frame once. None where nothing was found.
    """
    shown = _of_interest(case)
    if not shown:
        return ()
    own = {str(ds.SOPInstanceUID): ds for ds in case.own.datasets}
    cited = []
    for index in shown:
        reference = case.own.slices[index]
        ds = own[reference.sop_instance_uid]
        cited.append(
            Cited(
                str(ds.StudyInstanceUID),
                str(ds.SeriesInstanceUID),
                reference.sop_class_uid,
                reference.sop_instance_uid,
            )
        )
    frames = _frames(case, shown)
    result = selection(
        OF_INTEREST, _description(case, shown), list(dict.fromkeys(cited)), frames, work=case.work, source=case.source
    )
    result.SOPInstanceUID = case.work.uid(encoding.key, "instance", 1)
    result.SeriesInstanceUID = case.work.uid(encoding.series)
    result.InstanceNumber = encoding.instance_number
    stamp(result, case.source, case.work, encoding)
    return (encoded(encoding, result),)


def selection(
    title: Code,
    description: str,
    objects: Sequence[Cited],
    frames: Mapping[str, Sequence[int]],
    *,
    work: Work,
    source: Dataset,
) -> Dataset:
    """Return a Key Object Selection Document (PS3.3 A.35.4, PS3.16 TID 2010) without identity, UIDs and numbers.

    Parameters
    ----------
    title
        Of CID 7010.
    description
        For people; at most 1024 characters are kept.
    objects
        What is selected, each once.
    frames
        SOP Instance UID -> frame numbers from 1, of multi-frame images of which not all frames are selected.
    work, source
        The job, and the data set whose order is stated.
    """
    described = text(KEY_OBJECT_DESCRIPTION, clean(description, LONG_TEXT))
    listed = (_item(one, frames.get(one.sop_instance_uid)) for one in objects)
    result = root(concept(title), (*observer(work), described, *listed), "2010")
    result.SOPClassUID = KeyObjectSelectionDocumentStorage
    result.Modality = "KO"
    result.ReferencedPerformedProcedureStepSequence = []
    result.CurrentRequestedProcedureEvidenceSequence = references(
        [(one.study_instance_uid, one.series_instance_uid, one.sop_class_uid, one.sop_instance_uid) for one in objects]
    )
    add_order(result, source)
    return result


def _item(one: Cited, frames: Sequence[int] | None) -> Dataset:
    """Return an IMAGE item, with frames where not all are meant, or a COMPOSITE item (PS3.3 C.18.3, C.18.4).

    Without Concept Name: rows 8 to 10 of TID 2010 have none.
    """
    reference = Dataset()
    reference.ReferencedSOPClassUID = one.sop_class_uid
    reference.ReferencedSOPInstanceUID = one.sop_instance_uid
    if frames is not None:
        reference.ReferencedFrameNumber = list(frames)
    item = Dataset()
    item.RelationshipType = "CONTAINS"
    item.ValueType = "COMPOSITE" if one.sop_class_uid.startswith(_NO_IMAGE) else "IMAGE"
    item.ReferencedSOPSequence = [reference]
    return item


def _of_interest(case: Case) -> dict[int, list[str]]:
    """Return slice -> what is to be seen there, in the order of the findings."""
    shown: dict[int, list[str]] = {}
    for segment, row in case.filled:
        shown.setdefault(int(row.argmax()), []).append(segment.label)
    for detection in case.findings.detections:
        place = detection.region or detection.diameters
        if place is not None:
            names = shown.setdefault(place.index, [])
            if detection.label not in names:
                names.append(detection.label)
    return shown


def _frames(case: Case, shown: Mapping[int, list[str]]) -> dict[str, list[int]]:
    frames: dict[str, list[int]] = {}
    for index in shown:
        reference = case.own.slices[index]
        if reference.frame_number is not None:
            frames.setdefault(reference.sop_instance_uid, []).append(reference.frame_number)
    return frames


def _description(case: Case, shown: Mapping[int, list[str]]) -> str:
    card = case.card
    research = f"For research only, {DISCLAIMER}. " if card.clearance == Clearance.RESEARCH else ""
    names = "; ".join(dict.fromkeys(name for names in shown.values() for name in names))
    return (
        f"{research}Selected by an algorithm ({card.name} {card.version}) and not reviewed by a person. "
        f"Largest cross-section of each segment and the image of each detection: {names}."
    )
