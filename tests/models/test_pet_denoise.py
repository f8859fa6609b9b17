"""What the denoising of a brain PET turns away before its network is asked."""

from __future__ import annotations

import numpy as np
import pytest

from pacs_ai.errors import Reason, Refused
from pacs_ai.models.package import ZOO, read
from pacs_ai.models.readings.pet_denoise import PetDenoise
from pacs_ai.pipeline import Volume


def volume(modality: str, **header: str) -> Volume:
    voxels = np.random.default_rng(1).random((8, 8, 8)).astype(np.float32)
    return Volume(voxels, np.diag([20.0, 20.0, 20.0, 1.0]), modality, header, "1.2.3")


@pytest.mark.parametrize(
    ("pet", "t1", "words"),
    [
        ({"ImageType": "ORIGINAL\\PRIMARY\\SINOGRAM"}, {}, "pet is a sinogram"),
        ({}, {"SeriesDescription": "ax T2 FLAIR"}, "it is no T1-weighted head"),
        ({}, {"EchoTime": "90"}, "the echo time is 90 ms"),
        ({}, {"AcquisitionContrast": "DIFFUSION"}, "not T1-weighted"),
    ],
)
def test_what_is_no_pet_or_no_t1_is_refused(pet, t1, words):
    reading = PetDenoise(read(ZOO / "pet-denoise"))
    with pytest.raises(Refused, match=words) as raised:
        reading.run({"pet": volume("PT", **pet), "t1": volume("MR", **t1)})
    assert raised.value.reason is Reason.MODALITY
