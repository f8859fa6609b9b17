"""The inference engine: MONAI's windows to 1e-4, labels as by full interpolation, and memory that runs out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference

from pacs_ai.errors import OutOfResources, PipelineFault
from pacs_ai.models.engine import memory, precision, tiling
from pacs_ai.models.engine.labels import LabelMap
from pacs_ai.models.engine.resample import Grids, operator, resampled, separate_axis
from pacs_ai.models.engine.windows import Runner, predict, slabs


class Net(torch.nn.Module):
    """Two convolutions with a normalisation between them, so that a window's result hangs on all of the window."""

    def __init__(self, dimensions=3, channels=2, classes=5):
        super().__init__()
        torch.manual_seed(0)
        convolution = {2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[dimensions]
        normalisation = {2: torch.nn.InstanceNorm2d, 3: torch.nn.InstanceNorm3d}[dimensions]
        self.layers = torch.nn.Sequential(
            convolution(channels, 6, 3, padding=1), normalisation(6), torch.nn.ReLU(), convolution(6, classes, 1)
        )

    def forward(self, x):
        return self.layers(x)


def seeded(*shape):
    return torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype(np.float32))


@pytest.mark.parametrize(
    ("roi", "overlap", "mode", "batch", "padding"),
    [
        ((16, 24, 32), 0.25, "gaussian", 3, "constant"),
        ((48, 24, 32), 0.5, "constant", 1, "replicate"),
        ((16, 64, 0), (0.6, 0.1, 0.0), "gaussian", 2, "constant"),
    ],
)
@torch.no_grad()
def test_windows_are_monai_s(roi, overlap, mode, batch, padding):
    image, network = seeded(2, 2, 37, 50, 41), Net().eval()
    monai_roi = [size or None for size in roi]
    expected = sliding_window_inference(
        image, monai_roi, batch, network, overlap=overlap, mode=mode, padding_mode=padding
    )
    found = predict(image, network, roi, overlap, mode, 0.125, batch, padding_mode=padding)
    assert torch.allclose(found, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_windows_of_images_are_monai_s():
    image, network = seeded(1, 3, 61, 50), Net(2, 3).eval()
    expected = sliding_window_inference(image, (32, 32), 4, network, overlap=0.5, mode="gaussian")
    assert torch.allclose(predict(image, network, 32, 0.5, "gaussian"), expected, atol=1e-4, rtol=0)


def test_INF_07_the_same_bytes_again_and_within_1e_5_with_other_neighbours():
    image, network = seeded(1, 2, 30, 40, 40), Net().eval()
    alone = predict(image, network, 16, 0.5, "gaussian", sw_batch_size=1)
    assert predict(image, network, 16, 0.5, "gaussian", sw_batch_size=1).numpy().tobytes() == alone.numpy().tobytes()
    both = predict(torch.cat([image, image.flip(2)]), network, 16, 0.5, "gaussian", sw_batch_size=1)
    assert both[:1].numpy().tobytes() == alone.numpy().tobytes()
    batched = predict(image, network, 16, 0.5, "gaussian", sw_batch_size=7)
    assert torch.allclose(batched, alone, atol=1e-5, rtol=0)
    best = alone.topk(2, dim=1).values
    clear = best[:, 0] - best[:, 1] > 2e-5
    assert clear.float().mean() > 0.99
    assert torch.equal(batched.argmax(1)[clear], alone.argmax(1)[clear])


def test_a_network_of_planes_goes_through_a_volume():
    image, network = seeded(1, 7, 20, 24), Net(2, 1).eval()
    tiles = tiling.Tiling((7, 20, 24), (1, 20, 24), (tuple(range(7)), (0,), (0,)))
    runner = Runner([network], torch.device("cpu"))
    found = torch.cat([planes.clone() for _, planes in slabs(image, runner, tiles, torch.ones(1, 20, 24))], 1)
    with torch.no_grad():
        expected = network(image.transpose(0, 1)).transpose(0, 1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_network_that_returns_no_image_is_a_fault():
    for network in (lambda x: [x], lambda x: x[..., ::2]):
        with pytest.raises(PipelineFault, match="no single image of its input's size"):
            predict(seeded(1, 1, 8, 8, 8), network, 8)


# -- memory


def test_INF_05_batches_shrink_when_memory_runs_out():
    network, image = Net().eval(), seeded(1, 2, 16, 40, 40)
    seen = []

    def hungry(windows):
        seen.append(len(windows))
        if len(windows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return network(windows)

    runner = Runner([hungry], torch.device("cpu"), batch=8)
    tiles = tiling.even((16, 40, 40), (16, 16, 16), (0.5,) * 3)
    planes = [planes.clone() for _, planes in slabs(image[0], runner, tiles, torch.ones(16, 16, 16))]
    assert seen[:3] == [8, 4, 2]
    assert runner.told
    expected = predict(image, network, 16, 0.5)
    assert torch.allclose(torch.cat(planes, 1), expected[0], atol=1e-5)


def test_what_is_not_for_want_of_memory_is_raised():
    def broken(_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    def starved(_):
        raise MemoryError

    with pytest.raises(RuntimeError, match="mat1"):
        predict(seeded(1, 1, 8, 8, 8), broken, 8)
    with pytest.raises(MemoryError):
        predict(seeded(1, 1, 8, 8, 8), starved, 8)


def test_windows_get_shorter_before_memory_runs_out():
    assert memory.fit_window((128, 128, 128), (400, 300, 300), 104, None, (32,) * 3) == (128, 128, 128)
    need = 4.0 * 104 * 128 * 300 * 300
    assert memory.fit_window((128, 128, 128), (400, 300, 300), 104, 0.7 * need, (32,) * 3) == (64, 128, 128)
    with pytest.raises(OutOfResources, match="104 channels of 300 x 300"):
        memory.fit_window((128, 128, 128), (400, 300, 300), 104, 0.1 * need, (32,) * 3)


def test_a_job_that_cannot_fit_is_refused_before_it_begins():
    memory.check_room(1e6, torch.device("cpu"), "a series")
    with pytest.raises(OutOfResources, match=r"a series needs 931322\.6 GB"):
        memory.check_room(1e15, torch.device("cpu"), "a series")


def test_memory_is_measured_and_given_back():
    """By a block so large that what the system itself takes from a process, or brings back, does not matter."""
    device = torch.device("cpu")
    memory.release(device)
    before = memory.resident_bytes()
    memory.reset_peak()
    block = np.ones(400_000_000, np.uint8)
    del block
    memory.release(device)
    assert memory.peak_bytes() - before > 200e6
    assert memory.resident_bytes() - before < 100e6
    assert memory.free_bytes(device) > 0


def test_bf16_is_for_processors_that_have_it(tmp_path):
    table = tmp_path / "cpuinfo"
    table.write_text("flags\t\t: fpu avx2 avx512f\n")
    assert not precision.cpu_has_bf16(table)
    table.write_text("flags\t\t: fpu avx2 avx512_bf16 amx_tile\n")
    assert precision.cpu_has_bf16(table)
    assert not precision.cpu_has_bf16(tmp_path / "none")
    cpu = torch.device("cpu")
    assert precision.chosen("auto", cpu) == torch.float32
    assert precision.chosen("bf16", cpu) == (torch.bfloat16 if precision.cpu_has_bf16() else torch.float32)
    network = Net()
    assert precision.compiled(network, cpu) is network


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="NO NVIDIA GPU: mixed precision and CUDA graphs not tested")
def test_mixed_precision_on_a_gpu_is_close():
    device = torch.device("cuda")
    image, plain = seeded(1, 2, 40, 50, 50), Net().eval()
    expected = predict(image, plain, 32, 0.5, "gaussian")
    network = precision.arranged(Net(), device)
    mixed = predict(image.to(device), network, 32, 0.5, "gaussian", precision="auto").cpu()
    assert (mixed.argmax(1) == expected.argmax(1)).float().mean() > 0.995
    again = predict(image, precision.arranged(Net(), device), 32, 0.5, "gaussian", device=device, precision="fp32")
    assert torch.allclose(again, expected, atol=1e-2)


# -- resampling and labels


@pytest.mark.parametrize("new", [(33, 40, 30), (12, 31, 50), (20, 31, 44)])
@pytest.mark.parametrize("order", [1, 3])
def test_resampling_is_that_of_splines_voxel_by_voxel(new, order):
    voxels = seeded(20, 31, 44).numpy()
    zoomed = scipy.ndimage.zoom(
        voxels.astype(float), np.divide(new, voxels.shape), order=order, mode="nearest", grid_mode=True
    ).clip(voxels.min(), voxels.max())
    assert np.abs(resampled(voxels, Grids(voxels.shape, new, (order,) * 3)) - zoomed).max() < 1e-4


def test_thick_slices_are_resampled_each_on_its_own():
    voxels = seeded(4, 20, 20).numpy()
    found = resampled(voxels, Grids((4, 20, 20), (7, 30, 30), (0, 3, 3)))
    for k, source in enumerate((0, 0, 1, 2, 2, 3, 3)):
        plane = scipy.ndimage.zoom(voxels[source].astype(float), 1.5, order=3, mode="nearest", grid_mode=True)
        assert np.abs(found[k] - plane.clip(voxels[source].min(), voxels[source].max())).max() < 1e-4


def test_the_coarse_axis_is_nnu_net_s():
    assert separate_axis((5, 1, 1), (1, 1, 1)) == 0
    assert separate_axis((1, 1, 1), (1, 1, 4)) == 2
    assert separate_axis((3, 1, 1), (1, 1, 1)) is None
    assert separate_axis((0.2, 1.2, 1.2), (1, 1, 1)) is None


_SIZES = st.tuples(*[st.integers(1, 24)] * 3)


@settings(max_examples=40, deadline=None)
@given(
    old=_SIZES,
    new=_SIZES,
    orders=st.sampled_from([(1, 1, 1), (0, 1, 1)]),
    channels=st.integers(1, 6),
    regions=st.booleans(),
    smooth=st.booleans(),
    cut=st.lists(st.integers(1, 23), max_size=3),
)
def test_labels_from_slabs_are_those_of_full_interpolation(old, new, orders, channels, regions, smooth, cut):
    output = np.random.default_rng(1).normal(size=(channels, *old))
    if smooth:
        output = scipy.ndimage.gaussian_filter(output, (0, 3, 3, 3)) * 50
    output = output.astype(np.float32)
    grids, full = Grids(old, new, orders), output.astype(float)
    for axis in range(3):
        full = np.moveaxis(np.tensordot(grids.matrix(axis), full, (1, axis + 1)), 0, axis + 1)
    label_map = LabelMap(grids, tuple(range(1, channels + 1)) if regions else None, channels + 1)
    edges = sorted({0, old[0], *(one for one in cut if one < old[0])})
    for start, stop in itertools.pairwise(edges):
        label_map.take(torch.from_numpy(output[:, start:stop]))
    if regions:
        expected = np.zeros(new, int)
        for channel in range(channels):
            expected[full[channel] > 0] = channel + 1
        doubtful = np.abs(full).min(0) < 1e-4
    else:
        expected = full.argmax(0)
        ranked = np.sort(full, 0)
        doubtful = ranked[-1] - ranked[-2] < 1e-4 if channels > 1 else np.zeros(new, bool)
    assert ((label_map.labels == expected) | doubtful).all()


def test_more_labels_than_a_byte_holds():
    output = torch.zeros(300, 2, 3, 3)
    output[299] = 1
    label_map = LabelMap(Grids((2, 3, 3), (4, 6, 6), (1, 1, 1)), None, 300)
    label_map.take(output)
    assert label_map.labels.dtype == np.uint16
    assert (label_map.labels == 299).all()


def test_an_operator_of_one_voxel_repeats_it():
    assert np.allclose(operator(1, 5, 3), 1)
    assert np.allclose(operator(7, 3, 0).sum(1), 1)
