"""Which routes a series matches and which condition failed, in words: pure functions over headers and configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

from pacs_ai.conditions import When, pattern
from pacs_ai.dicom.attributes import INDEXED, Header, numbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

#: Key of `When` -> keywords of the attributes it is compared with, the first that has a value.
_TEXTS: Mapping[str, tuple[str, ...]] = {
    "modality": ("Modality",),
    "body_part": ("BodyPartExamined",),
    "description": ("SeriesDescription",),
    "study_description": ("StudyDescription",),
    "protocol": ("ProtocolName",),
    "manufacturer": ("Manufacturer",),
    "model": ("ManufacturerModelName",),
    "station": ("StationName",),
    "institution": ("InstitutionName",),
    "kernel": ("ConvolutionKernel",),
    "laterality": ("ImageLaterality", "Laterality"),
    "view": ("ViewPosition",),
    "sex": ("PatientSex",),
}
_STORAGE = "1.2.840.10008.5.1.4.1.1."
#: What no pipeline analyses, by the beginning of the SOP Class UID (PS3.4 B.5).
_NO_SOURCES = (
    (_STORAGE + "88.59", "a key object selection"),
    (_STORAGE + "88.", "a structured report"),
    (_STORAGE + "11.", "a presentation state"),
    (_STORAGE + "66.4", "a segmentation"),
    (_STORAGE + "66.5", "a segmentation"),
    (_STORAGE + "66.7", "a segmentation"),
    (_STORAGE + "66", "raw data, a registration or fiducials"),
    (_STORAGE + "67", "a real world value mapping"),
    (_STORAGE + "30", "a parametric map"),
    (_STORAGE + "104.", "an encapsulated document"),
    (_STORAGE + "481.3", "an RT structure set"),
    (_STORAGE + "481.2", "an RT dose"),
    (_STORAGE + "481.", "an RT plan or treatment record"),
)
_RT_IMAGE = _STORAGE + "481.1"
_NO_SOURCE_MODALITIES = frozenset({"SR", "SEG", "PR", "KO", "DOC", "REG", "FID", "RWV", "RTSTRUCT", "RTPLAN", "RTDOSE"})
#: A plane lies in an axis' plane where its normal has this much of the axis, i.e. within 37 degrees.
_ALONG_AXIS = 0.8
#: Number of Frames is a text that a peer may fill with any number.
_MOST_FRAMES = 2**31 - 1
_DAYS_PER_UNIT = {"D": 1.0, "W": 7.0, "M": 30.4375, "Y": 365.25}


@dataclass(frozen=True)
class SeriesFacts:
    """What the rules know of one series.

    Parameters
    ----------
    header
        Of one representative instance.
    instances
        How many instances the series has.
    calling_ae_title, called_ae_title
        Of the association that brought the representative instance.
    own_result
        Whether this node made the series.
    """

    header: Header
    instances: int
    calling_ae_title: str = ""
    called_ae_title: str = ""
    own_result: bool = False

    @property
    def series_instance_uid(self) -> str:
        """Series Instance UID (0020,000E)."""
        return self.header.series_instance_uid

    @property
    def images(self) -> int:
        """How many images the series has, each frame of a multi-frame instance counted (PS3.3 C.7.6.6)."""
        frames = numbers(self.header, "NumberOfFrames")
        return self.instances * int(min(max(frames[0], 1), _MOST_FRAMES)) if frames else self.instances

    @property
    def slice_thickness_mm(self) -> float | None:
        """Slice Thickness (0018,0050) in mm."""
        return next(iter(numbers(self.header, "SliceThickness")), None)

    @property
    def orientation(self) -> str:
        """``axial``, ``sagittal``, ``coronal`` or ``oblique``; "" without Image Orientation (Patient) (0020,0037)."""
        cosines = numbers(self.header, "ImageOrientationPatient")
        if len(cosines) != 6:
            return ""
        (rx, ry, rz), (cx, cy, cz) = cosines[:3], cosines[3:]
        normal = (ry * cz - rz * cy, rz * cx - rx * cz, rx * cy - ry * cx)
        length = math.hypot(*normal)
        for name, along in zip(("sagittal", "coronal", "axial"), normal, strict=True):
            if length and abs(along) / length >= _ALONG_AXIS:
                return name
        return "oblique"

    @property
    def age_years(self) -> float | None:
        """Patient's Age (0010,1010) in years, else the age at the study by the birth date; None where unknown."""
        age = self.header.get("PatientAge")
        if len(age) == 4 and age[:3].isdecimal() and age[3] in _DAYS_PER_UNIT:
            return int(age[:3]) * _DAYS_PER_UNIT[age[3]] / _DAYS_PER_UNIT["Y"]
        born, studied = (_date(self.header.get(keyword)) for keyword in ("PatientBirthDate", "StudyDate"))
        if born is None or studied is None or studied < born:
            return None
        return studied.year - born.year - ((studied.month, studied.day) < (born.month, born.day))

    @property
    def words(self) -> str:
        """A short name: ``series 3``, or its UID where it has no number."""
        number = self.header.get("SeriesNumber")
        return f"series {number}" if number else f"series {self.series_instance_uid}"


@dataclass(frozen=True)
class Check:
    """One condition by its key in the configuration, whether the series meets it, and the sentence that says so."""

    name: str
    passed: bool
    words: str


@dataclass(frozen=True)
class Binding:
    """Which series serves which named input.

    Parameters
    ----------
    chosen
        Input -> the series.
    missing
        Input -> why none serves it, in words.
    remarks
        Where more than one series could serve: which was taken and why.
    """

    chosen: Mapping[str, SeriesFacts]
    missing: Mapping[str, str]
    remarks: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether each input has its series."""
        return not self.missing


def why_no_source(facts: SeriesFacts) -> str | None:
    """Return why no pipeline may be run on the series, None where one may."""
    if facts.own_result:
        return "it is this node's own result"
    sop_class_uid = facts.header.sop_class_uid
    if sop_class_uid != _RT_IMAGE:
        for beginning, kind in _NO_SOURCES:
            if sop_class_uid == beginning or sop_class_uid.startswith(beginning.rstrip(".") + "."):
                return f"it is {kind}"
    if facts.header.modality in _NO_SOURCE_MODALITIES:
        return f"its Modality is {facts.header.modality}"
    return None


def explain(when: When, facts: SeriesFacts) -> tuple[Check, ...]:
    """Check each condition that is set, in the order of `When`."""
    return tuple(
        check
        for key in When.model_fields
        if getattr(when, key) not in ((), None, {})
        for check in _check(key, when, facts)
    )


def matches(when: When, facts: SeriesFacts) -> bool:
    """Tell whether the series meets all conditions and may be a source."""
    return why_no_source(facts) is None and all(check.passed for check in explain(when, facts))


def not_indexed(when: When) -> tuple[str, ...]:
    """Return the keywords under ``attributes`` that the index does not keep, so that the condition could never hold."""
    return tuple(keyword for keyword in when.attributes if keyword not in INDEXED)


def bind(inputs: Mapping[str, When], series: Sequence[SeriesFacts]) -> Binding:
    """Choose for each named input a series of its own among those of a study.

    Of several that match, the one with most images is taken, then the lowest Series Number; where one input can only
    be served by the series that another would take, the other takes its next.
    """
    candidates = {
        name: sorted((facts for facts in series if matches(when, facts)), key=_preference)
        for name, when in inputs.items()
    }
    taken: dict[str, str] = {}
    for name in inputs:
        _assign(name, candidates, taken, set())
    by_name = {name: uid for uid, name in taken.items()}
    by_uid = {facts.series_instance_uid: facts for facts in series}
    chosen = {name: by_uid[by_name[name]] for name in inputs if name in by_name}
    missing = {
        name: _why_missing(name, when, candidates[name], series) for name, when in inputs.items() if name not in by_name
    }
    remarks = tuple(
        f"{name}: {_joined([each.words for each in candidates[name]], 'and')} match; {facts.words} was taken,"
        f" which has {facts.images} images"
        for name, facts in chosen.items()
        if len(candidates[name]) > 1
    )
    return Binding(chosen, missing, remarks)


def _assign(name: str, candidates: Mapping[str, list[SeriesFacts]], taken: dict[str, str], tried: set[str]) -> bool:
    """Give the input its first free series, moving others to their next where they have one (augmenting path)."""
    for facts in candidates[name]:
        uid = facts.series_instance_uid
        if uid not in tried:
            tried.add(uid)
            if uid not in taken or _assign(taken[uid], candidates, taken, tried):
                taken[uid] = name
                return True
    return False


def _preference(facts: SeriesFacts) -> tuple[float, float, str]:
    number = next(iter(numbers(facts.header, "SeriesNumber")), math.inf)
    return -facts.images, number, facts.series_instance_uid


def _why_missing(name: str, when: When, candidates: list[SeriesFacts], series: Sequence[SeriesFacts]) -> str:
    if candidates:
        return f"{name} missing: {_joined([each.words for each in candidates], 'and')} serves another input"
    sources = [facts for facts in series if why_no_source(facts) is None]
    if not sources:
        return f"{name} missing: the study has no images that could be analysed"
    failed = [[check.words for check in explain(when, facts) if not check.passed] for facts in sources]
    words, nearest = min(zip(failed, sources, strict=True), key=lambda pair: (len(pair[0]), _preference(pair[1])))
    return f"{name} missing: no series matches; nearest is {nearest.words}: {'; '.join(words)}"


# -- one condition each


def _check(key: str, when: When, facts: SeriesFacts) -> Iterator[Check]:
    wanted, header = getattr(when, key), facts.header
    if key in _TEXTS:
        found = next((header.get(keyword) for keyword in _TEXTS[key] if header.get(keyword)), "")
        yield _text(key, found, wanted)
    elif key == "attributes":
        for keyword, patterns in wanted.items():
            yield _text(keyword, header.get(keyword), patterns)
    elif key in {"calling_ae", "called_ae"}:
        yield _text(key, facts.calling_ae_title if key == "calling_ae" else facts.called_ae_title, wanted)
    elif key == "orientation":
        yield _text(key, facts.orientation, wanted)
    elif key == "sop_class":
        yield _verdict(key, header.sop_class_uid in wanted, header.sop_class_uid, _joined(wanted, "or"))
    elif key in {"image_type", "not_image_type"}:
        yield _image_type(key, header, wanted)
    elif key == "contrast":
        agent = header.get("ContrastBolusAgent")
        yield _verdict(key, bool(agent) == wanted, agent or "not named", "an agent named" if wanted else "none named")
    else:
        yield _number(key, wanted, facts)


def _text(name: str, found: str, patterns: Sequence[str]) -> Check:
    """Check the whole text, and each value where there are several."""
    values = {found, *found.split("\\")} - {""}
    passed = any(pattern(text).match(value) for text in patterns for value in values)
    return _verdict(name, passed, found or "missing", _joined(patterns, "or"))


def _image_type(key: str, header: Header, wanted: Sequence[str]) -> Check:
    found = {value.upper() for value in header.each("ImageType")}
    held = [value for value in wanted if value.upper() in found]
    shown = header.get("ImageType") or "missing"
    if key == "image_type":
        return _verdict(key, len(held) == len(wanted), shown, _joined(wanted, "and"))
    return _verdict(key, not held, shown, "not " + _joined(wanted, "nor"), "image_type")


def _number(key: str, wanted: float, facts: SeriesFacts) -> Check:
    found, subject, unit = {
        "instances": (facts.images, "number of images", ""),
        "thickness": (facts.slice_thickness_mm, "slice thickness", " mm"),
        "age": (facts.age_years, "patient's age", " years"),
    }[next(part for part in ("instances", "thickness", "age") if part in key)]
    least = "min" in key.split("_")
    passed = found is not None and (found >= wanted if least else found <= wanted)
    shown = "missing" if found is None else f"{found:g}{unit}"
    return _verdict(key, passed, shown, f"{'at least' if least else 'at most'} {wanted:g}{unit}", subject)


def _verdict(key: str, passed: bool, found: str, wanted: str, subject: str = "") -> Check:
    return Check(key, passed, f"{subject or key} is {found}" + ("" if passed else f", the route wants {wanted}"))


def _joined(values: Sequence[str], last: str) -> str:
    """Join as in a sentence: CHEST, THORAX or LUNG."""
    return f" {last} ".join(filter(None, (", ".join(values[:-1]), values[-1])))


def _date(text: str) -> date | None:
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:8])) if len(text) == 8 else None
    except ValueError:
        return None
