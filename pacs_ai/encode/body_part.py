"""Which part of the body a result shows, and on which side: as the source says it, never made up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pacs_ai.encode.identity import own_copy

if TYPE_CHECKING:
    from pydicom import Dataset

#: Body parts (PS3.16 Annex L) of which a person has one, so that Laterality must be absent (PS3.3 C.7.3.1).
UNPAIRED = frozenset((
    "ABDOMEN", "ABDOMENPELVIS", "AORTA", "BACK", "BLADDER", "BRAIN", "CEREBELLUM", "CHEST", "CHESTABDOMEN",
    "CHESTABDPELVIS", "COCCYX", "COLON", "CSPINE", "CTSPINE", "DUODENUM", "ESOPHAGUS", "FACE", "GALLBLADDER",
    "HEAD", "HEADNECK", "HEART", "ILEUM", "JAW", "JEJUNUM", "LARYNX", "LIVER", "LSPINE", "LSSPINE", "MEDIASTINUM",
    "MOUTH", "NECK", "NECKCHEST", "NECKCHESTABDOMEN", "NECKCHESTABDPELV", "NOSE", "PANCREAS", "PELVIS", "PENIS",
    "PROSTATE", "RECTUM", "SKULL", "SPINE", "SPLEEN", "STERNUM", "STOMACH", "THYMUS", "THYROID", "TLSPINE",
    "TONGUE", "TRACHEA", "TSPINE", "UTERUS", "VAGINA", "VULVA", "WHOLEBODY",
))  # fmt: skip


def copy_body_part(result: Dataset, source: Dataset) -> None:
    """Copy Body Part Examined and Laterality, in place.

    Laterality is type 2C: of a part that may be one of a pair it is there, and empty where the source does not say
    which, or says neither part nor side.
    """
    for keyword in ("BodyPartExamined", "Laterality"):
        if source.get(keyword):
            result.add(own_copy(source[keyword]))
    if "Laterality" not in result and str(result.get("BodyPartExamined", "")).upper() not in UNPAIRED:
        result.Laterality = None
