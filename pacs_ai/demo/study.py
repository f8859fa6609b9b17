"""What the demo sends: the phantom chest CT, whose lung volumes are known, or a folder of the user's own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pacs_ai.deliver import scu
from pacs_ai.errors import UserError
from pacs_ai.testing import Phantom, iterate_phantom, phantom_truth

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pacs_ai.deliver.scu import Outgoing

#: 220 slices of 512 x 512, 1.5 mm apart.
SAMPLE = Phantom()
LUNGS = ("Right lung", "Left lung")
_TRUTH = "truth.json"


@dataclass(frozen=True)
class Study:
    """Instances to send.

    Parameters
    ----------
    instances
        In the order in which they are sent.
    truth_ml
        Label -> true volume in mL; None where nobody knows.
    skipped
        Files of the folder that are no DICOM instances.
    """

    instances: tuple[Outgoing, ...]
    truth_ml: Mapping[str, float] | None = None
    skipped: int = 0


def sample(folder: Path, phantom: Phantom, progress: Callable[[int], None]) -> Study:
    """Return the phantom's series, made once and kept in `folder`.

    Parameters
    ----------
    folder
        Holds nothing else.
    phantom
        What to make.
    progress
        Called with the number of slices made so far.

    Notes
    -----
    The truth is written last, so a folder without it, or with that of another phantom, is made anew.
    """
    truth_ml = _kept_truth(folder, phantom)
    if truth_ml is None:
        _make(folder, phantom, progress)
        truth_ml = _keep_truth(folder, phantom)
    progress(phantom.slices)
    instances = scu.scan([folder / f"{number:05d}.dcm" for number in range(1, phantom.slices + 1)]).instances
    return Study(instances, truth_ml)


def given(folder: Path) -> Study:
    """Return the DICOM instances below a folder of the user's.

    Raises
    ------
    UserError
        There is no such folder, or no DICOM instance in it.
    """
    if not folder.exists():
        raise UserError(f"there is no folder {folder}; give STUDY the path of a folder with DICOM files")
    found = scu.scan([folder])
    if not found.instances:
        raise UserError(f"{folder} holds no DICOM files ({len(found.skipped)} other files were looked at)")
    return Study(found.instances, None, len(found.skipped))


def _make(folder: Path, phantom: Phantom, progress: Callable[[int], None]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.dcm"):
        old.unlink()
    for number, ds in enumerate(iterate_phantom(phantom), start=1):
        ds.save_as(folder / f"{number:05d}.dcm", enforce_file_format=True)
        progress(number)


def _keep_truth(folder: Path, phantom: Phantom) -> dict[str, float]:
    truth = phantom_truth(phantom)
    truth_ml = {label: truth.volumes_ml[label] for label in LUNGS}
    text = json.dumps({"series_instance_uid": phantom.series_instance_uid, "truth_ml": truth_ml}, indent=2)
    partial = folder / f"{_TRUTH}.part"
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / _TRUTH)
    return truth_ml


def _kept_truth(folder: Path, phantom: Phantom) -> dict[str, float] | None:
    """Return the truth of the series in the folder; None where there is no whole one of this phantom."""
    path = folder / _TRUTH
    if not path.exists() or len(list(folder.glob("*.dcm"))) != phantom.slices:
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    return kept["truth_ml"] if kept.get("series_instance_uid") == phantom.series_instance_uid else None
