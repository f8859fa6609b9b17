"""Every kind of audit message, held against the schema of PS3.15 A.5.1 and against the file of how it looked before.

`python tests/unit/test_audit_messages.py` writes the files anew; look at what changed in them.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree as ET

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import audit_schema as schema_of
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacs_ai.audit.events import Teller
from pacs_ai.audit.syslog import Envelope
from pacs_ai.states import DeliveryEvent, JobEvent, SeriesEvent
from pacs_ai.store.subjects import Concerned, Objects, Peer, Study
from pacs_ai.store.trail import Batch, Event, Move, Notice, NoticeKind, Receipt

GOLDEN = Path(__file__).with_name("audit_messages")
TELLER = Teller("node", "ai.example.org", ("PACS_AI", "PACS_AI_2"), "node", "General Hospital")
AT = datetime(2026, 1, 31, 23, 59, 58, 123456, UTC)
STUDY = Study("1.2.3", "A-17", "P-4711", "Täst^Ünïcode=繁體^中文", "CT chest")
CT, SEG = Objects("1.2.840.10008.5.1.4.1.1.2", 220), Objects("1.2.840.10008.5.1.4.1.1.66.4", 1, ("2.25.7",))
DETAILS = (("job", "17"), ("pipeline", "ct-lung"), ("pipeline version", "1.0"), ("model digest", "ab" * 32))
JOB = Concerned(STUDY, (CT,), (SEG,), None, DETAILS)
DELIVERY = Concerned(STUDY, (CT,), (SEG,), Peer("main-pacs", "MAIN_PACS", "192.0.2.10"), DETAILS)
SERIES = Concerned(STUDY, (CT,))
WORKER, OPERATOR = "infer:0123456789ab:4711:99", "operator:jo"


def move(subject, event, concerned, actor=WORKER, reason="because", subject_id="17"):
    return Move(AT, subject, subject_id, str(event), reason, actor, concerned)


def receipt(new=True):
    return Receipt(
        AT, "a" * 32, "receive:0123456789ab:4712:98", "MODALITY", "PACS_AI", "192.0.2.20", True, 221, new, SERIES
    )


def notice(kind, reason, times=1, actor=""):
    return Notice(kind, AT, reason, "2001:db8::7", "CT_9", "PACS_AI", times, actor)


KINDS: dict[str, Batch] = {
    name: Batch(0, 0, *parts)
    for name, parts in {
        "received": ((), (receipt(),), ()),
        "received-again": ((), (receipt(new=False),), ()),
        "job-claimed": ((move("job", JobEvent.CLAIMED, JOB),), (), ()),
        "job-finished": ((move("job", JobEvent.FINISHED, JOB),), (), ()),
        "job-refused": ((move("job", JobEvent.REFUSED, JOB),), (), ()),
        "job-failed": ((move("job", JobEvent.FAILED, JOB),), (), ()),
        "job-retracted": ((move("job", JobEvent.RETRACTED, JOB, OPERATOR),), (), ()),
        "delivery-claimed": ((move("delivery", DeliveryEvent.CLAIMED, DELIVERY),), (), ()),
        "delivery-accepted": ((move("delivery", DeliveryEvent.ACCEPTED, DELIVERY),), (), ()),
        "delivery-confirmed": ((move("delivery", DeliveryEvent.CONFIRMED, DELIVERY),), (), ()),
        "delivery-failed": ((move("delivery", DeliveryEvent.FAILED, DELIVERY),), (), ()),
        "delivery-cancelled": ((move("delivery", DeliveryEvent.CANCELLED, DELIVERY, OPERATOR),), (), ()),
        "series-conflict": ((move("series", SeriesEvent.DIFFERING_INSTANCE, SERIES),), (), ()),
        "series-resolved": ((move("series", SeriesEvent.RESOLVED, SERIES, OPERATOR),), (), ()),
        "instances-deleted": ((move("series", "purged", SERIES),), (), ()),
        "study-deleted": ((move("series", "purged_with_study", SERIES),), (), ()),
        "pipeline-paused": ((move("pipeline", "paused", Concerned(), OPERATOR, subject_id="ct-lung"),), (), ()),
        "process-started": ((move("node", "started", Concerned()),), (), ()),
        "process-stopped": ((move("node", "stopped", Concerned()),), (), ()),
        "process-died": ((move("node", "died", Concerned()),), (), ()),
        "connection-refused": ((), (), (notice(NoticeKind.CONNECTION, "no association request in time", 4000),)),
        "association-rejected": ((), (), (notice(NoticeKind.ASSOCIATION, "calling AE title not recognised"),)),
        "instance-refused": ((), (), (notice(NoticeKind.INSTANCE, "not a whole and sound DICOM data set"),)),
        "idle-association": ((), (), (notice(NoticeKind.IDLE, "association that brought no instance", 6),)),
        "query": (
            (),
            (),
            (notice(NoticeKind.QUERY, "1.2.840.10008.5.1.4.1.2.2.1 1.2.840.10008.1.2.1 CAAF", actor=WORKER),),
        ),
        "command": ((), (), (notice(NoticeKind.COMMAND, "pacs-ai retry job_ids=17", actor=OPERATOR),)),
    }.items()
}


def told(batch: Batch) -> Event:
    (event,) = TELLER.events(batch)
    return event


def laid_out(message: str) -> str:
    """Return a message with an element on each line, for people who compare."""
    root = ET.fromstring(message)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_as_the_schema_has_it_and_as_it_was(name):
    event = told(KINDS[name])
    schema_of.check(event.message)
    assert laid_out(event.message) == (GOLDEN / f"{name}.xml").read_text(encoding="utf-8")


def test_no_file_is_left_over():
    assert {path.stem for path in GOLDEN.glob("*.xml")} == set(KINDS)


@pytest.mark.parametrize("event", [*JobEvent, *DeliveryEvent])
@pytest.mark.parametrize("actor", [WORKER, OPERATOR, ""])
def test_every_move_has_an_event_that_fits_the_schema(event, actor):
    subject, concerned = ("job", JOB) if isinstance(event, JobEvent) else ("delivery", DELIVERY)
    root = schema_of.check(told(Batch(0, 0, (move(subject, event, concerned, actor),), (), ())).message)
    assert schema_of.types(root) == [f"{subject}-{event}"]


@pytest.mark.parametrize("actor", [WORKER, OPERATOR])
def test_what_a_router_enqueues_is_told_when_it_runs_and_what_an_operator_orders_at_once(actor):
    batch = Batch(0, 0, (move("job", "enqueued", JOB, actor), move("series", SeriesEvent.QUIET, SERIES, actor)), (), ())
    assert len(TELLER.events(batch)) == (2 if actor == OPERATOR else 0)


def test_events_stand_in_the_order_in_which_it_happened():
    later = AT.replace(year=2027)
    batch = Batch(0, 0, (move("job", JobEvent.FINISHED, JOB),), (), (Notice(NoticeKind.IDLE, later, "x"),))
    assert [event.at for event in TELLER.events(batch)] == [AT, later]


@given(st.text(), st.text(max_size=2000))
def test_text_of_peers_breaks_neither_the_xml_nor_the_line(name, long):
    study = Study("1.2.3", long, name, long, name)
    concerned = Concerned(
        study, (CT,), (SEG,), Peer(name, name, name), (("pipeline", long), ("pipeline version", long))
    )
    event = told(Batch(0, 0, (move("delivery", DeliveryEvent.FAILED, concerned, reason=long),), (), ()))
    schema_of.check(event.message)
    schema_of.unwrap(Envelope("host\nname", 1).line(event).decode())


def test_PRI_07_a_message_that_would_be_too_long_is_shortened():
    """32,768 octets with the header: an ampersand takes five, an emoji four."""
    many = tuple(
        Objects(f"1.2.840.10008.5.1.4.1.1.{number}", 7, tuple(f"2.25.{n}" for n in range(50))) for number in range(200)
    )
    long = "&😀" * 1000
    study = Study("1.2.3", long, long, long, long)
    details = tuple((f"detail {number}", long) for number in range(8))
    concerned = Concerned(study, many, many, Peer(long, long, long), details)
    event = told(Batch(0, 0, (move("delivery", DeliveryEvent.FAILED, concerned, reason=long),), (), ()))
    assert len(Envelope("h" * 300, 1).frame(event)) <= schema_of.MAX_OCTETS
    schema_of.check(event.message)


def test_syslog_is_that_of_the_profile():
    event = told(KINDS["job-failed"])
    line = Envelope("ai.example.org", 99).line(event).decode()
    assert line.startswith("<84>1 2026-01-31T23:59:58.123Z ai.example.org pacs_ai 99 DICOM+RFC3881 - <AuditMessage>")
    frame = Envelope("ai.example.org", 99).frame(told(KINDS["job-finished"]))
    length, _, rest = frame.partition(b" ")
    assert len(rest) == int(length)
    assert rest.startswith(b"<85>1 ")
    schema_of.unwrap(rest.decode())


if __name__ == "__main__":
    for stale in GOLDEN.glob("*.xml"):
        stale.unlink()
    for kind, one in KINDS.items():
        (GOLDEN / f"{kind}.xml").write_text(laid_out(told(one).message), encoding="utf-8")
