"""Decide what an association is for: which contexts, in which roles, with how long PDUs (PS3.8 9.3.2, 9.3.3)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    AsynchronousOperationsWindowNegotiation,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)
from pynetdicom.presentation import build_context, negotiate_as_acceptor

from pacs_ai.dicom.identifiers import APPLICATION_CONTEXT_NAME, IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from pacs_ai.receive.dimse import Context
from pacs_ai.receive.framing import HEADER
from pacs_ai.receive.guard import (
    APPLICATION_CONTEXT_NOT_SUPPORTED,
    MAXIMUM_LENGTH_TOO_SHORT,
    MalformedRequest,
    Rejection,
    items_of,
)
from pacs_ai.receive.service import N_ACTION_RQ, N_EVENT_REPORT_RQ, Services

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pynetdicom.presentation import PresentationContext

#: A peer that cannot take PDUs of this many bytes is not spoken to: answers would come in crumbs.
MIN_PEER_LENGTH = 1024
#: The items that PS3.8 9.3.2 knows; any other is skipped (PS3.8 9.3.1), and so are their sub-items.
_APPLICATION_CONTEXT, _PRESENTATION_CONTEXT, _USER_INFORMATION = 0x10, 0x20, 0x50
#: Of the user information only what bears on the answer is read: maximum length, asynchronous operations, roles (PS3.7
#: D.3.3.1, D.3.3.3, D.3.3.4). Who made the peer, extended negotiations and user identity (0x52, 0x55 to 0x58) do not.
_USER_ITEMS = frozenset({0x51, 0x53, 0x54})
_ABSTRACT_SYNTAX, _TRANSFER_SYNTAX = 0x30, 0x40
#: A role for each of 128 contexts, and the rest of PS3.7 Annex D, are fewer by far.
_MOST_USER_ITEMS = 256
#: Of the body of an A-ASSOCIATE-RQ, the bytes before its items (PS3.8 Table 9-11).
_FIXED_BYTES = 68
#: What pynetdicom's decoders raise for items that break PS3.8 9.3.2 or PS3.7 Annex D.
_CODEC_FAULTS = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    TypeError,
    ValueError,
    struct.error,
)


@dataclass(frozen=True)
class Agreement:
    """What an association is for.

    Parameters
    ----------
    contexts
        Presentation Context ID -> what was accepted.
    maximum_length
        Longest P-DATA-TF that the peer takes, in bytes; 0 for any.
    acceptance
        The A-ASSOCIATE-AC.
    """

    contexts: Mapping[int, Context]
    maximum_length: int
    acceptance: bytes


class Negotiator:
    """Answers association requests; pynetdicom's codecs and its negotiation do the work.

    Parameters
    ----------
    contexts
        Accepted, each with its transfer syntaxes in order of preference.
    pdu_bytes
        Maximum Length that is advertised.
    """

    def __init__(self, contexts: Iterable[PresentationContext], pdu_bytes: int) -> None:
        self._contexts = {str(context.abstract_syntax): context for context in contexts}
        self._preferred = {
            uid: tuple(map(str, context.transfer_syntax or ())) for uid, context in self._contexts.items()
        }
        self._syntaxes = frozenset(syntax for syntaxes in self._preferred.values() for syntax in syntaxes)
        self._pdu_bytes = pdu_bytes

    def agree(self, request: bytes) -> Agreement | Rejection:
        """Return what the whole A-ASSOCIATE-RQ is answered with.

        Raises
        ------
        MalformedRequest
            An item breaks PS3.8 9.3.2 or PS3.7 Annex D.
        """
        asked = _decoded(self._telling(request))
        if not asked.application_context_name:
            raise MalformedRequest("no application context")
        if asked.application_context_name != APPLICATION_CONTEXT_NAME:
            return APPLICATION_CONTEXT_NOT_SUPPORTED
        items = list(asked.user_information)
        _check_once(items)
        maximum = next(
            (item.maximum_length_received for item in items if isinstance(item, MaximumLengthNotification)), 0
        )
        if 0 < maximum < MIN_PEER_LENGTH:
            return MAXIMUM_LENGTH_TOO_SHORT
        proposed = asked.presentation_context_definition_list
        if not all(context.abstract_syntax and context.transfer_syntax for context in proposed):
            raise MalformedRequest("a presentation context whose syntaxes are empty")
        known = {str(context.abstract_syntax) for context in proposed} & self._contexts.keys()
        roles = {
            str(item.sop_class_uid): (item.scu_role, item.scp_role)
            for item in items
            if isinstance(item, SCP_SCU_RoleSelectionNegotiation)
        }
        results, answered_roles = negotiate_as_acceptor(proposed, [self._contexts[uid] for uid in known], roles)
        accepted = {
            context.context_id: Context(
                context.context_id, str(context.abstract_syntax), str(context.transfer_syntax[0])
            )
            for context in results
            if context.result == 0
        }
        window = any(isinstance(item, AsynchronousOperationsWindowNegotiation) for item in items)
        return Agreement(accepted, maximum, self._acceptance(asked, results, answered_roles, window=window))

    def _telling(self, request: bytes) -> bytes:
        """Return the request without what cannot change the answer.

        It may hold thousands of items, and to read them all would take half a second that is everybody's.
        """
        start = HEADER.size + _FIXED_BYTES
        body = bytearray(request[HEADER.size : start])
        once: set[int] = set()
        for kind, value in items_of(memoryview(request)[start:]):
            if kind == _PRESENTATION_CONTEXT:
                body += _item(kind, bytes(value[:4]) + self._telling_syntaxes(value[4:]))
            elif kind in {_APPLICATION_CONTEXT, _USER_INFORMATION}:
                if kind in once:
                    raise MalformedRequest("an item stands twice")
                once.add(kind)
                body += _item(kind, value if kind == _APPLICATION_CONTEXT else _known_user_items(value))
        return HEADER.pack(request[0], len(body)) + bytes(body)

    def _telling_syntaxes(self, context: memoryview) -> bytes:
        """Return the sub-items of a presentation context; of its transfer syntaxes one or two, whatever it proposes.

        They are the one that will be chosen, and the first, which stands in a refusal and must not be malformed.
        """
        proposed: dict[str, memoryview] = {}
        abstract, asked = b"", ""
        for kind, value in items_of(context):
            if kind == _TRANSFER_SYNTAX:
                proposed.setdefault(_uid(value), value)
            elif kind == _ABSTRACT_SYNTAX:
                abstract, asked = _item(kind, value), _uid(value)
        first = next(iter(proposed), "")
        chosen = next((syntax for syntax in self._preferred.get(asked, ()) if syntax in proposed), "")
        if not first and not chosen:  # an empty one is passed over
            chosen = next((syntax for syntax in proposed if syntax in self._syntaxes), "")
        telling = (chosen,) if chosen and first in self._syntaxes else dict.fromkeys((first, chosen))
        return abstract + b"".join(
            _item(_TRANSFER_SYNTAX, proposed[syntax]) for syntax in telling if syntax in proposed
        )

    def _acceptance(
        self,
        asked: A_ASSOCIATE,
        results: list[PresentationContext],
        roles: list[SCP_SCU_RoleSelectionNegotiation],
        *,
        window: bool,
    ) -> bytes:
        length = MaximumLengthNotification()
        length.maximum_length_received = self._pdu_bytes
        implementation = ImplementationClassUIDNotification()
        implementation.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        version = ImplementationVersionNameNotification()
        version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        answer = A_ASSOCIATE()
        answer.application_context_name = asked.application_context_name
        answer.calling_ae_title = asked.calling_ae_title
        answer.called_ae_title = asked.called_ae_title
        answer.result, answer.result_source = 0, 1
        answer.presentation_context_definition_results_list = results
        answer.user_information = [length, implementation, version, *roles]
        if window:
            operations = AsynchronousOperationsWindowNegotiation()
            operations.maximum_number_operations_invoked = 1  # one request at a time (PS3.7 D.3.3.3)
            operations.maximum_number_operations_performed = 1
            answer.user_information.append(operations)
        pdu = A_ASSOCIATE_AC()
        pdu.from_primitive(answer)
        return bytes(pdu.encode())


def service_contexts(services: Services) -> list[PresentationContext]:
    """Return what is accepted beside storing, and in which role the requestor of it may be (PS3.7 D.3.3.4)."""
    found = []
    for sop_class_uid in dict.fromkeys(sop_class_uid for sop_class_uid, _ in services):
        context = build_context(sop_class_uid, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        context.scu_role = (sop_class_uid, N_ACTION_RQ) in services
        context.scp_role = (sop_class_uid, N_EVENT_REPORT_RQ) in services
        found.append(context)
    return found


def _decoded(request: bytes) -> Any:
    try:
        pdu = A_ASSOCIATE_RQ()
        pdu.decode(request)
        return pdu.to_primitive()
    except _CODEC_FAULTS as error:
        raise MalformedRequest(f"an item that cannot be read ({type(error).__name__})") from None


def _uid(value: memoryview) -> str:
    """Return a UID as pynetdicom understands it."""
    return bytes(value).removesuffix(b"\0").decode("ascii", "replace").strip()


def _known_user_items(user_information: memoryview) -> bytes:
    known = [(kind, value) for kind, value in items_of(user_information) if kind in _USER_ITEMS]
    if len(known) > _MOST_USER_ITEMS:
        raise MalformedRequest(f"more than {_MOST_USER_ITEMS} user information items")
    return b"".join(_item(kind, value) for kind, value in known)


def _item(kind: int, value: bytes | memoryview) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def _check_once(items: Iterable[Any]) -> None:
    """Refuse user information items that may stand once and stand twice (PS3.7 D.3.3)."""
    kinds = [type(item).__name__ for item in items if not isinstance(item, SCP_SCU_RoleSelectionNegotiation)]
    if len(set(kinds)) < len(kinds):
        raise MalformedRequest("a user information item stands twice")
