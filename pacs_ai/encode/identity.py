"""Whose result it is: patient, study and order, copied from the source byte for byte, never made up."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from pydicom import config
from pydicom.datadict import dictionary_description
from pydicom.valuerep import VALIDATORS

from pacs_ai.dicom.reading import READING_FAULTS
from pacs_ai.errors import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pydicom import DataElement, Dataset

#: Type 2 attributes of the Patient and General Study modules (PS3.3 C.7.1.1, C.7.2.1): empty where the source has none.
REQUIRED_IDENTITY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID",
)  # fmt: skip
#: Further attributes of Patient, General Study, Patient Study and SOP Common; absent where the source has none.
OPTIONAL_IDENTITY = (
    "StudyInstanceUID", "TimezoneOffsetFromUTC", "SpecificCharacterSet",
    "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence", "TypeOfPatientID", "OtherPatientIDsSequence",
    "OtherPatientNames", "PatientBirthTime", "EthnicGroup", "PatientComments", "QualityControlSubject",
    "PatientSpeciesDescription", "PatientSpeciesCodeSequence", "PatientBreedDescription", "PatientBreedCodeSequence",
    "BreedRegistrationSequence", "ResponsiblePerson", "ResponsiblePersonRole", "ResponsibleOrganization",
    "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
    "StudyDescription", "ProcedureCodeSequence", "IssuerOfAccessionNumberSequence", "PhysiciansOfRecord",
    "ReferringPhysicianIdentificationSequence", "NameOfPhysiciansReadingStudy", "ConsultingPhysicianName",
    "PatientAge", "PatientSize", "PatientWeight", "AdmissionID", "IssuerOfAdmissionIDSequence",
)  # fmt: skip
#: Clinical Trial Subject and Study (PS3.3 C.7.1.3, C.7.2.3): copied only where the type 1 attributes have a value.
CLINICAL_TRIAL_REQUIRED = ("ClinicalTrialSponsorName", "ClinicalTrialProtocolID")
CLINICAL_TRIAL = (
    *CLINICAL_TRIAL_REQUIRED, "ClinicalTrialProtocolName", "IssuerOfClinicalTrialProtocolID",
    "ClinicalTrialSiteID", "IssuerOfClinicalTrialSiteID", "ClinicalTrialSiteName", "ClinicalTrialSubjectID",
    "IssuerOfClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID", "IssuerOfClinicalTrialSubjectReadingID",
    "ClinicalTrialTimePointID", "IssuerOfClinicalTrialTimePointID", "ClinicalTrialTimePointDescription",
)  # fmt: skip
CLINICAL_TRIAL_EMPTY_ALLOWED = frozenset(
    {"ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName", "ClinicalTrialTimePointID"},
)
#: Nobody is identified by these: left out where the source's value is none of its VR ("0Y" for an age).
DISPENSABLE = frozenset({"PatientAge", "PatientSize", "PatientWeight", "PatientBirthTime"})


def copy_identity(result: Dataset, source: Dataset) -> None:
    """Copy patient and study from a source, in place; what the source lacks stays empty, nothing is made up.

    Raises
    ------
    Refused
        Where the bytes of a required attribute cannot be read.
    """
    trial = all(source.get(keyword) for keyword in CLINICAL_TRIAL_REQUIRED)
    for keyword in (*REQUIRED_IDENTITY, *OPTIONAL_IDENTITY, *CLINICAL_TRIAL):
        if keyword in result:
            delattr(result, keyword)
        if keyword in source and (trial or keyword not in CLINICAL_TRIAL):
            element = _readable_copy(source, keyword)
            if element is not None and (element.value or keyword in CLINICAL_TRIAL_EMPTY_ALLOWED):
                result.add(element)
        if keyword in REQUIRED_IDENTITY and keyword not in result:
            setattr(result, keyword, None)


def cured(source: Dataset) -> tuple[str, ...]:
    """Return which faults of a source's identity its results do not repeat, or cannot mend, in words without values.

    For the notes of a job: results leave out what is empty and must not be, and what is none of its value
    representation; a name of one component stays byte for byte, since nobody can know which part it is.
    """
    found = []
    with config.disable_value_validation():
        if _any_of(source, CLINICAL_TRIAL) and not all(source.get(keyword) for keyword in CLINICAL_TRIAL_REQUIRED):
            found.append("the clinical trial has no sponsor or no protocol and was left out of the results")
        found += [
            f"{dictionary_description(keyword)} has no valid value and was left out of the results"
            for keyword in OPTIONAL_IDENTITY
            if keyword in source and _is_dropped(source, keyword)
        ]
        name = _name(source)
        if name and "^" not in name.split("=")[0]:
            found.append("Patient's Name has one component only; it was copied as it is")
    return tuple(found)


def _any_of(source: Dataset, keywords: Iterable[str]) -> bool:
    return any(keyword in source for keyword in keywords)


def _is_dropped(source: Dataset, keyword: str) -> bool:
    """Tell whether an attribute has a fault for which results leave it out; an empty one that says nothing has none."""
    try:
        element = source[keyword]
        if element.VR == "SQ":
            return any(not _says_something(item, keyword) for item in element.value)
        return bool(element.value) and keyword in DISPENSABLE and not _is_valid(element)
    except READING_FAULTS:
        return True


def _name(source: Dataset) -> str:
    try:
        return str(source.get("PatientName") or "")
    except READING_FAULTS:
        return ""


def _readable_copy(source: Dataset, keyword: str) -> DataElement | None:
    """Return a copy of an element; None where nobody misses it and its value is none of its VR (PS3.5 6.2).

    Raises
    ------
    Refused
        Where the bytes of a required one cannot be read.
    """
    try:
        element = own_copy(source[keyword])
        valid = keyword not in DISPENSABLE or _is_valid(element)
    except READING_FAULTS as fault:
        if keyword in REQUIRED_IDENTITY:
            raise Refused(f"{dictionary_description(keyword)} cannot be read", Reason.UNREADABLE) from fault
        return None
    return element if valid else None


def _is_valid(element: DataElement) -> bool:
    validator: Callable[[str, Any], tuple[bool, str]] = VALIDATORS[element.VR]
    return validator(element.VR, str(element.value))[0]


def own_copy(given: DataElement) -> DataElement:
    """Return a deep copy fit to be written into a result.

    Sequences and items have defined lengths, as all that this package writes; coded items without a code, which some
    sources carry, are left out (PS3.3 Table 8.8-1 requires one).
    """
    element = copy.deepcopy(given)
    if element.VR != "SQ":
        return element
    element.is_undefined_length = False
    element.value = [item for item in element.value if _says_something(item, element.keyword)]
    for item in element.value:
        item.is_undefined_length_sequence_item = False
        for nested in item:
            item[nested.tag] = own_copy(nested)
    return element


def _says_something(item: Dataset, keyword: str) -> bool:
    coded = any(item.get(value) for value in ("CodeValue", "LongCodeValue", "URNCodeValue"))
    return (coded and bool(item.get("CodeMeaning"))) if keyword.endswith("CodeSequence") else len(item) > 0


def request_items(source: Dataset) -> list[Dataset]:
    """Return copies of the source's Request Attributes Sequence (0040,0275): the order that the study fulfils."""
    if "RequestAttributesSequence" not in source:
        return []
    return list(own_copy(source["RequestAttributesSequence"]).value)
