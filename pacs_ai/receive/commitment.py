"""What a peer says about storage commitment on an association of its own: its answer, or a request to this node."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pacs_ai.dicom import commitment, status
from pacs_ai.errors import NotUnderstood, Transient
from pacs_ai.log import shown
from pacs_ai.receive.service import N_ACTION_RQ, N_EVENT_REPORT_RQ, Answer
from pacs_ai.store import commitments, pledges
from pacs_ai.store.commitments import Verdict
from pacs_ai.store.pledges import Noted

if TYPE_CHECKING:
    from pacs_ai.config import Config
    from pacs_ai.receive.service import Service, ServiceRequest, Services
    from pacs_ai.store.database import Database

LOGGER = logging.getLogger(__name__)

_TAKEN = Answer(status.SUCCESS)
_NOT_READ = Answer(status.INVALID_ARGUMENT_VALUE, "not understood")
_UNKNOWN = Answer(status.INVALID_ARGUMENT_VALUE, "unknown transaction")
_NOT_NOW = Answer(status.PROCESSING_FAILURE, "cannot be noted now; try again later")
_NO_SUCH_EVENT = Answer(status.NO_SUCH_EVENT_TYPE, "no such event type")

_NO_SUCH_ACTION = Answer(status.NO_SUCH_ACTION_TYPE, "no such action type")
_NO_SUCH_INSTANCE = Answer(status.NO_SUCH_OBJECT_INSTANCE, "only the well-known instance is there")
_NO_PEER = Answer(status.NOT_AUTHORIZED, "calling AE title is not configured as a peer")
_DUPLICATE = Answer(status.DUPLICATE_INVOCATION, "transaction UID is used by another request")


def services(config: Config, database: Database, actor: str) -> Services:
    """Return what the listener serves beside storing: the answers of peers that are asked, and what peers may ask."""
    found: dict[tuple[str, int], Service] = {}
    if any(peer.commitment for peer in config.peer):
        found[commitment.SOP_CLASS_UID, N_EVENT_REPORT_RQ] = Answers(database, actor)
    if config.receive.commitment:
        found[commitment.SOP_CLASS_UID, N_ACTION_RQ] = Requests(config, database)
    return found


class Answers:
    """Takes N-EVENT-REPORT (PS3.4 J.3.3) from the peers that were asked, and notes what they keep."""

    def __init__(self, database: Database, actor: str) -> None:
        self._database = database
        self._actor = actor

    def __call__(self, request: ServiceRequest) -> Answer:
        """Answer one report; what is unknown or comes again changes nothing."""
        caller = shown(request.association.calling_ae_title)
        if request.type_id not in {commitment.ALL_KEPT, commitment.SOME_FAILED}:
            return _NO_SUCH_EVENT
        try:
            calling = request.association.calling_ae_title
            if not self._was_asked(request, calling):  # before much of it is read
                LOGGER.warning("%s answered on storage commitment to a request that it was not asked; ignored", caller)
                return _UNKNOWN
            report = commitment.read_report(request.data_set, request.transfer_syntax)
            verdict = commitments.record(self._database, report, calling, actor=self._actor)
        except NotUnderstood as error:
            LOGGER.warning("%s answered on storage commitment, not understood: %s", caller, error)
            return _NOT_READ
        except Transient as error:
            LOGGER.warning("%s answered on storage commitment, not noted: %s", caller, error)
            return _NOT_NOW
        LOGGER.info("%s answered on storage commitment: %s", caller, verdict)
        return _UNKNOWN if verdict is Verdict.UNKNOWN else _TAKEN

    def _was_asked(self, request: ServiceRequest, calling_ae_title: str) -> bool:
        transaction_uid = commitment.transaction_of(request.data_set, request.transfer_syntax)
        return commitments.was_asked(self._database, transaction_uid, calling_ae_title)


class Requests:
    """Takes N-ACTION (PS3.4 J.3.2): writes down what a peer asks to be kept; `deliver` decides and tells it."""

    def __init__(self, config: Config, database: Database) -> None:
        self._peers = {peer.ae_title: peer.name for peer in config.peer}
        self._database = database

    def __call__(self, request: ServiceRequest) -> Answer:
        """Answer one request, durably noted when that is Success."""
        calling = request.association.calling_ae_title
        caller = shown(calling)
        if request.type_id != commitment.REQUEST:
            return _NO_SUCH_ACTION
        if request.sop_instance_uid != commitment.SOP_INSTANCE_UID:
            return _NO_SUCH_INSTANCE
        if calling not in self._peers:
            LOGGER.warning("%s asked for storage commitment, but is no [[peer]] that could be told", caller)
            return _NO_PEER
        try:
            asked = commitment.read_request(request.data_set, request.transfer_syntax)
            noted = pledges.note(self._database, asked, calling_ae_title=calling, peer=self._peers[calling])
        except NotUnderstood as error:
            LOGGER.warning("%s asked for storage commitment, not understood: %s", caller, error)
            return _NOT_READ
        except Transient as error:
            LOGGER.warning("%s asked for storage commitment, not noted: %s", caller, error)
            return _NOT_NOW
        return _DUPLICATE if noted is Noted.CONTRADICTS else _TAKEN
