"""Keep out of a process the libraries that it has no use for: who decodes no pixels needs no decoders in memory."""

from __future__ import annotations

import gc
import importlib
import sys

#: Libraries for pixels and downloads that pydicom loads where they are installed, and goes without where they are not.
PIXEL_LIBRARIES = ("PIL", "gdcm", "jpeg_ls", "numpy", "pylibjpeg", "requests", "tqdm")
#: Processes that keep bytes and read attributes, and never touch a pixel nor a model's card: 40 MB less of memory.
WITHOUT_PIXELS = frozenset({"receive"})
#: Commands that look at files of series or at decoders; all others look into database and configuration alone.
COMMANDS_WITH_PIXELS = frozenset({"demo", "doctor", "explain", "infer", "models", "replay", "selftest", "send"})
#: What pydicom loads of them though others of the node's processes, which build cards with arrays, need numpy.
_DECODERS = tuple(name for name in PIXEL_LIBRARIES if name != "numpy")

#: Python's own thresholds of garbage collection, and those of a process that loads: what it loads is no garbage.
_USUAL = gc.get_threshold()
_LOADING = (100_000, *_USUAL[1:])


def collect_rarely() -> None:
    """Look for garbage rarely from now on: a quarter of the time of loading goes into finding none."""
    gc.set_threshold(*_LOADING)


def collect_as_usual() -> None:
    """Look for garbage as often as Python does; for processes that stay, when all is loaded."""
    gc.set_threshold(*_USUAL)


def leave_out(process: str | None) -> None:
    """Have this process do without what it has no use for; called before anything else is imported.

    In a process without pixels an import of such a library fails from now on as if it were not installed (a None in
    `sys.modules`: see "The import system" in Python's reference). In all others pydicom alone goes without decoders: a
    plugin's card is built there, and its module may import what it likes.

    Parameters
    ----------
    process
        The kind of process that this one will be; None for the whole node's supervisor. The worker's child process,
        which decodes, is another one.
    """
    if process in WITHOUT_PIXELS:
        _hide(PIXEL_LIBRARIES)
    else:
        load_pydicom()


def load_pydicom() -> None:
    """Load pydicom without its decoders, which takes half of the time; no pixel can be decoded in this process then.

    Nothing happens where pydicom is loaded.
    """
    if "pydicom" in sys.modules:
        return
    hidden = _hide(_DECODERS)
    try:
        importlib.import_module("pydicom")
    finally:
        for name in hidden:
            del sys.modules[name]


def _hide(names: tuple[str, ...]) -> list[str]:
    """Have imports of the libraries fail, save those that are loaded; returns which these are."""
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # what the import system asks for
    return hidden
