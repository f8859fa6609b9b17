"""Whom and what a row of the journal is about, for the audit trail: study, patient, objects, peer, pipeline."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection

from pacs_ai.store import schema
from pacs_ai.store.schema import Role

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_study, _series, _instance = schema.study, schema.series, schema.instance
_job, _source, _result, _delivery = schema.job, schema.job_source, schema.result, schema.delivery


@dataclass(frozen=True)
class Objects:
    """Instances of one SOP class: how many, and which, where each is named."""

    sop_class_uid: str
    count: int
    sop_instance_uids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """One study and whose it is, as the first instance of the series that it is about said."""

    study_instance_uid: str
    accession_number: str
    patient_id: str
    patient_name: str
    study_description: str


@dataclass(frozen=True)
class Peer:
    """Where something was sent."""

    name: str
    ae_title: str
    host: str


@dataclass(frozen=True)
class Concerned:
    """Whom and what it is about; empty where it is about none.

    Parameters
    ----------
    received
        What was analysed, or deleted.
    made
        What a job made, or a delivery carried.
    details
        Name -> value, of a job.
    """

    study: Study | None = None
    received: tuple[Objects, ...] = ()
    made: tuple[Objects, ...] = ()
    peer: Peer | None = None
    details: tuple[tuple[str, str], ...] = ()


NOBODY = Concerned()


class Reader:
    """Looks each subject up once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known: dict[tuple[str, str], Concerned] = {}

    def of(self, subject: str, subject_id: str) -> Concerned:
        """Return whom a row of the journal is about."""
        key = (subject, subject_id)
        if key not in self._known:
            self._known[key] = self._read(subject, subject_id)
        return self._known[key]

    def _read(self, subject: str, subject_id: str) -> Concerned:
        if subject == "series":
            return self._series(int(subject_id))
        if subject == "job":
            return self._job(int(subject_id))
        if subject == "delivery":
            return self._delivery(int(subject_id))
        return NOBODY

    def _series(self, series_id: int) -> Concerned:
        whose = sa.select(_series.c.study_id).where(_series.c.id == series_id)
        study_id = self._connection.execute(whose).scalar_one_or_none()
        if study_id is None:
            return NOBODY
        query = sa.select(_instance.c.sop_class_uid, sa.func.count()).where(_instance.c.series_id == series_id)
        return study(self._connection, study_id, [series_id], _counted(self._connection, query))

    def _job(self, job_id: int) -> Concerned:
        row = self._connection.execute(sa.select(_job).where(_job.c.id == job_id)).one_or_none()
        if row is None:
            return NOBODY
        taken = sa.select(_source.c.series_id).where(_source.c.job_id == job_id)
        sources = self._connection.execute(taken).scalars().all()
        read = sa.select(_instance.c.sop_class_uid, sa.func.count()).where(
            _instance.c.series_id.in_(sources), _instance.c.role == Role.CURRENT.value
        )
        results = self._connection.execute(
            sa.select(_result.c.sop_class_uid, _result.c.sop_instance_uid)
            .where(_result.c.job_id == job_id)
            .order_by(_result.c.ordinal)
        )
        made: dict[str, list[str]] = defaultdict(list)
        for result in results:
            made[result.sop_class_uid].append(result.sop_instance_uid)
        return replace(
            study(self._connection, row.study_id, sources, _counted(self._connection, read)),
            made=tuple(Objects(uid, len(uids), tuple(uids)) for uid, uids in made.items()),
            details=_details(row),
        )

    def _delivery(self, delivery_id: int) -> Concerned:
        query = (
            sa.select(
                _delivery.c.peer,
                _delivery.c.ae_title,
                _delivery.c.host,
                _delivery.c.job_id,
                _result.c.sop_class_uid,
                _result.c.sop_instance_uid,
            )
            .join(_result, _result.c.id == _delivery.c.result_id)
            .where(_delivery.c.id == delivery_id)
        )
        row = self._connection.execute(query).one_or_none()
        if row is None:
            return NOBODY
        return replace(
            self.of("job", str(row.job_id)),
            peer=Peer(row.peer, row.ae_title, row.host),
            made=(Objects(row.sop_class_uid, 1, (row.sop_instance_uid,)),),
        )


def _details(row: Any) -> tuple[tuple[str, str], ...]:
    found = {
        "job": str(row.id),
        "job key": row.job_key,
        "pipeline": row.pipeline,
        "pipeline version": row.pipeline_version,
        "model digest": row.model_digest,
        "settings digest": row.settings_digest,
        "generation": str(row.generation),
    }
    return tuple((name, value) for name, value in found.items() if value)


def _counted(connection: Connection, query: sa.Select[Any]) -> tuple[Objects, ...]:
    grouped = query.group_by(_instance.c.sop_class_uid).order_by(_instance.c.sop_class_uid)
    return tuple(Objects(uid, count) for uid, count in connection.execute(grouped))


def study(
    connection: Connection, study_id: int, series_ids: Sequence[int], received: tuple[Objects, ...] = ()
) -> Concerned:
    """Return a study and its patient, as these of its series say it: others may have come under another patient."""
    query = (
        sa.select(_study.c.study_instance_uid, _study.c.header.label("first"), _series.c.header)
        .outerjoin(_series, sa.and_(_series.c.study_id == _study.c.id, _series.c.id.in_(series_ids)))
        .where(_study.c.id == study_id)
        .order_by(_series.c.id)
        .limit(1)
    )
    row = connection.execute(query).one()
    header = row.first if row.header is None else row.header
    told = Study(
        study_instance_uid=row.study_instance_uid,
        accession_number=str(header.get("AccessionNumber", "")),
        patient_id=patient_of(header),
        patient_name=str(header.get("PatientName", "")),
        study_description=str(header.get("StudyDescription", "")),
    )
    return Concerned(study=told, received=received)


def patient_of(header: Mapping[str, str]) -> str:
    """Return the Patient ID of a series, "" where it has none."""
    return str(header.get("PatientID", ""))


def arrived(connection: Connection, series_ids: Sequence[int], assoc_id: str) -> tuple[Objects, ...]:
    """Return what of some series one association was the first to bring."""
    query = sa.select(_instance.c.sop_class_uid, sa.func.count()).where(
        _instance.c.series_id.in_(series_ids), _instance.c.assoc_id == assoc_id
    )
    return _counted(connection, query)
