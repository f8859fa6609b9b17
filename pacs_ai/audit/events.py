"""Which audit message each thing that happened is: receipts, moves of the journal, refusals, orders (PS3.15 A.5.3).

Pure: a batch of `pacs_ai.store.trail` goes in, messages come out. One message tells of one patient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pacs_ai.audit import message as m
from pacs_ai.audit.message import Coded, Message, Object, Participant
from pacs_ai.states import DeliveryEvent, JobEvent, SeriesEvent
from pacs_ai.store import retention
from pacs_ai.store.trail import Event, NoticeKind

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from pacs_ai.store.subjects import Concerned, Objects
    from pacs_ai.store.trail import Batch, Move, Notice, Receipt

_OPERATOR = "operator"

# ParticipantObjectTypeCode, ParticipantObjectTypeCodeRole, ParticipantObjectDataLifeCycle: PS3.15 A.5.1.2
_PERSON, _SYSTEM = "1", "2"
_PATIENT, _REPORT, _RESOURCE = "1", "3", "13"
_CREATED, _COPIED, _USED, _EXPORTED, _WITHDRAWN, _ERASED = "1", "2", "6", "10", "14", "15"


@dataclass(frozen=True)
class Teller:
    """Who tells of it.

    Parameters
    ----------
    node_name
        `node.name`.
    host
        Of this machine.
    ae_titles
        The node's own.
    source, site
        AuditSourceID and AuditEnterpriseSiteID.
    """

    node_name: str
    host: str
    ae_titles: tuple[str, ...]
    source: str
    site: str = ""

    def events(self, batch: Batch) -> list[Event]:
        """Return the events of a batch, by the time at which it happened."""
        told = [*map(self._receipt, batch.receipts), *map(self._notice, batch.notices)]
        told += [one for move in batch.moves if (one := self._move(move)) is not None]
        return [self._event(one) for one in sorted(told, key=lambda one: one.at)]

    def _event(self, one: Message) -> Event:
        return Event(one.at, one.severity, one.xml(self.source, self.site))

    # -- who

    def _process(self, owner: str, *, is_requestor: bool, role: Coded | None = None) -> Participant:
        """Return a process of this node: UserID is its process ID, as in `pacs-ai status` and the log of the system."""
        kind, _, rest = owner.partition(":")
        pid = rest.split(":")[1] if rest.count(":") == 2 else owner
        return Participant(pid, is_requestor, role, f"pacs_ai {kind}", self.ae_titles, self.host)

    def _actor(self, actor: str, *, role: Coded | None = None) -> tuple[Participant, ...]:
        """Return who did it: an operator, for whom the node acted, or a process by itself."""
        if not is_operator(actor):
            return (self._process(actor or self.node_name, is_requestor=True, role=role),)
        node = Participant(self.node_name, is_requestor=False, role=role, ae_titles=self.ae_titles)
        return (self._operator(actor), node)

    def _operator(self, actor: str) -> Participant:
        login = actor.partition(":")[2] or _OPERATOR
        return Participant(f"{login}@{self.host}", is_requestor=True, user_name=login, access_point=self.host)

    # -- what came

    def _receipt(self, receipt: Receipt) -> Message:
        sender = Participant(
            receipt.calling_ae_title,
            is_requestor=True,
            role=m.SOURCE,
            ae_titles=(receipt.calling_ae_title,),
            access_point=receipt.address,
        )
        kind = m.own("received", "Instances received")
        return Message(
            event=m.INSTANCES_TRANSFERRED,
            action="C" if receipt.new else "R",
            at=receipt.at,
            outcome=m.SUCCESS,
            types=(kind,),
            participants=(sender, self._process(receipt.owner, is_requestor=False, role=m.DESTINATION)),
            objects=_objects(
                receipt.concerned,
                receipt.concerned.received,
                _COPIED,
                (("association", receipt.assoc_id), ("instances", str(receipt.count))),
            ),
        )

    # -- what moved

    def _move(self, move: Move) -> Message | None:
        if move.subject == "node":
            return self._activity(move)
        if move.subject == "pipeline":
            return self._switched(move)
        if move.concerned.study is None:
            return None
        if move.subject == "series":
            return self._of_series(move)
        if move.subject == "delivery":
            return self._of_delivery(move)
        return self._of_job(move)

    def _activity(self, move: Move) -> Message:
        """Tell that a process started or stopped (A.5.3.1)."""
        stopped = move.event != "started"
        return Message(
            event=m.APPLICATION_ACTIVITY,
            action="E",
            at=move.at,
            outcome=m.SERIOUS_FAILURE if move.event == "died" else m.SUCCESS,
            types=(m.APPLICATION_STOP if stopped else m.APPLICATION_START,),
            why=move.reason if move.event == "died" else "",
            participants=(self._process(move.actor, is_requestor=False, role=m.APPLICATION),),
        )

    def _switched(self, move: Move) -> Message:
        """Tell that an operator paused or resumed a pipeline (A.5.3.11)."""
        return self._alert(
            at=move.at,
            kind=m.SOFTWARE_CONFIGURATION,
            outcome=m.SUCCESS,
            participants=self._actor(move.actor),
            words=f"pipeline {move.subject_id} {move.event}" + (f": {move.reason}" if move.reason else ""),
        )

    def _of_series(self, move: Move) -> Message | None:
        if move.event in {retention.PURGED, retention.STUDY_PURGED}:
            event = m.STUDY_DELETED if move.event == retention.STUDY_PURGED else m.INSTANCES_ACCESSED
            return self._accessed(move, "D", move.concerned.received, life_cycle=_ERASED, event=event)
        if move.event in {SeriesEvent.DIFFERING_INSTANCE, SeriesEvent.RESOLVED}:
            outcome = m.SUCCESS if move.event == SeriesEvent.RESOLVED else m.MINOR_FAILURE
            return self._accessed(move, "U", move.concerned.received, outcome=outcome)
        if move.event == "pledged" or is_operator(move.actor):
            return self._accessed(move, "U", move.concerned.received)
        return None  # what its association brought is told of as a receipt

    def _of_job(self, move: Move) -> Message | None:
        if move.event in _SILENT and not is_operator(move.actor):
            return None
        outcome = _JOB_OUTCOMES.get(move.event, m.SUCCESS)
        if move.event == JobEvent.FINISHED:
            return self._accessed(move, "C", move.concerned.made, life_cycle=_CREATED)
        if move.event in _READING:
            return self._accessed(move, "R", move.concerned.received, life_cycle=_USED, outcome=outcome)
        life_cycle = _WITHDRAWN if move.event == JobEvent.RETRACTED else ""
        return self._accessed(move, "U", move.concerned.made, life_cycle=life_cycle, outcome=outcome)

    def _of_delivery(self, move: Move) -> Message | None:
        if move.event in _SILENT and not is_operator(move.actor):
            return None
        if move.event not in _TRANSFERS:
            life_cycle = _WITHDRAWN if move.event == DeliveryEvent.RETRACTED else ""
            return self._accessed(move, "U", move.concerned.made, life_cycle=life_cycle)
        event, outcome = _TRANSFERS[move.event]
        peer = move.concerned.peer
        assert peer is not None
        receiver = Participant(peer.ae_title, False, m.DESTINATION, peer.name, (peer.ae_title,), peer.host)
        return Message(
            event=event,
            action="E" if event is m.BEGIN_TRANSFERRING else "R",
            at=move.at,
            outcome=outcome,
            types=(_kind_of(move),),
            why="" if outcome == m.SUCCESS else move.reason,
            participants=(self._process(move.actor, is_requestor=True, role=m.SOURCE), receiver),
            objects=_objects(move.concerned, move.concerned.made, _EXPORTED, _details(move)),
        )

    def _accessed(
        self,
        move: Move,
        action: str,
        objects: tuple[Objects, ...],
        *,
        life_cycle: str = "",
        outcome: str = m.SUCCESS,
        event: Coded = m.INSTANCES_ACCESSED,
    ) -> Message:
        """Tell that instances were read, made, changed or deleted (A.5.3.6, A.5.3.8)."""
        return Message(
            event=event,
            action=action,
            at=move.at,
            outcome=outcome,
            types=(_kind_of(move),),
            why=move.reason,
            participants=self._actor(move.actor),
            objects=_objects(move.concerned, objects, life_cycle, _details(move)),
        )

    # -- what has no row

    def _notice(self, notice: Notice) -> Message:
        if notice.kind is NoticeKind.COMMAND:
            return self._command(notice)
        if notice.kind is NoticeKind.IDLE:
            return self._idle(notice)
        if notice.kind is NoticeKind.QUERY:
            return self._query(notice)
        kind = m.RESTRICTED_FUNCTION if notice.kind is NoticeKind.INSTANCE else m.NODE_AUTHENTICATION
        remote = self._remote(notice, is_requestor=False)
        return self._alert(
            at=notice.at,
            kind=kind,
            outcome=m.MINOR_FAILURE,
            participants=(self._node(is_requestor=True), remote),
            words=f"{notice.kind} from {notice.address} refused{_often(notice)}: {notice.reason}",
        )

    def _node(self, *, is_requestor: bool) -> Participant:
        return Participant(self.node_name, is_requestor, ae_titles=self.ae_titles, access_point=self.host)

    def _remote(self, notice: Notice, *, is_requestor: bool, role: Coded | None = None) -> Participant:
        titles = (notice.calling_ae_title,) if notice.calling_ae_title else ()
        user = notice.calling_ae_title or notice.address or "unknown"
        return Participant(user, is_requestor, role, ae_titles=titles, access_point=notice.address)

    def _command(self, notice: Notice) -> Message:
        """Tell that an operator, whom the operating system knows, gave an order (A.5.3.12)."""
        return Message(
            event=m.USER_AUTHENTICATION,
            action="E",
            at=notice.at,
            outcome=m.SUCCESS,
            types=(m.LOGIN,),
            why=notice.reason,
            participants=(self._operator(notice.actor), self._node(is_requestor=False)),
        )

    def _idle(self, notice: Notice) -> Message:
        """Tell of an association that brought no instance: an event of this node's own."""
        return Message(
            event=m.IDLE_ASSOCIATION,
            action="E",
            at=notice.at,
            outcome=m.SUCCESS,
            why=f"{notice.reason}{_often(notice)}",
            participants=(
                self._remote(notice, is_requestor=True, role=m.SOURCE),
                Participant(self.node_name, False, m.DESTINATION, "", (notice.called_ae_title,), self.host),
            ),
        )

    def _query(self, notice: Notice) -> Message:
        """Tell that this node asked a peer (A.5.3.10)."""
        sop_class_uid, transfer_syntax_uid, identifier = notice.reason.split(" ")
        asked = Participant(notice.called_ae_title, False, m.DESTINATION, "", (notice.called_ae_title,), notice.address)
        what = Object(
            sop_class_uid,
            m.SOP_CLASS_UID,
            _SYSTEM,
            _REPORT,
            "",
            details=(("TransferSyntax", transfer_syntax_uid),),
            query=identifier,
        )
        return Message(
            event=m.QUERY,
            action="E",
            at=notice.at,
            outcome=m.SUCCESS,
            participants=(self._process(notice.actor, is_requestor=True, role=m.SOURCE), asked),
            objects=(what,),
        )

    def _alert(
        self, *, at: datetime, kind: Coded, outcome: str, participants: tuple[Participant, ...], words: str
    ) -> Message:
        subject = Object(
            self.node_name, m.NODE_ID, _SYSTEM, _RESOURCE, self.node_name, details=(("Alert Description", words),)
        )
        return Message(m.SECURITY_ALERT, "E", at, outcome, participants, (kind,), words, (subject,))


def is_operator(actor: str) -> bool:
    """Tell whether a person ordered it."""
    return actor.partition(":")[0] == _OPERATOR


def _often(notice: Notice) -> str:
    return f" {notice.times} times within a minute" if notice.times > 1 else ""


def _kind_of(move: Move) -> Coded:
    event = move.event.replace(" ", "-").replace("_", "-")
    return m.own(f"{move.subject}-{event}", f"{move.subject.capitalize()} {move.event.replace('_', ' ')}")


def _details(move: Move) -> tuple[tuple[str, str], ...]:
    return ((move.subject, move.subject_id), *(one for one in move.concerned.details if one[0] != move.subject))


def _objects(
    concerned: Concerned, objects: tuple[Objects, ...], life_cycle: str, details: tuple[tuple[str, str], ...]
) -> tuple[Object, ...]:
    """Return the study and its patient."""
    study = concerned.study
    assert study is not None
    return (
        Object(
            study.study_instance_uid,
            m.STUDY_INSTANCE_UID,
            _SYSTEM,
            _REPORT,
            study.study_description or "study",
            life_cycle,
            study.accession_number,
            objects,
            details,
        ),
        Object(study.patient_id, m.PATIENT_NUMBER, _PERSON, _PATIENT, study.patient_name),
    )


#: Moves that are the beginning of what is told anyway.
_SILENT = frozenset({"enqueued", "asked again", "lacking"})
#: Moves of a job that read its images.
_READING = frozenset({JobEvent.CLAIMED, JobEvent.REFUSED, JobEvent.FAILED, JobEvent.POSTPONED, JobEvent.LOST})
_JOB_OUTCOMES: Mapping[str, str] = {
    JobEvent.REFUSED: m.MINOR_FAILURE,
    JobEvent.POSTPONED: m.MINOR_FAILURE,
    JobEvent.LOST: m.MINOR_FAILURE,
    JobEvent.FAILED: m.SERIOUS_FAILURE,
}
_TRANSFERS: Mapping[str, tuple[Coded, str]] = {
    DeliveryEvent.CLAIMED: (m.BEGIN_TRANSFERRING, m.SUCCESS),
    DeliveryEvent.ACCEPTED: (m.INSTANCES_TRANSFERRED, m.SUCCESS),
    DeliveryEvent.CONFIRMED: (m.INSTANCES_TRANSFERRED, m.SUCCESS),
    "unconfirmed": (m.INSTANCES_TRANSFERRED, m.MINOR_FAILURE),
    DeliveryEvent.MISSED: (m.INSTANCES_TRANSFERRED, m.MINOR_FAILURE),
    DeliveryEvent.HELD: (m.INSTANCES_TRANSFERRED, m.MINOR_FAILURE),
    DeliveryEvent.POSTPONED: (m.INSTANCES_TRANSFERRED, m.MINOR_FAILURE),
    DeliveryEvent.LOST: (m.INSTANCES_TRANSFERRED, m.MINOR_FAILURE),
    DeliveryEvent.FAILED: (m.INSTANCES_TRANSFERRED, m.SERIOUS_FAILURE),
}
