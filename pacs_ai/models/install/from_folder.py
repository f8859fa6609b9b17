"""What a person brings in a folder for a package: the archive, its members, or the finished files."""

from __future__ import annotations

import os
import shutil
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pacs_ai.errors import PipelineFault, UserError
from pacs_ai.models.digest import sha256
from pacs_ai.models.install import archives

if TYPE_CHECKING:
    from pathlib import Path

    from pacs_ai.models.package import Package

#: Most files of the folder of --from that are looked at.
MOST = 100_000


def take(wanted: Package, left: list[str], members: Path, brought: Path) -> None:
    """Put the recipe's members, or the finished files themselves, from a folder into another.

    Parameters
    ----------
    wanted
        The package; what its recipe names is looked for by path, else by name.
    left
        Its files that are still missing.
    members
        Where they are put.
    brought
        Where they are looked for.

    Raises
    ------
    UserError
        It is no folder, holds too much, or several files of one name; or the package has no recipe and a file lacks.
    PipelineFault
        The archive is not the one that the recipe names, or holds what archives of models do not.
    """
    if not brought.is_dir():
        raise UserError(f"{brought} is no folder")
    files = _files(brought)
    ready = {name: _found(files, brought, name, wanted.model.files[name] or None) for name in left}
    if all(ready.values()):
        for name, path in ready.items():
            assert path is not None
            place(path.read_bytes(), members / name)
        return
    table = wanted.model.install
    if table is None:
        raise UserError(f"{brought} lacks {', '.join(name for name, path in ready.items() if path is None)}")
    for name in table.sha256:
        if (path := _found(files, brought, name, table.sha256[name])) is not None and archives.is_archive(path.name):
            archives.extract(path, table.members, members)
            return
    others = [path for path in files if archives.is_archive(path.name) and path.name in table.sha256]
    for member, name in table.members.items():
        found = _found(files, brought, member) or _found(files, brought, name)
        if found is not None:
            shutil.copyfile(found, members / name)
    if others and not any(members.iterdir()):
        raise PipelineFault(
            f"{others[0]} has the SHA-256 {sha256(others[0])}, the recipe names {table.sha256[others[0].name]}: it is "
            "another file than the one that was tried, or damaged on the way; nothing of it was opened"
        )


def _files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for path in sorted(folder.rglob("*")):
        if len(found) >= MOST:
            raise UserError(f"{folder} holds more than {MOST} files: name the folder of the model alone")
        if path.is_file() and not path.is_symlink():
            found.append(path)
    return found


def _found(files: list[Path], folder: Path, name: str, digest: str | None = None) -> Path | None:
    """Return the file of that path below the folder, else of that base name; of several the one with the digest."""
    exact = [path for path in files if path.relative_to(folder).as_posix() == name]
    named = exact or [path for path in files if path.name == PurePosixPath(name).name]
    if digest is not None:
        return next((path for path in named if sha256(path) == digest.lower()), None)
    if len(named) > 1:
        places = ", ".join(path.relative_to(folder).as_posix() for path in named[:4])
        raise UserError(f"{folder} has several files {PurePosixPath(name).name} ({places}): keep the right one")
    return named[0] if named else None


def place(content: bytes, path: Path) -> None:
    """Write a file that is on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
