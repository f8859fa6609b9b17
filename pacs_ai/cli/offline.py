"""Run one pipeline on a folder, without a node: the same code that the node's workers run."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pacs_ai.built_in_profiles import DEFAULT_PROFILE
from pacs_ai.cli import words
from pacs_ai.cli.session import Session, pass_session
from pacs_ai.cli.words import TROUBLE, Plain, as_json, example

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pacs_ai.infer.analysis import Analysis
    from pacs_ai.pipeline import Card, Pipeline
    from pacs_ai.profiles import Encoding

REPORT = "findings.json"
MONTAGE = "montage.png"
_DOING = {"loading": "loading the series", "inferring": "running the model", "encoding": "encoding the results"}


@click.command(
    epilog=example("pacs-ai infer ct-lung /data/chest-ct -o result", "pacs-ai infer brats /data/mr-study -o result"),
)
@click.argument("pipeline")
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--out", "-o", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the results."
)
@click.option("--device", help="cpu, cuda:0 or auto. Default: the first of [infer] devices.")
@click.option("--series", "series_uid", metavar="UID", help="Which series, where the folder holds several.")
@click.option("--profile", default=DEFAULT_PROFILE, show_default=True, help="Which objects to write.")
@as_json
@pass_session
def infer(
    session: Session,
    pipeline: str,
    folder: Path,
    out: Path,
    device: str | None,
    series_uid: str | None,
    profile: str,
    *,
    as_json: bool,
) -> None:
    """Run a pipeline on a folder, without a node.

    Writes SEG, SR, a picture and the values of one series into OUT.

    A pipeline with several inputs takes them from subfolders named like the inputs; where there are none, by the
    conditions of the route that runs the pipeline.
    """
    from pacs_ai import log
    from pacs_ai.cli.choosing import choose
    from pacs_ai.models.registry import Registry

    config = session.config
    log.configure("infer", "error", config.log.format)
    registry = Registry.of(config)
    card = registry.card(pipeline)
    inputs = choose(folder, pipeline, card, config.route, series_uid)
    wanted = tuple(choice.encoding for choice in config.plan_of(profile))
    order = _Order.of(pipeline, registry, inputs, out, config.node.name, wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries talk to their developers; what matters is checked and said
        try:
            analysis, timings = _analyse(order, registry.create(pipeline), device or config.infer.devices[0])
        except MemoryError:
            raise Plain("out of memory: use a machine with more, or another --device", TROUBLE) from None
    report = _write(order, card, analysis, timings)
    if as_json:
        words.print_json(report)
    else:
        _show(order, card, report)


@dataclass(frozen=True)
class _Order:
    """What is to be done."""

    pipeline: str
    model_digest: str
    settings_digest: str
    inputs: Mapping[str, Sequence[tuple[Path, str]]]
    job_key: str
    created_at: datetime
    out: Path
    node: str
    encodings: tuple[Encoding, ...]

    @classmethod
    def of(
        cls,
        pipeline: str,
        registry: Any,
        inputs: Mapping[str, Mapping[str, tuple[Path, str]]],
        out: Path,
        node: str,
        encodings: tuple[Encoding, ...],
    ) -> _Order:
        """Derive the job's key from the instances' digests: the same series gives the same UIDs again."""
        from pacs_ai.dicom.identifiers import digest

        version, model = registry.card(pipeline).version, registry.model_digest(pipeline)
        settings = registry.settings_digest(pipeline)
        sources = [[name, sorted([uid, sha] for uid, (_, sha) in files.items())] for name, files in inputs.items()]
        key = digest("offline", pipeline, version, model, settings, sorted(sources))
        paths = {name: tuple(files.values()) for name, files in inputs.items()}
        out.mkdir(parents=True, exist_ok=True)
        return cls(pipeline, model, settings, paths, key, _first_made(out, key), out, node, encodings)


def _first_made(out: Path, job_key: str) -> datetime:
    """Return when this very work was first done into this folder, so that its files come out the same; else now."""
    try:
        report = json.loads((out / REPORT).read_text(encoding="utf-8"))
        if report["job_key"] == job_key:
            return datetime.fromisoformat(report["created_at"])
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        pass  # no such report, or another program's
    return datetime.now(UTC).replace(microsecond=0)


def _analyse(order: _Order, pipeline: Pipeline, wanted: str) -> tuple[Analysis, dict[str, float]]:
    from pacs_ai import __version__
    from pacs_ai.cli import progress
    from pacs_ai.encode.provenance import Work
    from pacs_ai.infer.analysis import Steps, analyse, foreign_code
    from pacs_ai.infer.device import parameters, resolve_device

    device = resolve_device(wanted)
    timings: dict[str, float] = {}

    def prepared() -> Pipeline:
        with foreign_code(order.pipeline, "preparing"):
            pipeline.prepare(device)
        return pipeline

    def work(card: Card) -> Work:
        return Work(
            job_key=order.job_key,
            generation=0,
            created_at=order.created_at,
            card=card,
            model_digest=order.model_digest,
            settings_digest=order.settings_digest,
            parameters=parameters(device),
            node_name=order.node,
            software_version=__version__,
        )

    with progress.steps() as begin:
        steps = Steps(lambda name: begin(_DOING[name]), timings)
        return analyse(order.pipeline, pipeline.card, prepared, order.inputs, work, order.encodings, steps), timings


def _write(order: _Order, card: Card, analysis: Analysis, timings: dict[str, float]) -> dict[str, Any]:
    """Write every file into the folder and return the report, which lies there too."""
    from pacs_ai.encode.pictures.montage import montage
    from pacs_ai.infer.summary import summary

    files: list[dict[str, str]] = []
    for left in _left_by_an_earlier_run(order.out):
        left.unlink(missing_ok=True)
    numbers: Counter[str] = Counter()
    for encoded in analysis.encoded:
        numbers[encoded.kind] += 1
        name = _file_name(encoded.kind, numbers[encoded.kind])
        encoded.write(order.out / name)
        files.append({"kind": encoded.kind, "file": name, "sop_instance_uid": encoded.sop_instance_uid})
    inputs, findings = analysis.material.inputs, analysis.findings
    montage(inputs[findings.grid], findings, card, order.out / MONTAGE, remarks=analysis.material.notes)
    report = {
        "job_key": order.job_key,
        "created_at": order.created_at.isoformat(),
        "pipeline": {"name": card.name, "version": card.version, "title": card.title},
        "clearance": card.clearance.value,
        "inputs": {name: len(paths) for name, paths in order.inputs.items()},
        "timings": timings,
        "files": [*files, {"kind": "picture", "file": MONTAGE}],
        **summary(findings, inputs, analysis.material.notes),
    }
    (order.out / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def _left_by_an_earlier_run(out: Path) -> list[Path]:
    """Return the objects that the report in the folder names: that run may have found more than this one."""
    try:
        files = json.loads((out / REPORT).read_text(encoding="utf-8"))["files"]
        return [out / Path(file["file"]).name for file in files if file["file"].endswith(".dcm")]
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
        return []  # no such report, or another program's


def _file_name(kind: str, number: int) -> str:
    """Return SEG.dcm, and where there are several of a kind SEG-2.dcm and so on."""
    return f"{kind}.dcm" if number == 1 else f"{kind}-{number}.dcm"


def _by_kind(files: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in files:
        found.setdefault(one["kind"], []).append(one["file"])
    return found


def _show(order: _Order, card: Card, report: Mapping[str, Any]) -> None:
    from pacs_ai.cli.dossier import measured

    out = words.console()
    counts = ", ".join(f"{name} of {words.many(count, 'instance')}" for name, count in report["inputs"].items())
    steps = ", ".join(f"{name} {words.lasting(seconds)}" for name, seconds in report["timings"].items())
    out.print(f"{card.title} ({card.name} {card.version}) on {counts}", style="bold", markup=False)
    out.print(f"  {steps}\n", markup=False)
    out.print(measured(report))
    for note in report["notes"]:
        out.print(f"  note: {note}", markup=False)
    out.print()
    for kind, names in _by_kind((*report["files"], {"kind": "findings", "file": REPORT})).items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        out.print(f"  {kind:<20}{order.out / names[0]}{more}", markup=False)
    if card.clearance.value == "RESEARCH":
        out.print("  AI, not verified, not for clinical use", style="yellow")
