"""From a CT to the liver networks' voxels and back, the readings behind them, and the converters' key maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pacs_ai.errors import PipelineFault, Refused
from pacs_ai.models.convert import apetnet, liver
from pacs_ai.models.convert.formats import keras_h5, tf_bundle
from pacs_ai.models.networks.apetnet import Apetnet
from pacs_ai.models.networks.liver_unet import LESIONS, LIVER, LiverUnet
from pacs_ai.models.readings import liver as reading
from pacs_ai.models.readings import liver_cascade as cascade
from pacs_ai.models.readings import liver_grid as grid
from pacs_ai.models.readings import pet_denoise
from pacs_ai.pipeline import Volume


def affine(spacing=(5.0, 2.0, 1.0), flips=(1, 1, 1)) -> np.ndarray:
    found = np.zeros((4, 4))
    for axis, (mm, sign) in enumerate(zip(spacing, flips, strict=True)):
        found[2 - axis, axis] = mm * sign
    found[3, 3] = 1
    return found


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1), (1, -1, 1)])
def test_upright_and_laid_back_are_inverse(flips):
    voxels = np.arange(4 * 6 * 5).reshape(4, 6, 5).astype(np.int16)
    volume = Volume(voxels, affine(flips=flips), "CT")
    turned, spacing = grid.upright(volume)
    assert spacing == (1.0, 2.0, 5.0)
    assert np.array_equal(grid.laid_back(turned, volume), voxels)


def test_the_first_axis_runs_to_the_right_of_the_patient_and_the_last_to_the_head():
    voxels = np.zeros((4, 6, 5), np.int16)
    voxels[3, 0, 4] = 1  # head, front, left
    turned, _ = grid.upright(Volume(voxels, affine(), "CT"))
    assert np.argwhere(turned).tolist() == [[0, 5, 3]] or np.argwhere(turned).tolist() == [[4, 5, 3]]


@pytest.mark.parametrize("factor", [0.5, 0.31, 1.7, 3.0])
def test_resampling_keeps_a_constant_and_a_slope(factor):
    ramp = np.broadcast_to(np.arange(40.0)[:, None, None], (40, 3, 3))
    made = grid.zoomed(ramp, (factor, 1, 1))[:, 1, 1]
    place = (np.arange(len(made)) + 0.5 - len(made) / 2) / factor + 19.5
    assert made[3:-3] == pytest.approx(place[3:-3], abs=0.51)
    assert grid.zoomed(np.full((40, 3, 3), 7.0), (factor, factor, 1)) == pytest.approx(7.0)


def test_what_was_made_coarser_comes_back_to_its_place():
    z, y, x = np.mgrid[:40, :30, :30]
    ball = ((z - 20) ** 2 + (y - 14) ** 2 + (x - 13) ** 2 < 100).astype(np.float32)
    factors = (0.5, 0.75, 1 / 3)
    back = grid.brought_back(grid.zoomed(ball, factors), ball.shape, factors) > 0.5
    assert 2 * (back & (ball > 0)).sum() / (back.sum() + ball.sum()) > 0.93


def test_the_abdomen_ends_some_way_above_the_lower_end_of_the_lungs():
    voxels = np.full((60, 50, 100), -1000, np.int16)
    voxels[10:50, 10:40] = 40
    voxels[15:45, 15:35, 60:95] = -850
    x, y, z = grid.abdomen(voxels, (5.0, 5.0, 5.0))
    assert (x.start, x.stop, y.start, y.stop) == pytest.approx((10, 50, 10, 40), abs=3)
    assert z.stop == pytest.approx(60 + 70 / 5, abs=3)
    assert z.stop - z.start <= 408 / 5


def body_with_hips(arms=False):
    """Voxels (x, y, z) of 4 mm: hips up to slice 45, a waist, ribs from slice 60 on, lungs from slice 80 on."""
    voxels = np.full((110, 60, 100), -1000, np.int16)
    voxels[15:95, 10:50] = 40
    for side in (slice(25, 38), slice(72, 85)):
        voxels[side, 30:34, :45] = 500
        voxels[side, 30:32, 60:] = 500
        voxels[side, 14:28, 80:] = -850
    if arms:
        voxels[16:19, 28:36] = voxels[91:94, 28:36] = 500
    return voxels


def test_the_abdomen_begins_some_way_below_the_hips():
    _, _, z = grid.abdomen(body_with_hips(), (4.0, 4.0, 4.0))
    assert z.start == 44 - 50 // 4


def test_nothing_is_cut_below_where_there_is_no_waist():
    assert grid.abdomen(body_with_hips(arms=True), (4.0, 4.0, 4.0))[2].start == 0
    assert grid.abdomen(body_with_hips()[..., 46:], (4.0, 4.0, 4.0))[2].start == 0
    assert grid.abdomen(body_with_hips()[..., :46], (4.0, 4.0, 4.0))[2].start == 0


def test_a_short_series_is_continued_by_its_ends():
    short = np.arange(14.0)[None, None].repeat(2, 0)
    longer, inner = cascade._lengthened(short)
    assert longer.shape == (2, 1, cascade.LENGTHENED)
    assert np.array_equal(longer[..., inner], short)
    assert set(longer[0, 0, : inner.start]) == {0.0}
    assert set(longer[0, 0, inner.stop :]) == {13.0}
    long = np.zeros((2, 1, cascade.SHORT))
    assert cascade._lengthened(long)[0].shape == long.shape


def test_tiles_cover_all_and_the_last_ends_at_the_end():
    assert list(cascade._starts(30, 42)) == [0]
    assert list(cascade._starts(100, 42)) == [0, 42, 58]
    assert list(cascade._starts(84, 42)) == [0, 42]


class Copies:
    """Stands for a network: returns the middle of what it is given."""

    def __init__(self, form):
        self.form = form

    def __call__(self, window):
        for axis, (given, wanted) in enumerate(zip(self.form.window, self.form.result, strict=True), 2):
            window = window.narrow(axis, (given - wanted) // 2, wanted)
        return window


@pytest.mark.parametrize("shape", [(100, 90, 50), (93, 84, 31), (20, 15, 9)])
def test_tiles_lie_where_they_were_cut(shape):
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    made = cascade._tiled(Copies(LESIONS), image, np.ones(shape, bool), "cpu")
    assert np.array_equal(made, image)
    assert np.array_equal(cascade._predicted(Copies(LIVER), image, "cpu"), image)


def test_windows_of_both_networks_give_their_results():
    torch.manual_seed(0)
    with torch.inference_mode():
        assert LiverUnet(LIVER)(torch.zeros(1, 1, 54, 27, 27)).shape[2:] == (28, 1, 1)
        assert LiverUnet(LESIONS)(torch.zeros(1, 1, 92, 92, 46)).shape[2:] == (4, 4, 2)


def test_keras_layers_become_the_network_again(monkeypatch, tmp_path):
    torch.manual_seed(1)
    networks = {"liver.hdf5": LiverUnet(LIVER), "lesions.hdf5": LiverUnet(LESIONS)}

    def published(_folder, name):
        found = {}
        for number, one in enumerate(networks[name].convolutions(), 1):
            kernel = one.weight.detach().numpy().transpose(2, 3, 4, 1, 0)
            found[f"conv3d_{number}/conv3d_{number}/kernel"] = kernel
            found[f"conv3d_{number}/conv3d_{number}/bias"] = one.bias.detach().numpy()
        return found

    monkeypatch.setattr(keras_h5, "read", published)
    tensors = liver.from_keras(tmp_path, {})
    loaded = LiverUnet.loaded(LESIONS, tensors, "lesions")
    for name, value in networks["lesions.hdf5"].state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    networks["liver.hdf5"] = LiverUnet(LESIONS)
    with pytest.raises(PipelineFault, match="another model"):
        liver.from_keras(tmp_path, {})


def test_batch_normalisation_becomes_part_of_the_convolution(monkeypatch, tmp_path):
    rng = np.random.default_rng(3)
    arrays = {}

    def put(kind, number, *shape):
        arrays[f"{kind}/{number}/.ATTRIBUTES/VARIABLE_VALUE"] = rng.random(shape, dtype=np.float32)

    for which in range(2):
        put("trainable_variables", 2 * which, 3, 3, 3, 1, 15)
        for number in (2 * which + 1, 4 + 2 * which, 5 + 2 * which, 8 + which):
            put("trainable_variables", number, 15)
        put("variables", 6 + 4 * which, 15)
        put("variables", 7 + 4 * which, 15)
    for layer in range(7):
        put("trainable_variables", 10 + 5 * layer, 3, 3, 3, 30, 30)
        for number in range(11 + 5 * layer, 15 + 5 * layer):
            put("trainable_variables", number, 30)
        put("variables", 18 + 7 * layer, 30)
        put("variables", 19 + 7 * layer, 30)
    put("trainable_variables", 45, 1, 1, 1, 30, 1)
    put("trainable_variables", 46, 1)
    monkeypatch.setattr(tf_bundle, "read", lambda *_: arrays)
    network = Apetnet()
    network.load_state_dict(apetnet.from_variables(tmp_path, {}))

    def trained(number):
        return torch.tensor(arrays[f"trainable_variables/{number}/.ATTRIBUTES/VARIABLE_VALUE"])

    pet = torch.rand(1, 1, 6, 6, 6, generator=torch.Generator().manual_seed(4))
    values = torch.conv3d(pet, trained(0).permute(4, 3, 0, 1, 2), trained(1), padding=1)
    mean, variance = (torch.tensor(arrays[f"variables/{k}/.ATTRIBUTES/VARIABLE_VALUE"]) for k in (6, 7))
    values = torch.batch_norm(values, trained(4), trained(5), mean, variance, False, 0.0, 1e-3, False)
    assert torch.allclose(network.pet(pet), torch.prelu(values, trained(8)), atol=1e-4)
    del arrays["variables/60/.ATTRIBUTES/VARIABLE_VALUE"]
    with pytest.raises(PipelineFault, match="not the variables of pyapetnet"):
        apetnet.from_variables(tmp_path, {})


def ball(centre, radius, shape=(40, 60, 60)) -> np.ndarray:
    places = np.stack(np.mgrid[: shape[0], : shape[1], : shape[2]], -1)
    return ((places - np.array(centre)) ** 2).sum(-1) < radius**2


def test_lesions_are_counted_measured_and_numbered_by_size():
    whole = ball((20, 30, 30), 18)
    lesions = ball((20, 22, 30), 3) | ball((20, 38, 30), 5) | ball((25, 30, 18), 0.5)
    voxels = np.where(lesions, 40, np.where(whole, 110, -100)).astype(np.int16)
    found = reading._findings(Volume(voxels, affine((1, 1, 1)), "CT"), whole, lesions, 0.05)
    assert [one.label for one in found.segments] == ["Liver", "Liver lesion 1", "Liver lesion 2"]
    values = {(one.label, one.concept.meaning): one.value for one in found.measurements}
    assert values["Liver lesion 1", "Volume"] == pytest.approx(0.001 * ball((20, 38, 30), 5).sum())
    assert values["Liver lesion 2", "Attenuation Coefficient"] == 40
    assert values["Liver", "Volume"] == pytest.approx(0.001 * whole.sum())
    assert found.classifications[0].value.meaning == "Complete"


def test_a_liver_that_is_cut_off_is_said_to_be_partial_and_many_lesions_share_the_last_label():
    whole = np.zeros((10, 60, 60), bool)
    whole[:, 5:55, 5:55] = True
    lesions = np.zeros_like(whole)
    lesions[5, 6:54:4, 6:30:4] = True
    found = reading._findings(Volume(whole.astype(np.int16), affine((1, 1, 1)), "CT"), whole, lesions, 0)
    assert found.classifications[0].value.meaning == "Partial"
    assert found.segments[-1].label == "Further liver lesions"
    assert len(found.segments) == 22


def test_a_volume_without_soft_tissue_is_no_abdomen():
    with pytest.raises(Refused, match="soft tissue"):
        reading._check_densities(np.full((20, 40, 40), -900, np.int16))


def head() -> tuple[Volume, Volume]:
    shown = ball((30, 30, 30), 28, (60, 60, 60))
    rng = np.random.default_rng(5)
    t1 = np.where(shown, 500 + rng.normal(0, 5, shown.shape), 0).astype(np.float32)
    pet = np.where(shown, 1000 + rng.normal(0, 200, shown.shape), 0).clip(0).astype(np.float32)
    return Volume(pet, affine((2, 2, 2)), "PT", {}, "1.2"), Volume(t1, affine((2, 2, 2)), "MR", {}, "1.2")


class Nothing:
    """A package whose network is put in by hand."""

    card = None


def denoiser(act) -> pet_denoise.PetDenoise:
    made = pet_denoise.PetDenoise(Nothing())
    made._network = act
    return made


def test_a_network_that_changes_nothing_gives_the_pet_back_on_its_grid():
    pet, t1 = head()
    found = denoiser(lambda given, _t1: given).run({"pet": pet, "t1": t1})
    assert found.images[0].voxels.shape == pet.shape
    assert np.corrcoef(found.images[0].voxels.ravel(), pet.voxels.ravel())[0, 1] > 0.97
    values = {one.concept.value: one.value for one in found.measurements}
    assert values["CVBEFORE"] == pytest.approx(values["CVAFTER"], rel=1e-3)
    assert values["MEANCHANGE"] == pytest.approx(0, abs=1e-3)


def test_slabs_of_the_denoiser_are_exact():
    torch.manual_seed(2)
    network = Apetnet().eval()
    rng = np.random.default_rng(6)
    pet, t1 = (rng.random((14, 12, 50)).astype(np.float32) for _ in range(2))
    made = denoiser(network)._denoised(pet, t1)
    by = [float(np.percentile(one, pet_denoise.BRIGHTEST)) for one in (pet, t1)]
    with torch.inference_mode():
        whole = (
            network(*(torch.tensor(one / f)[None, None] for one, f in zip((pet, t1), by, strict=True)))[0, 0] * by[0]
        )
    assert made == pytest.approx(whole.numpy(), abs=1e-5)


def test_a_pet_whose_t1_lies_elsewhere_is_refused():
    pet, t1 = head()
    strange = Volume(t1.voxels, t1.affine + np.eye(4) * 0.5, "MR", {}, "9.9")
    with pytest.raises(Refused, match="frames of reference"):
        denoiser(lambda given, _: given).run({"pet": pet, "t1": strange})
    with pytest.raises(Refused, match="sinogram"):
        denoiser(None.__class__).run(
            {"pet": Volume(pet.voxels, pet.affine, "PT", {"ImageType": "ORIGINAL\\PRIMARY\\SINOGRAM"}), "t1": t1}
        )
