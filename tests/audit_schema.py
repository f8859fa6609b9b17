"""The audit message schema of PS3.15 A.5.1 as a checker of our own, and the demands that A.5.3 makes of each event.

It knows nothing of pacs_ai: it reads the XML that a repository would get.
"""

from __future__ import annotations

import base64
import re
from datetime import datetime
from xml.etree import ElementTree as ET

MAX_OCTETS = 32_768

_CODED = ({"csd-code", "codeSystemName", "originalText"}, {"displayName"})
#: element -> (required attributes, optional attributes, children in their order with ? * + for how many)
_ELEMENTS: dict[str, tuple[set[str], set[str], str]] = {
    "AuditMessage": (
        set(),
        set(),
        "EventIdentification ActiveParticipant+ AuditSourceIdentification ParticipantObjectIdentification*",
    ),
    "EventIdentification": (
        {"EventDateTime", "EventOutcomeIndicator"},
        {"EventActionCode"},
        "EventID EventTypeCode* EventOutcomeDescription?",
    ),
    "EventID": (*_CODED, ""),
    "EventTypeCode": (*_CODED, ""),
    "EventOutcomeDescription": (set(), set(), ""),
    "ActiveParticipant": (
        {"UserID", "UserIsRequestor"},
        {"AlternativeUserID", "UserName", "NetworkAccessPointID", "NetworkAccessPointTypeCode"},
        "RoleIDCode* MediaIdentifier?",
    ),
    "RoleIDCode": (*_CODED, ""),
    "AuditSourceIdentification": ({"AuditSourceID"}, {"AuditEnterpriseSiteID"}, "AuditSourceTypeCode*"),
    "AuditSourceTypeCode": ({"csd-code"}, {"codeSystemName", "originalText"}, ""),
    "ParticipantObjectIdentification": (
        {"ParticipantObjectID"},
        {
            "ParticipantObjectTypeCode",
            "ParticipantObjectTypeCodeRole",
            "ParticipantObjectDataLifeCycle",
            "ParticipantObjectSensitivity",
        },
        (
            "ParticipantObjectIDTypeCode ParticipantObjectName|ParticipantObjectQuery ParticipantObjectDetail* "
            "ParticipantObjectDescription*"
        ),
    ),
    "ParticipantObjectIDTypeCode": (*_CODED, ""),
    "ParticipantObjectName": (set(), set(), ""),
    "ParticipantObjectQuery": (set(), set(), ""),
    "ParticipantObjectDetail": ({"type", "value"}, set(), ""),
    "ParticipantObjectDescription": (set(), set(), "MPPS* Accession* SOPClass*"),
    "Accession": ({"Number"}, set(), ""),
    "SOPClass": ({"NumberOfInstances"}, {"UID"}, "Instance*"),
    "Instance": ({"UID"}, set(), ""),
}
_VALUES = {
    "EventActionCode": set("CRUDE"),
    "EventOutcomeIndicator": {"0", "4", "8", "12"},
    "UserIsRequestor": {"true", "false", "0", "1"},
    "NetworkAccessPointTypeCode": set("12345"),
    "ParticipantObjectTypeCode": set("1234"),
    "ParticipantObjectTypeCodeRole": {str(n) for n in range(1, 27)},
    "ParticipantObjectDataLifeCycle": {str(n) for n in range(1, 16)},
}
_UID = re.compile(r"[0-2](\.(0|[1-9][0-9]*))+")


def check(text: str) -> ET.Element:
    """Return the message; AssertionError where it breaks the schema or what its kind of event demands."""
    assert len(text.encode()) <= MAX_OCTETS
    assert "\n" not in text
    root = ET.fromstring(text)
    assert root.tag == "AuditMessage"
    _element(root)
    _kind(root)
    return root


def _element(element: ET.Element) -> None:
    required, optional, order = _ELEMENTS[element.tag]
    given = set(element.attrib)
    assert required <= given <= required | optional, f"{element.tag}: {given}"
    children = "".join(f"{child.tag} " for child in element)
    pattern = "".join(f"(({word.rstrip('?*+')}) ){word[-1] if word[-1] in '?*+' else ''}" for word in order.split())
    assert re.fullmatch(pattern, children), f"{element.tag} holds {children}"
    for name, value in element.attrib.items():
        assert value in _VALUES.get(name, {value}), f"{name} is {value}"
    if element.tag in {"SOPClass", "Instance"}:
        assert _UID.fullmatch(element.get("UID", "")), element.attrib
    if element.tag == "SOPClass":
        int(element.get("NumberOfInstances", ""))
    if element.tag == "ParticipantObjectDetail":
        base64.b64decode(element.get("value", ""), validate=True)
    if element.tag == "ParticipantObjectQuery":
        base64.b64decode(element.text or "", validate=True)
    if element.tag == "EventIdentification":
        assert datetime.fromisoformat(element.get("EventDateTime", "")).utcoffset() is not None
    for child in element:
        _element(child)


def code(element: ET.Element | None) -> str:
    """Return a coded element's code."""
    assert element is not None
    return element.get("csd-code", "")


def event(root: ET.Element) -> str:
    """Return the EventID's code."""
    return code(root.find("EventIdentification/EventID"))


def types(root: ET.Element) -> list[str]:
    """Return the EventTypeCodes."""
    return [code(one) for one in root.findall("EventIdentification/EventTypeCode")]


def details(root: ET.Element) -> dict[str, str]:
    """Return every ParticipantObjectDetail, decoded."""
    return {
        one.get("type", ""): base64.b64decode(one.get("value", "")).decode()
        for one in root.iter("ParticipantObjectDetail")
    }


def patients(root: ET.Element) -> list[ET.Element]:
    """Return the patients."""
    return _objects(root, "1", "1", "2")


def studies(root: ET.Element) -> list[ET.Element]:
    """Return the studies."""
    return _objects(root, "2", "3", "110180")


def _objects(root: ET.Element, kind: str, role: str, id_type: str) -> list[ET.Element]:
    found = root.findall("ParticipantObjectIdentification")
    wanted = (kind, role, id_type)
    return [
        one
        for one in found
        if (
            one.get("ParticipantObjectTypeCode"),
            one.get("ParticipantObjectTypeCodeRole"),
            code(one.find("ParticipantObjectIDTypeCode")),
        )
        == wanted
    ]


#: Event -> its EventActionCodes (A.5.3.1, .3, .6, .7, .8, .11, .12).
_ACTIONS = {
    "110100": "E",
    "110102": "E",
    "110103": "CRUD",
    "110104": "CRU",
    "110105": "D",
    "110112": "E",
    "110113": "E",
    "110114": "E",
    "idle-association": "E",
}
_ALERTS = {str(n) for n in range(110126, 110143)}


def _kind(root: ET.Element) -> None:
    kind = event(root)
    assert root[0].get("EventActionCode", "-") in _ACTIONS[kind]
    roles = [code(one.find("RoleIDCode")) for one in root.findall("ActiveParticipant") if len(one)]
    if kind == "110100":
        assert types(root)[0] in {"110120", "110121"}
        assert roles == ["110150"]
    if kind == "110112":
        (asked,) = root.findall("ParticipantObjectIdentification")
        assert code(asked.find("ParticipantObjectIDTypeCode")) == "110181"
        assert asked.findtext("ParticipantObjectQuery")
        assert details(root)["TransferSyntax"]
    if kind in {"110102", "110104", "110112"}:
        assert sorted(roles) == ["110152", "110153"]  # one that receives, one that sends
    if kind in {"110102", "110103", "110104", "110105"}:
        assert len(patients(root)) == 1
        assert len(studies(root)) >= 1
        assert all(_UID.fullmatch(one.get("ParticipantObjectID", "")) for one in studies(root))
    if kind == "110113":
        assert set(types(root)) <= _ALERTS
        assert types(root)
        assert details(root)["Alert Description"]
    if kind == "110114":
        assert types(root)[0] in {"110122", "110123"}
        person = root.find("ActiveParticipant")
        assert person is not None
        assert person.get("NetworkAccessPointID")


_LINE = re.compile(
    r"<(?P<pri>\d+)>1 (?P<at>\S+Z) (?P<host>[!-~]+) pacs_ai (?P<pid>\d+) DICOM\+RFC3881 - (?P<message>.*)", re.DOTALL
)


def unwrap(line: str) -> ET.Element:
    """Return the message of one syslog line or frame (RFC 5424, PS3.15 A.6)."""
    found = _LINE.fullmatch(line.rstrip("\n"))
    assert found is not None, line[:200]
    assert found["pri"] in {"85", "84"}  # facility 10, severity 5 or 4
    datetime.fromisoformat(found["at"])
    return check(found["message"].removeprefix("\ufeff"))
