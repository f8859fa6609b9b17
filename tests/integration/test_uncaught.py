"""What the log says of a database's error that nobody caught: where it arose, and no value of a patient."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

_FAILING = """
import logging, sys, threading
import sqlalchemy as sa
from pacs_ai import log, loop
from pacs_ai.store import clock, schema
from pacs_ai.store.database import Database

log.configure("route", form=sys.argv[2])
database = Database(sys.argv[1])
row = {"study_instance_uid": "1.2.3", "patient_id": "ZZPHI-4711", "first_received_at": clock.now(),
       "accession_number": None, "header": {"PatientName": "ZZPHI^MARKER"}}

def step():
    with database.write() as connection:
        connection.execute(sa.insert(schema.study).values(**row))

class Cleared:
    def __del__(self):
        step()

thread = threading.Thread(target=step, name="courier")
thread.start()
thread.join()
del thread
Cleared()
try:
    step()
except sa.exc.SQLAlchemyError as error:
    logging.getLogger("library").error("as libraries do", exc_info=True)
loop.run(step, lambda: None, threading.Event())
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_PRI_02_a_database_error_that_nobody_caught_names_no_patient(database, form):
    """On PostgreSQL the error itself quotes the row ("Failing row contains")."""
    done = subprocess.run(
        [sys.executable, "-c", _FAILING, database.url, form], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    assert "ZZPHI" not in done.stdout + done.stderr
    told = done.stderr
    if form == "json":
        rows = [json.loads(line) for line in told.splitlines()]
        told = "\n".join(row["message"] + row.get("traceback", "") for row in rows)
    assert told.count("\n\nfrom which came:\n\n") == 4
    for words in ("thread courier ended by", "ignored", "as libraries do", "ended by"):
        assert words in told
    assert "loop.py" in told


def test_PRI_02_the_text_of_a_database_error_holds_no_bound_value(database):
    assert database.engine.hide_parameters
