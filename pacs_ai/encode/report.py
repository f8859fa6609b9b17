"""One structured report (SR, TID 1500) per pipeline result: values, outlines, and what was not found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CodedConcept,
    Comprehensive3DSR,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    GraphicTypeValues,
    ImageRegion,
    LanguageOfContentItemAndDescendants,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForRegion,
    TextContentItem,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from highdicom.sr import Measurement as MeasurementItem
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from pacs_ai.encode.citations import add_order, add_predecessors, cite
from pacs_ai.encode.encoded import Encoded, encoded
from pacs_ai.encode.groups import Group, absent_labels, groups_of
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
    tracking,
)
from pacs_ai.pipeline import ANATOMICAL_STRUCTURE, Clearance, Label, Measurement

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pacs_ai.dicom.evidence import Evidence
    from pacs_ai.encode.case import Case
    from pacs_ai.profiles import Encoding

#: Title of a measurement report (CID 7021). Viewers draw its regions, and some fail on a group without a region.
MEASUREMENT_REPORT = CodedConcept("126000", "DCM", "Imaging Measurement Report")
#: Title of a report without any region (CID 7000): viewers then show its text.
TEXT_REPORT = CodedConcept("18748-4", "LN", "Diagnostic Imaging Report")
QUALITATIVE_EVALUATIONS = CodedConcept("C0034375", "UMLS", "Qualitative Evaluations")
LATERALITY = CodedConcept("272741003", "SCT", "Laterality")
ABSENT = CodedConcept("2667000", "SCT", "Absent")
#: CID 244; other modifiers of a label are topographical.
LATERALITIES = frozenset({"7771000", "24028007", "51440002", "66459002"})
ENGLISH = CodedConcept("en-US", "RFC5646", "English (United States)")
LONG_TEXT = 1024


def encode_report(case: Case, encoding: Encoding, segmentation: Encoded | None) -> tuple[Encoded, ...]:
    """Return the SR, which cites the SEG where there is one."""
    findings, evidence, work, source = case.findings, case.evidence, case.work, case.source
    groups = tuple(groups_of(findings, case.counts, case.own, case.volume, work.card))
    root = _heading(MEASUREMENT_REPORT if groups else TEXT_REPORT, work)
    report = Comprehensive3DSR(
        evidence=[_instance(source)],
        content=root,
        series_instance_uid=work.uid(encoding.series),
        series_number=encoding.series_number,
        sop_instance_uid=work.uid(encoding.key, "instance", 1),
        instance_number=encoding.instance_number,
        manufacturer=MANUFACTURER,
        is_complete=True,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    # Only now: highdicom copies and searches all content that it is given, 20 ms per group.
    report.ContentSequence = root.ContentSequence
    report.ContentSequence.extend(_body(groups, absent_labels(findings, case.counts, work.card), evidence, work))
    _separate(report)
    cite(report, evidence, source, segmentation)
    add_order(report, source)
    add_predecessors(report, work)
    stamp(report, source, work, encoding)
    return (encoded(encoding, report),)


def _heading(title: CodedConcept, work: Work) -> ContainerContentItem:
    """Return the root of the content tree (PS3.16 TID 1500) up to the measurements."""
    root = ContainerContentItem(name=title, template_id="1500")
    root.ContentSequence = ContentSequence()
    root.ContentSequence.extend(LanguageOfContentItemAndDescendants(ENGLISH))
    root.ContentSequence.extend(_observation_context(work))
    root.ContentSequence.append(
        CodeContentItem(
            name=codes.DCM.ProcedureReported,
            value=concept(work.card.procedure),
            relationship_type=RelationshipTypeValues.HAS_CONCEPT_MOD,
        )
    )
    root.ContentSequence.append(_text(codes.DCM.Comment, _statement(work)))
    return root


def _body(
    groups: Sequence[Group], absent: Sequence[Label], evidence: Mapping[str, Evidence], work: Work
) -> Iterator[ContainerContentItem]:
    """Yield the measurements, then what was looked for and not found."""
    if groups:
        measurements = _container(codes.DCM.ImagingMeasurements)
        for group in groups:
            measurements.ContentSequence.extend(_measurement_group(group, work))
        yield measurements
    if absent or not groups:
        yield _qualitative_evaluations(groups, absent, evidence)


def _statement(work: Work) -> str:
    card = work.card
    research = f"For research only, {DISCLAIMER}. " if card.clearance == Clearance.RESEARCH else ""
    return clean(
        f"{research}Made by an algorithm ({card.name} {card.version}, {card.manufacturer}) and not reviewed by a "
        f"person. Intended use: {card.intended_use}",
        LONG_TEXT,
    )


def _observation_context(work: Work) -> ObservationContext:
    device = DeviceObserverIdentifyingAttributes(
        uid=work.device_uid,
        name=clean(work.node_name, LONG_STRING),
        manufacturer_name=MANUFACTURER,
        model_name=MODEL_NAME,
        serial_number=work.device_serial_number,
    )
    return ObservationContext(
        observer_device_context=ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
    )


def _measurement_group(group: Group, work: Work) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    """Return one group (PS3.16 TID 1411) with its region on a source image."""
    identifier, uid = tracking(work, group.name)
    label = group.label
    source = group.source
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=uid, identifier=identifier),
        referenced_regions=[
            ImageRegion(
                graphic_type=GraphicTypeValues.POLYLINE,
                graphic_data=group.region,
                source_image=SourceImageForRegion(
                    source.sop_class_uid,
                    source.sop_instance_uid,
                    None if source.frame_number is None else [source.frame_number],
                ),
            )
        ],
        finding_category=None if label is None else concept(label.category),
        finding_type=None if label is None else concept(label.type),
        finding_sites=_finding_sites(label),
        qualitative_evaluations=_laterality(label),
        algorithm_id=_algorithm(work),
        measurements=[_measurement(measurement) for measurement in group.measurements],
    )


def _finding_sites(label: Label | None) -> list[FindingSite] | None:
    """Return where the finding is: an anatomical structure is its own site."""
    if label is None or label.category.value != ANATOMICAL_STRUCTURE.value:
        return None
    modifier = label.modifier
    if modifier is None:
        return [FindingSite(concept(label.type))]
    if modifier.value in LATERALITIES:
        return [FindingSite(concept(label.type), laterality=concept(modifier))]
    return [FindingSite(concept(label.type), topographical_modifier=concept(modifier))]


def _laterality(label: Label | None) -> list[QualitativeEvaluation] | None:
    """Return the side of a finding that has no site to carry it."""
    if label is None or label.modifier is None or _finding_sites(label) or label.modifier.value not in LATERALITIES:
        return None
    return [QualitativeEvaluation(LATERALITY, concept(label.modifier))]


def _algorithm(work: Work) -> AlgorithmIdentification:
    card = work.card
    return AlgorithmIdentification(
        name=clean(card.name, LONG_STRING),
        version=clean(card.version, LONG_STRING),
        parameters=list(work.algorithm_parameters),
        family=ARTIFICIAL_INTELLIGENCE,
        manufacturer=clean(card.manufacturer, LONG_STRING) or MANUFACTURER,
    )


def _measurement(measurement: Measurement) -> MeasurementItem:
    return MeasurementItem(
        name=concept(measurement.concept),
        value=float(measurement.value),
        unit=concept(measurement.unit),
        method=None if measurement.method is None else concept(measurement.method),
        derivation=None if measurement.derivation is None else concept(measurement.derivation),
    )


def _qualitative_evaluations(
    groups: Sequence[Group], absent: Sequence[Label], evidence: Mapping[str, Evidence]
) -> ContainerContentItem:
    """Return what was looked for and not found, in words and codes (PS3.16 TID 1500 rows 12 to 14)."""
    images = sum(len(one.slices) for one in evidence.values())
    names = ", ".join(clean(label.name, LONG_STRING) for label in absent)
    named = f" Looked for and absent: {names}." if absent else ""
    heading = f"{images} images analysed." if groups else f"Nothing found. {images} images analysed."
    container = _container(QUALITATIVE_EVALUATIONS)
    container.ContentSequence.append(_text(codes.DCM.Finding, heading + named))
    for label in absent:
        container.ContentSequence.append(_absence(label))
    return container


def _absence(label: Label) -> CodeContentItem:
    item = CodeContentItem(name=concept(label.type), value=ABSENT, relationship_type=RelationshipTypeValues.CONTAINS)
    if label.modifier is not None and label.modifier.value in LATERALITIES:
        item.ContentSequence = ContentSequence(
            [
                CodeContentItem(
                    name=LATERALITY,
                    value=concept(label.modifier),
                    relationship_type=RelationshipTypeValues.HAS_CONCEPT_MOD,
                )
            ]
        )
    return item


def _container(name: CodedConcept) -> ContainerContentItem:
    container = ContainerContentItem(name=name, relationship_type=RelationshipTypeValues.CONTAINS)
    container.ContentSequence = ContentSequence()
    return container


def _text(name: CodedConcept, value: str) -> TextContentItem:
    return TextContentItem(name=name, value=value, relationship_type=RelationshipTypeValues.CONTAINS)


def _separate(ds: Dataset) -> None:
    """Mark every container SEPARATE, so that viewers print each value with its name (PS3.3 C.17.3.2.1)."""
    if ds.get("ValueType") == "CONTAINER":
        ds.ContinuityOfContent = "SEPARATE"
    for child in ds.get("ContentSequence", ()):
        _separate(child)


def _instance(source: Dataset) -> Dataset:
    """Return what highdicom asks of evidence; identity is stamped on later."""
    instance = Dataset()
    instance.SOPClassUID = source.SOPClassUID
    instance.SOPInstanceUID = source.SOPInstanceUID
    instance.StudyInstanceUID = source.StudyInstanceUID
    instance.SeriesInstanceUID = source.SeriesInstanceUID
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        setattr(instance, keyword, None)
    instance.StudyDate = instance.StudyTime = None
    return instance
