"""The schema, on both databases: the migrations lead to it, applied once however many nodes start at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import sqlalchemy as sa
from alembic import autogenerate
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from pacs_ai.config import Config
from pacs_ai.doctor.findings import Level
from pacs_ai.doctor.storage import examine_database
from pacs_ai.errors import UserError
from pacs_ai.states import DeliveryState, JobState, SeriesState
from pacs_ai.store import migrate, schema, version
from pacs_ai.store.clock import now
from pacs_ai.store.database import Database


@pytest.fixture
def empty(empty_url):
    database = Database(empty_url)
    yield database
    database.close()


def differences(database: Database) -> list[object]:
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return autogenerate.compare_metadata(context, schema.metadata)


def test_the_migrations_lead_to_the_schema(empty):
    migrate.upgrade(empty)
    assert differences(empty) == []
    version.check(empty)


def test_partial_indices_are_partial(empty):
    migrate.upgrade(empty)
    inspector = sa.inspect(empty.engine)
    where = f"{empty.engine.dialect.name}_where"
    partial = {
        index["name"]: str(index["dialect_options"][where])
        for table in ("instance", "series")
        for index in inspector.get_indexes(table)
        if where in index.get("dialect_options", {})
    }
    assert set(partial) == {"uq_instance_current", "ix_series_awaiting"}
    assert "current" in partial["uq_instance_current"]


def test_upgrading_again_changes_nothing(empty):
    migrate.upgrade(empty)
    with empty.write() as connection:
        connection.execute(
            sa.insert(schema.journal).values(
                at=now(), subject="node", subject_id="1", event="x", before="", after="", reason="", actor=""
            )
        )
    migrate.upgrade(empty)
    with empty.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(schema.journal)).scalar_one() == 1
    assert differences(empty) == []


def _row(table: sa.Table, **values: object) -> dict[str, object]:
    """Return a row with something in every column that needs it."""
    plain = {int: 1, float: 0.0, bool: False, str: "x"}
    found = {
        column.name: {} if isinstance(column.type, sa.JSON) else plain.get(_kind(column), now())
        for column in table.columns
        if not column.nullable and column.name != "id"
    }
    return found | values


def _kind(column: sa.Column) -> type:
    if isinstance(column.type, schema.Instant):
        return object
    return next(k for k in (bool, int, float, str) if issubclass(column.type.python_type, k))


def test_QUE_09_jobs_and_deliveries_in_every_state_survive_an_upgrade(empty):
    migrate.upgrade(empty)
    with empty.write() as connection:
        connection.execute(sa.insert(schema.study), [_row(schema.study)])
        jobs = [_row(schema.job, state=state.value, job_key=state.value) for state in JobState]
        connection.execute(sa.insert(schema.job), jobs)
        connection.execute(sa.insert(schema.result), [_row(schema.result)])
        sent = [_row(schema.delivery, state=state.value, peer=state.value) for state in DeliveryState]
        connection.execute(sa.insert(schema.delivery), sent)
        series = [_row(schema.series, state=state.value, series_instance_uid=state.value) for state in SeriesState]
        connection.execute(sa.insert(schema.series), series)
    migrate.upgrade(empty)
    with empty.read() as connection:
        for table, states in ((schema.job, JobState), (schema.delivery, DeliveryState), (schema.series, SeriesState)):
            assert set(connection.execute(sa.select(table.c.state)).scalars()) == set(states)


def test_several_nodes_upgrade_at_once(empty_url):
    def start(_: int) -> None:
        database = Database(empty_url)
        migrate.upgrade(database)
        version.check(database)
        database.close()

    with ThreadPoolExecutor(4) as nodes:
        list(nodes.map(start, range(4)))


def test_this_release_works_on_the_newest_migration():
    _, scripts = migrate._alembic()
    assert isinstance(scripts, ScriptDirectory)
    assert scripts.get_current_head() == version.SCHEMA
    assert len(scripts.get_heads()) == 1


def test_a_database_without_schema_is_said_to_be_none(empty):
    with pytest.raises(UserError, match=r"there is no pacs_ai database at .* yet: start the node"):
        version.check(empty)


def test_another_releases_schema_is_refused_in_words(empty):
    migrate.upgrade(empty)
    with empty.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UserError, match="has schema 9999, this release works on 0001"):
        version.check(empty)


def test_lookups_by_uid_and_claims_use_an_index(sqlite_template):
    """A full scan would be found only in a hospital. SQLite is asked; PostgreSQL plans by statistics."""
    database = Database(f"sqlite:///{sqlite_template}")
    queries = [
        sa.select(schema.series.c.id).where(schema.series.c.series_instance_uid == "1"),
        sa.select(schema.series.c.id).where(schema.series.c.state.in_(["receiving", "reopened"])),
        sa.select(schema.series.c.study_id).where(schema.series.c.awaiting),
        sa.select(schema.instance.c.id).where(schema.instance.c.sop_instance_uid == "1"),
        sa.select(schema.instance.c.id).where(schema.instance.c.sha256 >= "ab", schema.instance.c.sha256 < "ac"),
        sa.select(schema.job.c.id).where(schema.job.c.state == "queued").order_by(schema.job.c.rank, schema.job.c.id),
        sa.select(schema.job_source.c.job_id).where(schema.job_source.c.series_id == 1),
        sa.select(schema.delivery.c.id).where(schema.delivery.c.state == "waiting", schema.delivery.c.peer == "pacs"),
        sa.select(schema.journal.c.id).where(schema.journal.c.subject == "job", schema.journal.c.subject_id == "1"),
        sa.select(schema.association_series.c.assoc_id).where(schema.association_series.c.series_id == 1),
        sa.select(schema.association.c.id).where(schema.association.c.ended_at.is_(None)),
    ]
    with database.read() as connection:
        for query in queries:
            text = query.compile(database.engine, compile_kwargs={"literal_binds": True})
            plan = " ".join(row.detail for row in connection.execute(sa.text(f"EXPLAIN QUERY PLAN {text}")))
            assert "INDEX" in plan, f"{text}: {plan}"
            partial = "ix_series_awaiting" in plan  # holds but what is asked for
            assert partial or "SCAN" not in plan, f"{text}: {plan}"
    database.close()


@pytest.mark.postgres
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_does_not_hold_every_character_is_refused(postgres, encoding):
    """What a peer sends in other letters would be answered Success and never get its row."""
    server, name = postgres.format("postgres").replace("+psycopg", ""), f"pacs_ai_{encoding.lower()}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
    database = Database(postgres.format(name))
    try:
        with pytest.raises(UserError, match=f"encoded in {encoding}.* ENCODING 'UTF8' TEMPLATE template0"):
            migrate.upgrade(database)
    finally:
        database.close()
    config = Config.model_validate({"store": {"database": postgres.format(name)}})
    (finding,) = examine_database(config)
    assert finding.level is Level.FAULT
    assert f"encoded in {encoding}" in str(finding)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
