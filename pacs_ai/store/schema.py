"""The tables: index (study, series, instance, association), jobs, outbox (result, delivery, notice), journal, audit.

Columns that hold a DICOM attribute bear its keyword in snake_case. Times are UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    func,
    literal_column,
    text,
)
from sqlalchemy.types import JSON, TypeDecorator

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect


class Role(StrEnum):
    """What one stored file is for its SOP Instance UID."""

    CURRENT = "current"  #: the one that is analysed
    VARIANT = "variant"  #: the same content in another transfer syntax, or with other padding
    UNVERIFIED = "unverified"  #: the same header; the worker compares the decoded pixels
    CONFLICT = "conflict"  #: other content under the same UID


class Instant(TypeDecorator[datetime]):
    """A point in time: seconds since 1970 UTC in the database, an aware datetime outside."""

    impl = Float(53)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:  # noqa: ARG002
        """Store seconds."""
        return None if value is None else value.timestamp()

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return an aware datetime."""
        return None if value is None else datetime.fromtimestamp(value, UTC)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_Id = BigInteger().with_variant(Integer, "sqlite")


def _id() -> Column[int]:
    return Column("id", _Id, primary_key=True, autoincrement=True)


def _ref(name: str, target: str, **options: Any) -> Column[int]:
    return Column(name, _Id, ForeignKey(f"{target}.id"), nullable=False, **options)


study = Table(
    "study",
    metadata,
    _id(),
    Column("study_instance_uid", String(64), nullable=False, unique=True),
    Column("patient_id", Text, nullable=False),
    Column("accession_number", Text, nullable=False),
    Column("header", JSON, nullable=False),  # keyword -> text of the first instance
    Column("first_received_at", Instant, nullable=False),
)

series = Table(
    "series",
    metadata,
    _id(),
    _ref("study_id", "study", index=True),
    Column("series_instance_uid", String(64), nullable=False),
    Column("modality", Text, nullable=False),
    Column("header", JSON, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("revision", Integer, nullable=False),  # of the instances that are there now
    Column("instances", Integer, nullable=False),  # current ones
    Column("arrivals", BigInteger, nullable=False),  # every instance received, repeats too: "is it quiet?"
    Column("priority", Integer, nullable=False),
    Column("calling_ae_title", String(16), nullable=False),
    Column("called_ae_title", String(16), nullable=False),
    Column("first_received_at", Instant, nullable=False),
    Column("last_received_at", Instant, nullable=False),
    Column("completed_at", Instant),
    Column("routed_revision", Integer, nullable=False),  # last revision that the router has judged
    Column("awaiting", Boolean, nullable=False),  # complete, and a route waits for more of the study
    Column("own_result", Boolean, nullable=False),  # this node made it
    Column("reason", Text, nullable=False),  # why it is in this state, in words
    UniqueConstraint("series_instance_uid", "study_id"),
)
Index("ix_series_awaiting", series.c.study_id, sqlite_where=text("awaiting = 1"), postgresql_where=text("awaiting"))

instance = Table(
    "instance",
    metadata,
    _id(),
    _ref("series_id", "series", index=True),
    Column("sop_instance_uid", String(64), nullable=False),
    Column("sop_class_uid", String(64), nullable=False),
    Column("transfer_syntax_uid", String(64), nullable=False),
    Column("sha256", String(64), nullable=False, index=True),
    Column("size", BigInteger, nullable=False),
    Column("role", String(16), nullable=False),  # a Role
    Column("revision", Integer, nullable=False),  # of the series, in which it came
    Column("assoc_id", String(36), nullable=False),
    Column("calling_ae_title", String(16), nullable=False),
    Column("received_at", Instant, nullable=False),
    Column("purged_at", Instant),  # file deleted by retention
    Column("pledged_at", Instant),  # the node committed to keep it: retention leaves it alone
    UniqueConstraint("sop_instance_uid", "sha256"),
)
#: One content per SOP Instance UID is the current one, whatever processes do at the same time.
Index(
    "uq_instance_current",
    instance.c.sop_instance_uid,
    unique=True,
    sqlite_where=instance.c.role == "current",
    postgresql_where=instance.c.role == "current",
)

#: One row: the number that the folder of files bears too (`pacs_ai.store.identity`).
identity = Table(
    "identity",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("store_id", String(32), nullable=False),
)

association = Table(
    "association",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("owner", String(128), nullable=False),
    Column("calling_ae_title", String(16), nullable=False),
    Column("called_ae_title", String(16), nullable=False),
    Column("address", String(64), nullable=False),
    Column("opened_at", Instant, nullable=False),
    Column("ended_at", Instant, index=True),
    Column("released", Boolean, nullable=False),
)

association_series = Table(
    "association_series",
    metadata,
    Column("assoc_id", String(36), primary_key=True),
    Column("series_id", _Id, ForeignKey("series.id"), primary_key=True, index=True),
    Column("arrivals", BigInteger, nullable=False),
    Column("audited", BigInteger),  # of the arrivals, how many are in the audit trail; none where empty
)
#: Some of it is not in the audit trail yet.
is_untold = association_series.c.arrivals > func.coalesce(association_series.c.audited, literal_column("0"))
Index(
    "ix_association_series_untold",
    association_series.c.assoc_id,
    sqlite_where=is_untold,
    postgresql_where=is_untold,
)

#: Of each segment that was written ahead to: the lap, and up to which of its records there are rows.
ahead = Table(
    "ahead",
    metadata,
    Column("segment", String(64), primary_key=True),
    Column("lap", String(32), nullable=False),
    Column("number", BigInteger, nullable=False),
)

job = Table(
    "job",
    metadata,
    _id(),
    Column("job_key", String(64), nullable=False, unique=True),
    _ref("study_id", "study", index=True),
    Column("pipeline", String(64), nullable=False, index=True),
    Column("pipeline_version", Text, nullable=False),
    Column("model_digest", String(64), nullable=False),
    Column("settings_digest", String(64), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("predecessor_id", _Id),
    Column("route", Text, nullable=False),  # the first that asked for it
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("rank", Float(53), nullable=False),
    Column("due_at", Instant, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("crashes", Integer, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("owner", String(128), nullable=False),
    Column("beat", Integer, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("overdue_at", Instant, nullable=False),
    Column("started_at", Instant),
    Column("finished_at", Instant),
    Column("timings", JSON, nullable=False),  # seconds per step
    Column("findings", JSON, nullable=False),  # segments with voxel counts and digests, measurements
    Column("card", JSON, nullable=False),  # what its pipeline says of itself, for notices; {} of a disabled one
    Column("encoded", JSON, nullable=False),  # keys of the encodings that its findings were written in
    Column("refused_for", String(32), nullable=False),  # pacs_ai.errors.Reason of the last refusal, "" before it
    Index("ix_job_state_rank", "state", "rank", "id"),  # the order of claims, to the end: nothing is left to sort
)

job_source = Table(
    "job_source",
    metadata,
    _ref("job_id", "job", primary_key=True),
    Column("input", String(64), primary_key=True),
    _ref("series_id", "series", index=True),
    Column("revision", Integer, nullable=False),
    Column("digest", String(64), nullable=False),  # of the images that it is for: `sources.series_digest`
)

job_destination = Table(
    "job_destination",
    metadata,
    _ref("job_id", "job", primary_key=True),
    Column("peer", String(64), primary_key=True),
    Column("ae_title", String(16), nullable=False),  # as configured when the job was enqueued
    Column("host", Text, nullable=False),
    Column("port", Integer, nullable=False),
    Column("route", Text, nullable=False),
    Column("plan", JSON, nullable=False),  # the objects that it gets: pacs_ai.profiles.to_json
    Column("report_not_analysed", Boolean, nullable=False),  # it wants a report where there is no result
    Column("lacking", Text, nullable=False),  # which objects of the plan it does not get, why, and what to do
)

notice = Table(
    "notice",
    metadata,
    _id(),
    _ref("job_id", "job", index=True),
    Column("kind", String(16), nullable=False),  # pacs_ai.store.notices.NoticeKind
    Column("cause", String(16), nullable=False),  # refused | failed, or a retraction's reason
    Column("words", Text, nullable=False),
    Column("peers", JSON, nullable=False),  # to whom
    Column("results", JSON, nullable=False),  # ids of the results that a retraction names
    Column("actor", String(128), nullable=False),  # who ordered it
    Column("ordered_at", Instant, nullable=False),
    Column("due_at", Instant, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("ended_at", Instant),  # when it lay in the outbox, or was given up
    Column("problem", Text, nullable=False),  # why it was given up
)
Index(
    "ix_notice_wanted",
    notice.c.id,
    sqlite_where=notice.c.ended_at.is_(None),
    postgresql_where=notice.c.ended_at.is_(None),
)

pipeline_switch = Table(
    "pipeline_switch",
    metadata,
    Column("pipeline", String(64), primary_key=True),
    Column("paused_at", Instant, nullable=False),
    Column("reason", Text, nullable=False),
)

result = Table(
    "result",
    metadata,
    _id(),
    _ref("job_id", "job", index=True),
    Column("ordinal", Integer, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("encoding", String(160), nullable=False),  # key of the encoding: pacs_ai.profiles
    Column("study_instance_uid", String(64), nullable=False),
    Column("series_instance_uid", String(64), nullable=False),
    Column("sop_instance_uid", String(64), nullable=False, unique=True),
    Column("sop_class_uid", String(64), nullable=False),
    Column("transfer_syntax_uid", String(64), nullable=False),
    Column("sha256", String(64), nullable=False, index=True),
    Column("size", BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
)

delivery = Table(
    "delivery",
    metadata,
    _id(),
    _ref("result_id", "result"),
    _ref("job_id", "job"),
    Column("peer", String(64), nullable=False),
    Column("place", Integer, nullable=False),  # among the deliveries of its job to that peer: they go in this order
    Column("ae_title", String(16), nullable=False),
    Column("host", Text, nullable=False),
    Column("port", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("status", Integer),  # of the last C-STORE response
    Column("comment", Text, nullable=False),  # what the peer said last in its own words; it may name a patient
    Column("doubtful", Boolean, nullable=False),  # a try ended without an answer: the peer may have it
    Column("attempts", Integer, nullable=False),
    Column("due_at", Instant, nullable=False),
    Column("waited_seconds", Float(53), nullable=False),  # of backoff, in all; the limit counts this, no clock
    Column("created_at", Instant, nullable=False),
    Column("sent_at", Instant),
    Column("commitment_id", _Id),  # the last request that names it
    Column("asks", Integer, nullable=False),  # such requests, and steps in vain, since it was delivered
    Column("losses", Integer, nullable=False),  # times that the peer said Success and then had it not
    Column("confirm_at", Instant),  # when the next step of its confirmation is due; none: none is
    Column("confirmed_at", Instant),
    UniqueConstraint("result_id", "peer"),
    Index("ix_delivery_state_peer", "state", "peer"),
    Index("ix_delivery_job", "job_id", "peer", "state", "due_at"),  # what holds up the rest of its job
)
Index(
    "ix_delivery_confirm",  # looked at each second: all of it in here, since nearly all deliveries are sent ones
    delivery.c.state,
    delivery.c.peer,
    delivery.c.confirm_at,
    sqlite_where=delivery.c.confirm_at.is_not(None),
    postgresql_where=delivery.c.confirm_at.is_not(None),
)

commitment = Table(  # what this node asks of others
    "commitment",
    metadata,
    _id(),
    Column("transaction_uid", String(64), nullable=False, unique=True),
    Column("peer", String(64), nullable=False),
    Column("ae_title", String(16), nullable=False),  # whom it was sent to, and where
    Column("host", Text, nullable=False),
    Column("port", Integer, nullable=False),
    Column("deliveries", JSON, nullable=False),  # their ids
    Column("asked_at", Instant),  # when the peer took the request, or refused it
    Column("answered_at", Instant),
    Column("words", Text, nullable=False),  # what the answer was
)

pledge = Table(  # what others ask of this node
    "pledge",
    metadata,
    _id(),
    Column("transaction_uid", String(64), nullable=False),
    Column("calling_ae_title", String(16), nullable=False),
    Column("peer", String(64), nullable=False),
    Column("instances", JSON, nullable=False),  # [SOP Class UID, SOP Instance UID] of each
    Column("failures", JSON, nullable=False),  # SOP Instance UID -> Failure Reason; {} before it is decided
    Column("asked_at", Instant, nullable=False),
    Column("decided_at", Instant),
    Column("due_at", Instant, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("waited_seconds", Float(53), nullable=False),
    Column("ended_at", Instant),  # when the peer took the answer, or it was given up
    Column("reason", Text, nullable=False),
    UniqueConstraint("transaction_uid", "calling_ae_title"),
)
Index(
    "ix_pledge_open",  # looked at each second: all of it in here, since a request may name thousands of instances
    pledge.c.peer,
    pledge.c.due_at,
    pledge.c.ended_at,
    sqlite_where=pledge.c.ended_at.is_(None),
    postgresql_where=pledge.c.ended_at.is_(None),
)

destination = Table(
    "destination",
    metadata,
    Column("peer", String(64), primary_key=True),
    Column("owner", String(128), nullable=False),  # "" where no courier is at work
    Column("fence", Integer, nullable=False),
    Column("beat", Integer, nullable=False),
    Column("failures", Integer, nullable=False),  # in a row
    Column("next_try_at", Instant, nullable=False),
    Column("reason", Text, nullable=False),
)

process = Table(
    "process",
    metadata,
    Column("owner", String(128), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("detail", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("seen_at", Instant, nullable=False),
    Column("settled", Boolean, nullable=False),  # all that it, or who was before it, answered Success has its rows
    Column("problem", Text, nullable=False, default=""),  # what keeps it from its work, and what to do; "" where none
    Column("given_up", Boolean, nullable=False),  # what it may owe the index is not waited for any more
)

journal = Table(
    "journal",
    metadata,
    _id(),
    Column("at", Instant, nullable=False),
    Column("subject", String(16), nullable=False),  # series | job | delivery | pipeline | node
    Column("subject_id", String(64), nullable=False),
    Column("event", String(32), nullable=False),
    Column("before", String(16), nullable=False),
    Column("after", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", String(128), nullable=False),
    Index("ix_journal_subject", "subject", "subject_id"),
)

audit_notice = Table(
    "audit_notice",
    metadata,
    _id(),
    Column("at", Instant, nullable=False),
    Column("kind", String(16), nullable=False),  # pacs_ai.store.trail.NoticeKind
    Column("address", String(64), nullable=False),
    Column("calling_ae_title", String(64), nullable=False),  # escaped, so it may be longer than a title
    Column("called_ae_title", String(64), nullable=False),
    Column("times", BigInteger, nullable=False),  # how often it happened
    Column("reason", Text, nullable=False),
    Column("actor", String(128), nullable=False),
)

audit_event = Table(
    "audit_event",
    metadata,
    _id(),
    Column("at", Instant, nullable=False),
    Column("severity", Integer, nullable=False),  # RFC 5424 6.2.1
    Column("message", Text, nullable=False),  # AuditMessage, PS3.15 A.5.1
    sqlite_autoincrement=True,  # rows go when all have them, and no number may come again
)

audit_cursor = Table(
    "audit_cursor",
    metadata,
    Column("name", String(16), primary_key=True),  # journal: rows that became events; else where events were taken
    Column("position", _Id, nullable=False),
    Column("turn", BigInteger, nullable=False),  # raised by each move, so that of two auditors one moves
    Column("moved_at", Instant, nullable=False),
    Column("failing_since", Instant),
    Column("problem", Text, nullable=False),
)
