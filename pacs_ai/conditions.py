"""What a route may ask of a series: the keys of ``when = { … }`` in the configuration."""

from __future__ import annotations

import fnmatch
import re
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydicom._uid_dict import UID_dictionary
from pydicom.datadict import tag_for_keyword

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_SOP_CLASSES = {
    name: uid for uid, (title, kind, _, _, keyword) in UID_dictionary.items() if kind == "SOP Class"
    for name in (title, keyword)
}  # fmt: skip


@lru_cache(maxsize=1024)
def pattern(text: str) -> re.Pattern[str]:
    """Return what matches a whole value: ``*lung*`` (``*`` any text, ``?`` one character), or ``/regex/`` anywhere.

    Case does not count. `re.error` where the expression between slashes is none.
    """
    if len(text) > 2 and text.startswith("/") and text.endswith("/"):
        return re.compile(f"(?s:.*(?:{text[1:-1]}))", re.IGNORECASE)
    return re.compile(fnmatch.translate(text), re.IGNORECASE)


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _check_patterns(values: tuple[str, ...]) -> tuple[str, ...]:
    for text in values:
        if not text.strip():
            raise ValueError('is empty; leave the key out, or use "*" for any value')
        try:
            pattern(text)
        except re.error as error:
            raise ValueError(f"{text} is no regular expression: {error}") from error
    return values


def _find_sop_class(text: str) -> str:
    uid = text if _UID.fullmatch(text) else _SOP_CLASSES.get(text)
    if uid is None:
        raise ValueError(f"{text} is no SOP class; give its UID, or a name such as CTImageStorage")
    return uid


def _check_keyword(keyword: str) -> str:
    if tag_for_keyword(keyword) is None:
        raise ValueError(f"{keyword} is no DICOM keyword; a keyword is written like SliceThickness")
    return keyword


#: One pattern or several, of which any may match.
Patterns = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), AfterValidator(_check_patterns)]
_Values = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
_SopClasses = Annotated[tuple[Annotated[str, AfterValidator(_find_sop_class)], ...], BeforeValidator(_as_tuple)]
_Orientations = Annotated[
    tuple[Literal["axial", "sagittal", "coronal", "oblique"], ...],
    BeforeValidator(_as_tuple),
]
_Millimetres = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Years = Annotated[float, Field(ge=0, le=150, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1)]


class When(BaseModel):
    """Conditions that a series must all meet; in a list, any one value is enough.

    Text is compared with the whole value, upper and lower case alike; ``*`` stands for any text and ``?`` for one
    character (``"*lung*"``), and a pattern between slashes is a regular expression that may match anywhere
    (``"/lung|thorax/"``).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    modality: Patterns = ()
    """Modality (0008,0060): `"CT"`."""
    body_part: Patterns = ()
    """Body Part Examined (0018,0015): `["CHEST", "THORAX"]`."""
    sop_class: _SopClasses = ()
    """SOP class, by UID or by name: `"CTImageStorage"`."""
    description: Patterns = ()
    """Series Description (0008,103E): `"*lung*"`."""
    study_description: Patterns = ()
    """Study Description (0008,1030)."""
    protocol: Patterns = ()
    """Protocol Name (0018,1030)."""
    min_instances: _Count | None = None
    """Fewest images; the frames of multi-frame instances count one by one."""
    max_instances: _Count | None = None
    """Most images; the frames of multi-frame instances count one by one."""
    min_slice_thickness_mm: _Millimetres | None = None
    """Least Slice Thickness (0018,0050) in mm."""
    max_slice_thickness_mm: _Millimetres | None = None
    """Greatest Slice Thickness (0018,0050) in mm."""
    orientation: _Orientations = ()
    """`axial`, `sagittal` or `coronal` (within 37 degrees), else `oblique`; by Image Orientation (0020,0037)."""
    image_type: _Values = ()
    """Values that Image Type (0008,0008) must all contain: `["ORIGINAL", "PRIMARY"]`."""
    not_image_type: _Values = ()
    """Values of which Image Type (0008,0008) may contain none: `["LOCALIZER", "DERIVED"]`."""
    contrast: bool | None = None
    """Whether a Contrast/Bolus Agent (0018,0010) is named."""
    manufacturer: Patterns = ()
    """Manufacturer (0008,0070)."""
    model: Patterns = ()
    """Manufacturer's Model Name (0008,1090)."""
    station: Patterns = ()
    """Station Name (0008,1010)."""
    institution: Patterns = ()
    """Institution Name (0008,0080)."""
    kernel: Patterns = ()
    """Convolution Kernel (0018,1210)."""
    laterality: Patterns = ()
    """Image Laterality (0020,0062), else Laterality (0020,0060): `"L"`."""
    view: Patterns = ()
    """View Position (0018,5101): `["PA", "AP"]`."""
    patient_age_min_years: _Years | None = None
    """Least Patient's Age (0010,1010), or age at the study by the birth date, in years."""
    patient_age_max_years: _Years | None = None
    """Greatest Patient's Age (0010,1010), or age at the study by the birth date, in years."""
    sex: Patterns = ()
    """Patient's Sex (0010,0040): `"F"`."""
    calling_ae: Patterns = ()
    """Calling AE title of the association that brought the series."""
    called_ae: Patterns = ()
    """Called AE title of the association that brought the series."""
    attributes: dict[Annotated[str, AfterValidator(_check_keyword)], Patterns] = Field(default_factory=dict)
    """Any other indexed attribute, by keyword: `{ ScanningSequence = "*GR*" }`."""

    @model_validator(mode="after")
    def _check_ranges(self) -> When:
        for least, most in (
            ("min_instances", "max_instances"),
            ("min_slice_thickness_mm", "max_slice_thickness_mm"),
            ("patient_age_min_years", "patient_age_max_years"),
        ):
            low, high = getattr(self, least), getattr(self, most)
            if low is not None and high is not None and low > high:
                raise ValueError(f"{least} is greater than {most}, so nothing can match")
        return self
