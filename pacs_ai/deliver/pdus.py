"""The PDUs that an association is made of, as a requestor writes and reads them (PS3.8 9.3)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)

from pacs_ai.dicom.identifiers import APPLICATION_CONTEXT_NAME, IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pynetdicom.presentation import PresentationContext


# PDU types, PS3.8 9.3.1.
ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = 2, 3, 4, 5, 6, 7

RELEASE_RQ_PDU = struct.pack(">BxLL", RELEASE_RQ, 4, 0)
RELEASE_RP_PDU = struct.pack(">BxLL", RELEASE_RP, 4, 0)
#: A-ABORT by the service user, PS3.8 9.3.8.
ABORT_PDU = struct.pack(">BxLxxBB", ABORT, 4, 0, 0)

# Message Control Header, PS3.8 E.2.
COMMAND_FRAGMENT, LAST_FRAGMENT = 1, 2

# Results of a presentation context, PS3.8 Table 9-18.
ACCEPTED, NO_REASON, ABSTRACT_SYNTAX_NOT_SUPPORTED, TRANSFER_SYNTAX_NOT_SUPPORTED = 0, 2, 3, 4

# Item types of an A-ASSOCIATE-AC, PS3.8 9.3.3 and D.1.
_CONTEXT_ITEM, _TRANSFER_SYNTAX_ITEM, _USER_INFORMATION_ITEM, _MAXIMUM_LENGTH_ITEM = 0x21, 0x40, 0x50, 0x51
_FIRST_ITEM = 68

#: Assumed where the peer does not name its maximum length, which PS3.7 D.3.3.1 demands.
DEFAULT_MAXIMUM_LENGTH = 16_384


@dataclass(frozen=True)
class Acceptance:
    """What an A-ASSOCIATE-AC says.

    Parameters
    ----------
    contexts
        Presentation Context ID -> (result, Transfer Syntax UID).
    maximum_length
        Longest P-DATA-TF that the peer takes, in bytes; 0 for any (PS3.8 D.1).
    """

    contexts: dict[int, tuple[int, str]]
    maximum_length: int


def associate_request(
    called: str,
    calling: str,
    contexts: Sequence[PresentationContext],
    maximum_pdu_size: int,
    serves: Sequence[str] = (),
) -> bytes:
    """Return the A-ASSOCIATE-RQ PDU (PS3.8 9.3.2; user information: PS3.7 D.3.3).

    Parameters
    ----------
    serves
        SOP classes of which the requestor is the SCP, and not the SCU (PS3.7 D.3.3.4).
    """
    maximum_length = MaximumLengthNotification()
    maximum_length.maximum_length_received = maximum_pdu_size
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    primitive = A_ASSOCIATE()
    primitive.application_context_name = APPLICATION_CONTEXT_NAME
    primitive.calling_ae_title = calling
    primitive.called_ae_title = called
    primitive.presentation_context_definition_list = list(contexts)
    primitive.user_information = [maximum_length, implementation, version, *map(_as_scp, serves)]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return bytes(pdu.encode())


def _as_scp(sop_class_uid: str) -> SCP_SCU_RoleSelectionNegotiation:
    role = SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid = UID(sop_class_uid)
    role.scu_role, role.scp_role = False, True
    return role


def read_acceptance(body: bytes) -> Acceptance:
    """Read an A-ASSOCIATE-AC without its first six bytes; ValueError where it is malformed."""
    contexts: dict[int, tuple[int, str]] = {}
    maximum_length = DEFAULT_MAXIMUM_LENGTH
    for kind, content in _items(body[_FIRST_ITEM:]):
        if kind == _CONTEXT_ITEM:
            if len(content) < 4:
                raise ValueError("a presentation context item is too short")
            syntaxes = dict(_items(content[4:]))
            syntax = syntaxes.get(_TRANSFER_SYNTAX_ITEM, b"").decode("ascii", "replace").rstrip("\0 ")
            contexts[content[0]] = content[2], syntax
        elif kind == _USER_INFORMATION_ITEM:
            stated = dict(_items(content)).get(_MAXIMUM_LENGTH_ITEM, b"")
            if len(stated) == 4:
                maximum_length = int.from_bytes(stated, "big")
    if not contexts:
        raise ValueError("it names no presentation context")
    return Acceptance(contexts, maximum_length)


def data_pdus(
    context_id: int, kind: int, content: bytes, fragment_length: int, *, last: bool
) -> Iterator[bytes | memoryview]:
    """Yield P-DATA-TF PDUs in pieces, with one presentation data value each (PS3.8 9.3.5).

    Parameters
    ----------
    kind
        `COMMAND_FRAGMENT`, or 0 for a piece of the data set.
    last
        The message ends with `content`.
    """
    view = memoryview(content)
    for start in range(0, len(view), fragment_length):
        fragment = view[start : start + fragment_length]
        control = kind | (LAST_FRAGMENT if last and start + fragment_length >= len(view) else 0)
        size = len(fragment) + 2
        yield struct.pack(">BxLLBB", P_DATA, size + 4, size, context_id, control)
        yield fragment


def read_fragments(body: bytes) -> list[tuple[int, int, bytes]]:
    """Return (Presentation Context ID, message control header, fragment) of each value of a P-DATA-TF.

    Raises
    ------
    ValueError
        Malformed, or empty.
    """
    found: list[tuple[int, int, bytes]] = []
    position = 0
    while position < len(body) or not found:
        if position + 6 > len(body):
            raise ValueError("a presentation data value is too short")
        length, context_id, control = struct.unpack_from(">LBB", body, position)
        end = position + 4 + length
        if length < 2 or end > len(body):
            raise ValueError("a presentation data value has an impossible length")
        found.append((context_id, control, body[position + 6 : end]))
        position = end
    return found


#: (source, reason) -> what an administrator can do about it, PS3.8 Table 9-21.
_REJECTIONS = {
    (1, 1): "no reason given",
    (1, 2): "it does not support the DICOM application context; is it a DICOM storage service?",
    (1, 3): 'it does not know the calling AE title "{calling}"; ask its administrator to add this node',
    (1, 7): 'it does not answer to the called AE title "{called}"; compare the title with its configuration',
    (2, 1): "no reason given",
    (2, 2): "it does not support this protocol version",
    (3, 1): "it is congested at the moment",
    (3, 2): "its limit of associations is reached",
}
_TRANSIENT = 2
_REJECTION_RESULTS = {1: "permanently", _TRANSIENT: "for now"}
#: Reasons of a service provider, PS3.8 Table 9-26.
_ABORTS = {
    1: "it did not recognise a PDU",
    2: "it did not expect a PDU",
    4: "it did not recognise a parameter of a PDU",
    5: "it did not expect a parameter of a PDU",
    6: "it found a parameter of a PDU invalid",
}


def rejection_words(body: bytes, called: str, calling: str) -> str:
    """Say what an A-ASSOCIATE-RJ says (PS3.8 9.3.4)."""
    if len(body) != 4:
        return "refused the association with a malformed PDU"
    _, result, source, reason = body
    advice = _REJECTIONS.get((source, reason), "a reason that the Standard does not define")
    how = _REJECTION_RESULTS.get(result, "in an undefined way")
    words = advice.format(calling=calling, called=called)
    return f"refused the association {how} ({words}; A-ASSOCIATE-RJ {result}/{source}/{reason})"


def rejects_for_now(body: bytes) -> bool:
    """Tell whether an A-ASSOCIATE-RJ says that the same may be accepted later (result rejected-transient)."""
    return len(body) == 4 and body[1] == _TRANSIENT


def abort_words(body: bytes) -> str:
    """Say what an A-ABORT says (PS3.8 9.3.8)."""
    if len(body) != 4:
        return "aborted the association with a malformed PDU"
    source, reason = body[2], body[3]
    if source == 0:
        return "aborted the association (by its application, which gives no reason)"
    return f"aborted the association ({_ABORTS.get(reason, 'no reason given')})"


def _items(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (type, content) of items with a one-byte type and a two-byte length."""
    position = 0
    while position < len(content):
        if position + 4 > len(content):
            raise ValueError("an item is too short")
        kind, length = struct.unpack_from(">BxH", content, position)
        position += 4
        if position + length > len(content):
            raise ValueError("an item reaches beyond its end")
        yield kind, content[position : position + length]
        position += length
