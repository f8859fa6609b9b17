"""docs/conformance.md: the DICOM Conformance Statement, its tables written from the code (PS3.2 Annex N)."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pacs_ai import __version__, config, network_sections, profiles, tls
from pacs_ai.audit import message as audit
from pacs_ai.cli import toml
from pacs_ai.dicom import attributes, characters, commitment, contexts, identifiers, status, structure
from pacs_ai.encode import identity
from pacs_ai.infer import pixels
from pacs_ai.receive import desk, dimse, guard

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "conformance.md"
_TEXT = ROOT / "scripts" / "conformance.md"
_RECEIVE = ROOT / "pacs_ai" / "receive"

_VERIFICATION = "1.2.840.10008.1.1"
#: Queries that check whether a peer has what it did not commit to.
_FIND = "1.2.840.10008.5.1.4.1.2.2.1"

_EVENTS: tuple[tuple[audit.Coded, str, str], ...] = (
    (audit.APPLICATION_ACTIVITY, "a process of the node started, stopped, or ended without saying so", "E"),
    (audit.INSTANCES_TRANSFERRED, "instances were received; one message for each association and study", "C, R"),
    (audit.INSTANCES_ACCESSED, "a job read its images, ended, was refused, failed, or was ordered anew", "R, C, U"),
    (audit.BEGIN_TRANSFERRING, "a result is about to be sent", "E"),
    (audit.INSTANCES_TRANSFERRED, "a result was sent, committed to, refused, or could not be sent", "R"),
    (audit.INSTANCES_ACCESSED, "a series is in conflict, was decided by an operator, or is committed to", "U"),
    (audit.INSTANCES_ACCESSED, "retention deleted a part of a study", "D"),
    (audit.STUDY_DELETED, "retention deleted the last instance of a study", "D"),
    (audit.QUERY, "the node asks a peer by C-FIND", "E"),
    (audit.SECURITY_ALERT, "a connection or association was turned away (Node Authentication)", "E"),
    (audit.SECURITY_ALERT, "instances were refused (Use of Restricted Function)", "E"),
    (audit.SECURITY_ALERT, "an operator paused or resumed a pipeline (Software Configuration)", "E"),
    (audit.USER_AUTHENTICATION, "an operator, known to the operating system, gave an order (Login)", "E"),
    (audit.IDLE_ASSOCIATION, "an association ended that brought nothing; of this node's own scheme", "E"),
)


def page() -> str:
    """Return docs/conformance.md: the text of scripts/conformance.md, with a table in place of each {name}."""
    text = _TEXT.read_text(encoding="utf-8")
    for name, made in _parts().items():
        text = text.replace(f"{{{name}}}", made.strip("\n"))
    return text


def _parts() -> dict[str, str]:
    receive = network_sections.Receive()
    return {
        "version": __version__,
        "implementation_class_uid": str(identifiers.IMPLEMENTATION_CLASS_UID),
        "implementation_version_name": identifiers.IMPLEMENTATION_VERSION_NAME,
        "ae_title": receive.ae_titles[0],
        "port": str(receive.port),
        "max_pdu": str(receive.max_pdu_bytes),
        "associations": str(receive.max_associations),
        "associations_per_peer": str(receive.max_associations_per_peer),
        "associations_per_address": str(receive.max_associations_per_address),
        "storage_classes": str(len(contexts.STORAGE_SOP_CLASSES)),
        "services": _services(),
        "transfer_syntaxes": _transfer_syntaxes(),
        "storage": _storage(),
        "rejections": _rejections(),
        "answers": _answers(),
        "statuses": _statuses(),
        "objects": _objects(),
        "identity": _identity(),
        "settings": _settings(),
        "fixed": _fixed(),
        "characters": filled(", ".join(term or "(none)" for term in characters.CODECS)),
        "ciphers": tls.CIPHERS,
        "audit": _table(("event", "when", "EventActionCode"), (_event(*one) for one in _EVENTS)),
        "codes": _codes(),
    }


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def filled(text: str, width: int = 118) -> str:
    """Break a text into lines of a width."""
    lines, line = [], ""
    for word in text.split(" "):
        if line and len(line) + len(word) + 1 > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return "\n".join([*lines, line])


def _services() -> str:
    made = {form.sop_class_uid for forms in profiles.FORMS.values() for form in forms if form.sop_class_uid}
    rows = [
        ("Verification", _VERIFICATION, "yes", "yes"),
        ("Storage: those listed below", "see below", "yes, of its results", "yes"),
        (
            "Storage Commitment Push Model",
            commitment.SOP_CLASS_UID,
            "where a `[[peer]]` has `commitment`",
            "where `receive.commitment` is set",
        ),
        (
            "Study Root Query/Retrieve Information Model - FIND",
            _FIND,
            "for peers with `commitment` that do not answer, and those with `verify_patient`",
            "no",
        ),
    ]
    rows += [(contexts.name_of(uid), uid, "yes", "yes") for uid in sorted(made)]
    return _table(("SOP class", "UID", "SCU", "SCP"), rows)


def _transfer_syntaxes() -> str:
    names = network_sections.Receive().transfer_syntaxes
    uids = contexts.transfer_syntaxes(names)
    return _table(
        ("order", "transfer syntax", "UID"), ((n, *one) for n, one in enumerate(zip(names, uids, strict=True), 1))
    )


def _storage() -> str:
    return _table(("SOP class", "UID"), ((contexts.name_of(uid), uid) for uid in contexts.STORAGE_SOP_CLASSES))


def _rejections() -> str:
    made = sorted(value for value in vars(guard).values() if isinstance(value, guard.Rejection))
    return _table(("result/source/reason", "when"), ((f"{r}/{s}/{n}", words) for r, s, n, words in made))


def _answers() -> str:
    found = {one for path in sorted(_RECEIVE.glob("*.py")) for one in _answers_in(path)}
    return _table(("service", "status", "Error Comment (0000,0902)"), sorted(found))


def _answers_in(path: Path) -> Iterator[tuple[str, str, str]]:
    """Every `Answer(status.NAME, "comment")` of a module of the listening side."""
    service = "storage commitment" if path.stem in {"commitment", "service"} else "storage"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Answer":
            first = node.args[0]
            if isinstance(first, ast.Attribute) and hasattr(status, first.attr):
                comment = node.args[1] if len(node.args) > 1 else None
                words = str(comment.value) if isinstance(comment, ast.Constant) else ""
                yield service, f"0x{getattr(status, first.attr):04X}", words


def _statuses() -> str:
    def row(code: str, value: int) -> tuple[str, str, str]:
        return code, status.meaning(value).rpartition(" (")[0], str(status.classify(value))

    rows = [row(f"0x{code:04X}", code) for code in status._EXACT]  # noqa: SLF001 - the one table of them
    for mask, value, _ in status._BY_MASK:  # noqa: SLF001
        digits = f"{value:04X}"[: f"{mask:04X}".count("F")]
        other = next(code for n in range(0x1000) if (code := value + n) not in status._EXACT)  # noqa: SLF001
        rows.append(row(f"0x{digits.ljust(4, 'x')}", other))
    return _table(("status", "means", "taken as"), rows)


def _objects() -> str:
    rows = []
    for kind, forms in profiles.FORMS.items():
        for form in forms:
            name = contexts.name_of(form.sop_class_uid) if form.sop_class_uid else "that of the source"
            rows.append(
                (f"{kind} ({form.name})", name, form.modality or "that of the source", ", ".join(form.syntaxes))
            )
    return _table(("object (form)", "SOP class", "Modality", "transfer syntaxes, default first"), rows)


def _identity() -> str:
    always = (", ".join(identity.REQUIRED_IDENTITY), "copied; empty (type 2) where the source has none")
    if_there = (", ".join(identity.OPTIONAL_IDENTITY), "copied where the source has it")
    trial = (", ".join(identity.CLINICAL_TRIAL), "copied where the source has the type 1 attributes of the trial")
    return _table(("attributes (keyword)", "value"), (always, if_there, trial))


def _settings() -> str:
    sections: tuple[tuple[str, type[BaseModel]], ...] = (
        ("receive", network_sections.Receive),
        ("peer", network_sections.Peer),
        ("deliver", config.Deliver),
        ("store", config.Store),
        ("tls", network_sections.Tls),
        ("audit", network_sections.Audit),
    )
    rows = [(f"`{name}.{key}`", _default(model, key)) for name, model in sections for key in model.model_fields]
    return _table(("setting", "default"), rows)


def _default(model: type[BaseModel], key: str) -> str:
    field = model.model_fields[key]
    if field.is_required():
        return "none: it must be given"
    value: Any = field.get_default(call_default_factory=True)
    if value is None or value in ((), {}, ""):
        return "-"
    return "as listed above" if key == "transfer_syntaxes" else f"`{toml.literal(value)}`"


def _fixed() -> str:
    rows = [
        ("bytes of an A-ASSOCIATE-RQ", guard.Limits().request_bytes),
        ("presentation contexts proposed or offered", contexts.MAX_CONTEXTS),
        ("bytes of a command set", dimse.MAX_COMMAND_BYTES),
        ("bytes of what an N-ACTION or N-EVENT-REPORT brings; a longer one is aborted", desk.MAX_SERVICE_BYTES),
        (
            f"bytes of a refused data set, as a multiple of the longest, {desk.THROWN_BYTES} at least; more is aborted",
            desk.THROWN_TIMES,
        ),
        ("sequences within sequences", structure.MAX_NESTING),
        ("elements of one data set, or items of one sequence", structure.MAX_SIBLINGS),
        ("elements and items of an instance in all", structure.MAX_ELEMENTS),
        ("growth of a deflated data set, as a multiple of its size", attributes.MAX_INFLATION),
        ("characters that the index keeps of one attribute", attributes.MAX_CHARACTERS),
        ("decoded bytes of one series", pixels.MAX_DECODED_BYTES),
        ("octets of an audit message", audit.MAX_OCTETS),
    ]
    return _table(("what", "at most"), rows)


def _event(coded: audit.Coded, when: str, actions: str) -> tuple[str, str, str]:
    return f"{coded.code} {coded.system} {coded.meaning}", when, actions


def _codes() -> str:
    """Every code of the node's own scheme whose value and meaning stand in the code."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "pacs_ai").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if ("99PACSAI" in text or "own(" in text) and path.parent.name != "testing":
            found |= dict(_own_codes(ast.parse(text)))
    return _table(("Code Value", "Code Meaning"), sorted(found.items()))


def _own_codes(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute) and len(node.args) > 1):
            continue
        called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        words = [one.value if isinstance(one, ast.Constant) else None for one in node.args]
        if called == "Code" and words[1] == "99PACSAI" and isinstance(words[0], str) and isinstance(words[2], str):
            yield words[0], words[2]
        elif called == "own" and isinstance(words[0], str) and isinstance(words[1], str):
            yield words[0], words[1]
