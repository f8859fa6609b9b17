"""What happens on one association: C-ECHO, C-STORE and the further services, one request after the other.

A data set is held in memory up to a bound and then handed to a thread that writes it; reading goes on meanwhile, and
rests where the disk is slower than the network. So an instance of any length costs the same memory, and a slow disk
holds the peer back by TCP instead of filling queues.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from pynetdicom.sop_class import Verification

from pacs_ai.dicom import status
from pacs_ai.dicom.attributes import is_uid
from pacs_ai.errors import Mismatch, NotUnderstood, PacsAiError, Transient
from pacs_ai.log import shown, where
from pacs_ai.receive import dimse, service
from pacs_ai.receive.desk import Message
from pacs_ai.receive.ingest import Announced
from pacs_ai.receive.service import Answer, ServiceRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from pacs_ai.dicom.arrival import AssociationInfo
    from pacs_ai.receive.desk import Desk
    from pacs_ai.receive.dimse import Command
    from pacs_ai.receive.negotiation import Agreement

LOGGER = logging.getLogger(__name__)

#: Type of error -> status and Error Comment (0000,0902): LO, so at most 64 characters, and never a peer's text.
_ANSWERS: tuple[tuple[type[Exception], Answer], ...] = (
    (Transient, Answer(status.OUT_OF_RESOURCES, "cannot store now; try again later")),
    (Mismatch, Answer(status.DATA_SET_MISMATCH, "command and data set name different SOP classes or instances")),
    (NotUnderstood, Answer(status.CANNOT_UNDERSTAND, "not a whole and sound DICOM data set")),
    (PacsAiError, Answer(status.CANNOT_UNDERSTAND, "cannot be stored")),
)
_TOO_LONG = Answer(status.OUT_OF_RESOURCES, "longer than this node accepts")
_OTHER_CLASS = Answer(status.DATA_SET_MISMATCH, "SOP class is not that of the presentation context")
_NO_UID = Answer(status.INVALID_SOP_INSTANCE, "Affected SOP Instance UID is no UID")
_NO_SPACE = Answer(status.OUT_OF_RESOURCES, "free disk space is below the watermark")
_NOT_IN_TIME = Answer(status.OUT_OF_RESOURCES, "not stored in time; try again later")
_NO_SUCH_SERVICE = Answer(status.UNRECOGNIZED_OPERATION, "not a service of this node")


class Link(Protocol):
    """The connection below an exchange."""

    def send(self, command: bytes, context_id: int) -> None:
        """Send a command set."""

    def resume(self) -> None:
        """Go on reading."""

    def abort(self) -> None:
        """End the association from this side."""


class Exchange:
    """One association's requests and their answers.

    Parameters
    ----------
    info
        Of the association.
    agreement
        What it is for.
    desk
        What all share.
    link
        The connection below.
    """

    def __init__(self, info: AssociationInfo, agreement: Agreement, desk: Desk, link: Link) -> None:
        self.info = info
        self.stored = self.failed = 0
        self.failures: Counter[str] = Counter()  # by the Error Comment that they were answered with
        self.is_released = False
        self._desk = desk
        self._link = link
        self._messages = dimse.Messages(agreement.contexts, self)
        self._message: Message | None = None
        self._over = self._told = False

    @property
    def is_full(self) -> bool:
        """Whether nothing more may be read for now."""
        message = self._message
        return message is not None and (message.whole or (message.handing and len(message.held) >= self._desk.most))

    @property
    def is_over(self) -> bool:
        """Whether the association has ended; something of it may be under way for a while."""
        return self._over

    @property
    def is_amid_message(self) -> bool:
        """Whether a message is under way or unanswered."""
        return self._message is not None or self._messages.is_amid_message

    def fragment(self, context_id: int, control: int, piece: memoryview, *, complete: bool) -> None:
        """Take a piece of a message; raises `dimse.ProtocolFault`."""
        self._messages.fragment(context_id, control, piece, complete=complete)

    def tick(self, now: float) -> None:
        """Answer what takes too long; what becomes of it later is no longer this peer's concern.

        Where the disk hangs amid an instance there is nothing to answer yet, and the association is aborted. Where the
        peer has gone there is nobody to answer, and the association is over.
        """
        message = self._message
        if message is None or not (self.is_full or self._over):
            return
        if message.working_since is None:
            message.working_since = now
        elif now - message.working_since > self._desk.answer_seconds:
            is_instance = message.command.field == dimse.C_STORE_RQ
            if is_instance:
                LOGGER.warning("instance from %s not stored in time", self.info.calling_ae_title)
            else:
                LOGGER.warning("request from %s not served in time", self.info.calling_ae_title)
            message.is_overdue = True
            self._desk.count_overdue(message, 1)
            if message.whole:
                self._answer(message, _NOT_IN_TIME if is_instance else service.NOT_IN_TIME)
            elif self._over:
                self._message = None
                self._tell_end()
            else:
                self._link.abort()

    def end(self, *, is_released: bool) -> None:
        """Leave the association; what is whole is still stored, what is not is forgotten.

        It is not over while the pool has something of it: who breaks off again and again would fill the memory. Only
        what is overdue does not keep it.
        """
        if self._over:
            return
        self._over, self.is_released = True, is_released
        message = self._message
        if message is not None and not message.whole:
            self._let_go(message)
            if not message.handing:
                self._discard(message)
            if not message.handing or message.is_overdue:
                self._message = None
        self._tell_end()

    # -- what a message brings (`dimse.Receiving`)

    def requested(self, command: Command) -> None:
        """Begin with a request."""
        if command.field == dimse.C_CANCEL_RQ:
            if command.has_data_set:
                raise dimse.ProtocolFault("a C-CANCEL with a data set")
            return  # nothing that it could cancel is ever pending
        message = Message(command)
        if command.field == dimse.C_STORE_RQ:
            if not command.has_data_set:
                raise dimse.ProtocolFault("a C-STORE without a data set")
            message.verdict = self._objection(command)
            if message.verdict is None:
                message.intake = self._desk.ingest.begin(
                    Announced(
                        self.info,
                        command.sop_class_uid,
                        command.sop_instance_uid,
                        command.context.transfer_syntax,
                        command.priority,
                    )
                )
        elif command.field == dimse.C_ECHO_RQ and command.context.abstract_syntax == Verification:
            message.verdict = Answer(status.SUCCESS)
        elif (command.context.abstract_syntax, command.field) not in self._desk.services:
            message.verdict = _NO_SUCH_SERVICE
        elif self._desk.services_hang:
            message.verdict = service.NOT_IN_TIME
        self._message = message
        if not command.has_data_set:
            self.complete()

    def data(self, piece: memoryview) -> None:
        """Take a piece of the data set."""
        message = self._message
        assert message is not None
        message.length += len(piece)
        if message.command.field != dimse.C_STORE_RQ:
            if message.length > self._desk.most_of_a_service:
                raise dimse.ProtocolFault("a data set that is longer than can be held in memory")
        elif message.length > self._desk.instance_bytes:
            self._refuse(message, _TOO_LONG)
        if message.verdict is not None:
            if message.length > self._desk.most_thrown_away:
                raise dimse.ProtocolFault("a data set without end, of which nothing is kept")
            return
        if message.intake is not None:
            message.intake.passing(piece)
        message.held += piece
        self._desk.held += len(piece)
        if message.intake is not None and not message.handing and len(message.held) >= self._desk.most:
            self._hand_over(message)

    def complete(self) -> None:
        """Deal with the whole request."""
        message = self._message
        assert message is not None
        message.whole = True
        if not message.handing:
            self._deal(message)

    # -- storing

    def _objection(self, command: Command) -> Answer | None:
        """Return why an instance is refused before any of it is read, None where it is not."""
        if command.sop_class_uid != command.context.abstract_syntax:
            return _OTHER_CLASS
        if not is_uid(command.sop_instance_uid):
            return _NO_UID
        has_space = self._desk.has_free_space()
        if has_space is None:
            LOGGER.warning("instance from %s not taken: the disk does not answer", self.info.calling_ae_title)
            return _NOT_IN_TIME
        if not has_space:
            LOGGER.warning("instance from %s not stored: free space is below the watermark", self.info.calling_ae_title)
            return _NO_SPACE
        if self._desk.hangs:
            LOGGER.warning("instance from %s not taken: %d are overdue", self.info.calling_ae_title, self._desk.overdue)
            return _NOT_IN_TIME
        return None

    def _hand_over(self, message: Message) -> None:
        """Have what is held written; what comes meanwhile is the next part."""
        intake, part = message.intake, self._lend(message)
        assert intake is not None
        message.handing = message.is_begun = True

        def work() -> None:
            fault: Exception | None = None
            try:
                intake.append(part)
            except Exception as error:  # noqa: BLE001 - outermost in its thread: the answer tells
                fault = error
            self._desk.later(self._handed, message, fault)

        self._desk.pool.submit(work)

    def _handed(self, message: Message, fault: Exception | None) -> None:
        self._give_back(message)
        message.handing, message.working_since = False, None
        if self._over and not message.whole:
            self._message = None
        if message is not self._message:  # nobody waits for it any more
            self._discard(message)
            self._tell_end()
            return
        if fault is not None:
            self._refuse(message, self._words_for(fault))
        elif message.verdict is not None:
            self._discard(message)
        if message.whole:
            self._deal(message)
        else:
            self._link.resume()

    def _deal(self, message: Message) -> None:
        """Make the instance durable, or serve the request, and answer."""
        if message.verdict is not None:
            self._answer(message, message.verdict)
        elif message.intake is not None:
            self._desk.pool.submit(message.intake.finish, self._lend(message), self._settler(message))
        else:
            self._desk.service_pool.submit(self._serve, message, self._lend(message))

    def _settler(self, message: Message) -> Callable[[Exception | None], None]:
        def settle(fault: Exception | None) -> None:
            answer = Answer(status.SUCCESS) if fault is None else self._words_for(fault)
            self._desk.later(self._dealt, message, answer)

        return settle

    def _serve(self, message: Message, information: bytearray) -> None:
        command = message.command
        if message is not self._message:  # who asked was told that it takes too long
            self._desk.later(self._give_back, message)
            return
        try:
            request = ServiceRequest(
                self.info,
                command.context.abstract_syntax,
                command.context.transfer_syntax,
                command.field,
                command.sop_class_uid,
                command.sop_instance_uid,
                command.type_id,
                bytes(information),
            )
            answer = self._desk.services[command.context.abstract_syntax, command.field](request)
        except Exception as error:  # noqa: BLE001 - outermost in its thread: the answer tells
            answer = self._words_for(error)
        self._desk.later(self._dealt, message, answer)

    def _dealt(self, message: Message, answer: Answer) -> None:
        self._give_back(message)
        self._answer(message, answer)

    def _answer(self, message: Message, answer: Answer) -> None:
        """Answer a request that was not answered before."""
        if message is not self._message:
            return
        self._message = None
        self._let_go(message)
        if message.command.field == dimse.C_STORE_RQ:
            if answer.status == status.SUCCESS:
                self.stored += 1
            else:
                self.failed += 1
                self.failures[answer.comment] += 1
        if self._over:
            self._tell_end()
            return
        self._link.send(dimse.encode_response(message.command, answer), message.command.context.context_id)
        self._link.resume()

    def _refuse(self, message: Message, answer: Answer) -> None:
        """Throw away what came of an instance and what will come."""
        message.verdict = answer
        self._let_go(message)
        if not message.handing:
            self._discard(message)

    def _discard(self, message: Message) -> None:
        if message.intake is not None and message.is_begun:
            self._desk.pool.submit(message.intake.discard)
        message.intake = None

    def _let_go(self, message: Message) -> None:
        self._desk.held -= len(message.held)
        message.held = bytearray()

    def _lend(self, message: Message) -> bytearray:
        """Return what is held, for the pool."""
        part, message.held = message.held, bytearray()
        message.lent = len(part)
        return part

    def _give_back(self, message: Message) -> None:
        """Take note that the pool is done with what it had of a message."""
        self._desk.held -= message.lent
        self._desk.count_overdue(message, -message.is_overdue)
        message.lent, message.is_overdue = 0, False

    def _tell_end(self) -> None:
        if self._over and self._message is None and not self._told:
            self._told = True
            self._desk.ended(self)

    def _words_for(self, fault: Exception) -> Answer:
        """Return what an error is answered with, and log it; never Success after a fault."""
        calling = self.info.calling_ae_title
        for kind, answer in _ANSWERS:
            if isinstance(fault, kind):
                LOGGER.warning("instance from %s not stored: %s", calling, shown(fault))
                return answer
        # its text may hold what a peer sent
        LOGGER.error("instance from %s not stored: %s in %s", calling, type(fault).__name__, where(fault))
        return Answer(status.PROCESSING_FAILURE, "internal error; see the node's log")
