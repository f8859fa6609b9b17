"""Whether a model's files are still those that were loaded: a package that is swapped while the node runs is refused.

The files are hashed once when the model is loaded, and again whenever the disk says that one of them was touched, so
that the question may be asked before every job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pacs_ai.errors import PipelineFault
from pacs_ai.models.package import MODEL

if TYPE_CHECKING:
    from pathlib import Path

    from pacs_ai.models.package import Package

#: Of one file: inode, size, times of the last change of its content and of its entry, in ns; None where it is gone.
Stamp = tuple[int, int, int, int] | None


class Watch:
    """The files of one package since it was built.

    Parameters
    ----------
    package
        What the pipeline was built from.
    digest
        What the pipeline's card says of it.
    """

    def __init__(self, package: Package, digest: str) -> None:
        self._package = package
        self._digest = digest
        self._stamps: dict[str, Stamp] = {}

    def check(self, digest: str = "") -> None:
        """Raise unless the package is the one that was built, and the one that is wanted.

        Parameters
        ----------
        digest
            Of the model that the job was ordered of; "" where nobody says.

        Raises
        ------
        PipelineFault
            A file is missing, differs or is one too many, or the package is another one than the job's.
        """
        name = self._package.model.name
        if digest and digest != self._digest:
            raise PipelineFault(
                f"the job was ordered of the model {name} with the digest {digest}, but the one that is loaded has "
                f"{self._digest}: it was replaced. Restart the node, then run the job again (pacs-ai retry): it takes "
                "the model that is there. Or put the former one back"
            )
        stamps = self._now()
        if stamps == self._stamps:
            return
        try:
            self._package.verify()
        except PipelineFault as error:
            raise PipelineFault(f"the model {name} is not the one that was installed: {error}") from error
        self._stamps = stamps

    def _now(self) -> dict[str, Stamp]:
        folder = self._package.folder
        names = {MODEL, *self._package.model.files}
        inside = {path.relative_to(folder).as_posix() for path in folder.rglob("*")} if folder.is_dir() else set()
        return {name: _stamp(folder / name) for name in sorted(names | inside)}


def _stamp(path: Path) -> Stamp:
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
