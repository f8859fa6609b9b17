"""A small synthetic study for each reading, for `pacs-ai demo --reading NAME`: nobody's images, made on the spot."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pacs_ai.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: Reading -> module:function; the function writes DICOM files into the folder that it is given.
SAMPLES: Mapping[str, str] = {
    # one line each, sorted
    "bone-radiograph": "pacs_ai.testing.samples.bone:write",
    "brain-mask": "pacs_ai.testing.samples.brain:write",
    "brain-structures": "pacs_ai.testing.samples.brain:write",
    "brain-tissue": "pacs_ai.testing.samples.brain:write",
    "chest-film": "pacs_ai.testing.samples.chest_film:write",
    "ct-lesions": "pacs_ai.testing.samples.nodules:write",
    "ct-liver-lesions": "pacs_ai.testing.samples.liver:write",
    "ct-lung-nodules": "pacs_ai.testing.samples.nodules:write",
    "ecg": "pacs_ai.testing.samples.ecg:write",
    "fetal-head": "pacs_ai.testing.samples.fetal_head:write",
    "mammography": "pacs_ai.testing.samples.mammograms:write",
    "pet-denoise": "pacs_ai.testing.samples.pet_denoise:write",
    "pet-reconstruction": "pacs_ai.testing.samples.pet_reconstruction:write",
    "retina-artery-vein": "pacs_ai.testing.samples.retina:write",
    "retina-vessels": "pacs_ai.testing.samples.retina:write",
    "skin-lesion": "pacs_ai.testing.samples.skin:write",
}
#: Reading -> input -> conditions of a route beside the modality, where they are needed to tell its inputs apart.
CONDITIONS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    # one line each, sorted
    "mammography": {
        "cc_left": {"description": "L CC"},
        "cc_right": {"description": "R CC"},
        "mlo_left": {"description": "L MLO"},
        "mlo_right": {"description": "R MLO"},
    },
}


def refuse_without(reading: str) -> str:
    """Return where the reading's sample is written; `UserError` where nobody wrote one."""
    where = SAMPLES.get(reading)
    if where is None:
        raise UserError(f"there is no sample study for {reading}: give a folder of your own with --study")
    return where


def write(reading: str, folder: Path) -> None:
    """Write the reading's sample into `folder`, made where it is missing; errors as `refuse_without`."""
    module, _, name = refuse_without(reading).partition(":")
    folder.mkdir(parents=True, exist_ok=True)
    getattr(importlib.import_module(module), name)(folder)
