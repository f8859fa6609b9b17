"""Asks a peer to commit to what it was sent, tells it what this node keeps, and looks by a query what it has."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydicom import Dataset

from pacs_ai.deliver import command
from pacs_ai.deliver.association import Association
from pacs_ai.dicom import commitment, contexts, status
from pacs_ai.dicom.reading import read_text
from pacs_ai.errors import BrokenOff, NotOffered, NotUnderstood, PacsAiError, Refused, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pynetdicom.presentation import PresentationContext

    from pacs_ai.deliver.connection import Remote
    from pacs_ai.dicom.commitment import Report, Request

#: Study Root Query/Retrieve Information Model - FIND (PS3.4 C.6.2).
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
#: Longest answer that is read, in bytes, and most matches.
_LONGEST = 1_048_576
_MOST_MATCHES = 10_000
#: A query may take so many times the limit of one answer, whatever its matches do.
_PATIENCE = 4
#: Most messages between a request and its response.
_MOST_MESSAGES = 8
#: A request that came twice was taken the first time (PS3.7 Annex C).
_TAKEN = frozenset({status.SUCCESS, status.DUPLICATE_INVOCATION})


def ask(
    remote: Remote, request: Request, *, taken: Callable[[], None], answered: Callable[[Report], int], seconds: float
) -> None:
    """Ask a peer to commit to keeping instances (N-ACTION), and wait a little for its answer on this association.

    Parameters
    ----------
    taken
        Called once the peer has taken the request.
    answered
        Called with its answer where it comes here; returns the status (PS3.7 10.1.1.1.8). It may come on an association
        of the peer's own instead, to `pacs_ai.receive`.
    seconds
        How long it is waited for.

    Raises
    ------
    Unavailable
        It could not be reached.
    BrokenOff
        It broke off, or did not answer, before it took the request.
    NotOffered
        It takes no such requests, or not this one.
    """
    reports: list[Report] = []

    def heard(report: Report) -> int:
        reports.append(report)
        return answered(report)

    with Association(remote, _contexts(commitment.SOP_CLASS_UID)) as assoc:
        context_id, syntax = _accepted(assoc, commitment.SOP_CLASS_UID, "storage commitment")
        assoc.request(
            context_id,
            command.n_action_request(1, commitment.SOP_CLASS_UID, commitment.SOP_INSTANCE_UID, commitment.REQUEST),
        )
        assoc.send_bytes(context_id, commitment.encode_request(request, syntax))
        if not any(_is_response(assoc, context_id, syntax, heard) for _ in range(_MOST_MESSAGES)):
            raise BrokenOff(f"{remote} sent everything but the response to the request for storage commitment")
        taken()
        if reports:
            return
        try:
            _, event, data = assoc.message(seconds, _LONGEST)
        except Unavailable:
            return  # it answers elsewhere, or later
        _answer_event(assoc, context_id, syntax, event, data, heard)


def _is_response(assoc: Association, context_id: int, syntax: str, answered: Callable[[Report], int]) -> bool:
    """Take the next message; True where it is the response to the N-ACTION, and the request is taken."""
    _, answer, data = assoc.message(assoc.remote.dimse_seconds, _LONGEST)
    if answer.command == command.N_EVENT_REPORT_RQ:  # a quick peer
        _answer_event(assoc, context_id, syntax, answer, data, answered)
        return False
    _expect(assoc, answer, command.N_ACTION_RQ)
    if answer.status not in _TAKEN:
        words = f"{assoc.remote} refuses the request for storage commitment with {_code(answer)}"
        raise NotOffered(words, answer.comment)
    return True


def _answer_event(
    assoc: Association,
    context_id: int,
    syntax: str,
    event: command.Answer,
    data: bytes,
    answered: Callable[[Report], int],
) -> None:
    if event.command != command.N_EVENT_REPORT_RQ:
        raise BrokenOff(f"{assoc.remote} sent something else than its answer on storage commitment")
    try:
        result = answered(commitment.read_report(data, syntax))
    except NotUnderstood:
        result = status.INVALID_ARGUMENT_VALUE
    except PacsAiError:
        result = status.PROCESSING_FAILURE
    assoc.request(context_id, command.n_event_report_response(event, result))


@dataclass(frozen=True)
class Query:
    """A C-FIND of the Study Root: whom it asks, and the identifier in its transfer syntax."""

    remote: Remote
    transfer_syntax_uid: str
    identifier: bytes


def tell(remote: Remote, report: Report) -> None:
    """Tell a peer what of its request this node keeps (N-EVENT-REPORT), on an association of our own as the SCP.

    Raises
    ------
    Unavailable
        It could not be reached.
    BrokenOff
        It broke off, or did not answer.
    NotOffered
        It does not take the answer.
    """
    sop_class_uid = commitment.SOP_CLASS_UID
    with Association(remote, _contexts(sop_class_uid), serves=[sop_class_uid]) as assoc:
        context_id, syntax = _accepted(assoc, sop_class_uid, "the answer to its request for storage commitment")
        event = command.n_event_report_request(1, sop_class_uid, commitment.SOP_INSTANCE_UID, report.event_type_id)
        assoc.request(context_id, event)
        assoc.send_bytes(context_id, commitment.encode_report(report, syntax))
        _, answer, _ = assoc.message(assoc.remote.dimse_seconds, _LONGEST)
        _expect(assoc, answer, command.N_EVENT_REPORT_RQ)
    if answer.status != status.SUCCESS:
        raise NotOffered(f"{remote} answered what this node keeps with {_code(answer)}", answer.comment)


def told_nobody(_query: Query) -> None:
    """Do nothing with a query."""


def find(
    remote: Remote, level: str, keys: Mapping[str, str], asking: Callable[[Query], None] = told_nobody
) -> list[dict[str, str]]:
    """Return what a peer has (C-FIND, Study Root): the keys' values of each match, as text.

    Parameters
    ----------
    level
        STUDY, SERIES or IMAGE.
    keys
        Keyword -> value to match, "" for one that is only to be returned.
    asking
        Told of the query before it is sent.

    Raises
    ------
    Unavailable
        It could not be reached.
    BrokenOff
        It broke off, or did not answer.
    NotOffered
        It offers no such query, or answered with a failure.
    """
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    with Association(remote, _contexts(STUDY_ROOT_FIND)) as assoc:
        context_id, syntax = _accepted(assoc, STUDY_ROOT_FIND, "queries (C-FIND, Study Root)")
        encoded = commitment.encoded(identifier, syntax)
        asking(Query(remote, syntax, encoded))
        assoc.request(context_id, command.c_find_request(1, STUDY_ROOT_FIND))
        assoc.send_bytes(context_id, encoded)
        matches: list[dict[str, str]] = []
        whole = time.monotonic() + _PATIENCE * remote.dimse_seconds
        while True:
            if time.monotonic() > whole:
                raise BrokenOff(f"{remote} did not end its answer to a query in time")
            _, answer, data = assoc.message(remote.dimse_seconds, _LONGEST)
            _expect(assoc, answer, command.C_FIND_RQ)
            if answer.status == status.SUCCESS:
                return matches
            if answer.status not in {status.PENDING, status.PENDING_WARNING}:
                raise NotOffered(f"{remote} answered a query with {_code(answer)}", answer.comment)
            if len(matches) >= _MOST_MATCHES:
                raise NotOffered(f"{remote} answered a query with more than {_MOST_MATCHES} matches")
            matches.append(_match(data, syntax, keys))


def _match(data: bytes, syntax: str, keys: Mapping[str, str]) -> dict[str, str]:
    try:
        ds = commitment.decoded(data, syntax)
        return {keyword: read_text(ds, keyword).rstrip("\0 ") for keyword in keys}
    except (NotUnderstood, Refused) as error:
        raise NotOffered(f"a match of a query cannot be read ({error})") from error


def _contexts(sop_class_uid: str) -> list[PresentationContext]:
    return contexts.needed((sop_class_uid, syntax) for syntax in commitment.TRANSFER_SYNTAXES)


def _accepted(assoc: Association, sop_class_uid: str, what: str) -> tuple[int, str]:
    """Return the context to use and its transfer syntax."""
    for syntax in commitment.TRANSFER_SYNTAXES:
        if (context_id := assoc.accepted.get((sop_class_uid, syntax))) is not None:
            return context_id, syntax
    raise NotOffered(f"{assoc.remote} does not take {what}")


def _expect(assoc: Association, answer: command.Answer, asked: int) -> None:
    if answer.command != asked | command.RESPONSE or answer.message_id != 1 or answer.status is None:
        raise BrokenOff(f"{assoc.remote} sent something else than the answer to the request")


def _code(answer: command.Answer) -> str:
    return f"0x{answer.status or 0:04X}"
