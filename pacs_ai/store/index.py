"""The index: what was received, by study, series and instance, and which associations brought it."""

from __future__ import annotations

from collections import Counter, defaultdict
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection, bindparam

from pacs_ai.dicom.equality import Sameness
from pacs_ai.errors import Unavailable
from pacs_ai.log import shown
from pacs_ai.states import SeriesEvent, SeriesState
from pacs_ai.store import schema
from pacs_ai.store.clock import now
from pacs_ai.store.comparing import Comparisons, Pair, Uncompared, pairs_of
from pacs_ai.store.database import Contended
from pacs_ai.store.enqueue import ROUTINE, STAT, URGENT
from pacs_ai.store.holds import withhold_for_conflict
from pacs_ai.store.moves import move
from pacs_ai.store.schema import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from pacs_ai.dicom.arrival import Arrival
    from pacs_ai.store.database import Database

_instance, _series, _study = schema.instance, schema.series, schema.study
_association, _share, _result = schema.association, schema.association_series, schema.result
_ahead = schema.ahead
_NO_MARKS: Mapping[str, tuple[str, int]] = MappingProxyType({})
#: A row of `_KNOWN_SERIES`, locked.
_Series = Any
_C_STORE_HIGH = 1
_TRIES = 5
#: Roles in which an instance may take the place of one whose file is gone; over a conflict a person decides.
_STAND_INS = frozenset({Role.VARIANT, Role.UNVERIFIED})
#: What a conflict is about, for people.
_CONTENTS = {
    Sameness.DIFFERENT: "other content",
    Sameness.NOT_COMPARED: "content that is too much to be compared",
    Sameness.UNREADABLE: "content that cannot be compared, because the stored file cannot be read,",
}

# Every received instance runs these, so they are built once.
_KNOWN_SERIES = (
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
    .where(_series.c.series_instance_uid.in_(bindparam("uids", expanding=True)))
    .order_by(_series.c.id)
    .with_for_update(of=_series)
)
_KNOWN_INSTANCES = sa.select(
    _instance.c.id,
    _instance.c.sop_instance_uid,
    _instance.c.sha256,
    _instance.c.role,
    _instance.c.series_id,
    _instance.c.purged_at,
).where(_instance.c.sop_instance_uid.in_(bindparam("uids", expanding=True)))
_INSERT_INSTANCES = sa.insert(_instance)
_TOUCH = (
    sa.update(_series)
    .where(_series.c.id == bindparam("series"))
    .values(
        instances=_series.c.instances + bindparam("fresh"),
        arrivals=_series.c.arrivals + bindparam("come"),
        revision=bindparam("to_revision"),
        priority=bindparam("to_priority"),
        last_received_at=bindparam("at"),
    )
)


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
        self._comparisons = Comparisons(path_of)
        self._owner = owner
        self._announced: set[str] = set()
        self._doubtful: set[str] = set()  # associations whose rows may be there though their commit failed
        self._mark = database.insert_over(_ahead, ["segment"])
        self._count_share = database.insert_adding(_share, ["assoc_id", "series_id"], _share.c.arrivals)

    def record(self, arrivals: Sequence[Arrival], marks: Mapping[str, tuple[str, int]] = _NO_MARKS) -> list[Outcome]:
        """Record arrivals whose files are durable already; returns once the transaction is committed.

        With them goes how far each segment that they were written ahead to is recorded, name -> (lap, number), so that
        none is recorded twice (`is_recorded`).

        The second invariant of docs/architecture.md: the same instance again changes nothing, the same in other
        clothes is a variant, and other content under the same SOP Instance UID sets the series to ``conflict``.
        Contents are compared while no transaction is open: the one that finds out which are to be compared is undone,
        and the next one makes sure that they are still those.

        Raises
        ------
        Unavailable
            The database is away; nothing was recorded.
        sqlalchemy.exc.IntegrityError
            One of them breaks a constraint, however often it is tried; nothing was recorded.
        """
        clash: Exception | None = None
        compared: dict[Pair, Sameness] = {}
        for _ in range(_TRIES):
            try:
                with self._database.write() as connection:
                    recording = _Recording(connection, self._database, compared, self._owner)
                    outcomes = recording.record(arrivals)
                    self._note_associations(connection, arrivals, recording.series)
                    if marks:
                        connection.execute(self._mark, [_mark(name, *mark) for name, mark in sorted(marks.items())])
            except (sa.exc.IntegrityError, Contended) as error:
                clash = error  # another process recorded one of these UIDs at this very moment: look again
                continue
            except Unavailable:
                self._doubtful.update(arrival.assoc_id for arrival in arrivals)
                raise
            except Uncompared as missing:
                clash = None
                compared |= self._comparisons.learn(missing.pairs)
                continue
            self._announced.update(arrival.assoc_id for arrival in arrivals)
            return outcomes
        if isinstance(clash, sa.exc.IntegrityError):
            raise clash  # no other process: one of these can have no row
        raise Unavailable("other processes keep recording the same instances; try again")

    def is_recorded(self, name: str, lap: str, number: int) -> bool:
        """Tell whether a record of a segment's lap was recorded."""
        this = sa.and_(_ahead.c.segment == name, _ahead.c.lap == lap, _ahead.c.number >= number)
        with self._database.read() as connection:
            return connection.execute(sa.select(_ahead.c.number).where(this)).first() is not None

    def association_ended(self, assoc_id: str, released: bool) -> bool:
        """Note the end of an association that brought instances; False of one that brought none."""
        if assoc_id not in self._announced and assoc_id not in self._doubtful:
            return False
        with self._database.write() as connection:
            ended = connection.execute(
                sa.update(_association)
                .where(_association.c.id == assoc_id, _association.c.ended_at.is_(None))
                .values(ended_at=now(), released=released)
            )
        brought = assoc_id in self._announced or ended.rowcount > 0
        self._announced.discard(assoc_id)
        self._doubtful.discard(assoc_id)
        return brought

    def _note_associations(
        self, connection: Connection, arrivals: Sequence[Arrival], series: Mapping[tuple[str, str], _Series]
    ) -> None:
        for arrival in {a.assoc_id: a for a in arrivals if a.assoc_id not in self._announced}.values():
            connection.execute(
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
        shares = [{"assoc_id": a, "series_id": s, "arrivals": count} for (a, s), count in sorted(counts.items())]
        connection.execute(self._count_share, shares)


class _Recording:
    """One transaction's work, with what was found of contents that were compared before it."""

    def __init__(
        self, connection: Connection, database: Database, compared: Mapping[Pair, Sameness], owner: str
    ) -> None:
        self._connection = connection
        self._database = database
        self._compared = compared
        self._owner = owner
        self._new: list[dict[str, Any]] = []
        self._left: Counter[int] = Counter()  # series -> current instances whose place another took
        self.series: dict[tuple[str, str], _Series] = {}

    def record(self, arrivals: Sequence[Arrival]) -> list[Outcome]:
        self.series = self._series_rows(arrivals)
        known = self._known(arrivals)
        missing = [pair for pair in pairs_of(arrivals, known) if pair not in self._compared]
        if missing:
            raise Uncompared(missing)
        outcomes = [self._judge(arrival, known[arrival.header.sop_instance_uid]) for arrival in arrivals]
        if self._new:
            self._connection.execute(_INSERT_INSTANCES, self._new)
        come: dict[tuple[str, str], list[tuple[Arrival, Outcome]]] = defaultdict(list)
        for arrival, outcome in zip(arrivals, outcomes, strict=True):
            come[_key(arrival)].append((arrival, outcome))
        self._connection.execute(_TOUCH, [self._touch(self.series[key], brought) for key, brought in come.items()])
        self._count_what_left()
        for key, brought in come.items():
            self._reopen(self.series[key], brought)
        return outcomes

    def _judge(self, arrival: Arrival, there: list[dict[str, Any]]) -> Outcome:
        """Say what an arrival is beside the rows that are there under its UID, and add its own."""
        series = self.series[_key(arrival)]
        current = next((row for row in there if row["role"] == Role.CURRENT), None)
        same = next((row for row in there if row["sha256"] == arrival.sha256), None)
        if same is not None:
            return self._repeat(same, current, series)
        role, outcome = Role.CURRENT, Outcome.NEW
        if current is not None and current["purged_at"] is None:
            role, outcome = self._compare(arrival, series, current)
        elif current is not None:
            self._demote(current)
        new = _instance_row(arrival, series, role)
        self._new.append(new)
        there.append(new)
        return outcome

    def _compare(self, arrival: Arrival, series: _Series, current: Mapping[str, Any]) -> tuple[Role, Outcome]:
        pair = current["sha256"], arrival.sha256
        if pair not in self._compared:
            raise Uncompared([pair])
        sameness = self._compared[pair]
        if sameness is Sameness.SAME:
            return Role.VARIANT, Outcome.VARIANT
        if sameness is Sameness.PIXELS_UNDECIDED:
            return Role.UNVERIFIED, Outcome.UNVERIFIED
        for series_id in sorted({series.id, current["series_id"]}):
            self._conflict(series_id, arrival, _CONTENTS[sameness])
        return Role.CONFLICT, Outcome.CONFLICT

    def _conflict(self, series_id: int, arrival: Arrival, content: str) -> None:
        query = sa.select(_series.c.state).where(_series.c.id == series_id).with_for_update()
        if self._connection.execute(query).scalar_one() == SeriesState.CONFLICT:
            return
        move(
            self._connection,
            series_id,
            SeriesEvent.DIFFERING_INSTANCE,
            actor=self._owner,
            reason=f"{shown(arrival.calling_ae_title)} sent {content} under SOP Instance UID "
            f"{arrival.header.sop_instance_uid}; decide with: pacs-ai resolve SERIES --keep first|latest",
        )
        withhold_for_conflict(self._connection, series_id, actor=self._owner)

    def _repeat(self, row: dict[str, Any], current: dict[str, Any] | None, series: _Series) -> Outcome:
        """Note that bytes came again: where retention had deleted the file it is there again.

        Where the current instance is another one whose file is gone, these take its place, as unknown ones would.
        """
        values: dict[str, Any] = {} if row["purged_at"] is None else {"purged_at": None}
        takes_place = current is not None and current["purged_at"] is not None and row["role"] in _STAND_INS
        if takes_place:
            assert current is not None
            self._demote(current)
            values |= {"role": Role.CURRENT.value, "revision": series.routed_revision + 1}
        if values:
            self._connection.execute(sa.update(_instance).where(_instance.c.id == row["id"]).values(**values))
            row |= values
        return Outcome.NEW if takes_place else Outcome.REPEAT

    def _demote(self, row: dict[str, Any]) -> None:
        """Let go of a current instance whose file is gone, so that it cannot be compared with what came now."""
        self._connection.execute(
            sa.update(_instance).where(_instance.c.id == row["id"]).values(role=Role.VARIANT.value)
        )
        row["role"] = Role.VARIANT.value
        self._left[row["series_id"]] += 1

    def _count_what_left(self) -> None:
        """Take instances off the counts of series of which nothing came now."""
        for series_id in sorted(self._left.keys() - {row.id for row in self.series.values()}):
            fewer = {"instances": _series.c.instances - self._left[series_id]}
            self._connection.execute(sa.update(_series).where(_series.c.id == series_id).values(**fewer))

    def _known(self, arrivals: Sequence[Arrival]) -> dict[str, list[dict[str, Any]]]:
        known: dict[str, list[dict[str, Any]]] = defaultdict(list)
        uids = list({arrival.header.sop_instance_uid for arrival in arrivals})
        for row in self._connection.execute(_KNOWN_INSTANCES, {"uids": uids}).mappings():
            known[row["sop_instance_uid"]].append(dict(row))
        return known

    def _series_rows(self, arrivals: Sequence[Arrival]) -> dict[tuple[str, str], _Series]:
        firsts: dict[tuple[str, str], Arrival] = {}
        for arrival in arrivals:
            firsts.setdefault(_key(arrival), arrival)
        rows = self._select_series(firsts)
        missing = sorted(firsts.keys() - rows.keys())  # sorted, so that two processes cannot wait for each other
        for key in missing:
            self._insert_series(firsts[key])
        return self._select_series(firsts) if missing else rows

    def _select_series(self, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], _Series]:
        wanted = set(keys)
        rows = self._connection.execute(_KNOWN_SERIES, {"uids": [uid for _, uid in wanted]})
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
        own = sa.select(_result.c.id).where(_result.c.sop_instance_uid == first.header.sop_instance_uid)
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
                "awaiting": False,
                "own_result": self._connection.execute(own).first() is not None,
                "reason": "instances are arriving",
            },
        )

    def _touch(self, row: _Series, come: Sequence[tuple[Arrival, Outcome]]) -> dict[str, Any]:
        fresh = sum(outcome is Outcome.NEW for _, outcome in come)
        return {
            "series": row.id,
            "fresh": fresh - self._left[row.id],
            "come": len(come),
            "to_revision": row.routed_revision + 1 if fresh else row.revision,
            "to_priority": min(row.priority, *(priority_of(arrival) for arrival, _ in come)),
            "at": max(arrival.received_at for arrival, _ in come),
        }

    def _reopen(self, row: _Series, come: Sequence[tuple[Arrival, Outcome]]) -> None:
        fresh = [arrival for arrival, outcome in come if outcome is Outcome.NEW]
        if not fresh or row.state not in {SeriesState.COMPLETE, SeriesState.UNROUTED}:
            return
        state = self._connection.execute(sa.select(_series.c.state).where(_series.c.id == row.id)).scalar_one()
        if state == SeriesState.CONFLICT:
            return  # by another instance of this very batch
        move(
            self._connection,
            row.id,
            SeriesEvent.LATE_INSTANCE,
            actor=self._owner,
            reason=f"{len(fresh)} further instance(s) from {shown(fresh[0].calling_ae_title)} after the series was "
            f"complete: revision {row.routed_revision + 1}",
        )


def priority_of(arrival: Arrival) -> int:
    """Return STAT, URGENT or ROUTINE: by Requested Procedure Priority (0040,1003), else the C-STORE's own."""
    requested = arrival.header.values.get("RequestedProcedurePriority", "").strip().upper()
    if requested:
        return {"STAT": STAT, "HIGH": URGENT}.get(requested, ROUTINE)
    return URGENT if arrival.priority == _C_STORE_HIGH else ROUTINE


def _key(arrival: Arrival) -> tuple[str, str]:
    return arrival.header.study_instance_uid, arrival.header.series_instance_uid


def _instance_row(arrival: Arrival, series: _Series, role: Role) -> dict[str, Any]:
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


def _mark(name: str, lap: str, number: int) -> dict[str, Any]:
    return {"segment": name, "lap": lap, "number": number}
