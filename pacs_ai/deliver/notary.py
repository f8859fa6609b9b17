"""The notary: makes the notices that were ordered, "not analysed" and retractions, and puts them into the outbox.

It works in a thread beside the couriers and needs no model and no pixels: a retraction goes out while every worker is
busy or broken.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, cast

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from pacs_ai import __version__
from pacs_ai.dicom.evidence import Evidence
from pacs_ai.dicom.reading import READING_FAULTS
from pacs_ai.errors import Permanent, Refused, Transient
from pacs_ai.log import trace
from pacs_ai.pipeline import Card, Clearance, Code
from pacs_ai.profiles import Kind, notice_encodings
from pacs_ai.store import notices
from pacs_ai.store.filling import NewResult
from pacs_ai.store.notices import NoticeKind, Order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pacs_ai.config import Config
    from pacs_ai.encode.encoded import Encoded
    from pacs_ai.encode.provenance import Work
    from pacs_ai.encode.reports.notices import Policy, Reason
    from pacs_ai.store.database import Database
    from pacs_ai.store.files import Files

_log = logging.getLogger(__name__)

#: The objects, what their identity is copied from, and the SOP Instance UIDs that they may refer to.
_Made = tuple[tuple["Encoded", ...], Dataset, set[str]]
#: A notice reports no procedure; the card of a disabled pipeline names none.
_NO_PROCEDURE = Code("", "", "")


class Notary:
    """Makes one notice after the other; `look` starts it where one is wanted."""

    def __init__(self, config: Config, database: Database, files: Files, owner: str) -> None:
        self._config = config
        self._database = database
        self._files = files
        self._owner = owner
        self._encodings = notice_encodings(config.deliver.series_number)
        self._thread: threading.Thread | None = None

    def look(self) -> bool:
        """Begin where a notice is wanted and none is being made; tells whether one is."""
        if self._thread is not None and self._thread.is_alive():
            return True
        if notices.next_order(self._database) is None:
            return False
        self._thread = threading.Thread(target=self._run, name="notary", daemon=True)
        self._thread.start()
        return True

    def join(self, seconds: float) -> None:
        """Wait for what is being made."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        try:
            while self.step():
                pass
        except Transient as error:
            _log.warning("notices wait until the store takes them: %s", error)

    def step(self) -> bool:
        """Make one notice; False where none is wanted."""
        wanted = notices.next_order(self._database)
        if wanted is None:
            return False
        try:
            self._make(wanted)
        except Permanent as error:
            self._give_up(wanted, str(error))
        except Transient as error:
            notices.postpone(self._database, wanted, str(error), actor=self._owner, counts=False)
            _log.warning("%s of job %d is made later: %s", wanted.kind, wanted.job_id, error)
        except Exception as error:  # noqa: BLE001 - whatever is odd about one notice must not hold up the others
            _log.error("%s of job %d could not be made: %s", wanted.kind, wanted.job_id, trace(error))
            words = f"unexpected {type(error).__name__}; the log of deliver has the traceback"
            notices.postpone(self._database, wanted, words, actor=self._owner, counts=True)
        return True

    def _make(self, wanted: Order) -> None:
        new = self._store(self._encode(wanted))
        addresses = {peer.name: (peer.ae_title, peer.host, peer.port) for peer in self._config.peer}
        if notices.made(self._database, wanted, new, actor=self._owner, addresses=addresses):
            _log.info("%s of job %d is in the outbox", wanted.kind, wanted.job_id)

    def _give_up(self, wanted: Order, words: str) -> None:
        notices.give_up(self._database, wanted, words, actor=self._owner)
        _log.error("%s of job %d cannot be sent: %s", wanted.kind, wanted.job_id, words)

    def _store(self, encoded: Sequence[Encoded]) -> list[NewResult]:
        """Make the objects durable under their digests."""
        stored = [self._files.write([memoryview(part) for part in one.parts]) for one in encoded]
        self._files.sync(stored)
        return [
            NewResult(
                kind=one.kind,
                encoding=one.encoding.key,
                study_instance_uid=one.study_instance_uid,
                series_instance_uid=one.series_instance_uid,
                sop_instance_uid=one.sop_instance_uid,
                sop_class_uid=one.sop_class_uid,
                transfer_syntax_uid=one.transfer_syntax_uid,
                sha256=file.sha256,
                size=file.size,
            )
            for one, file in zip(encoded, stored, strict=True)
        ]

    # -- what it says

    def _encode(self, wanted: Order) -> tuple[Encoded, ...]:
        """Return what the notice says, held against the images or results that it is about."""
        from pacs_ai.encode.check import check_notice

        encoded, source, cited = (
            self._not_analysed(wanted) if wanted.kind is NoticeKind.NOT_ANALYSED else self._withdrawn(wanted)
        )
        for one in encoded:
            check_notice(one, source, _card(wanted), cited)
        return encoded

    def _not_analysed(self, wanted: Order) -> _Made:
        from pacs_ai.encode.reports import notices as encoders  # highdicom: only where a notice is wanted

        evidence = self._evidence(wanted)
        source = next(iter(evidence.values())).datasets[0]
        policy = cast("Policy", wanted.cause)
        encoding = self._encodings[Kind.NOT_ANALYSED]
        report = encoders.encode_not_analysed(
            source, evidence, self._work(wanted), policy, wanted.words, encoding, wanted.refused_for
        )
        return (report,), source, {str(ds.SOPInstanceUID) for one in evidence.values() for ds in one.datasets}

    def _withdrawn(self, wanted: Order) -> _Made:
        from pacs_ai.encode.reports import notices as encoders

        objects = [
            encoders.Cited(one.study_instance_uid, one.series_instance_uid, one.sop_class_uid, one.sop_instance_uid)
            for one in wanted.named
        ]
        cited = {one.sop_instance_uid for one in wanted.named}
        work, source = self._work(wanted), self._result(wanted)
        if wanted.kind is NoticeKind.REJECTION:
            reason = cast("Reason", wanted.cause)
            encoding = self._encodings[Kind.REJECTION_NOTE]
            note = encoders.encode_rejection(source, objects, work, reason, wanted.words, encoding)
            return (note,), source, cited
        report, picture = self._encodings[Kind.RETRACTED_REPORT], self._encodings[Kind.RETRACTED_PICTURE]
        made_at = min(one.created_at for one in wanted.named)
        made = encoders.encode_retracted(source, objects, work, wanted.words, report, picture, made_at=made_at)
        return made, source, cited

    def _work(self, wanted: Order) -> Work:
        from pacs_ai.encode.provenance import Work

        return Work(
            job_key=wanted.job_key,
            generation=wanted.generation,
            created_at=wanted.ordered_at,
            card=_card(wanted),
            model_digest=wanted.model_digest,
            settings_digest=wanted.settings_digest,
            parameters="",
            node_name=self._config.node.name,
            software_version=__version__,
        )

    def _evidence(self, wanted: Order) -> dict[str, Evidence]:
        """Read the headers of the job's inputs; what cannot be read is left out."""
        found = {}
        for name, digests in wanted.inputs.items():
            headers = [ds for sha256 in digests if (ds := self._header(sha256)) is not None]
            if headers:
                found[name] = Evidence(tuple(headers), ())
        if not found:
            raise Refused("none of its images can be read any more, so it is not known whose they are")
        return found

    def _header(self, sha256: str) -> Dataset | None:
        try:
            ds = dcmread(self._files.path(sha256), stop_before_pixels=True)
        except (InvalidDicomError, FileNotFoundError, *READING_FAULTS):
            return None
        return ds

    def _result(self, wanted: Order) -> Dataset:
        """Return the header of a result that is withdrawn: its identity is that of the notice.

        Its equipment is this node, which acquired nothing.
        """
        from pacs_ai.encode.provenance import EQUIPMENT

        for one in wanted.named:
            found = self._header(one.sha256)
            if found is not None:
                for keyword in EQUIPMENT:
                    found.pop(keyword, None)
                return found
        raise Refused("none of the objects can be read any more; look for them in the PACS by hand")


def _card(wanted: Order) -> Card:
    """Return what the pipeline said of itself when the job was made; of a disabled one, its name."""
    said = wanted.card
    return Card(
        name=said.get("name", wanted.pipeline),
        version=wanted.pipeline_version or "unknown",
        manufacturer=said.get("manufacturer", ""),
        title=said.get("title", wanted.pipeline),
        inputs={},
        labels=(),
        procedure=_NO_PROCEDURE,
        intended_use=said.get("intended_use", ""),
        clearance=Clearance(said.get("clearance", Clearance.RESEARCH.value)),
    )
