"""The destination profiles that come with the node: which objects an OHIF viewer, an old PACS or an archive gets."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pacs_ai.profiles import Kind, Profile, Wanted

if TYPE_CHECKING:
    from collections.abc import Mapping

_COMPREHENSIVE = Wanted(Kind.REPORT, "comprehensive")
_REPORT = Wanted(Kind.REPORT, "comprehensive-3d", otherwise=_COMPREHENSIVE)
#: No viewer that was tried shows a segmentation of images without a geometry; OHIF 3.13 ends at it.
_SEG = Wanted(Kind.SEGMENTATION, "binary", only="volumes")
_DRAWN_INTO_IMAGES = Wanted(Kind.OVERLAY, "single-frame", only="images")
#: The profiles that come with the node.
BUILT_IN: Mapping[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            "ohif",
            (
                _SEG,
                _REPORT,
                Wanted(Kind.TEXT_REPORT),
                _DRAWN_INTO_IMAGES,
                Wanted(Kind.PARAMETRIC_MAP),
                Wanted(Kind.DERIVED_IMAGES),
            ),
            purpose="viewers built on OHIF, and other modern ones: the default",
        ),
        Profile(
            "slicer",
            (
                _SEG,
                Wanted(Kind.REPORT, "segments", otherwise=_COMPREHENSIVE),
                _DRAWN_INTO_IMAGES,
                Wanted(Kind.PARAMETRIC_MAP),
                Wanted(Kind.DERIVED_IMAGES),
            ),
            purpose="3D Slicer and research stores: measurements refer to segments, as dcmqi writes and reads them",
        ),
        Profile(
            "generic-pacs",
            (
                replace(_SEG, otherwise=Wanted(Kind.PRESENTATION_STATE)),
                Wanted(Kind.REPORT, "comprehensive", otherwise=Wanted(Kind.TEXT_REPORT)),
                Wanted(Kind.SECONDARY_CAPTURE),
                _DRAWN_INTO_IMAGES,
                Wanted(Kind.DERIVED_IMAGES),
            ),
            honours_rejection_notes=False,
            purpose="a PACS of 2012: what older software stores and shows",
        ),
        Profile(
            "dictation",
            (Wanted(Kind.VALUES, "enhanced", otherwise=Wanted(Kind.VALUES, "basic-text")),),
            honours_rejection_notes=False,
            purpose="report templates: names and values, flat",
        ),
        Profile(
            "archive",
            (
                _SEG,
                Wanted(Kind.SEGMENTATION, "binary", only="images"),
                Wanted(Kind.SEGMENTATION, "labelmap", only="volumes"),
                _REPORT,
                Wanted(Kind.TEXT_REPORT),
                Wanted(Kind.VALUES),
                Wanted(Kind.PARAMETRIC_MAP),
                Wanted(Kind.SECONDARY_CAPTURE),
                Wanted(Kind.OVERLAY),
                Wanted(Kind.STRUCTURE_SET),
                Wanted(Kind.KEY_OBJECTS),
                Wanted(Kind.PRESENTATION_STATE),
                Wanted(Kind.SUMMARY),
                Wanted(Kind.DERIVED_IMAGES),
            ),
            purpose="everything that the findings can be written as",
        ),
    )
}
DEFAULT_PROFILE = "ohif"
