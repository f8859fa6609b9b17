"""Coded labels for the names that segmentation models give to their channels ("kidney_right", "Right Kidney").

`find` reads one name, `guess_labels` a whole bundle's ``channel_def``. Codes are SNOMED CT as CID 7151 (Segmentation
Property Type) lists them where it does; what no DICOM context group lists yet (single ribs, gluteal muscles) is SNOMED
CT as well, and CID 7151 is extensible. A name that is not in the table is never coded by likeness: it is reported.
"""

from __future__ import annotations

import colorsys
import re
from typing import TYPE_CHECKING, Any

from pacs_ai.models.bundle_metadata import described
from pacs_ai.pipeline import ANATOMICAL_STRUCTURE, LEFT, MORPHOLOGIC_ABNORMALITY, RIGHT, Code, Label

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Words of a name, in any order and without the side -> SNOMED CT code value and meaning.
ANATOMY: Mapping[str, tuple[str, str]] = {
    "adrenal gland": ("23451007", "Adrenal gland"),
    "airway": ("89187006", "Airway structure"),
    "aorta": ("15825003", "Aorta"),
    "atrial appendage": ("68786006", "Auricular appendage"),
    "autochthon": ("244849004", "Deep muscle of back"),
    "bladder": ("89837001", "Bladder"),
    "bone": ("3138006", "Bone"),
    "brachiocephalic trunk": ("12691009", "Innominate artery"),
    "brachiocephalic vein": ("8887007", "Innominate vein"),
    "brain": ("12738006", "Brain"),
    "brain stem": ("119238007", "Brain Stem"),
    "clavicle": ("51299004", "Clavicle"),
    "colon": ("71854001", "Colon"),
    "common carotid artery": ("32062004", "Common carotid artery"),
    "costal cartilage": ("50016007", "Costal Cartilage"),
    "duodenum": ("38848004", "Duodenum"),
    "esophagus": ("32849002", "Esophagus"),
    "face": ("89545001", "Face"),
    "femur": ("71341001", "Femur"),
    "gallbladder": ("28231008", "Gallbladder"),
    "gluteus maximus": ("181674001", "Gluteus maximus muscle"),
    "gluteus medius": ("78333006", "Gluteus medius muscle"),
    "gluteus minimus": ("75297007", "Gluteus minimus muscle"),
    "heart": ("80891009", "Heart"),
    "heart atrium left": ("82471001", "Left atrium"),
    "heart atrium right": ("73829009", "Right atrium"),
    "heart myocardium": ("74281007", "Myocardium"),
    "heart ventricle left": ("87878005", "Left ventricle"),
    "heart ventricle right": ("53085002", "Right ventricle"),
    "hip": ("29836001", "Hip"),
    "hippocampus": ("5366008", "Hippocampus"),
    "humerus": ("85050009", "Humerus"),
    "iliac artery": ("73634005", "Common iliac artery"),
    "iliac vein": ("46027005", "Common iliac vein"),
    "iliopsoas": ("68455001", "Iliopsoas muscle"),
    "inferior vena cava": ("64131007", "Inferior vena cava"),
    "kidney": ("64033007", "Kidney"),
    "liver": ("10200004", "Liver"),
    "lung": ("39607008", "Lung"),
    "lung lower lobe": ("90572001", "Lower lobe of lung"),
    "lung middle lobe right": ("72481006", "Middle lobe of right lung"),
    "lung upper lobe": ("45653009", "Upper lobe of lung"),
    "pancreas": ("15776009", "Pancreas"),
    "peripheral zone": ("279706003", "Peripheral zone of the prostate"),
    "portal vein": ("32764006", "Portal vein"),
    "portal vein splenic vein": ("110765007", "Portal vein and splenic vein"),
    "prostate": ("41216001", "Prostate"),
    "pulmonary artery": ("81040000", "Pulmonary artery"),
    "pulmonary vein": ("122972007", "Pulmonary vein"),
    "rectum": ("34402009", "Rectum"),
    "rib": ("113197003", "Rib"),
    "rib 1": ("48535007", "First rib"),
    "rib 2": ("78247007", "Second rib"),
    "rib 3": ("25888004", "Third rib"),
    "rib 4": ("25523003", "Fourth rib"),
    "rib 5": ("15339008", "Fifth rib"),
    "rib 6": ("59558009", "Sixth rib"),
    "rib 7": ("24915002", "Seventh rib"),
    "rib 8": ("5953002", "Eighth rib"),
    "rib 9": ("22565002", "Ninth rib"),
    "rib 10": ("77644006", "Tenth rib"),
    "rib 11": ("58830002", "Eleventh rib"),
    "rib 12": ("43993008", "Twelfth rib"),
    "sacrum": ("54735007", "Sacrum"),
    "scapula": ("79601000", "Scapula"),
    "skull": ("89546000", "Skull"),
    "small intestine": ("30315005", "Small intestine"),
    "spinal cord": ("2748008", "Spinal cord"),
    "spleen": ("78961009", "Spleen"),
    "splenic vein": ("35819009", "Splenic vein"),
    "sternum": ("56873002", "Sternum"),
    "stomach": ("69695003", "Stomach"),
    "subclavian artery": ("36765005", "Subclavian artery"),
    "superior vena cava": ("48345005", "Superior vena cava"),
    "thyroid": ("69748006", "Thyroid"),
    "trachea": ("44567001", "Trachea"),
    "ureter": ("87953007", "Ureter"),
    "vertebra c1": ("14806007", "C1 vertebra"),
    "vertebra c2": ("39976000", "C2 vertebra"),
    "vertebra c3": ("113205007", "C3 vertebra"),
    "vertebra c4": ("5329002", "C4 vertebra"),
    "vertebra c5": ("36978003", "C5 vertebra"),
    "vertebra c6": ("36054005", "C6 vertebra"),
    "vertebra c7": ("87391001", "C7 vertebra"),
    "vertebra l1": ("66794005", "L1 vertebra"),
    "vertebra l2": ("14293000", "L2 vertebra"),
    "vertebra l3": ("36470004", "L3 vertebra"),
    "vertebra l4": ("11994002", "L4 vertebra"),
    "vertebra l5": ("49668003", "L5 vertebra"),
    "vertebra t1": ("64864005", "T1 vertebra"),
    "vertebra t2": ("53733008", "T2 vertebra"),
    "vertebra t3": ("1626008", "T3 vertebra"),
    "vertebra t4": ("73071006", "T4 vertebra"),
    "vertebra t5": ("56401006", "T5 vertebra"),
    "vertebra t6": ("45296009", "T6 vertebra"),
    "vertebra t7": ("62487009", "T7 vertebra"),
    "vertebra t8": ("11068009", "T8 vertebra"),
    "vertebra t9": ("82687006", "T9 vertebra"),
    "vertebra t10": ("7610001", "T10 vertebra"),
    "vertebra t11": ("12989004", "T11 vertebra"),
    "vertebra t12": ("23215003", "T12 vertebra"),
}

#: Names of what is no normal anatomy -> code (CID 7159 Lesion Segmentation Type).
LESIONS: Mapping[str, Code] = {
    "edema": Code("79654002", "SCT", "Edema"),
    "enhancing tumor": Code("C113842", "NCIt", "Enhancing Lesion"),
    "lesion": Code("52988006", "SCT", "Lesion"),
    "necrosis": Code("6574001", "SCT", "Necrosis"),
    "neoplasm": Code("108369006", "SCT", "Neoplasm"),
    "non-enhancing tumor": Code("C81175", "NCIt", "Non-Enhancing Lesion"),
    "nodule": Code("27925004", "SCT", "Nodule"),
    "tumor": Code("108369006", "SCT", "Neoplasm"),
    "tumor core": Code("108369006", "SCT", "Neoplasm"),
    "whole tumor": Code("108369006", "SCT", "Neoplasm"),
    "hepatic tumor": Code("108369006", "SCT", "Neoplasm"),
    "liver tumor": Code("108369006", "SCT", "Neoplasm"),
    "lung tumor": Code("108369006", "SCT", "Neoplasm"),
    "pancreatic tumor": Code("108369006", "SCT", "Neoplasm"),
}

#: Spellings that the zoo's bundles use for a word of the tables.
SPELLINGS: Mapping[str, str] = {
    "bowel": "intestine",
    "cartilages": "cartilage",
    "clavicula": "clavicle",
    "ivc": "inferior vena cava",
    "oesophagus": "esophagus",
    "tumour": "tumor",
    "veins": "vein",
    "vertebrae": "vertebra",
}

#: Whole names whose words alone would not lead to the table.
NAMES: Mapping[str, str] = {
    "iliac vena": "iliac vein",
    "myocardium": "heart myocardium",
    "portal and splenic vein": "portal vein splenic vein",
    "portal vein and splenic vein": "portal vein splenic vein",
    "thyroid gland": "thyroid",
    "urinary bladder": "bladder",
}

SIDES: Mapping[str, Code] = {"left": LEFT, "right": RIGHT}


def _key(words: list[str]) -> tuple[str, ...]:
    return tuple(sorted(words))


_BY_WORDS = {_key(name.split()): code for name, code in ANATOMY.items()}


def _words(name: str) -> list[str]:
    """Return the words of a name in the tables' spelling: "vertebrae_L5" is vertebra, l5."""
    words = [SPELLINGS.get(word, word) for word in re.split(r"[\s_\-,]+", name.lower()) if word]
    sides = [word for word in words if word in SIDES]
    rest = " ".join(word for word in words if word not in SIDES)
    return NAMES.get(rest, rest).split() + sides


def find(name: str, colour: tuple[int, int, int] = (255, 128, 0)) -> Label | None:
    """Return the coded label of a model's name for a structure, None where the tables have none.

    Parameters
    ----------
    name
        As the model says it, in any case, with blanks, ``_`` or ``-`` between words and the side anywhere.
    colour
        Recommended display colour, sRGB 0 to 255.
    """
    plain = " ".join(name.lower().replace("_", " ").replace("tumour", "tumor").split())
    if plain in LESIONS:
        return Label(name, MORPHOLOGIC_ABNORMALITY, LESIONS[plain], colour=colour)
    words = _words(name)
    sides = [word for word in words if word in SIDES]
    modifier = None
    coded = _BY_WORDS.get(_key(words))
    if coded is None and len(sides) == 1:  # the code names no side: laterality is a modifier (PS3.3 C.8.20.2.3)
        coded = _BY_WORDS.get(_key([word for word in words if word not in SIDES]))
        modifier = SIDES[sides[0]]
    if coded is None:
        return None
    return Label(name, ANATOMICAL_STRUCTURE, Code(coded[0], "SCT", coded[1]), modifier, colour)


def palette(index: int) -> tuple[int, int, int]:
    """Return the colour of the index-th label, sRGB 0 to 255: neighbours differ in hue by the golden angle."""
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.65 if index % 2 else 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def guess_labels(metadata: Mapping[str, Any]) -> tuple[dict[int, Label], tuple[str, ...]]:
    """Code the channels that a bundle's metadata names.

    Parameters
    ----------
    metadata
        Content of ``configs/metadata.json``.

    Returns
    -------
    labels
        Channel -> coded label, without the background.
    missing
        Names that the tables do not know, in the order of their channels.

    Notes
    -----
    A channel is not always the value in the result: where postprocessing merges channels into other values (BraTS:
    1, 2, 4) the table has to be written into the configuration; `pacs_ai.models.bundle` refuses to run with a guess.
    """
    labels: dict[int, Label] = {}
    missing: list[str] = []
    for channel, name in described(metadata).channels:
        if name.lower() == "background":
            continue
        label = find(name, palette(channel))
        if label is None:
            missing.append(name)
        else:
            labels[channel] = label
    return labels, tuple(missing)
