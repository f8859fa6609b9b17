"""What a receive process turned away, summed up before it is written: a flood costs one row a minute."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pacs_ai.errors import Transient
from pacs_ai.log import unexpected
from pacs_ai.store import trail
from pacs_ai.store.trail import Notice, NoticeKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pacs_ai.dicom.arrival import AssociationInfo, Refusal
    from pacs_ai.store.database import Database

_log = logging.getLogger(__name__)

#: What happened once is written after so many seconds at the latest; what goes on, once in so many.
FIRST_SECONDS, AGAIN_SECONDS = 1.0, 60.0
#: Different happenings that are kept apart within a minute; what is beyond is summed up in one.
MAX_APART = 500
_BEYOND = "further ones, from other addresses or for other reasons"

_Key = tuple[NoticeKind, str, str, str, str]


@dataclass
class _Count:
    notice: Notice
    times: int = 0
    due: float = field(default=0.0)


class Tally:
    """Counts; `refused`, `opened` and `ended` are called where it happens and never wait for the database.

    Parameters
    ----------
    clock
        Monotonic seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[_Key, _Count] = {}
        self._open: dict[str, AssociationInfo] = {}

    # -- what is told to it

    def refused(self, refusal: Refusal) -> None:
        """Count a refusal (`pacs_ai.receive.scp.Listen.on_refusal`)."""
        self._add(
            Notice(
                kind=NoticeKind(refusal.what),
                at=refusal.at,
                reason=refusal.reason,
                address=refusal.address,
                calling_ae_title=refusal.calling_ae_title,
                called_ae_title=refusal.called_ae_title,
                times=refusal.times,
            )
        )

    def opened(self, association: AssociationInfo) -> None:
        """Remember an association until it ends (`pacs_ai.receive.ingest.Ingest.opened`)."""
        with self._lock:
            self._open[association.assoc_id] = association

    def ended(self, assoc_id: str, *, brought: bool) -> None:
        """Count an association that ended, unless it `brought` something: then its rows tell of it."""
        with self._lock:
            association = self._open.pop(assoc_id, None)
        if association is None or brought:
            return
        self._add(
            Notice(
                kind=NoticeKind.IDLE,
                at=association.opened_at,
                reason="association that brought no instance",
                address=association.address,
                calling_ae_title=association.calling_ae_title,
                called_ae_title=association.called_ae_title,
            )
        )

    def _add(self, notice: Notice) -> None:
        key = (notice.kind, notice.address, notice.calling_ae_title, notice.called_ae_title, notice.reason)
        with self._lock:
            if key not in self._counts and len(self._counts) >= MAX_APART:
                notice = Notice(notice.kind, notice.at, _BEYOND, times=notice.times)
                key = (notice.kind, "", "", "", _BEYOND)
            count = self._counts.setdefault(key, _Count(notice, due=self._clock() + FIRST_SECONDS))
            if not count.times:
                count.notice = notice
            count.times += notice.times

    # -- what it writes

    def write(self, *, whole: bool = False) -> None:
        """Write what is due, or, at the end, the `whole`; what the database does not take is kept for the next time."""
        due = self._take(whole=whole)
        try:
            trail.note(self._database, due)
        except Transient:
            self._give_back(due, FIRST_SECONDS)
        except Exception as error:  # noqa: BLE001 - whatever is odd about a refusal must not end receiving
            _log.error("what was refused is not noted: %s", unexpected(error))
            self._give_back(due, AGAIN_SECONDS)

    def _take(self, *, whole: bool) -> list[Notice]:
        now = self._clock()
        found = []
        with self._lock:
            for key, count in list(self._counts.items()):
                if not whole and now < count.due:
                    continue
                if count.times == 0:
                    del self._counts[key]  # nothing more within the minute
                    continue
                found.append(replace(count.notice, times=count.times))
                count.times, count.due = 0, now + AGAIN_SECONDS
        return found

    def _give_back(self, notices: Iterable[Notice], seconds: float) -> None:
        with self._lock:
            for notice in notices:
                key = (notice.kind, notice.address, notice.calling_ae_title, notice.called_ae_title, notice.reason)
                count = self._counts.setdefault(key, _Count(notice))
                count.times += notice.times
                count.due = self._clock() + seconds
