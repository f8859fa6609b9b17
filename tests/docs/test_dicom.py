"""docs/dicom.md says what the node speaks: contexts, answers, limits and statuses are those of the code."""

from __future__ import annotations

import ast
import inspect
import re

import pytest
from page_blocks import DOCS, table
from pydicom.uid import UID

from pacs_ai import config
from pacs_ai.deliver import command, pdus, scu
from pacs_ai.deliver.connection import Remote
from pacs_ai.dicom import attributes, characters, contexts, equality, identifiers, status, structure
from pacs_ai.dicom.status import Category
from pacs_ai.infer import pixels
from pacs_ai.profiles import FORMS
from pacs_ai.receive import desk, dimse, exchange, guard, negotiation

PAGE = DOCS / "dicom.md"
TEXT = " ".join(PAGE.read_text().split())
DELIVERY = {
    Category.SUCCESS: "sent",
    Category.WARNING: "sent, remark kept",
    Category.TRANSIENT: "waits, sent again",
    Category.PERMANENT: "failed",
}
REMOTE = Remote("MAIN_PACS", "pacs.example", 104, "PACS_AI")


def test_identity():
    receive = config.Receive()
    rows = dict(table(PAGE, "What is spoken on the wire"))
    assert rows["Implementation Class UID"] == f"`{identifiers.IMPLEMENTATION_CLASS_UID}`"
    assert rows["Implementation Version Name"] == f"`{identifiers.IMPLEMENTATION_VERSION_NAME}`"
    assert rows["Default AE title and port"] == f"`{receive.ae_titles[0]}`, `{receive.port}`"
    assert rows["Maximum PDU length that is offered"] == f"`{receive.max_pdu_bytes}`"


def test_accepted_contexts():
    assert f"pynetdicom knows**: {len(contexts.STORAGE_SOP_CLASSES)} in this release" in TEXT
    rows = table(PAGE, "Presentation contexts")
    assert [int(number) for number, _, _ in rows] == list(range(1, len(rows) + 1))
    assert tuple(name for _, name, _ in rows) == config.Receive().transfer_syntaxes
    assert tuple(uid for _, _, uid in rows) == contexts.transfer_syntaxes(config.Receive().transfer_syntaxes)
    assert [UID(uid).keyword for _, _, uid in rows] == [name for _, name, _ in rows]


def test_rejections():
    made = [value for value in vars(guard).values() if isinstance(value, guard.Rejection)]
    text = PAGE.read_text()
    rows = re.findall(r"^\| .+ \| (.+) \| (\d)/(\d)/(\d) \|$", text, re.MULTILINE)
    assert {(int(r), int(s), int(reason), words) for words, r, s, reason in rows} == set(made)


def answers_in_code():
    """Every `Answer(status.NAME, "comment")` that the listening side gives."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(exchange))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Answer":
            assert isinstance(node.args[0], ast.Attribute)
            comment = node.args[1].value if len(node.args) > 1 else ""
            found.add((getattr(status, node.args[0].attr), comment))
    return found


def test_answers_to_c_store():
    rows = table(PAGE, "Answers to C-STORE")
    other = {(status.UNRECOGNIZED_OPERATION, "not a service of this node")}  # no answer to a C-STORE
    assert {(int(code, 16), comment) for code, comment, _, _ in rows} == answers_in_code() - other


def test_limits_that_can_be_set():
    settings = config.Config()
    for key, value in table(PAGE, "Limits")[:14]:
        section, name = key.strip("`").split(".")
        assert getattr(getattr(settings, section), name) == float(value), key


def test_fixed_limits():
    rows = re.findall(r"^\| ([^|`]+) \| (\d+) \|$", PAGE.read_text(), re.MULTILINE)
    assert [int(number) for _, number in rows] == [
        guard.Limits().request_bytes,
        dimse.MAX_COMMAND_BYTES,
        desk.MAX_SERVICE_BYTES,
        desk.THROWN_TIMES,
        structure.MAX_NESTING,
        structure.MAX_SIBLINGS,
        structure.MAX_ITEMS,
        structure.MAX_ELEMENTS,
        attributes.MAX_INFLATION,
        attributes.MAX_CHARACTERS,
        equality.MAX_ELEMENTS,
        equality.MAX_PIXEL_BYTES,
        pixels.MAX_DECODED_BYTES,
    ]
    assert f"averaged over {guard.Bounds().pace_seconds:.0f} s" in TEXT
    assert f"at most {2 * desk.HELD_BYTES >> 20} MB are in memory" in TEXT
    assert f"as a multiple of the longest, {desk.THROWN_BYTES} at least" in TEXT
    assert f"Maximum Length is below {negotiation.MIN_PEER_LENGTH}" in TEXT


def test_character_sets():
    ((terms,),) = table(PAGE, "Character sets")
    assert ["" if term == "(none)" else term for term in terms.split(", ")] == list(characters.CODECS)


@pytest.fixture(scope="module")
def statuses():
    """Digits of the status, x for any -> (meaning, what becomes of the delivery)."""
    rows = table(PAGE, "What a status means for a delivery")
    return {code.removeprefix("0x") if code.startswith("0x") else "xxxx": (words, what) for code, words, what in rows}


def test_every_status_is_what_the_page_says(statuses):
    """All 65,536 of them, each by the most specific row that fits."""
    for code in range(0x10000):
        digits = f"{code:04X}"
        forms = (digits[: 4 - n] + "x" * n for n in range(5))
        words, what = next(statuses[form] for form in forms if form in statuses)
        assert status.meaning(code) == f"{words} (0x{digits})"
        category = status.classify(code)
        if category in {Category.CANCEL, Category.PENDING}:
            category = scu._outcome(REMOTE, "1.2", command.Answer(0x8001, 1, code, "", "", "", False)).category
        assert what == DELIVERY[category], digits


def test_no_row_of_a_status_is_idle(statuses):
    named = {f"{code:04X}" for code in status._EXACT}
    masks = {f"{value:04X}"[: f"{mask:04X}".count("F")].ljust(4, "x") for mask, value, _ in status._BY_MASK}
    assert set(statuses) == named | masks | {"xxxx"}


def test_words_for_rejections():
    rows = table(PAGE, "What the peer's rejection says")
    assert {tuple(map(int, code.split("/"))) for code, _ in rows} == set(pdus._REJECTIONS)
    for code, words in rows:
        source, reason = map(int, code.split("/"))
        said = pdus.rejection_words(bytes((0, 1, source, reason)), REMOTE.ae_title, REMOTE.calling_ae_title)
        assert f"({words}; A-ASSOCIATE-RJ 1/{source}/{reason})" in said


def test_waits():
    deliver = config.Deliver()
    assert f"`deliver.first_backoff_seconds` ({deliver.first_backoff_seconds:g} s)" in TEXT
    assert f"`deliver.longest_backoff_seconds` ({deliver.longest_backoff_seconds:g} s)" in TEXT
    assert f"`deliver.give_up_hours` ({deliver.give_up_hours:g} h)" in TEXT


def test_results_are_of_the_classes_on_the_page():
    rows = table(PAGE, "Sending")
    forms = [(kind, form) for kind, forms in FORMS.items() for form in forms]
    assert [row[0] for row in rows] == [f"{kind} ({form.name})" for kind, form in forms]
    for (_, name, uid, syntaxes), (_, form) in zip(rows, forms, strict=True):
        assert (uid, syntaxes) == (form.sop_class_uid or "-", ", ".join(form.syntaxes))
        assert name == (contexts.name_of(uid) if form.sop_class_uid else "that of the source")
