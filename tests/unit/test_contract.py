"""What a pipeline is never given: nothing, no numbers, another modality; and what is told to the reader."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pacs_ai.errors import Refused
from pacs_ai.infer.contract import accept
from pacs_ai.pipeline import Card, Code, Frame, Frames, Input, Volume

CARD = Card(
    name="any",
    version="1",
    manufacturer="tests",
    title="Any",
    inputs={"image": Input(("CT", "MR"), min_slices=3, max_slice_spacing_mm=2.5)},
    labels=(),
    procedure=Code("25045-6", "LN", "CT unspecified body region"),
    intended_use="tests",
)
FILMS = replace(CARD, inputs={"image": Input(("DX",), min_slices=2, given="frames")})
VOXELS = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
FILM = Frame(np.arange(30, dtype=np.uint16).reshape(5, 6), None)


def volume(voxels=VOXELS, spacing=2.0, modality="CT"):
    return Volume(voxels, np.diag([spacing, 1.0, 1.0, 1.0]), modality)


def with_one(value):
    voxels = VOXELS.astype(np.float32)
    voxels[2, 3, 4] = value
    return voxels


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "image missing: Any needs image"),
        ({"image": volume(modality="US")}, "image is US; Any takes CT or MR"),
        ({"image": volume(modality="")}, "image is without Modality; Any takes CT or MR"),
        ({"image": volume(VOXELS[:2])}, "image has 2 slices; Any needs at least 3"),
        ({"image": volume(spacing=2.6)}, "image has slices 2.60 mm apart; Any takes at most 2.5 mm"),
        ({"image": volume(with_one(np.nan))}, "image has voxels that are no numbers"),
        ({"image": volume(with_one(np.inf))}, "image has voxels that are no numbers"),
        ({"image": volume(with_one(-np.inf))}, "image has voxels that are no numbers"),
        ({"image": volume(np.full_like(VOXELS, 7))}, "image is empty: every voxel has the same value"),
        (
            {"image": volume(VOXELS + np.int16(4000))},
            "image has values from 4000 to 4119, which are no Hounsfield units",
        ),
        (
            {"image": volume(VOXELS - np.int16(2000))},
            "image has values from -2000 to -1881, which are no Hounsfield units",
        ),
    ],
)
def test_what_cannot_be_analysed_is_refused_in_words(given, words):
    with pytest.raises(Refused) as refusal:
        accept(CARD, given)
    assert str(refusal.value) == words


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ((FILM,), "image has 1 images; Any needs at least 2"),
        ((FILM, replace(FILM, pixels=with_one(np.nan)[0].astype(np.float32) * np.nan)), "image has voxels that are no"),
        ((replace(FILM, pixels=np.zeros((3, 3), np.uint8)),) * 2, "image is empty"),
    ],
)
def test_images_that_cannot_be_analysed_are_refused_in_words(images, words):
    with pytest.raises(Refused, match=words):
        accept(FILMS, {"image": Frames(images, "DX")})


def test_unusual_densities_are_told_but_only_of_a_ct():
    wide = VOXELS.copy()
    wide[0, 0, 0], wide[0, 0, 1] = -3024, 12000
    assert accept(CARD, {"image": volume()}) == ()
    assert accept(CARD, {"image": volume(wide)}) == ("image: values from -3024 to 12000 HU lie outside -1024 to 3071",)
    assert accept(CARD, {"image": volume(wide, modality="MR")}) == ()
    assert accept(FILMS, {"image": Frames((FILM, FILM), "DX")}) == ()
