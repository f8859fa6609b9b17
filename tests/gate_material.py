"""Honest results of every kind over one small series, and ways to tamper with them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
from encode_material import SMALL, make_evidence, make_findings, make_volume, make_work
from pydicom.uid import UID

from pacs_ai.encode.case import Case
from pacs_ai.encode.encoded import encoded
from pacs_ai.encode.results import ENCODERS
from pacs_ai.pipeline import (
    Classification,
    Code,
    Derived,
    Detection,
    Diameters,
    Map,
    Measurement,
    Region,
    Shape,
)
from pacs_ai.profiles import FORMS, Encoding, Profile, Wanted, encodings, plan
from pacs_ai.testing import phantom_truth

QUALITY = Code("111101", "DCM", "Image Quality")
GOOD = Code("122741", "DCM", "Good image quality")
PROBABILITY = Code("110854", "DCM", "Fractional Probabilistic Segmentation")
RATIO = Code("{ratio}", "UCUM", "ratio")
BLUR = Code("113088", "DCM", "Gaussian blur")
SCORE = Code("246205007", "SCT", "Quantity")


def all_findings(phantom=SMALL):
    """Segments, measurements, a detection, a classification, a map and a derived series."""
    segments = make_findings(phantom)
    shape = (phantom.slices, phantom.rows, phantom.columns)
    rising = np.linspace(0, 1, np.prod(shape), dtype=np.float32).reshape(shape)
    axes = Diameters(np.array([[5, 6], [15, 6]], np.float32), np.array([[10, 4], [10, 9]], np.float32), 3)
    region = Region(Shape.POLYLINE, np.array([[5, 4], [15, 4], [15, 9], [5, 9], [4, 6], [5, 4]], np.float32), 3)
    return replace(
        segments,
        measurements=(*segments.measurements, Measurement(SCORE, 0.25, Code("{score}", "UCUM", "score"))),
        detections=(Detection("Marker front", region, axes, 0.75, (Measurement(SCORE, 2.5, RATIO),)),),
        classifications=(Classification(QUALITY, GOOD, 0.9),),
        maps=(
            Map("Left", PROBABILITY, RATIO, rising, "Left lung"),
            Map("Right", PROBABILITY, RATIO, rising[::-1].copy(), "Right lung"),
        ),
        images=(Derived("Denoised", BLUR, phantom_truth(phantom).labels.astype(np.int16) * 10 - 5),),
    )


def every_encoding() -> tuple[Encoding, ...]:
    """Every form of every kind in each of its transfer syntaxes, numbered as one profile; segmentations first."""
    wanted = [Wanted(kind, form.name, syntax) for kind in ENCODERS for form in FORMS[kind] for syntax in form.syntaxes]
    return tuple(one for one in encodings([plan(Profile("all", tuple(wanted)), 9001)]))


def defaults() -> tuple[Encoding, ...]:
    """Every form of every kind in its first transfer syntax."""
    return tuple(one for one in every_encoding() if one.transfer_syntax in ("", one.details.syntaxes[0]))


@cache
def honest_case() -> Case:
    work = make_work()
    volume = make_volume()
    return Case.of(all_findings(), {"image": make_evidence()}, {"image": volume}, work)


@cache
def honest(encoding: Encoding):
    """The results of one encoding, with the segmentation that it cites before them."""
    case = honest_case()
    cited = ()
    if encoding.cites:
        (one,) = [one for one in every_encoding() if one.key == encoding.cites]
        cited = ENCODERS[one.kind](case, one, None)
    return (*cited, *ENCODERS[encoding.kind](case, encoding, cited[0] if cited else None))


def kinds():
    """The encodings that say something about this case."""
    return [one for one in defaults() if honest(one)]


def changed(result, change):
    """The result with its data set changed, as it would have been encoded so."""
    ds = result.dataset
    change(ds)
    return replace(encoded(result.encoding, ds), encoding=result.encoding)


def with_bytes(result, old, new, count=-1):
    """The result with some of its bytes other ones of the same length."""
    assert len(old) == len(new)
    whole = result.to_bytes()
    assert old in whole
    return replace(result, parts=(whole.replace(old, new, count),))


def with_uid(result, keyword, uid):
    """The result under another UID, inside and outside."""

    def change(ds):
        setattr(ds, keyword, UID(uid))
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID

    return changed(result, change)


def first_of(ds, *path):
    """The first item of nested sequences."""
    for keyword in path:
        ds = ds[keyword].value[0]
    return ds
