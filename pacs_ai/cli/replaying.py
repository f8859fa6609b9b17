"""Do a finished job again, to see that the same input, model and settings give the same bytes."""

from __future__ import annotations

import warnings

import click

from pacs_ai.cli import words
from pacs_ai.cli.session import Session, pass_session
from pacs_ai.cli.words import TROUBLE, Plain, as_json, example

_SHOWN = 6


@click.command(epilog=example("pacs-ai replay 17", "pacs-ai replay 17 --json"))
@click.argument("job_id", metavar="JOB", type=int)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda:0 or auto.")
@as_json
@pass_session
def replay(session: Session, job_id: int, device: str, *, as_json: bool) -> None:
    """Do a job again, and compare with what it made.

    Nothing changes and nothing is sent. On the CPU the same input, model and settings give byte-identical objects; a
    result states device and version of torch, so where these changed, that is what differs. Exit code 0: all objects
    are identical. 1: some are not.
    """
    from rich.markup import escape

    from pacs_ai import log
    from pacs_ai.cli import progress
    from pacs_ai.infer.replay import replay as do_again
    from pacs_ai.store.files import Files

    config = session.config
    log.configure("replay", "error", config.log.format)
    with session.database() as database, progress.steps() as begin, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries talk to their developers
        begin(f"doing job {job_id} again")
        try:
            found = do_again(config, database, Files(config.store.folder / "files"), job_id, device)
        except MemoryError:
            raise Plain("out of memory: use a machine with more, or another --device", TROUBLE) from None
    same = all(one.verdict == "identical" for one in found)
    if as_json:
        words.print_json({"job": job_id, "identical": same, "objects": found})
    else:
        out = words.console()
        for one in found:
            more = f": {', '.join(one.differences[:_SHOWN])}" if one.differences else ""
            out.print(f"  {one.kind:<18} {escape(one.verdict + more)}")
        out.print(f"job {job_id}: {'all objects are byte-identical' if same else 'not all objects are identical'}")
    click.get_current_context().exit(0 if same else TROUBLE)
