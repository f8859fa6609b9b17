"""INF-01, INF-04 and INF-06: what a model was not made for is refused with a code, and what cannot be never leaves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pydicom
import pytest

from pacs_ai.errors import PipelineFault, Reason, Refused
from pacs_ai.infer.admission import admit
from pacs_ai.infer.contract import accept, check
from pacs_ai.infer.plausible import remarks_on
from pacs_ai.infer.volume import load_volume
from pacs_ai.models.package import ZOO, read
from pacs_ai.pipeline import (
    ANATOMICAL_STRUCTURE,
    MILLILITRE,
    PERCENT,
    VOLUME,
    Card,
    Classification,
    Code,
    Expected,
    Findings,
    Frame,
    Frames,
    Input,
    Label,
    Map,
    Measurement,
    Question,
    Segment,
    TimeSeries,
    Volume,
    Waveform,
)
from pacs_ai.testing.phantom import Phantom
from pacs_ai.testing.series import write_phantom

VOXELS = np.arange(4 * 6 * 5, dtype=np.int16).reshape(4, 6, 5)
HEADER = {
    "BodyPartExamined": "CHEST",
    "PatientAge": "050Y",
    "LossyImageCompression": "00",
    "BurnedInAnnotation": "NO",
    "SeriesDescription": "Thorax portal venous",
}
LIVER = Label("Liver", ANATOMICAL_STRUCTURE, Code("10200004", "SCT", "Liver"))
CARD = Card("gate", "1", "tests", "Gate", {"image": Input(("CT",))}, (LIVER,), Code("1", "99T", "p"), "test")
PRESENT, ABSENT = Code("52101004", "SCT", "Present"), Code("272519000", "SCT", "Absent")


def volume(voxels=VOXELS, modality="CT", spacing=1.0, **header):
    return Volume(voxels, np.diag([spacing, 1.0, 1.0, 1.0]), modality, {**HEADER, **header})


def refusal(given, **wanted):
    with pytest.raises(Refused) as raised:
        admit("image", given, Input(**{"modality": ("CT", "MG", "ECG"), **wanted}), CARD)
    return raised.value


@pytest.mark.parametrize(
    ("given", "wanted", "reason"),
    [
        pytest.param(volume(modality="MR"), {"modality": ("CT",)}, Reason.MODALITY, id="MR to a CT model"),
        pytest.param(volume(VOXELS[:3]), {"min_slices": 4}, Reason.TOO_FEW, id="three slices"),
        pytest.param(volume(spacing=6.0), {"max_slice_spacing_mm": 5}, Reason.RESOLUTION, id="slices far apart"),
        pytest.param(volume(), {"body_part": ("ABDOMEN", "LIVER")}, Reason.BODY_PART, id="wrong body part"),
        pytest.param(volume(PatientAge="009Y"), {"min_age_years": 18}, Reason.AGE, id="child"),
        pytest.param(volume(PatientAge="020M"), {"min_age_years": 2}, Reason.AGE, id="infant, in months"),
        pytest.param(volume(PatientAge="091Y"), {"max_age_years": 90}, Reason.AGE, id="too old"),
        pytest.param(volume(ContrastBolusAgent="x"), {"contrast": "without"}, Reason.CONTRAST, id="contrast given"),
        pytest.param(volume(), {"contrast": "with"}, Reason.CONTRAST, id="no contrast"),
        pytest.param(volume(), {"phase": ("arterial",)}, Reason.CONTRAST, id="contrast phase"),
        pytest.param(volume(LossyImageCompression="01"), {"lossy": False}, Reason.LOSSY, id="lossy"),
        pytest.param(volume(BurnedInAnnotation="YES"), {"burned_in": False}, Reason.BURNED_IN, id="burned-in text"),
        pytest.param(volume(), {"min_rows": 64}, Reason.TOO_SMALL, id="small matrix"),
        pytest.param(volume(), {"max_pixel_spacing_mm": 0.8}, Reason.RESOLUTION, id="coarse pixels"),
        pytest.param(volume(), {"intensity": (-200, 10)}, Reason.INTENSITY, id="intensity"),
        pytest.param(volume(np.full_like(VOXELS, 3)), {}, Reason.INTENSITY, id="constant"),
        pytest.param(volume(VOXELS + np.int16(4000)), {}, Reason.INTENSITY, id="no Hounsfield units"),
        pytest.param(volume(VOXELS.astype(np.float32) * np.nan), {}, Reason.INTENSITY, id="not a number"),
        pytest.param(volume(Laterality="R"), {"laterality": ("L",)}, Reason.LATERALITY, id="other side"),
        pytest.param(volume(), {"laterality": ("L", "R")}, Reason.LATERALITY, id="side unknown"),
    ],
)
def test_INF_01_PRI_06_what_a_model_was_not_made_for_is_refused_with_its_code(given, wanted, reason):
    assert refusal(given, **wanted).reason is reason


def test_what_it_was_made_for_is_taken():
    wanted = Input(
        ("CT",), body_part=("CHEST",), min_age_years=18, max_age_years=90, contrast="without", phase=("portal",),
        lossy=False, burned_in=False, min_rows=6, min_columns=5, max_pixel_spacing_mm=1.0, intensity=(0, 200),
    )  # fmt: skip
    assert admit("image", volume(), wanted, CARD) == ()
    told = admit("image", volume(PatientAge=""), wanted, CARD)
    assert told == ("image does not tell the patient's age, for which Gate has limits",)
    assert admit("image", volume(BodyPartExamined="", SeriesDescription=""), wanted, CARD) == ()
    assert admit("image", volume(ContrastBolusAgent="None "), wanted, CARD) == ()
    assert refusal(volume(ContrastBolusAgent="NONE"), contrast="with").reason is Reason.CONTRAST


def test_a_contrast_phase_is_told_by_whole_words():
    """Lateral is not late."""
    for told, phase in (("Thorax lateral", "arterial"), ("Abdomen arterielle Phase", "arterial"), ("nativ", "native")):
        assert admit("image", volume(SeriesDescription=told), Input(("CT",), phase=(phase,)), CARD) == ()
    assert refusal(volume(SeriesDescription="late phase"), phase=("arterial",)).reason is Reason.CONTRAST


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ({"ViewPosition": "CC"}, True),
        ({"ViewCodeSequence": "cranio-caudal"}, True),
        ({"ViewPosition": "MLO"}, False),
        ({}, False),
    ],
)
def test_the_view_is_enforced(header, accepted):
    frame = Frame(VOXELS[0], (0.1, 0.1), header)
    given, wanted = Frames((frame, frame), "MG", header), {"view": ("CC", "cranio-caudal")}
    if accepted:
        assert admit("image", given, Input(("MG",), given="frames", **wanted), CARD) == ()
    else:
        assert refusal(given, **wanted).reason is Reason.VIEW


def test_every_image_of_a_series_is_judged():
    given = Frames((Frame(VOXELS[0], None, {}), Frame(VOXELS[0], None, {"BurnedInAnnotation": "YES"})), "MG", {})
    assert refusal(given, burned_in=False).reason is Reason.BURNED_IN
    assert refusal(given, max_pixel_spacing_mm=0.5).reason is Reason.RESOLUTION


def test_a_missing_input_is_named_with_its_code():
    with pytest.raises(Refused, match="image missing") as raised:
        accept(CARD, {})
    assert raised.value.reason is Reason.MISSING_INPUT


def test_waveforms_and_series_over_time_are_judged():
    samples = np.sin(np.arange(1000, dtype=np.float32))[None]
    ecg = Waveform(samples, 500.0, ("II",), "mV", "ECG")
    assert refusal(ecg, min_seconds=8).reason is Reason.TOO_FEW
    assert refusal(ecg, channels=("V6",)).reason is Reason.TOO_FEW
    assert refusal(replace(ecg, samples=samples * np.nan)).reason is Reason.INTENSITY
    timed = TimeSeries(np.stack([VOXELS, VOXELS]), np.eye(4), np.array([0.0, 1.0]), "CT")
    assert refusal(timed, min_times=3).reason is Reason.TOO_FEW
    assert refusal(timed, min_seconds=30).reason is Reason.TOO_FEW
    assert refusal(replace(timed, voxels=timed.voxels * 0)).reason is Reason.INTENSITY


def test_the_cards_of_the_zoo_gate_what_their_words_exclude():
    """What a card says that it was not made for is refused, where the header tells it."""
    cards = {path.name: read(path).card for path in sorted(ZOO.iterdir()) if (path / "model.toml").is_file()}
    assert len(cards) > 15
    for name, card in cards.items():
        wanted = next(iter(card.inputs.values()))
        words = " ".join(card.intended_use.split())
        if "of an adult" in words:
            assert wanted.min_age_years == 18, name
        if "contrast agent and small children are outside" in words:
            assert wanted.contrast == "without", name


SMALL = Phantom(slices=8, rows=16, columns=16)


def _without_the_fifth(datasets):
    del datasets[4]


def _tilted(datasets):
    for number, ds in enumerate(datasets):
        x, y, z = ds.ImagePositionPatient
        ds.ImagePositionPatient = [x, y + 4.0 * number, z]


def _doubled(datasets):
    datasets[3].ImagePositionPatient = list(datasets[2].ImagePositionPatient)


def _uneven(datasets):
    for number, ds in enumerate(datasets):
        x, y, z = ds.ImagePositionPatient
        ds.ImagePositionPatient = [x, y, z + 12.0 * (number % 2)]


def _localizers(datasets):
    for ds in datasets:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def _cut_off(datasets):
    datasets[0].PixelData = datasets[0].PixelData[:100]


@pytest.mark.parametrize(
    ("bend", "reason"),
    [
        (_without_the_fifth, Reason.MISSING_SLICE),
        (_tilted, Reason.TILT),
        (_doubled, Reason.DUPLICATE),
        (_uneven, Reason.GEOMETRY),
        (_localizers, Reason.LOCALIZER),
        (_cut_off, Reason.UNREADABLE),
    ],
)
def test_a_bent_stack_is_refused_with_its_code(tmp_path, bend, reason):
    read = [pydicom.dcmread(path) for path in write_phantom(tmp_path, SMALL)]
    datasets = sorted(read, key=lambda ds: float(ds.ImagePositionPatient[2]))
    bend(datasets)
    bent = [tmp_path / f"bent-{number}.dcm" for number in range(len(datasets))]
    for path, ds in zip(bent, datasets, strict=True):
        ds.save_as(path)
    with pytest.raises(Refused) as raised:
        load_volume(bent)
    assert raised.value.reason is reason, str(raised.value)


# -- what comes out

MASK = np.zeros(VOXELS.shape, bool)
MASK[1:3, 2:4, 2:4] = True  # 8 voxels of 1 mm3
RANGE = Expected(VOLUME, MILLILITRE, 0.004, 0.02, "Liver")


def found(mask=MASK, expected=(RANGE,), **more):
    card = replace(CARD, expected=expected)
    inputs = {"image": volume()}
    findings = check(card, inputs, Findings(segments=(Segment("Liver", mask),), **more))
    return remarks_on(card, inputs, findings)


def test_a_volume_within_its_range_is_not_spoken_of():
    assert found() == ()


@pytest.mark.parametrize("mask", [np.zeros_like(MASK), np.repeat(MASK[:, :, :1] | True, 5, axis=2) & (VOXELS > 50)])
def test_INF_06_nothing_and_three_times_too_much_are_marked_or_refused(mask):
    (remark,) = found(mask)
    assert "outside the expected range of 0.004 to 0.02" in remark
    with pytest.raises(Refused, match="withheld") as raised:
        found(mask, (replace(RANGE, refuse=True),))
    assert raised.value.reason is Reason.IMPLAUSIBLE_RESULT


def test_INF_06_a_segment_that_is_the_whole_image_is_refused():
    with pytest.raises(Refused, match="whole image") as raised:
        found(np.ones_like(MASK), ())
    assert raised.value.reason is Reason.IMPLAUSIBLE_RESULT


def test_a_stated_value_is_held_against_its_range():
    stated = (Measurement(VOLUME, 3.0, MILLILITRE, "Liver"),)
    (remark,) = found(measurements=stated)
    assert remark.startswith("Volume of Liver is 3 ")


def test_a_stated_value_is_held_against_its_range_whatever_its_unit():
    cubic = Code("mm3", "UCUM", "mm3")
    assert found(measurements=(Measurement(VOLUME, 8.0, cubic, "Liver"),)) == ()
    (remark,) = found(measurements=(Measurement(VOLUME, 3000.0, cubic, "Liver"),))
    assert remark.startswith("Volume of Liver is 3 ml, outside")
    with pytest.raises(PipelineFault, match=r"Volume of Liver in %, its card expects it in ml"):
        found(measurements=(Measurement(VOLUME, 8.0, PERCENT, "Liver"),))


@pytest.mark.parametrize("voxels", [MASK[:2], MASK.astype(np.float32), MASK.astype(np.int16)])
def test_INF_06_another_shape_or_type_is_a_fault_of_the_model(voxels):
    with pytest.raises(PipelineFault, match="must"):
        found(voxels)


PNEUMOTHORAX = Code("36118008", "SCT", "Pneumothorax")
ASKED = Question("pneumothorax", PNEUMOTHORAX, PRESENT, ABSENT, 0.5)


def answer(question, value=PRESENT, probability=0.7):
    card = replace(CARD, questions=(question,))
    findings = Findings(classifications=(Classification(PNEUMOTHORAX, value, probability),))
    return remarks_on(card, {"image": volume()}, check(card, {"image": volume()}, findings))


def test_only_questions_of_the_card_are_answered():
    assert answer(ASKED) == ()
    assert answer(ASKED, ABSENT, 0.2) == ()
    with pytest.raises(PipelineFault, match="no better than chance"):
        answer(replace(ASKED, reported=False))
    with pytest.raises(PipelineFault, match="no question of its card"):
        answer(replace(ASKED, concept=Code("60046008", "SCT", "Pleural effusion")))
    with pytest.raises(PipelineFault, match="between 0 and 1"):
        answer(ASKED, PRESENT, 1.2)


@pytest.mark.parametrize("thing", ["segments", "maps"])
def test_nothing_lies_on_a_waveform(thing):
    made = {
        "segments": (Segment("Liver", MASK),),
        "maps": (Map("m", VOLUME, MILLILITRE, MASK.astype(np.float32)),),
    }
    ecg = Waveform(np.zeros((1, 9), np.float32), 500.0, ("II",), "mV", "ECG")
    with pytest.raises(PipelineFault, match="waveform, which has no voxels"):
        check(CARD, {"image": ecg}, Findings(**{thing: made[thing]}))
