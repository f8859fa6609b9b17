"""Start the node, or show its main job with nothing but this machine."""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pacs_ai import lean
from pacs_ai.cli.session import Session, pass_session
from pacs_ai.cli.words import WRONG, Plain, example

if TYPE_CHECKING:
    from pacs_ai.config import Config


@click.command(
    epilog=example("pacs-ai --config /etc/pacs-ai/pacs-ai.toml run", "pacs-ai run infer --device cuda:1"),
)
@click.argument("process", required=False, type=click.Choice(["receive", "route", "infer", "deliver"]))
@click.option("--device", help="Device of an infer process: cpu, cuda:0. Default: the first of [infer] devices.")
@click.option("--supervisor", type=int, hidden=True)
@pass_session
def run(session: Session, process: str | None, device: str | None, supervisor: int | None) -> None:
    """Run the node until Ctrl-C or SIGTERM.

    Without PROCESS the whole node: it starts, watches and restarts its processes. With one of them named, that
    process alone, for hosts that share the work by one PostgreSQL database.
    """
    lean.leave_out(process)
    from pacs_ai import log, node

    if device is not None and process != "infer":
        raise click.UsageError("--device belongs to `pacs-ai run infer`; the whole node takes [infer] devices")
    config = session.config
    log.configure(process or "node", config.log.level, config.log.format)
    if process is None:
        _refuse_contradictions(config, session.place)
        _refuse_taken_port(config)
        _announce(config, session.place)
    node.run(config, session.path, process, device, supervisor)


@click.command(
    epilog=example(
        "pacs-ai demo",
        "pacs-ai demo --study /data/chest-ct --out demo-out",
        "pacs-ai demo --reading fetal-head",
        "pacs-ai demo --reading",
    )
)
@click.option(
    "--study",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with a DICOM study of your own; without it a synthetic one.",
)
@click.option(
    "--reading",
    is_flag=False,
    flag_value="",
    metavar="[NAME]",
    help="What is shown, instead of the lungs; without a name: list what there is.",
)
@click.option(
    "--models",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of installed model packages. Default: the configuration's.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-out"),
    show_default=True,
    help="Folder for what the demo PACS gets back, and for the picture.",
)
@click.option("--keep", is_flag=True, help="Keep the demo node's own data folder as well.")
@pass_session
def demo(
    session: Session, study: Path | None, reading: str | None, models: Path | None, out: Path, *, keep: bool
) -> None:
    """Show the main job on this machine, with a sample study.

    Starts a node and a small PACS on free ports of this machine, sends a study to the node (a chest CT, where no other
    reading is named), and shows how its results come back. Needs no configuration; node and PACS end with the demo.
    Nothing is fetched: a reading whose weights are missing says how to install them.
    """
    from pacs_ai import demo as room
    from pacs_ai.demo import reading as readings

    if reading == "":
        click.echo("\n".join(readings.listing(models or session.config.models_folder)))
        return
    shown = None if reading is None else readings.find(reading, models or session.config.models_folder)
    context = click.get_current_context()
    context.exit(room.run(study, out, keep, shown))


def _refuse_contradictions(config: Config, place: str) -> None:
    from pacs_ai.doctor import configuration

    faults = configuration.contradictions(config)
    if faults:
        lines = "\n".join(f"  {fault.subject}: {fault.words}" for fault in faults)
        raise Plain(f"{place} contradicts itself:\n{lines}\n  `pacs-ai config check` says more", WRONG)


def _refuse_taken_port(config: Config) -> None:
    """Say at once what the listening process would say again and again."""
    receive = config.receive
    kind = socket.AF_INET6 if ":" in receive.bind else socket.AF_INET
    for name, number in receive.ports.items():
        key = "receive.port" if name == "port" else "receive.tls_port"
        with socket.socket(kind, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((receive.bind, number))
            except OSError as error:
                advice = {
                    errno.EADDRINUSE: "this node runs already (pacs-ai status), or another program has the port: "
                    f"set another {key}",
                    errno.EACCES: f"ports below 1024 need a privilege: set another {key}",
                    errno.EADDRNOTAVAIL: "this machine has no such address: correct receive.bind",
                }.get(error.errno or 0, error.strerror or "the operating system refused")
                raise Plain(f"cannot listen on {receive.bind} {name} {number}: {advice}", WRONG) from error


def _announce(config: Config, place: str) -> None:
    receive = config.receive
    titles = " or ".join(receive.ae_titles)
    click.echo(f"{config.node.name}: configuration {place}")
    click.echo(f"  receives DICOM on {receive.bind} {receive.where}, called {titles}, from {_callers(config)}")
    click.echo(f"  keeps its data in {config.store.folder.resolve()}")
    if not config.route:
        click.echo("  has no [[route]]: what arrives is kept, but nothing is analysed")
    for route in config.route:
        goal = ", ".join(route.deliver_to) or "nobody (deliver_to is empty)"
        click.echo(f"  route {route.title}: {route.run}, results to {goal}")
    click.echo("  Ctrl-C stops it; `pacs-ai status` in another terminal shows how it does")


def _callers(config: Config) -> str:
    if config.receive.accept == "anyone":
        return "anyone"
    return ", ".join(peer.name for peer in config.peer) or "nobody (receive.accept is peers, and there is no [[peer]])"
