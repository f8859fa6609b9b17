"""One audit message as XML: the schema of PS3.15 A.5.1, its codes, and nothing that would break a line.

Text of peers is escaped and shortened, so that a message stays below the 32,768 octets that every repository must take
(PS3.15 A.6).
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, tostring

from pacs_ai.log import shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pacs_ai.store.subjects import Objects

#: PS3.15 A.6: longer messages might be cut off by who receives them.
MAX_OCTETS = 32_768
#: Most SOP classes, and most SOP Instance UIDs, that one message names; the counts are always whole.
_MOST_CLASSES = 40
_MOST_INSTANCES = 60
#: Room for the header of RFC 5424 before it.
_HEADER_OCTETS = 512
#: Characters of one text; the next where a message would be too long.
_LIMITS = (256, 128, 64, 32)
_OWN = "99PACSAI"


@dataclass(frozen=True)
class Coded:
    """A code: csd-code, codeSystemName, originalText."""

    code: str
    system: str
    meaning: str


def _dcm(code: str, meaning: str) -> Coded:
    return Coded(code, "DCM", meaning)


def own(code: str, meaning: str) -> Coded:
    """Return a code of this node's own scheme."""
    return Coded(code, _OWN, meaning)


# CID 400 and 401 of PS3.16, and roles of CID 402
APPLICATION_ACTIVITY = _dcm("110100", "Application Activity")
BEGIN_TRANSFERRING = _dcm("110102", "Begin Transferring DICOM Instances")
INSTANCES_ACCESSED = _dcm("110103", "DICOM Instances Accessed")
INSTANCES_TRANSFERRED = _dcm("110104", "DICOM Instances Transferred")
STUDY_DELETED = _dcm("110105", "DICOM Study Deleted")
QUERY = _dcm("110112", "Query")
SECURITY_ALERT = _dcm("110113", "Security Alert")
USER_AUTHENTICATION = _dcm("110114", "User Authentication")
IDLE_ASSOCIATION = own("idle-association", "Association without transfer")
APPLICATION_START = _dcm("110120", "Application Start")
APPLICATION_STOP = _dcm("110121", "Application Stop")
LOGIN = _dcm("110122", "Login")
NODE_AUTHENTICATION = _dcm("110126", "Node Authentication")
SOFTWARE_CONFIGURATION = _dcm("110131", "Software Configuration")
RESTRICTED_FUNCTION = _dcm("110132", "Use of Restricted Function")
APPLICATION = _dcm("110150", "Application")
DESTINATION = _dcm("110152", "Destination Role ID")
SOURCE = _dcm("110153", "Source Role ID")
STUDY_INSTANCE_UID = _dcm("110180", "Study Instance UID")
SOP_CLASS_UID = _dcm("110181", "SOP Class UID")
NODE_ID = _dcm("110182", "Node ID")
PATIENT_NUMBER = Coded("2", "RFC-3881", "Patient Number")

# EventOutcomeIndicator
SUCCESS, MINOR_FAILURE, SERIOUS_FAILURE = "0", "4", "8"
#: Severities of RFC 5424 6.2.1: normal but significant, warning.
_NOTICE, _WARNING = 5, 4


@dataclass(frozen=True)
class Participant:
    """An ActiveParticipant: a process, a person, or a remote application entity.

    Parameters
    ----------
    access_point
        Its host name or address; "" where none is known.
    """

    user_id: str
    is_requestor: bool
    role: Coded | None = None
    user_name: str = ""
    ae_titles: tuple[str, ...] = ()
    access_point: str = ""


@dataclass(frozen=True)
class Object:
    """A ParticipantObjectIdentification.

    Parameters
    ----------
    kind, role
        ParticipantObjectTypeCode and ParticipantObjectTypeCodeRole.
    objects, accession_number
        Of a study: what of it, and its Accession Number.
    details
        Type -> value.
    query
        An identifier in base64, in place of the name.
    """

    id: str
    id_type: Coded
    kind: str
    role: str
    name: str
    life_cycle: str = ""
    accession_number: str = ""
    objects: tuple[Objects, ...] = ()
    details: tuple[tuple[str, str], ...] = ()
    query: str = ""


@dataclass(frozen=True)
class Message:
    """One AuditMessage."""

    event: Coded
    action: str
    at: datetime
    outcome: str
    participants: tuple[Participant, ...]
    types: tuple[Coded, ...] = ()
    why: str = ""
    objects: tuple[Object, ...] = ()

    @property
    def severity(self) -> int:
        """Severity of RFC 5424: 5 for what went well, 4 else (PS3.15 A.6)."""
        return _NOTICE if self.outcome == SUCCESS else _WARNING

    def xml(self, source: str, site: str) -> str:
        """Return it on one line, as `source` (AuditSourceID) of `site` (AuditEnterpriseSiteID) tells it."""
        for limit in _LIMITS:
            text = tostring(_Writer(limit).root(self, source, site), encoding="unicode")
            if len(text.encode()) <= MAX_OCTETS - _HEADER_OCTETS:
                break
        return text


@dataclass(frozen=True)
class _Writer:
    """Builds the elements; no text is longer than `limit` characters."""

    limit: int

    def token(self, text: str) -> str:
        return shown(text, self.limit)

    def root(self, message: Message, source: str, site: str) -> Element:
        root = Element("AuditMessage")
        self.identify(root, message)
        for participant in message.participants:
            self.participant(root, participant)
        origin = SubElement(root, "AuditSourceIdentification")
        if site:
            origin.set("AuditEnterpriseSiteID", self.token(site))
        origin.set("AuditSourceID", self.token(source))
        SubElement(origin, "AuditSourceTypeCode", {"csd-code": "4"})  # application server process
        for one in message.objects:
            self.object(root, one)
        return root

    def identify(self, root: Element, message: Message) -> None:
        at = message.at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
        event = SubElement(root, "EventIdentification", {"EventActionCode": message.action, "EventDateTime": f"{at}Z"})
        event.set("EventOutcomeIndicator", message.outcome)
        _coded(event, "EventID", message.event)
        for kind in message.types:
            _coded(event, "EventTypeCode", kind)
        if message.why:
            SubElement(event, "EventOutcomeDescription").text = shown(message.why, 4 * self.limit)

    def participant(self, root: Element, one: Participant) -> None:
        element = SubElement(root, "ActiveParticipant", {"UserID": self.token(one.user_id)})
        if one.ae_titles:
            element.set("AlternativeUserID", "AETITLES=" + ";".join(map(self.token, one.ae_titles)))  # A.5.2.2
        if one.user_name:
            element.set("UserName", self.token(one.user_name))
        element.set("UserIsRequestor", "true" if one.is_requestor else "false")
        if one.access_point:
            element.set("NetworkAccessPointID", self.token(one.access_point))
            element.set("NetworkAccessPointTypeCode", "2" if _is_address(one.access_point) else "1")
        if one.role is not None:
            _coded(element, "RoleIDCode", one.role)

    def object(self, root: Element, one: Object) -> None:
        element = SubElement(root, "ParticipantObjectIdentification", {"ParticipantObjectID": self.token(one.id)})
        element.set("ParticipantObjectTypeCode", one.kind)
        element.set("ParticipantObjectTypeCodeRole", one.role)
        if one.life_cycle:
            element.set("ParticipantObjectDataLifeCycle", one.life_cycle)
        _coded(element, "ParticipantObjectIDTypeCode", one.id_type)
        if one.query:
            SubElement(element, "ParticipantObjectQuery").text = one.query
        else:
            SubElement(element, "ParticipantObjectName").text = self.token(one.name)
        for kind, value in one.details:
            encoded = base64.b64encode(shown(value, 4 * self.limit).encode()).decode()
            SubElement(element, "ParticipantObjectDetail", {"type": kind, "value": encoded})
        if one.objects or one.accession_number:
            self.description(element, one.accession_number, one.objects)

    def description(self, parent: Element, accession_number: str, objects: Sequence[Objects]) -> None:
        element = SubElement(parent, "ParticipantObjectDescription")
        if accession_number:
            SubElement(element, "Accession", {"Number": self.token(accession_number)})
        room = _MOST_INSTANCES
        for one in objects[:_MOST_CLASSES]:
            sop_class = SubElement(element, "SOPClass", {"UID": self.token(one.sop_class_uid)})
            sop_class.set("NumberOfInstances", str(one.count))
            for uid in one.sop_instance_uids[:room]:
                SubElement(sop_class, "Instance", {"UID": self.token(uid)})
            room = max(0, room - len(one.sop_instance_uids))


def _coded(parent: Element, name: str, coded: Coded) -> None:
    attributes = {"csd-code": coded.code, "codeSystemName": coded.system, "originalText": coded.meaning}
    SubElement(parent, name, attributes)


def _is_address(text: str) -> bool:
    return ":" in text or text.replace(".", "").isdigit()
