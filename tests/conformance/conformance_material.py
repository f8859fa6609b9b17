"""Every kind of object over one study, its patient's name and its faults to be chosen; and the validators."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset, config

from pacs_ai.encode.provenance import Work
from pacs_ai.encode.results import ENCODERS, encode
from pacs_ai.infer.volume import load_volume
from pacs_ai.profiles import FORMS, Kind, Profile, Wanted, encodings, plan
from pacs_ai.testing import Phantom, write_phantom

#: What the validators said of each kind: written at the end of the session, for docs/results.md.
VERDICTS = Path(__file__).resolve().parents[2] / "build" / "validators.json"
#: Specific Character Set -> a name in its repertoire: single-byte, ISO 2022 and multi-byte (PS3.3 C.12.1.1.2).
CHARSETS = {
    "Latin 1": ("ISO_IR 100", "Müller^Jürg"),
    "Latin 2": ("ISO_IR 101", "Kovács^Győző"),
    "Cyrillic": ("ISO_IR 144", "\u041b\u044e\u043a\u0441"),
    "Greek": ("ISO_IR 126", "\u0394\u03b9\u03bf\u03bd\u03c5\u03c3\u03b9\u03bf\u03c2"),
    "Japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "Korean": (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    "GB18030": ("GB18030", "Wang^XiaoDong=王^小东="),
    "UTF-8": ("ISO_IR 192", "Wang^XiaoDong=王^小東="),
}
#: Errors that are the validator's, or of a copied source value that identifies the patient: kind, words, why.
EXEMPT = (
    ("segmentation-labelmap", r"Information Object Not found|SegmentNumber|Segment Number", "older than the IOD"),
    ("parametric-map", r"Unrecognized defined term <?QUANTITY", "older than the term"),
    ("", r"^Error - </Laterality\(0020,0060\)> - Missing attribute for Type 2C", "the source names no body part"),
    (
        "segmentation",
        r"Laterality\(0020,0060\).*present when condition unsatisfied",
        "PS3.3 C.7.3.1 asks for it of a breast",
    ),
    ("", "Check for template constraints not yet supported", "dcmtk says so of every key object selection"),
    ("", "VR checker does not support this Specific Character Set", "a limit of dcmtk 3.6.7, the text is read"),
    ("", "Reading unknown/unsupported SpecificCharacterSet", "dcmtk 3.6.7 reads ISO 2022 terms only one at a time"),
    # That the element is there is RES-04; PS3.3 C.12.1.1.2 lets its first value be empty.
    ("", "dsr2html: SpecificCharacterSet .* element absent", "dcmtk 3.6.7 takes a first value that is empty for none"),
    # Image Type is DERIVED now, which the source's MR Pulse Sequence attributes do not know; a reader may want them.
    ("derived-images", r"MRAcquisitionType.*may not be present otherwise", "carried over from the enhanced MR source"),
)


#: Few and small slices: what is asked is what the attributes say.
SMALL = Phantom(12, 64, 60)


@dataclass(frozen=True)
class Object:
    """One result on disk."""

    name: str
    kind: Kind
    form: str
    path: Path

    @property
    def is_tree(self):
        return self.kind in (Kind.REPORT, Kind.TEXT_REPORT, Kind.VALUES, Kind.KEY_OBJECTS)

    @property
    def ds(self):
        return pydicom.dcmread(self.path)


@dataclass(frozen=True)
class Made:
    """One study: its files, what was read and found, and the results."""

    sources: tuple[Path, ...]
    loaded: object
    findings: object
    objects: tuple[Object, ...]


def wanted(syntaxes=False):
    """Every form of every kind, in its first transfer syntax or in all of them."""
    chosen = [
        Wanted(kind, form.name, syntax)
        for kind in ENCODERS
        for form in FORMS[kind]
        for syntax in (form.syntaxes if syntaxes else form.syntaxes[:1])
    ]
    return encodings([plan(Profile("all", tuple(chosen)), 9001)])


def work(card):
    return Work(
        job_key="conformance",
        generation=1,
        created_at=datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC),
        card=card,
        model_digest="c" * 64,
        settings_digest="d" * 64,
        parameters="device=cpu",
        node_name="test-node",
        software_version="0.1.0",
    )


def make(paths, folder, pipeline, load=load_volume, syntaxes=False):
    """Load, find, encode and write everything."""
    loaded = load(paths)
    given = loaded.volume if load is load_volume else loaded.frames
    findings = pipeline.run({"image": given})
    results = encode(findings, {"image": loaded.evidence}, {"image": given}, work(pipeline.card), wanted(syntaxes))
    folder.mkdir(parents=True, exist_ok=True)
    objects = []
    for number, one in enumerate(results):
        path = folder / f"{number:03}.dcm"
        one.write(path)
        encoding = one.encoding
        form = encoding.form + (
            "" if encoding.transfer_syntax == encoding.details.syntaxes[0] else f"-{encoding.transfer_syntax}"
        )
        objects.append(Object(f"{encoding.kind}-{form}", encoding.kind, encoding.form, path))
    return Made(tuple(paths), loaded, findings, tuple(objects))


def phantom(folder, charset, clean, size=SMALL):
    """A small CT of a patient with that name; unclean: with the faults that real sources have."""
    paths = write_phantom(folder, size)
    terms, name = CHARSETS[charset]
    for path in paths:
        ds = pydicom.dcmread(path)
        with config.disable_value_validation():
            ds.SpecificCharacterSet = terms
            ds.PatientName = name
            ds.BodyPartExamined = "CHEST"
            if not clean:
                soil(ds)
        ds.save_as(path)
    return paths


def soil(ds):
    """Give a source faults that a result must not repeat."""
    ds.PatientName = str(ds.PatientName).split("^")[0].split("=")[0]
    for keyword in ("ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialSiteName"):
        setattr(ds, keyword, "")
    for keyword in ("StudyID", "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator", "StudyTime"):
        if keyword in ds:
            delattr(ds, keyword)
    ds.PatientAge, ds.PatientWeight, ds.BodyPartExamined, ds.Laterality = "0Y", "", "", ""
    ds.Manufacturer = ""
    ds.ProcedureCodeSequence = [Dataset()]
    ds.OtherPatientIDsSequence = []
    ds.PatientSpeciesDescription = ""


def tool(name):
    """Path of a program; a loud skip where it is missing. The venv has namesakes of dcmtk's."""
    found = shutil.which(name, path="/usr/bin:/usr/local/bin") or shutil.which(
        name, path=str(Path(sys.executable).parent)
    )
    if found is None:
        pytest.skip(f"VALIDATOR MISSING: {name} is not installed, so no result was held against it")
    return found


def run(*command, seconds=120):
    parts = [str(part) for part in command]
    return subprocess.run(parts, capture_output=True, text=True, errors="replace", timeout=seconds, check=False)


def iod_errors(path):
    """Lines in which dciodvfy states an error (it writes to standard error)."""
    verdict = run(tool("dciodvfy"), "-new", path)
    return [line for line in (verdict.stderr + verdict.stdout).splitlines() if line.startswith("Error")]


def beyond_exemptions(name, lines):
    """The lines that no exemption explains."""
    excused = [re.compile(words) for kind, words, _ in EXEMPT if name.startswith(kind)]
    return [line for line in lines if not any(words.search(line) for words in excused)]


class Ledger:
    """Kind x validator -> verdict, the worst of all that were asked."""

    def __init__(self):
        self._verdicts = {}

    def note(self, name, validator, verdict):
        """Remember a verdict; "" is none yet, and what is not "ok" outweighs it."""
        row = self._verdicts.setdefault(name, {})
        if row.get(validator, "ok") == "ok":
            row[validator] = verdict

    def write(self):
        VERDICTS.parent.mkdir(exist_ok=True)
        VERDICTS.write_text(json.dumps(self._verdicts, indent=1, sort_keys=True) + "\n")
