"""The index: what was received, by study, series and instance, and which associations brought it."""

from __future__ import annotations

from collections import Counter, defaultdict
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from pacs_ai.dicom.equality import Sameness, compare
from pacs_ai.errors import Unavailable
from pacs_ai.log import shown
from pacs_ai.states import SeriesEvent, SeriesState
from pacs_ai.store import schema
from pacs_ai.store.clock import now
from pacs_ai.store.enqueue import ROUTINE, STAT, URGENT, withhold_for_conflicts
from pacs_ai.store.moves import move
from pacs_ai.store.schema import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from pacs_ai.dicom.arrival import Arrival
    from pacs_ai.store.database import Database

_instance, _series, _study = schema.instance, schema.series, schema.study
_association, _share = schema.association, schema.association_series
_C_STORE_HIGH = 1


class Outcome(StrEnum):
    """What an arrival was."""

    NEW = "new"
    REPEAT = "repeat"
    VARIANT = "variant"
    UNVERIFIED = "unverified"
    CONFLICT = "conflict"


class Index:
    """Records arrivals; every call is one transaction.

    Parameters
    ----------
    path_of
        SHA-256 -> where that file lies.
    owner
        Name of this process in `association` rows.
    """

    def __init__(self, database: Database, path_of: Callable[[str], Path], owner: str) -> None:
        self._database = database
        self._path_of = path_of
        self._owner = owner
        self._announced: set[str] = set()

    def record(self, arrivals: Sequence[Arrival]) -> list[Outcome]:
        """Record arrivals whose files are durable already; returns once the transaction is committed.

        The second invariant of docs/architecture.md: the same instance again changes nothing, the same in other
        clothes is a variant, and other content under the same SOP Instance UID sets the series to ``conflict``.
        """
        for _ in range(3):
            try:
                with self._database.write() as connection:
                    outcomes = _Recording(connection, self._database, self._path_of, self._owner).record(
                        arrivals, self._announced
                    )
            except sa.exc.IntegrityError:
                continue  # another process recorded one of these UIDs at this very moment: look again
            self._announced.update(arrival.assoc_id for arrival in arrivals)
            return outcomes
        raise Unavailable("other processes keep recording the same instances; try again")

    def association_ended(self, assoc_id: str, released: bool) -> None:
        """Note the end of an association that brought instances."""
        if assoc_id not in self._announced:
            return
        with self._database.write() as connection:
            connection.execute(
                sa.update(_association)
                .where(_association.c.id == assoc_id, _association.c.ended_at.is_(None))
                .values(ended_at=now(), released=released)
            )
        self._announced.discard(assoc_id)


class _Recording:
    """One transaction's work."""

    def __init__(self, connection: Connection, database: Database, path_of: Callable[[str], Path], owner: str) -> None:
        self._connection = connection
        self._database = database
        self._path_of = path_of
        self._owner = owner

    def record(self, arrivals: Sequence[Arrival], announced: set[str]) -> list[Outcome]:
        series = self._series_rows(arrivals)
        known = self._known({arrival.header.sop_instance_uid for arrival in arrivals})
        outcomes: list[Outcome] = []
        rows: list[dict[str, Any]] = []
        for arrival in arrivals:
            row = series[_key(arrival)]
            outcome = self._judge(arrival, row, known, rows)
            outcomes.append(outcome)
        if rows:
            self._connection.execute(sa.insert(_instance), rows)
        self._associations(arrivals, series, announced)
        by_series: dict[int, list[tuple[Arrival, Outcome]]] = defaultdict(list)
        for arrival, outcome in zip(arrivals, outcomes, strict=True):
            by_series[series[_key(arrival)].id].append((arrival, outcome))
        for row in series.values():
            self._touch(row, by_series[row.id])
        return outcomes

    def _judge(
        self,
        arrival: Arrival,
        series: Row[Any],
        known: dict[str, list[dict[str, Any]]],
        rows: list[dict[str, Any]],
    ) -> Outcome:
        uid = arrival.header.sop_instance_uid
        there = known[uid]
        for row in there:
            if row["sha256"] == arrival.sha256:
                self._restore(row)
                return Outcome.REPEAT
        current = next((row for row in there if row["role"] == Role.CURRENT), None)
        role, outcome = Role.CURRENT, Outcome.NEW
        if current is not None and current["purged_at"] is None:
            role, outcome = self._compare(arrival, series, current)
        elif current is not None:
            self._demote(current)
        new = _instance_row(arrival, series, role)
        rows.append(new)
        there.append(new)
        return outcome

    def _compare(self, arrival: Arrival, series: Row[Any], current: Mapping[str, Any]) -> tuple[Role, Outcome]:
        sameness = compare(self._path_of(current["sha256"]), self._path_of(arrival.sha256))
        if sameness is Sameness.SAME:
            return Role.VARIANT, Outcome.VARIANT
        if sameness is Sameness.PIXELS_UNDECIDED:
            return Role.UNVERIFIED, Outcome.UNVERIFIED
        for series_id in {series.id, current["series_id"]}:
            self._conflict(series_id, arrival)
        return Role.CONFLICT, Outcome.CONFLICT

    def _conflict(self, series_id: int, arrival: Arrival) -> None:
        state = self._connection.execute(sa.select(_series.c.state).where(_series.c.id == series_id)).scalar_one()
        if state == SeriesState.CONFLICT:
            return
        move(
            self._connection,
            series_id,
            SeriesEvent.DIFFERING_INSTANCE,
            actor=self._owner,
            reason=f"{shown(arrival.calling_ae_title)} sent other content under SOP Instance UID "
            f"{arrival.header.sop_instance_uid}; decide with: pacs-ai resolve SERIES --keep first|latest",
        )
        withhold_for_conflicts(self._connection, series_id, actor=self._owner)

    def _restore(self, row: dict[str, Any]) -> None:
        """Note that an instance whose file retention had deleted was sent again."""
        if row.get("purged_at") is not None:
            self._connection.execute(sa.update(_instance).where(_instance.c.id == row["id"]).values(purged_at=None))
            row["purged_at"] = None

    def _demote(self, row: dict[str, Any]) -> None:
        self._connection.execute(
            sa.update(_instance).where(_instance.c.id == row["id"]).values(role=Role.VARIANT.value)
        )
        row["role"] = Role.VARIANT.value

    def _known(self, uids: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
        known: dict[str, list[dict[str, Any]]] = defaultdict(list)
        columns = (
            _instance.c.id,
            _instance.c.sop_instance_uid,
            _instance.c.sha256,
            _instance.c.role,
            _instance.c.series_id,
            _instance.c.purged_at,
        )
        for row in self._connection.execute(sa.select(*columns).where(_instance.c.sop_instance_uid.in_(list(uids)))):
            known[row.sop_instance_uid].append(dict(row._mapping))  # noqa: SLF001 - SQLAlchemy's documented name
        return known

    def _series_rows(self, arrivals: Sequence[Arrival]) -> dict[tuple[str, str], Any]:
        firsts: dict[tuple[str, str], Arrival] = {}
        for arrival in arrivals:
            firsts.setdefault(_key(arrival), arrival)
        rows = self._select_series(firsts)
        missing = [first for key, first in firsts.items() if key not in rows]
        if missing:
            for first in missing:
                self._insert_series(first)
            rows = self._select_series(firsts)
        return rows

    def _select_series(self, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Any]:
        wanted = set(keys)
        query = (
            sa.select(
                _series.c.id,
                _series.c.state,
                _series.c.revision,
                _series.c.routed_revision,
                _series.c.priority,
                _series.c.series_instance_uid,
                _study.c.study_instance_uid,
            )
            .join(_study, _study.c.id == _series.c.study_id)
            .where(_series.c.series_instance_uid.in_([uid for _, uid in wanted]))
            .order_by(_series.c.id)
            .with_for_update(of=_series)
        )
        rows = self._connection.execute(query)
        found = {(row.study_instance_uid, row.series_instance_uid): row for row in rows}
        return {key: row for key, row in found.items() if key in wanted}

    def _insert_series(self, first: Arrival) -> None:
        values, at = dict(first.header.values), first.received_at
        self._connection.execute(
            self._database.insert_new(_study),
            {
                "study_instance_uid": first.header.study_instance_uid,
                "patient_id": values.get("PatientID", ""),
                "accession_number": values.get("AccessionNumber", ""),
                "header": values,
                "first_received_at": at,
            },
        )
        study_id = self._connection.execute(
            sa.select(_study.c.id).where(_study.c.study_instance_uid == first.header.study_instance_uid)
        ).scalar_one()
        self._connection.execute(
            self._database.insert_new(_series),
            {
                "study_id": study_id,
                "series_instance_uid": first.header.series_instance_uid,
                "modality": values.get("Modality", ""),
                "header": values,
                "state": SeriesState.RECEIVING.value,
                "revision": 1,
                "instances": 0,
                "arrivals": 0,
                "priority": priority_of(first),
                "calling_ae_title": first.calling_ae_title,
                "called_ae_title": first.called_ae_title,
                "first_received_at": at,
                "last_received_at": at,
                "routed_revision": 0,
                "reason": "instances are arriving",
            },
        )

    def _touch(self, row: Row[Any], come: Sequence[tuple[Arrival, Outcome]]) -> None:
        fresh = sum(outcome is Outcome.NEW for _, outcome in come)
        self._connection.execute(
            sa.update(_series)
            .where(_series.c.id == row.id)
            .values(
                instances=_series.c.instances + fresh,
                arrivals=_series.c.arrivals + len(come),
                revision=row.routed_revision + 1 if fresh else _series.c.revision,
                priority=min(row.priority, *(priority_of(arrival) for arrival, _ in come)),
                last_received_at=max(arrival.received_at for arrival, _ in come),
            )
        )
        if fresh and row.state in {SeriesState.COMPLETE, SeriesState.UNROUTED}:
            move(
                self._connection,
                row.id,
                SeriesEvent.LATE_INSTANCE,
                actor=self._owner,
                reason=f"{fresh} further instance(s) from {shown(come[0][0].calling_ae_title)} after the series was "
                f"complete: revision {row.routed_revision + 1}",
            )

    def _associations(
        self, arrivals: Sequence[Arrival], series: Mapping[tuple[str, str], Row[Any]], announced: set[str]
    ) -> None:
        for arrival in {a.assoc_id: a for a in arrivals if a.assoc_id not in announced}.values():
            self._connection.execute(
                self._database.insert_new(_association),
                {
                    "id": arrival.assoc_id,
                    "owner": self._owner,
                    "calling_ae_title": arrival.calling_ae_title,
                    "called_ae_title": arrival.called_ae_title,
                    "address": arrival.address,
                    "opened_at": arrival.received_at,
                    "released": False,
                },
            )
        counts = Counter((arrival.assoc_id, series[_key(arrival)].id) for arrival in arrivals)
        for (assoc_id, series_id), count in counts.items():
            self._connection.execute(
                self._database.upsert(
                    _share,
                    ["assoc_id", "series_id"],
                    {"assoc_id": assoc_id, "series_id": series_id, "arrivals": count},
                    {"arrivals": _share.c.arrivals + count},
                )
            )


def priority_of(arrival: Arrival) -> int:
    """Return STAT, URGENT or ROUTINE: by Requested Procedure Priority (0040,1003), else the C-STORE's own."""
    requested = arrival.header.values.get("RequestedProcedurePriority", "").strip().upper()
    if requested:
        return {"STAT": STAT, "HIGH": URGENT}.get(requested, ROUTINE)
    return URGENT if arrival.priority == _C_STORE_HIGH else ROUTINE


def _key(arrival: Arrival) -> tuple[str, str]:
    return arrival.header.study_instance_uid, arrival.header.series_instance_uid


def _instance_row(arrival: Arrival, series: Row[Any], role: Role) -> dict[str, Any]:
    return {
        "series_id": series.id,
        "sop_instance_uid": arrival.header.sop_instance_uid,
        "sop_class_uid": arrival.header.sop_class_uid,
        "transfer_syntax_uid": arrival.transfer_syntax_uid,
        "sha256": arrival.sha256,
        "size": arrival.size,
        "role": role.value,
        "revision": series.routed_revision + 1,
        "assoc_id": arrival.assoc_id,
        "calling_ae_title": arrival.calling_ae_title,
        "received_at": arrival.received_at,
        "purged_at": None,
    }
