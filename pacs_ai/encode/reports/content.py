"""Content items of a structured report, written plainly: what is said, under which coded name, related how.

highdicom checks and copies every item that it is given, which costs 20 ms for each measurement group; these functions
state the same attributes in a fraction of that. A test holds a measurement group of them equal to highdicom's.
"""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING

from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.valuerep import DS

from pacs_ai.encode.provenance import clean, concept

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    import numpy.typing as npt

    from pacs_ai.dicom.evidence import FrameReference
    from pacs_ai.pipeline import Code, Shape

#: Longest line of a text. VR UT has no limit that matters, but a text view has; the absent of 104 labels fit in.
LONG_TEXT = 8192
DECIMAL_STRING = 16  # characters of VR DS, PS3.5 6.2


class Relation(StrEnum):
    """Relationship Type (0040,A010), PS3.3 C.17.3.2.4."""

    CONTAINS = "CONTAINS"
    HAS_CONCEPT_MOD = "HAS CONCEPT MOD"
    HAS_OBS_CONTEXT = "HAS OBS CONTEXT"
    HAS_PROPERTIES = "HAS PROPERTIES"
    INFERRED_FROM = "INFERRED FROM"
    SELECTED_FROM = "SELECTED FROM"


def dcm(value: str, meaning: str) -> CodedConcept:
    """Return a concept of the Standard's own coding scheme (PS3.16 Annex D)."""
    return CodedConcept(value, "DCM", meaning)


def sct(value: str, meaning: str) -> CodedConcept:
    """Return a concept of SNOMED CT."""
    return CodedConcept(value, "SCT", meaning)


@lru_cache(maxsize=4096)
def coded(given: Code) -> CodedConcept:
    """Return highdicom's form of a coded concept, one for all its uses: it is made, and written, once; change none."""
    return concept(given)


def _item(value_type: str, name: Dataset, relation: Relation) -> Dataset:
    item = Dataset()
    item.RelationshipType = relation.value
    item.ValueType = value_type
    item.ConceptNameCodeSequence = [name]
    return item


def root(title: Dataset, items: Iterable[Dataset], template: str = "") -> Dataset:
    """Return the root of a content tree (PS3.3 C.17.3); `template` is the number of its TID, if it follows one."""
    item = container(title, items, template)
    del item.RelationshipType
    return item


def container(name: Dataset, items: Iterable[Dataset], template: str = "") -> Dataset:
    """Return a CONTAINER, SEPARATE so that viewers print each value with its name (PS3.3 C.17.8)."""
    item = _item("CONTAINER", name, Relation.CONTAINS)
    item.ContinuityOfContent = "SEPARATE"
    if template:
        identification = Dataset()
        identification.MappingResource = "DCMR"
        identification.TemplateIdentifier = template
        item.ContentTemplateSequence = [identification]
    return with_children(item, items)


def with_children(item: Dataset, children: Iterable[Dataset]) -> Dataset:
    """Give an item its children, in place, and return it; no child, no Content Sequence."""
    listed = list(children)
    if listed:
        item.ContentSequence = listed
    return item


def text(name: Dataset, value: str, relation: Relation = Relation.CONTAINS) -> Dataset:
    """Return a TEXT item of one ASCII line, or of the lines that `value` has."""
    item = _item("TEXT", name, relation)
    item.TextValue = "\r\n".join(clean(line, LONG_TEXT) for line in value.splitlines())
    return item


def code(name: Dataset, value: Dataset, relation: Relation = Relation.CONTAINS) -> Dataset:
    """Return a CODE item."""
    item = _item("CODE", name, relation)
    item.ConceptCodeSequence = [value]
    return item


def number(name: Dataset, value: float, unit: Dataset, relation: Relation = Relation.CONTAINS) -> Dataset:
    """Return a NUM item with its value as text and, without loss, as a float (PS3.3 C.18.1)."""
    item = _item("NUM", name, relation)
    measured = Dataset()
    measured.MeasurementUnitsCodeSequence = [unit]
    measured.FloatingPointValue = float(value)
    measured.NumericValue = decimal(float(value))
    item.MeasuredValueSequence = [measured]
    return item


def decimal(value: float) -> str:
    """Return a Decimal String (at most 16 characters, PS3.5 6.2) of twelve significant digits where they fit."""
    short = f"{value:.12g}"
    return short if len(short) <= DECIMAL_STRING else str(DS(value, auto_format=True))


def uid(name: Dataset, value: str, relation: Relation = Relation.CONTAINS) -> Dataset:
    """Return a UIDREF item."""
    item = _item("UIDREF", name, relation)
    item.UID = value
    return item


def image(name: Dataset, source: FrameReference, relation: Relation = Relation.CONTAINS, segment: int = 0) -> Dataset:
    """Return an IMAGE item that refers to a received frame, or to a segment of a SEG (PS3.3 C.18.4)."""
    item = _item("IMAGE", name, relation)
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.sop_class_uid
    reference.ReferencedSOPInstanceUID = source.sop_instance_uid
    if source.frame_number is not None:
        reference.ReferencedFrameNumber = source.frame_number
    if segment:
        reference.ReferencedSegmentNumber = segment
    item.ReferencedSOPSequence = [reference]
    return item


def waveform(name: Dataset, source: FrameReference, relation: Relation = Relation.CONTAINS) -> Dataset:
    """Return a WAVEFORM item that refers to all channels of a received waveform (PS3.3 C.18.5)."""
    item = _item("WAVEFORM", name, relation)
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.sop_class_uid
    reference.ReferencedSOPInstanceUID = source.sop_instance_uid
    item.ReferencedSOPSequence = [reference]
    return item


def region(
    name: Dataset,
    shape: Shape,
    points: npt.NDArray[np.float32],
    source: Dataset,
    relation: Relation = Relation.CONTAINS,
) -> Dataset:
    """Return an SCOORD item, a place on the image that its child `source` refers to (PS3.3 C.18.6).

    Parameters
    ----------
    points
        (points, 2) float32 of (column, row); (0, 0) is the outer corner of the first pixel.
    source
        An IMAGE item, SELECTED FROM.
    """
    item = _item("SCOORD", name, relation)
    item.GraphicType = shape.value
    item.GraphicData = [float(value) for value in points.reshape(-1)]
    return with_children(item, [source])
