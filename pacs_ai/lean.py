"""Keep out of a process the libraries that it has no use for: who decodes no pixels needs no decoders in memory."""

from __future__ import annotations

import sys

#: Libraries for pixels and downloads that pydicom loads where they are installed (40 MB of memory), and goes without
#: where they are not.
PIXEL_LIBRARIES = ("PIL", "gdcm", "jpeg_ls", "numpy", "pylibjpeg", "requests")
#: Processes that keep bytes and read attributes, and never touch a pixel.
WITHOUT_PIXELS = frozenset({"receive"})


def leave_out(process: str | None) -> None:
    """Have this process do without what it has no use for; called before anything else is imported.

    An import of such a library fails from now on as if it were not installed (a None in `sys.modules`: see "The import
    system" in Python's reference).

    Parameters
    ----------
    process
        The kind of process that this one will be; None for the whole node's supervisor.
    """
    if process in WITHOUT_PIXELS:
        for name in PIXEL_LIBRARIES:
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # what the import system asks for
