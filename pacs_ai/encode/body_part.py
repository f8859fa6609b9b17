"""Which part of the body a result shows, and on which side: as the source says it, never made up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydicom import Dataset

from pacs_ai.encode.identity import own_copy
from pacs_ai.encode.provenance import concept
from pacs_ai.pipeline import Code

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Body Part Examined -> its SNOMED code and meaning (PS3.16 Annex L), of parts of which a person has one: Laterality
#: must then be absent (PS3.3 C.7.3.1).
UNPAIRED: Mapping[str, tuple[str, str]] = {
    "ABDOMEN": ("818981001", "Abdomen"),
    "ABDOMENPELVIS": ("818982008", "Abdomen and Pelvis"),
    "AORTA": ("15825003", "Aorta"),
    "BACK": ("77568009", "Back"),
    "BLADDER": ("89837001", "Bladder"),
    "BRAIN": ("12738006", "Brain"),
    "CEREBELLUM": ("113305005", "Cerebellum"),
    "CHEST": ("816094009", "Chest"),
    "CHESTABDOMEN": ("416550000", "Chest and Abdomen"),
    "CHESTABDPELVIS": ("416775004", "Chest, Abdomen and Pelvis"),
    "COCCYX": ("64688005", "Coccyx"),
    "COLON": ("71854001", "Colon"),
    "CSPINE": ("122494005", "Cervical spine"),
    "CTSPINE": ("1217257000", "Cervico-thoracic spine"),
    "DUODENUM": ("38848004", "Duodenum"),
    "ESOPHAGUS": ("32849002", "Esophagus"),
    "FACE": ("89545001", "Face"),
    "GALLBLADDER": ("28231008", "Gallbladder"),
    "HEAD": ("69536005", "Head"),
    "HEADNECK": ("774007", "Head and Neck"),
    "HEART": ("80891009", "Heart"),
    "ILEUM": ("34516001", "Ileum"),
    "JAW": ("661005", "Jaw region"),
    "JEJUNUM": ("21306003", "Jejunum"),
    "LARYNX": ("4596009", "Larynx"),
    "LIVER": ("10200004", "Liver"),
    "LSPINE": ("122496007", "Lumbar spine"),
    "LSSPINE": ("1217253001", "Lumbo-sacral spine"),
    "MEDIASTINUM": ("72410000", "Mediastinum"),
    "MOUTH": ("123851003", "Mouth"),
    "NECK": ("45048000", "Neck"),
    "NECKCHEST": ("417437006", "Neck and Chest"),
    "NECKCHESTABDOMEN": ("416152001", "Neck, Chest and Abdomen"),
    "NECKCHESTABDPELV": ("416319003", "Neck, Chest, Abdomen and Pelvis"),
    "NOSE": ("45206002", "Nose"),
    "PANCREAS": ("15776009", "Pancreas"),
    "PELVIS": ("816092008", "Pelvis"),
    "PENIS": ("18911002", "Penis"),
    "PROSTATE": ("41216001", "Prostate"),
    "RECTUM": ("34402009", "Rectum"),
    "SKULL": ("89546000", "Skull"),
    "SPINE": ("421060004", "Spine"),
    "SPLEEN": ("78961009", "Spleen"),
    "STERNUM": ("56873002", "Sternum"),
    "STOMACH": ("69695003", "Stomach"),
    "THYMUS": ("9875009", "Thymus"),
    "THYROID": ("69748006", "Thyroid"),
    "TLSPINE": ("1217256009", "Thoraco-lumbar spine"),
    "TONGUE": ("21974007", "Tongue"),
    "TRACHEA": ("44567001", "Trachea"),
    "TSPINE": ("122495006", "Thoracic spine"),
    "UTERUS": ("35039007", "Uterus"),
    "VAGINA": ("76784001", "Vagina"),
    "VULVA": ("45292006", "Vulva"),
    "WHOLEBODY": ("38266002", "Entire body"),
}
#: The same of parts of which a person has two.
PAIRED: Mapping[str, tuple[str, str]] = {
    "ANKLE": ("70258002", "Ankle joint"),
    "BREAST": ("76752008", "Breast"),
    "ELBOW": ("16953009", "Elbow joint"),
    "FEMUR": ("71341001", "Femur"),
    "FOOT": ("56459004", "Foot"),
    "HAND": ("85562004", "Hand"),
    "HIP": ("24136001", "Hip joint"),
    "KIDNEY": ("64033007", "Kidney"),
    "KNEE": ("72696002", "Knee"),
    "LUNG": ("39607008", "Lung"),
    "SHOULDER": ("16982005", "Shoulder"),
    "WRIST": ("74670003", "Wrist joint"),
}
#: What holds both of a pair in the trunk.
AROUND = {"LUNG": "CHEST", "BREAST": "CHEST", "KIDNEY": "ABDOMEN", "HIP": "PELVIS"}


def copy_body_part(result: Dataset, source: Dataset) -> None:
    """Copy Body Part Examined and Laterality, in place.

    Laterality is type 2C: of a part that may be one of a pair it is there, and empty where the source does not say
    which, or says neither part nor side.
    """
    for keyword in ("BodyPartExamined", "Laterality"):
        if source.get(keyword):
            result.add(own_copy(source[keyword]))
    if "Laterality" not in result and _part(result) not in UNPAIRED:
        result.Laterality = None


def frame_anatomy(source: Dataset) -> Dataset | None:
    """Return the item of a Frame Anatomy Sequence (PS3.3 C.7.6.16.2.8); None where the source does not say enough.

    Of a part in the trunk whose side the source leaves open it is what holds both ("Chest" for "LUNG"). dcmqi 1.5.7
    reads no parametric map without it.
    """
    part, side = _part(source), str(source.get("ImageLaterality") or source.get("Laterality") or "")
    if part in PAIRED and side not in ("L", "R"):
        part = AROUND.get(part, "")
    found = UNPAIRED.get(part) or PAIRED.get(part)
    if found is None:
        return None
    item = Dataset()
    item.FrameLaterality = side if part in PAIRED else "U"
    item.AnatomicRegionSequence = [concept(Code(found[0], "SCT", found[1]))]
    return item


def _part(ds: Dataset) -> str:
    part = str(ds.get("BodyPartExamined") or "").upper()
    return "CHEST" if part == "THORAX" else part
