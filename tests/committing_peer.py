"""A small PACS for the tests that answers requests for storage commitment, and queries, as it is told to."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from free_ports import free_port
from keeping_peer import commented
from pydicom import Dataset
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.sop_class import (
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
)

from pacs_ai.dicom import contexts

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class CommittingPeer:
    """A storage SCP on loopback that keeps the headers of what it gets in `stored`, by SOP Instance UID.

    Of a request for storage commitment it commits to what it has stored, study by study as it came, unless `answers`
    is "never"; "here" answers on the association of the request, "elsewhere" on one of its own to `node_port`. `losing`
    maps a SOP Instance UID to how many more times it is lost after its C-STORE was answered Success. With a `comment`
    queries are refused, and so is a request that has an `action_status`; both bear it. One that does not `indexes` by
    itself keeps what it got from all answers until `index`. One that `aborts` ends the association on a request, and
    one that `rejects` takes no association at all. At a query about one of the studies in `poison` it ends the
    association as well, and those about one in `mute` it never answers; `asked` are the studies of all queries. Queries
    of one Series Instance UID may be refused, or aborted.
    """

    ae_title: str = "COMMITTER"
    answers: str = "here"
    commits: bool = True
    queries: bool = True
    action_status: int = 0x0000
    node_port: int = 0
    node_ae_title: str = "PACS_AI"
    port: int = 0
    losing: dict[str, int] = field(default_factory=dict)
    stored: dict[str, Dataset] = field(default_factory=dict)
    received: list[str] = field(default_factory=list)
    requests: list[Dataset] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    queried: int = 0
    patients: dict[str, str] = field(default_factory=dict)
    comment: str = ""
    indexes: bool = True
    waiting: dict[str, Dataset] = field(default_factory=dict)
    aborts: bool = False
    rejects: bool = False
    poison: set[str] = field(default_factory=set)
    mute: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    refuses_queries_of: str = ""
    aborts_queries_of: str = ""

    def start(self) -> None:
        """Listen."""
        self._server = None
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        ae = AE(f"NOT_{self.ae_title}" if self.rejects else self.ae_title)
        ae.require_called_aet = self.rejects
        ae.supported_contexts = contexts.acceptor_contexts()
        if self.commits:
            ae.add_supported_context(StorageCommitmentPushModel)
        if self.queries:
            ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        handlers = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_N_ACTION, self._action),
            (evt.EVT_C_FIND, self._find),
        ]
        self.port = self.port or free_port()  # one that nobody else takes while it is stopped
        self._server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)

    def stop(self) -> None:
        """Listen no longer."""
        self._stopped.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.ae.shutdown()
            self._server = None

    def wait_for(self, count: int) -> list[int]:
        """Return the statuses with which the node answered, as soon as there are `count`."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.statuses) >= count, 60), f"{len(self.statuses)} of {count}"
            return list(self.statuses)

    def _store(self, event: evt.Event) -> int:
        ds = event.dataset
        uid = str(ds.SOPInstanceUID)
        self.received.append(uid)
        if self.losing.get(uid, 0) > 0:
            self.losing[uid] -= 1
        else:
            self.waiting[uid] = ds
        if self.indexes:
            self.index()
        return 0x0000

    def index(self) -> None:
        """Show what it got."""
        self.stored.update(self.waiting)
        self.waiting.clear()

    def _action(self, event: evt.Event) -> tuple[int | Dataset, None]:
        assert event.action_type == 1
        self.requests.append(event.action_information)
        if self.aborts:
            event.assoc.abort()
        elif self.action_status == 0x0000 and self.answers != "never":
            answer = self.here if self.answers == "here" else self.elsewhere
            threading.Thread(target=answer, args=(event.assoc, event.action_information)).start()
        return commented(self.action_status, self.comment), None

    def event(self, request: Dataset) -> tuple[Dataset, int]:
        """Return what the peer says of a request, and the Event Type ID."""
        answer = Dataset()
        answer.TransactionUID = request.TransactionUID
        kept, failed = [], []
        for item in request.ReferencedSOPSequence:
            if str(item.ReferencedSOPInstanceUID) in self.stored:
                kept.append(item)
            else:
                item.FailureReason = 0x0112
                failed.append(item)
        if kept:
            answer.ReferencedSOPSequence = kept
        if failed:
            answer.FailedSOPSequence = failed
        return answer, 2 if failed else 1

    def here(self, assoc: evt.Association, request: Dataset) -> None:
        """Answer on the association of the request."""
        self._send(assoc, request)

    def elsewhere(self, _assoc: object, request: Dataset) -> None:
        """Answer on an association of the peer's own, in which it is the SCP."""
        ae = AE(self.ae_title)
        contexts_ = [build_context(StorageCommitmentPushModel)]
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        assoc = ae.associate("127.0.0.1", self.node_port, contexts_, ae_title=self.node_ae_title, ext_neg=[role])
        assert assoc.is_established
        self._send(assoc, request)
        assoc.release()

    def _send(self, assoc: evt.Association, request: Dataset) -> None:
        said, event_type = self.event(request)
        response, _ = assoc.send_n_event_report(
            said, event_type, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        with self._changed:
            self.statuses.append(int(response.Status) if "Status" in response else -1)
            self._changed.notify_all()

    def _find(self, event: evt.Event) -> Iterator[tuple[int | Dataset, Dataset | None]]:
        self.queried += 1
        if self.comment:
            yield commented(0xC000, self.comment), None
            return
        wanted = event.identifier
        self.asked.append(str(wanted.StudyInstanceUID))
        if wanted.StudyInstanceUID in self.poison:
            event.assoc.abort()
            return
        if wanted.StudyInstanceUID in self.mute:
            self._stopped.wait(60)
            return
        series_instance_uid = wanted.get("SeriesInstanceUID", "")
        if series_instance_uid and series_instance_uid in {self.refuses_queries_of, self.aborts_queries_of}:
            if series_instance_uid == self.aborts_queries_of:
                event.assoc.abort()
            yield 0xC001, None
            return
        for ds in list(self.stored.values()):
            if ds.StudyInstanceUID != wanted.StudyInstanceUID:
                continue
            if wanted.QueryRetrieveLevel == "IMAGE" and ds.SeriesInstanceUID != wanted.SeriesInstanceUID:
                continue
            match = Dataset()
            match.QueryRetrieveLevel = wanted.QueryRetrieveLevel
            for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "PatientID"):
                if keyword in wanted:
                    setattr(match, keyword, ds.get(keyword, ""))
            yield 0xFF00, match
        for study, patient in self.patients.items():
            if study == wanted.StudyInstanceUID and wanted.QueryRetrieveLevel == "STUDY":
                match = Dataset()
                match.QueryRetrieveLevel, match.StudyInstanceUID, match.PatientID = "STUDY", study, patient
                yield 0xFF00, match


@dataclass
class AskingPeer:
    """A modality on loopback that sends instances, asks for storage commitment and takes the answer elsewhere."""

    ae_title: str = "ASKER"
    port: int = 0
    status: int = 0x0000
    comment: str = ""
    reports: list[tuple[int, Dataset]] = field(default_factory=list)
    roles: list[tuple[bool, bool]] = field(default_factory=list)

    def start(self) -> None:
        """Listen for answers."""
        ae = AE(self.ae_title)
        ae.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
        self.port = self.port or free_port()
        self._server = ae.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._event)]
        )

    def stop(self) -> None:
        """Listen no longer."""
        if self._server is not None:
            self._server.shutdown()
            self._server.ae.shutdown()
            self._server = None

    def ask(self, node_port: int, transaction_uid: str, references: list[tuple[str, str]]) -> int | None:
        """Ask the node; returns its status, None where it aborted instead."""
        request = Dataset()
        request.TransactionUID = transaction_uid
        request.ReferencedSOPSequence = []
        for sop_class_uid, sop_instance_uid in references:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
            request.ReferencedSOPSequence.append(item)
        ae = AE(self.ae_title)
        ae.add_requested_context(StorageCommitmentPushModel)
        assoc = ae.associate("127.0.0.1", node_port, ae_title="PACS_AI")
        assert assoc.is_established
        answer, _ = assoc.send_n_action(request, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
        if "Status" not in answer:
            return None
        assoc.release()
        return int(answer.Status)

    def _event(self, event: evt.Event) -> tuple[Dataset, None]:
        context = next(one for one in event.assoc.accepted_contexts if one.context_id == event.context.context_id)
        self.roles.append((context.as_scu, context.as_scp))
        self.reports.append((event.event_type, event.event_information))
        return commented(self.status, self.comment), None
