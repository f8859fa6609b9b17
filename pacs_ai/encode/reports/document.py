"""An SR document around a content tree: whose it is, what it rests on, who made it, that no person verified it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from highdicom.sr import CodedConcept
from pydicom import Dataset

from pacs_ai.encode.provenance import (
    ARTIFICIAL_INTELLIGENCE,
    DISCLAIMER,
    LONG_STRING,
    MANUFACTURER,
    MODEL_NAME,
    Work,
    clean,
    concept,
    stamp,
)
from pacs_ai.encode.reports.citations import add_order, add_predecessors, cite
from pacs_ai.encode.reports.content import Relation, code, dcm, text, uid
from pacs_ai.pipeline import Clearance

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pacs_ai.dicom.evidence import Evidence
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.profiles import Encoding

#: Longest statement of what a report is, so that what it says comes on the same page.
STATEMENT = 1024

COMMENT = dcm("121106", "Comment")
LANGUAGE = dcm("121049", "Language of Content Item and Descendants")
ENGLISH = CodedConcept("en-US", "RFC5646", "English (United States)")
OBSERVER_TYPE = dcm("121005", "Observer Type")
DEVICE = dcm("121007", "Device")
DEVICE_OBSERVER_UID = dcm("121012", "Device Observer UID")
DEVICE_OBSERVER_NAME = dcm("121013", "Device Observer Name")
DEVICE_OBSERVER_MANUFACTURER = dcm("121014", "Device Observer Manufacturer")
DEVICE_OBSERVER_MODEL = dcm("121015", "Device Observer Model Name")
DEVICE_OBSERVER_SERIAL = dcm("121016", "Device Observer Serial Number")
PROCEDURE_REPORTED = dcm("121058", "Procedure reported")
ALGORITHM_NAME = dcm("111001", "Algorithm Name")
ALGORITHM_VERSION = dcm("111003", "Algorithm Version")
ALGORITHM_MANUFACTURER = dcm("122405", "Algorithm Manufacturer")
ALGORITHM_PARAMETERS = dcm("111002", "Algorithm Parameters")
ALGORITHM_FAMILY = dcm("111000", "Algorithm Family")


def document(
    tree: Dataset,
    sop_class_uid: str,
    source: Dataset,
    work: Work,
    encoding: Encoding,
    evidence: Mapping[str, Evidence],
    segmentation: Encoded | None = None,
) -> Dataset:
    """Return the SR of a content tree (PS3.3 A.35): its series, evidence, order, predecessors, identity, equipment.

    Parameters
    ----------
    tree
        The root CONTAINER (`content.root`).
    sop_class_uid
        PS3.4 Table B.5-1.
    source
        The instance that patient and study are copied from.
    evidence
        By name of input: every instance that was read.
    segmentation
        The SEG that it rests on or refers to.
    """
    report = Dataset()
    report.update(tree)
    report.SOPClassUID = sop_class_uid
    report.SOPInstanceUID = work.uid(encoding.key, "instance", 1)
    report.Modality = "SR"
    report.SeriesInstanceUID = work.uid(encoding.series)
    report.InstanceNumber = encoding.instance_number
    report.CompletionFlag = "COMPLETE"
    report.VerificationFlag = "UNVERIFIED"
    report.PreliminaryFlag = "PRELIMINARY"
    report.ReferencedPerformedProcedureStepSequence = []  # type 2, PS3.3 C.17.1
    report.PerformedProcedureCodeSequence = []  # type 2, PS3.3 C.17.2
    cite(report, evidence, source, segmentation)
    add_order(report, source)
    add_predecessors(report, work)
    stamp(report, source, work, encoding)
    return report


def statement(work: Work) -> str:
    """Return what every report says first: that an algorithm made it, and what it must not be used for."""
    card = work.card
    research = f"For research only, {DISCLAIMER}. " if card.clearance == Clearance.RESEARCH else ""
    return clean(
        f"{research}Made by an algorithm ({card.name} {card.version}, {card.manufacturer}) and not reviewed by a "
        f"person. Intended use: {card.intended_use}",
        STATEMENT,
    )


def language() -> Dataset:
    """Return the language of the report (PS3.16 TID 1204)."""
    return code(LANGUAGE, ENGLISH, Relation.HAS_CONCEPT_MOD)


def observer(work: Work) -> list[Dataset]:
    """Return this node as the observer (PS3.16 TID 1002 and 1004)."""
    context = Relation.HAS_OBS_CONTEXT
    return [
        code(OBSERVER_TYPE, DEVICE, context),
        uid(DEVICE_OBSERVER_UID, work.device_uid, context),
        text(DEVICE_OBSERVER_NAME, clean(work.node_name, LONG_STRING), context),
        text(DEVICE_OBSERVER_MANUFACTURER, MANUFACTURER, context),
        text(DEVICE_OBSERVER_MODEL, MODEL_NAME, context),
        text(DEVICE_OBSERVER_SERIAL, work.device_serial_number, context),
    ]


def procedure(work: Work) -> Dataset:
    """Return the procedure reported (PS3.16 TID 1500 row 3, CID 100)."""
    return code(PROCEDURE_REPORTED, concept(work.card.procedure), Relation.HAS_CONCEPT_MOD)


def algorithm_items(work: Work) -> list[Dataset]:
    """Return the algorithm's name, version, manufacturer, parameters and family (PS3.16 TID 4019)."""
    card, modifier = work.card, Relation.HAS_CONCEPT_MOD
    return [
        text(ALGORITHM_NAME, clean(card.name, LONG_STRING), modifier),
        text(ALGORITHM_VERSION, clean(card.version, LONG_STRING), modifier),
        text(ALGORITHM_MANUFACTURER, clean(card.manufacturer, LONG_STRING) or MANUFACTURER, modifier),
        *(text(ALGORITHM_PARAMETERS, parameter, modifier) for parameter in work.algorithm_parameters),
        code(ALGORITHM_FAMILY, ARTIFICIAL_INTELLIGENCE, modifier),
    ]
