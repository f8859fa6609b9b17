"""The pipelines for tests keep the contract, find what they say, and are known only where they are named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from pacs_ai import config
from pacs_ai.errors import PipelineFault, UserError
from pacs_ai.infer.contract import check
from pacs_ai.infer.summary import headline, summary
from pacs_ai.models.registry import Registry
from pacs_ai.pipeline import Detection, Diameters, Findings, Frame, Frames, Input, Region, Shape
from pacs_ai.testing import Phantom, check_pipeline
from pacs_ai.testing.inputs import digest_findings, radiographs
from pacs_ai.testing.lesions import diameters, outline
from pacs_ai.testing.pipelines import (
    BrightLesion,
    Denoise,
    Everything,
    Probability,
    RadiographRegions,
    UltrasoundHead,
)

SMALL = Phantom(slices=24, rows=64, columns=64).volume()
ALL = (BrightLesion, Denoise, Everything, Probability, RadiographRegions, UltrasoundHead)


@pytest.mark.parametrize("pipeline", ALL)
def test_each_keeps_the_contract(pipeline):
    findings = check_pipeline(pipeline())
    assert headline(findings) != "nothing found"


def test_everything_is_everything():
    findings = check_pipeline(Everything(), {"image": SMALL})
    assert all(
        (
            findings.segments,
            findings.measurements,
            findings.detections,
            findings.classifications,
            findings.maps,
            findings.images,
        )
    )
    kept = summary(findings, {"image": SMALL}, ("a note",))
    assert [len(kept[name]) for name in ("maps", "images", "classifications", "notes")] == [2, 1, 1, 1]
    assert kept["detections"][0]["measurements"][0]["concept"] == "Volume"
    assert all(0 <= one["low"] <= one["high"] <= 1 for one in kept["maps"])


def test_colour_and_images_of_several_sizes_are_analysed():
    image = radiographs(SMALL, Input(("DX",))).images[0]
    colour = Frame(np.stack([image.pixels // 16] * 3, axis=-1).astype(np.uint8), None)
    findings = check_pipeline(RadiographRegions(), {"image": Frames((image, colour, image), "DX")})
    assert {one.region.index for one in findings.detections} == {0, 1, 2}
    small = replace(image, pixels=image.pixels[:50])
    several = check_pipeline(RadiographRegions(), {"image": Frames((image, small), "DX")})
    assert several.segments == ()


@pytest.mark.parametrize("turned", range(4))
def test_diameters_and_outline_of_a_bar(turned):
    """A bar of 9 x 3 pixels: from centre to centre 8 and 2, the diagonal a little more."""
    section = np.zeros((20, 30), bool)
    section[5:8, 10:19] = True
    section = np.rot90(section, turned)
    found = diameters(section, (2, 3), (1.0, 1.0), 7)
    long, short = (float(np.linalg.norm(axis[1] - axis[0])) for axis in (found.long_axis, found.short_axis))
    assert found.index == 7
    assert long == pytest.approx(np.hypot(8, 2), abs=1e-5)
    assert 1.5 < short <= np.hypot(8, 2)
    rows, columns = np.nonzero(section)
    region = outline(section, (2, 3), 7)
    assert region.points[0].tolist() == region.points[-1].tolist()
    assert region.points.min(axis=0).tolist() == [columns.min() + 3, rows.min() + 2]
    assert region.points.max(axis=0).tolist() == [columns.max() + 4, rows.max() + 3]
    x, y = region.points[:-1].T.astype(float)
    assert abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2 == section.sum(), "area, corner to corner"


@pytest.mark.parametrize("seed", range(20))
def test_an_outline_encloses_exactly_its_pixels(seed):
    blob = np.random.default_rng(seed).random((9, 9)) < 0.6
    region = outline(blob, (0, 0), 0)
    labels, _ = ndimage.label(blob)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    filled = ndimage.binary_fill_holes(labels == sizes.argmax(), structure=np.ones((3, 3)))
    x, y = region.points[:-1].T.astype(float)
    assert abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2 == filled.sum()


def test_a_speck_has_no_diameters_and_nothing_no_outline():
    speck = np.zeros((5, 5), bool)
    assert outline(speck, (0, 0), 0) is None
    speck[2, 2] = True
    assert diameters(speck, (0, 0), (1.0, 1.0), 0) is None


def test_they_are_known_only_where_they_are_named():
    names = [f"testing-{name}" for name in ("bright-lesion", "denoise", "everything", "probability", "radiograph")]
    registry = Registry()
    assert not set(names) & set(registry.names())
    assert registry.broken == {}
    assert [registry.card(name).name for name in names] == names
    section = config.Pipeline(name="viewer-test", use="testing-everything", settings={"most": 1})
    configured = Registry([section])
    assert "viewer-test" in configured.names()
    assert len(configured.create("viewer-test").run({"image": SMALL}).detections) == 1
    with pytest.raises(UserError, match="testing-nothing"):
        registry.card("testing-nothing")


def detected(**changes):
    region = Region(Shape.POINT, np.asarray([[3.5, 4.5]], np.float32), 0)
    return Findings(detections=(replace(Detection("Bright lesion", region), **changes),))


def at(*points, shape=Shape.POLYLINE, index=0):
    return Region(shape, np.asarray(points, np.float32), index)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label": "Other"}, "the label 'Other'"),
        ({"probability": 1.01}, "between 0 and 1"),
        ({"probability": float("nan")}, "between 0 and 1"),
        ({"region": None}, "no place"),
        ({"region": at((1, 1), (65, 1))}, "leaves its image"),
        ({"region": at((1, 1), (1, -0.5))}, "leaves its image"),
        ({"region": at((1, 1), (1, float("nan")))}, "leaves its image"),
        ({"region": at((1, 1), (2, 2), index=24)}, "counted from 0"),
        ({"region": at((1, 1), (2, 2), index=-1)}, "counted from 0"),
        ({"region": at((1, 1), shape=Shape.ELLIPSE)}, "ELLIPSE of 1 points"),
        ({"diameters": Diameters(np.zeros((3, 2)), np.zeros((2, 2)), 0)}, "two points"),
    ],
)
def test_a_detection_that_lies_nowhere_is_a_fault(changes, words):
    with pytest.raises(PipelineFault, match=words):
        check(BrightLesion.card, {"image": SMALL}, detected(**changes))


def test_other_findings_have_another_digest():
    one = detected()
    moved = detected(region=Region(Shape.POINT, np.asarray([[3.5, 5.5]], np.float32), 0))
    assert digest_findings(one) == digest_findings(detected())
    assert digest_findings(one) != digest_findings(moved)
    assert digest_findings(Probability().run({"image": SMALL})) != digest_findings(Denoise().run({"image": SMALL}))


def test_results_that_are_no_findings_are_a_fault():
    with pytest.raises(PipelineFault, match="returned dict, not Findings"):
        check(BrightLesion.card, {"image": SMALL}, {})
