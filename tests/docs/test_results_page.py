"""docs/results.md says what the SEG and the SR hold: every attribute, every content item, with their values."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pydicom
import pytest
from objects import SEG_AND_SR
from page_blocks import DOCS, table
from pydicom.datadict import dictionary_description
from pydicom.tag import Tag

from pacs_ai import config
from pacs_ai.encode.provenance import Work
from pacs_ai.encode.results import encode
from pacs_ai.infer.volume import load_volume
from pacs_ai.models.lung import CtLung
from pacs_ai.testing import Phantom, write_phantom

PAGE = DOCS / "results.md"
MOMENT = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The source's first image, the SEG and the SR of ct-lung on a phantom."""
    paths = write_phantom(tmp_path_factory.mktemp("phantom"), Phantom(slices=60, rows=128, columns=128))
    loaded = load_volume(paths)
    pipeline = CtLung()
    pipeline.prepare("cpu")
    work = Work(
        job_key="docs",
        generation=0,
        created_at=MOMENT,
        card=pipeline.card,
        model_digest="a" * 64,
        settings_digest="b" * 64,
        parameters="device=cpu; torch=2",
        node_name=config.Node().name,
        software_version="0",
    )
    results = encode(
        pipeline.run({"image": loaded.volume}), {"image": loaded.evidence}, {"image": loaded.volume}, work, SEG_AND_SR
    )
    by_kind = {result.kind: result.dataset for result in results}
    return pydicom.dcmread(paths[0]), by_kind["SEG"], by_kind["SR"]


def test_segmentation(made):
    source, seg, _ = made
    check_attributes("Segmentation", seg, source)


def test_segment(made):
    source, seg, _ = made
    segment = seg.SegmentSequence[0]
    check_attributes("A segment", segment, source)
    row = next(row for row in table(PAGE, "A segment") if "Property Type" in row[0])
    kind = segment.SegmentedPropertyTypeCodeSequence[0]
    assert literals(row[2])[1] == triplet(kind.SegmentedPropertyTypeModifierCodeSequence[0])
    family = segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmFamilyCodeSequence[0]
    assert f"`{triplet(family)}`" in PAGE.read_text()


def test_frame(made):
    source, seg, _ = made
    check_attributes("A frame", seg.PerFrameFunctionalGroupsSequence[0], source)


def test_contributing_equipment(made):
    for result in made[1:]:
        purposes = [item.PurposeOfReferenceCodeSequence[0] for item in result.ContributingEquipmentSequence]
        assert [literals(row[0])[0] for row in table(PAGE, "Contributing equipment")] == list(map(triplet, purposes))


def test_report(made):
    source, seg, sr = made
    check_attributes("Report", sr, source)
    for name, tag, cell in table(PAGE, "Report"):
        if cell == "as in the SEG":
            assert sr[tag_of(tag)] == seg[tag_of(tag)], name
    assert sr.ContentTemplateSequence[0].TemplateIdentifier == "1500"


def test_content_tree(made):
    """Every item up to the end of the first measurement group, in order, with its type, its code and its value."""
    _, seg, sr = made
    items = list(walk(sr, 1))
    second = [number for number, (_, item) in enumerate(items) if "Measurement Group" in meaning(item)][1]
    rows = table(PAGE, "The content tree")
    assert len(rows) == second
    for (level, item), (dots, kind, concept, cell) in zip(items[:second], rows, strict=True):
        name = item.ConceptNameCodeSequence[0]
        assert (level, item.ValueType) == (len(dots), kind), concept
        code = f"`{name.CodeValue}, {name.CodingSchemeDesignator}` {name.CodeMeaning}"
        assert concept == code
        check_item(item, cell)
    tracked = next(item for _, item in items if meaning(item) == "Tracking Unique Identifier")
    assert seg.SegmentSequence[0].TrackingUID == tracked.UID


def test_series_are_called_as_the_page_says(made):
    shown = dict(table(PAGE, "What a radiologist sees"))
    for result in made[1:]:
        assert literals(shown["Series Description"])[0] == result.SeriesDescription
        assert str(result.SeriesNumber) in shown["Series Number"]


def check_attributes(heading, ds, source):
    """Hold a table of attributes against a data set: all of them, in order, each with its value."""
    rows = table(PAGE, heading)
    assert [tag_of(tag) for _, tag, _ in rows] == [element.tag for element in ds]
    for name, tag, cell in rows:
        element = ds[tag_of(tag)]
        assert name.lower() == dictionary_description(element.tag).lower()
        check_value(element, cell, source)


def check_value(element, cell, source):
    value = as_text(element)
    if literals(cell):
        assert value == literals(cell)[0], element.keyword
    elif cell == "as the source":
        assert value == as_text(source[element.tag]), element.keyword
    elif cell.startswith("derived UID"):
        assert value.startswith("2.25."), element.keyword
    elif cell in {"date of the job", "time of the job"}:
        assert value == f"{MOMENT:{'%Y%m%d' if cell.startswith('date') else '%H%M%S.%f'}}", element.keyword
    elif cell == "empty":
        assert not element.value, element.keyword
    else:
        assert cell
        assert element.value, element.keyword


def check_item(item, cell):
    """Hold a content item against the page's value: a code or a text as it stands, a unit for a number."""
    if item.ValueType == "NUM":
        assert item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue == cell
    elif item.ValueType == "CODE":
        assert [triplet(item.ConceptCodeSequence[0])] == literals(cell)
    elif item.ValueType == "TEXT" and literals(cell) == ["node.name"]:
        assert item.TextValue == config.Node().name
    elif item.ValueType == "TEXT" and literals(cell):
        assert item.TextValue == literals(cell)[0]
    elif item.ValueType == "CONTAINER":
        assert item.ContinuityOfContent == "SEPARATE"
    elif item.ValueType == "SCOORD":
        assert item.GraphicType in cell


def walk(ds, level):
    for item in ds.get("ContentSequence", ()):
        yield level, item
        yield from walk(item, level + 1)


def meaning(item):
    return item.ConceptNameCodeSequence[0].CodeMeaning


def tag_of(cell):
    return Tag(cell.strip("()").replace(",", ""))


def literals(cell):
    return re.findall(r"`([^`]+)`", cell)


def as_text(element):
    """Write a value as the page does: several values joined by backslashes, a code as its triplet."""
    if element.VR == "SQ":
        return triplet(element.value[0]) if element.value and "CodeValue" in element.value[0] else ""
    return "\\".join(map(str, element.value)) if element.VM > 1 else str("" if element.value is None else element.value)


def triplet(code):
    return f"{code.CodeValue}, {code.CodingSchemeDesignator}, {code.CodeMeaning}"
