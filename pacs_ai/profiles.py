"""Profiles: which objects a destination gets, in which form and order, and what instead where it takes one not.

An object in one form is an `Encoding`; its `key` is part of the UIDs and stands beside each result. What a destination
gets is a `Plan`: choices in the order of delivery, each with what it falls back to. A plan is frozen in the job's rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from pacs_ai.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

EXPLICIT = "ExplicitVRLittleEndian"


class Kind(StrEnum):
    """A kind of object that findings can be written as."""

    SEGMENTATION = "segmentation"  #: the voxels of each label
    REPORT = "report"  #: TID 1500: coded values with their outlines
    TEXT_REPORT = "text-report"  #: the values as readable text, for viewers that draw a report and do not print it
    VALUES = "values"  #: flat name and value pairs, for report templates
    PARAMETRIC_MAP = "parametric-map"  #: saliency or probability, a number for each voxel
    SECONDARY_CAPTURE = "secondary-capture"  #: one picture with legend and values, for viewers that show nothing else
    OVERLAY = "overlay"  #: the source images with the segments drawn into them, one colour frame for each slice
    STRUCTURE_SET = "structure-set"  #: RTSTRUCT contours
    KEY_OBJECTS = "key-objects"  #: the slices that matter
    PRESENTATION_STATE = "presentation-state"  #: contours over the source images, GSPS
    SUMMARY = "summary"  #: one page as PDF
    DERIVED_IMAGES = "derived-images"  #: a new series of the source's own kind: denoised, reconstructed
    NOT_ANALYSED = "not-analysed"  #: notice: no result, and why
    REJECTION_NOTE = "rejection-note"  #: notice: these objects are withdrawn, as IHE IOCM says it
    RETRACTED_REPORT = "retracted-report"  #: notice: the same as a report that replaces the withdrawn ones
    RETRACTED_PICTURE = "retracted-picture"  #: notice: the same in large letters, for viewers that show images only


#: Notes of retraction: they go wherever went what they withdraw.
WITHDRAWALS = (Kind.REJECTION_NOTE, Kind.RETRACTED_REPORT, Kind.RETRACTED_PICTURE)
#: What is said about results and is none; no profile names them.
NOTICES = (Kind.NOT_ANALYSED, *WITHDRAWALS)


@dataclass(frozen=True)
class Form:
    """One form of a kind.

    Parameters
    ----------
    name
        What a profile calls it.
    sop_class_uid
        PS3.4 Table B.5-1; "" for the source's own.
    modality
        Modality (0008,0060) of the series; "" for the source's own.
    syntaxes
        Transfer syntaxes (pydicom's keywords) that it is written in, default first.
    """

    name: str
    sop_class_uid: str
    modality: str
    syntaxes: tuple[str, ...] = (EXPLICIT,)


_SR = "1.2.840.10008.5.1.4.1.1.88."
_COLOUR = (EXPLICIT, "RLELossless", "JPEGLSLossless", "JPEG2000Lossless")
#: Forms of each kind, the default first.
FORMS: Mapping[Kind, tuple[Form, ...]] = {
    Kind.SEGMENTATION: (
        Form("binary", "1.2.840.10008.5.1.4.1.1.66.4", "SEG"),
        Form("labelmap", "1.2.840.10008.5.1.4.1.1.66.7", "SEG", ("JPEGLSLossless", "RLELossless", EXPLICIT)),
        Form("fractional", "1.2.840.10008.5.1.4.1.1.66.4", "SEG", (EXPLICIT, "RLELossless")),
    ),
    Kind.REPORT: (
        Form("comprehensive-3d", f"{_SR}34", "SR"),
        Form("comprehensive", f"{_SR}33", "SR"),
        Form("segments", f"{_SR}34", "SR"),  # TID 1411 with Referenced Segment, as dcmqi writes it
    ),
    Kind.TEXT_REPORT: (Form("basic-text", f"{_SR}11", "SR"),),
    Kind.VALUES: (Form("enhanced", f"{_SR}22", "SR"), Form("basic-text", f"{_SR}11", "SR")),
    Kind.PARAMETRIC_MAP: (Form("float", "1.2.840.10008.5.1.4.1.1.30", "OT"),),
    Kind.SECONDARY_CAPTURE: (Form("page", "1.2.840.10008.5.1.4.1.1.7", "OT", _COLOUR),),
    Kind.OVERLAY: (
        Form("multi-frame", "1.2.840.10008.5.1.4.1.1.7.4", "OT", ("JPEGLSLossless", "RLELossless", EXPLICIT)),
        Form("single-frame", "1.2.840.10008.5.1.4.1.1.7", "OT", _COLOUR),
    ),
    Kind.STRUCTURE_SET: (Form("contours", "1.2.840.10008.5.1.4.1.1.481.3", "RTSTRUCT"),),
    Kind.KEY_OBJECTS: (Form("slices", f"{_SR}59", "KO"),),
    Kind.PRESENTATION_STATE: (Form("greyscale", "1.2.840.10008.5.1.4.1.1.11.1", "PR"),),
    Kind.SUMMARY: (Form("pdf", "1.2.840.10008.5.1.4.1.1.104.1", "DOC"),),
    Kind.DERIVED_IMAGES: (Form("images", "", ""),),
    Kind.NOT_ANALYSED: (Form("basic-text", f"{_SR}11", "SR"),),
    Kind.REJECTION_NOTE: (Form("key-objects", f"{_SR}59", "KO"),),
    Kind.RETRACTED_REPORT: (Form("basic-text", f"{_SR}11", "SR"),),
    Kind.RETRACTED_PICTURE: (Form("page", "1.2.840.10008.5.1.4.1.1.7", "OT"),),
}
#: Series Numbers of notices follow the first of the results by so much, in the order of `NOTICES`.
NOTICE_OFFSET = 80
#: Kinds that refer to the segmentation of the same plan.
_CITING = frozenset({Kind.REPORT})

Frames = Literal["sparse", "full"]
#: Inputs that an object is made of: "" for all, else only volumes, or only images (radiographs, ultrasound).
Only = Literal["", "volumes", "images"]


@dataclass(frozen=True)
class Encoding:
    """One kind of object in one form, with all that changes its bytes beside the findings.

    Parameters
    ----------
    kind, form
        As in `FORMS`.
    transfer_syntax
        pydicom's keyword.
    frames
        Of a segmentation: `sparse` leaves empty frames out, `full` has one for each segment and slice.
    series_number, instance_number
        Series Number and the (first) Instance Number.
    cites
        Key of the segmentation that it refers to, "" for none.
    only
        Of which inputs it is made; of others there is none.
    """

    kind: Kind
    form: str
    transfer_syntax: str
    frames: Frames
    series_number: int
    instance_number: int
    cites: str = ""
    only: Only = ""

    @property
    def key(self) -> str:
        """What tells it from every other encoding of the same findings; at most 128 characters."""
        numbers = f"{self.series_number}.{self.instance_number}"
        of = f"/{self.only}" if self.only else ""
        own = f"{self.kind}/{self.form}/{self.transfer_syntax}/{self.frames}/{numbers}{of}"
        return f"{own}<{self.cites}" if self.cites else own

    @property
    def details(self) -> Form:
        """Its row in `FORMS`."""
        return next(form for form in FORMS[self.kind] if form.name == self.form)

    @property
    def label(self) -> str:
        """What people call it, at most 32 characters: SEG, SR, else its kind."""
        return {Kind.SEGMENTATION: "SEG", Kind.REPORT: "SR"}.get(self.kind, self.kind.value)

    @property
    def series(self) -> str:
        """What its Series Instance UID derives from.

        Each encoding has a series of its own: of a series, OHIF 3.13 shows one object for each way of showing.
        """
        return f"series/{self.kind}/{self.form}/{self.transfer_syntax}/{self.series_number}"


@dataclass(frozen=True)
class Choice:
    """One object of a plan, and what is sent where the peer accepts no such object; `otherwise` ends with None."""

    encoding: Encoding
    otherwise: Choice | None = None


Plan = tuple[Choice, ...]


@dataclass(frozen=True)
class Wanted:
    """One object as a profile names it; empty values take the default of `FORMS`."""

    kind: Kind
    form: str = ""
    transfer_syntax: str = ""
    frames: Frames = "sparse"
    otherwise: Wanted | None = None
    only: Only = ""


@dataclass(frozen=True)
class Profile:
    """What a destination gets.

    Parameters
    ----------
    objects
        In the order of delivery; Series Numbers ascend in this order.
    honours_rejection_notes
        Whether the peer hides what an IOCM rejection note names; where not, a retraction sends objects that say
        RETRACTED instead.
    purpose
        For whom it is, in a sentence.
    """

    name: str
    objects: tuple[Wanted, ...]
    honours_rejection_notes: bool = True
    purpose: str = ""


def plan(profile: Profile, first_series_number: int) -> Plan:
    """Return what a destination of that profile gets, with Series and Instance Numbers.

    Raises
    ------
    UserError
        A notice, or a form or a transfer syntax that the kind does not have.
    """
    choices = [_choice(wanted, number, 1) for number, wanted in enumerate(profile.objects, first_series_number)]
    return _citing(tuple(choices))


def notice_encodings(first_series_number: int) -> Mapping[Kind, Encoding]:
    """Return the encoding of each notice, where the results' first Series Number is this one."""
    return {
        kind: Encoding(kind, FORMS[kind][0].name, EXPLICIT, "sparse", first_series_number + NOTICE_OFFSET + place, 1)
        for place, kind in enumerate(NOTICES)
    }


def _choice(wanted: Wanted, series_number: int, instance_number: int) -> Choice:
    instead = None if wanted.otherwise is None else replace(wanted.otherwise, only=wanted.otherwise.only or wanted.only)
    otherwise = None if instead is None else _choice(instead, series_number, instance_number)
    return Choice(_encoding(wanted, series_number, instance_number), otherwise)


def _encoding(wanted: Wanted, series_number: int, instance_number: int) -> Encoding:
    if wanted.kind in NOTICES:
        raise UserError(f"{wanted.kind} is a notice, which the node sends by itself; leave it out of the profile")
    forms = FORMS[wanted.kind]
    form = next((one for one in forms if one.name == (wanted.form or forms[0].name)), None)
    if form is None:
        names = ", ".join(one.name for one in forms)
        raise UserError(f"{wanted.kind} has no form {wanted.form!r}; there is {names}")
    syntax = wanted.transfer_syntax or form.syntaxes[0]
    if syntax not in form.syntaxes:
        names = ", ".join(form.syntaxes)
        raise UserError(f"{wanted.kind} as {form.name} is not written in {syntax!r}; there is {names}")
    return Encoding(wanted.kind, form.name, syntax, wanted.frames, series_number, instance_number, "", wanted.only)


def _citing(choices: Plan) -> Plan:
    """Return the plan with its reports referring to its (first) segmentation."""
    segmentation = next((one.encoding for one in choices if one.encoding.kind is Kind.SEGMENTATION), None)
    cited = "" if segmentation is None else segmentation.key
    return tuple(_with_citation(choice, cited) for choice in choices)


def _with_citation(choice: Choice, cited: str) -> Choice:
    encoding = choice.encoding
    if encoding.kind in _CITING:
        encoding = replace(encoding, cites=cited)
    otherwise = None if choice.otherwise is None else _with_citation(choice.otherwise, cited)
    return Choice(encoding, otherwise)


def keys(chosen: Plan) -> tuple[str, ...]:
    """Return the keys of what is sent first, in order."""
    return tuple(choice.encoding.key for choice in chosen)


def fall_back(chosen: Plan, refused: str) -> Plan | None:
    """Return the plan without the refused encoding: with what it falls back to; None where there is nothing.

    What cited a refused segmentation then cites the one in its place. Each step uses one `otherwise` up, so a chain of
    refusals ends.
    """
    place = next((n for n, choice in enumerate(chosen) if choice.encoding.key == refused), None)
    if place is None or chosen[place].otherwise is None:
        return None
    otherwise = chosen[place].otherwise
    assert otherwise is not None
    return _citing((*chosen[:place], otherwise, *chosen[place + 1 :]))


def encodings(plans: Iterable[Plan]) -> tuple[Encoding, ...]:
    """Return everything that these plans can come to, fallbacks too, each once, segmentations first."""
    found: dict[str, Encoding] = {}
    for chosen in plans:
        for reached in _reachable(chosen):
            for choice in reached:
                found.setdefault(choice.encoding.key, choice.encoding)
    return tuple(sorted(found.values(), key=lambda one: one.kind is not Kind.SEGMENTATION))


def _reachable(chosen: Plan) -> Iterator[Plan]:
    """Yield the plan and every plan that refusals can lead to, each once."""
    waiting, seen = [chosen], {keys(chosen)}
    while waiting:
        reached = waiting.pop()
        yield reached
        for key in keys(reached):
            fallen = fall_back(reached, key)
            if fallen is not None and keys(fallen) not in seen:
                seen.add(keys(fallen))
                waiting.append(fallen)


def to_json(chosen: Plan) -> list[dict[str, Any]]:
    """Return the plan as plain lists and dictionaries."""
    return [_choice_to_json(choice) for choice in chosen]


def _choice_to_json(choice: Choice) -> dict[str, Any]:
    otherwise = None if choice.otherwise is None else _choice_to_json(choice.otherwise)
    return {**vars(choice.encoding), "kind": choice.encoding.kind.value, "otherwise": otherwise}


def from_json(stored: Sequence[Mapping[str, Any]]) -> Plan:
    """Return the plan of `to_json`."""
    return tuple(_choice_from_json(one) for one in stored)


def _choice_from_json(stored: Mapping[str, Any]) -> Choice:
    fields = {name: value for name, value in stored.items() if name != "otherwise"}
    otherwise = None if stored["otherwise"] is None else _choice_from_json(stored["otherwise"])
    return Choice(Encoding(**{**fields, "kind": Kind(fields["kind"])}), otherwise)
