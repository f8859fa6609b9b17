"""A small bundle whose right answer is known: its network says 1 where the voxel is over 100, 2 where over 200."""

from __future__ import annotations

import copy
import itertools
import json
import os
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pacs_ai.errors import OutOfResources, PipelineFault, Refused
from pacs_ai.models.bundle import BundleSpec, MonaiBundle
from pacs_ai.models.digest import digests, verify
from pacs_ai.models.engine import processor
from pacs_ai.pipeline import ANATOMICAL_STRUCTURE, Code, Findings, Input, Label, Volume

if TYPE_CHECKING:
    from pathlib import Path

LOW = Label("low", ANATOMICAL_STRUCTURE, Code("1", "99X", "low"))
HIGH = Label("high", ANATOMICAL_STRUCTURE, Code("2", "99X", "high"))
LABELS = {1: LOW, 2: HIGH}
METADATA = {
    "name": "Thresholds",
    "version": "1",
    "authors": "us",
    "network_data_format": {
        "inputs": {"image": {"modality": "CT", "channel_def": {"0": "image"}}},
        "outputs": {"pred": {"type": "image", "format": "segmentation", "num_channels": 3}},
    },
}
LOAD = {"_target_": "LoadImaged", "keys": "image"}
FIRST = {"_target_": "EnsureChannelFirstd", "keys": "image"}
RAS = {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}
SPACING = {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 1.5], "mode": "bilinear"}
INVERT = {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"}
ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
SAVE = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "$@bundle_root + '/eval'"}
CONFIG: dict[str, Any] = {
    "imports": ["$import glob"],
    "bundle_root": "/nowhere",
    "datalist": "$1 / 0",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3, "kernel_size": 1},
    "network": "$@network_def.to(@device)",
    "preprocessing": {"_target_": "Compose", "transforms": [LOAD, FIRST, RAS]},
    "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset"},
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [8, 8, 8], "overlap": 0.5},
    "postprocessing": {"_target_": "Compose", "transforms": [INVERT, ARGMAX, SAVE]},
    "checkpointloader": {
        "_target_": "CheckpointLoader",
        "load_path": "$@bundle_root + '/models/model.pt'",
        "load_dict": {"model": "@network"},
    },
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        "device": "@device",
        "val_data_loader": "@dataloader",
        "network": "@network",
        "inferer": "@inferer",
        "postprocessing": "@postprocessing",
        "amp": True,
    },
    "initialize": ["$1 / 0"],
    "run": ["$1 / 0"],
}


def thresholds(channels: int = 1):
    """Weights: background 0, low x - 100 (x: sum of channels), high 2x - 300, which is over low from 200 on."""
    import torch

    weight = torch.tensor([0.0, 1.0, 2.0])[:, None].repeat(1, channels)[:, :, None, None, None]
    return {"weight": weight, "bias": torch.tensor([0.0, -100.0, -300.0])}


@pytest.fixture
def make(tmp_path):
    """Write the bundle with changes to its configuration (id -> value) and return its folder."""
    import torch

    def write(changes: dict | None = None, state: Any = None, name: str = "bundle", metadata: Any = None) -> Path:
        folder = tmp_path / name
        (folder / "configs").mkdir(parents=True)
        (folder / "models").mkdir()
        config = copy.deepcopy(CONFIG)
        for item, value in (changes or {}).items():
            *parents, last = item.split("#")
            place = config
            for parent in parents:
                place = place[parent]
            place[last] = value
        (folder / "configs/inference.json").write_text(json.dumps(config))
        (folder / "configs/metadata.json").write_text(json.dumps(metadata or METADATA))
        if state is not False:
            torch.save(thresholds() if state is None else state, folder / "models/model.pt")
        return folder

    return write


def prepared(folder: Path, **keys) -> MonaiBundle:
    pipeline = MonaiBundle(BundleSpec(folder, digests(folder), **{"labels": LABELS, **keys}))
    pipeline.prepare("cpu")
    return pipeline


def volume(affine=None, shape=(5, 7, 9), seed=0) -> Volume:
    voxels = np.random.default_rng(seed).integers(0, 301, shape).astype(np.int16)
    voxels[voxels % 100 == 0] += 1
    if affine is None:
        affine = np.array([[0, 0, 0.8, -10], [0, 0.7, 0, -20], [2.0, 0, 0, 30], [0, 0, 0, 1]])
    return Volume(voxels, np.asarray(affine, dtype=np.float64), "CT")


def truth(voxels) -> np.ndarray:
    return (voxels > 100).astype(int) + (voxels > 200)


def label_map(findings: Findings) -> np.ndarray:
    return sum(segment.mask * {"low": 1, "high": 2}[segment.label] for segment in findings.segments)


def turned_affines():
    """All 48 ways in which the axes of a grid can run along the patient's, with unequal spacing, and two oblique."""
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            affine = np.eye(4)
            for column, (axis, sign, spacing) in enumerate(zip(axes, signs, (2.0, 0.7, 0.8), strict=True)):
                affine[:3, column] = 0
                affine[axis, column] = sign * spacing
            affine[:3, 3] = (11, -7, 23)
            yield affine
    for angle in (0.3, 1.1):
        turn = np.eye(4)
        turn[:3, :3] = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
        tilt = np.eye(4)
        tilt[1:3, 1:3] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
        yield turn @ tilt @ np.array([[0, 0, 0.8, 1], [0, 0.7, 0, 2], [2.0, 0, 0, 3], [0, 0, 0, 1]])


@pytest.mark.parametrize("post", [[INVERT, ARGMAX], [ARGMAX]], ids=["inverted", "left in the bundle's orientation"])
def test_every_orientation_comes_back_exactly(make, post):
    pipeline = prepared(make({"postprocessing#transforms": post}))
    for affine in turned_affines():
        source = volume(affine)
        assert np.array_equal(label_map(pipeline.run({"image": source})), truth(source.voxels)), affine


def test_windows_are_compiled_and_their_memory_is_given_back_after_each_series(make, monkeypatch):
    released = []
    whole = processor.Program.release
    monkeypatch.setattr(processor.Program, "release", lambda self: (released.append(self), whole(self)))
    pipeline, source = prepared(make()), volume()
    for count in (1, 2):
        assert np.array_equal(label_map(pipeline.run({"image": source})), truth(source.voxels))
        assert len(released) == count
    assert released[0] is released[1], "compiled once"


def test_the_volume_reaches_the_bundle_in_its_orientation(make):
    """The network looks one voxel to the patient's left: a flipped or transposed volume would look elsewhere."""
    import torch

    weight = torch.zeros(3, 1, 3, 3, 3)
    weight[1, 0, 0, 1, 1], weight[2, 0, 0, 1, 1] = 1.0, 2.0  # index - 1 along R->L reversed: RAS counts to the right
    state = {"weight": weight, "bias": thresholds()["bias"]}
    network = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3, "kernel_size": 3, "padding": 1}
    pipeline = prepared(make({"network_def": network, "inferer": {"_target_": "SimpleInferer"}}, state))
    for affine in list(turned_affines())[:48]:
        source = volume(affine)
        lefts = np.argmax(np.abs(affine[0, :3]))
        step = 1 if affine[0, lefts] > 0 else -1
        shifted = np.roll(source.voxels, -step, axis=lefts)
        edge = [slice(None)] * 3
        edge[lefts] = -1 if step > 0 else 0
        shifted[tuple(edge)] = 0
        assert np.array_equal(label_map(pipeline.run({"image": source})), truth(shifted)), affine


def test_orientation_of_the_configuration(make):
    seen = {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x * 0 + torch.sign(x.affine[0, 0]) * 150"}
    folder = make({"preprocessing#transforms": [LOAD, FIRST, seen], "postprocessing#transforms": [ARGMAX]})
    for affine in list(turned_affines())[:48:7]:
        source = volume(affine)
        assert prepared(folder, orientation="LPS").run({"image": source}).segments == ()
        (everywhere,) = prepared(folder, orientation="RAS").run({"image": source}).segments
        assert everywhere.voxels.shape == source.voxels.shape
        assert everywhere.mask.all()


@pytest.mark.parametrize("post", [[INVERT, ARGMAX], [ARGMAX]], ids=["inverted", "resampled by the node"])
def test_resampling_bundles_give_the_source_grid(make, post):
    pipeline = prepared(
        make({"preprocessing#transforms": [LOAD, FIRST, RAS, SPACING], "postprocessing#transforms": post})
    )
    place = np.indices((12, 30, 26)).transpose(1, 2, 3, 0)
    ball = np.linalg.norm((place - (5, 12, 16)) * (2.0, 0.7, 0.8), axis=-1) < 6
    source = volume(shape=ball.shape)
    source = Volume(np.where(ball, 180, 0).astype(np.int16), source.affine, "CT")
    found = label_map(pipeline.run({"image": source})) == 1
    assert found.shape == ball.shape
    dice = 2 * (found & ball).sum() / (found.sum() + ball.sum())
    assert dice > 0.9
    centre = np.argwhere(found).mean(axis=0) - np.argwhere(ball).mean(axis=0)
    assert np.abs(centre * (2.0, 0.7, 0.8)).max() < 0.5


def test_several_channels_become_masks_of_their_own(make):
    onehot = {**ARGMAX, "to_onehot": 3}
    source = volume()
    folder = make({"postprocessing#transforms": [INVERT, onehot]})
    findings = prepared(folder).run({"image": source})
    assert [segment.voxels.dtype for segment in findings.segments] == [np.bool_, np.bool_]
    assert np.array_equal(label_map(findings), truth(source.voxels))
    with pytest.raises(PipelineFault, match="3 channels, but the labels name channel 7"):
        prepared(folder, labels={7: LOW}).run({"image": source})


def test_sigmoid_channels_may_overlap(make):
    post = [{"_target_": "Activationsd", "keys": "pred", "sigmoid": True}, INVERT]
    post.append({"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5})
    source = volume()
    findings = prepared(make({"postprocessing#transforms": post})).run({"image": source})
    low, high = findings.segments
    assert np.array_equal(low.mask, source.voxels > 100)
    assert np.array_equal(high.mask, source.voxels >= 150)


def test_values_between_labels_are_refused(make):
    post = [{"_target_": "Activationsd", "keys": "pred", "softmax": True}]
    with pytest.raises(PipelineFault, match="values between labels"):
        prepared(make({"postprocessing#transforms": post})).run({"image": volume()})


def test_labels_that_do_not_occur_are_left_out(make):
    source = Volume(np.zeros((4, 4, 4), np.int16), volume().affine, "CT")
    assert prepared(make()).run({"image": source}).segments == ()


def test_a_label_zero_of_a_label_map_is_refused(make):
    with pytest.raises(PipelineFault, match="in which 0 is the background"):
        prepared(make(), labels={0: LOW, 1: HIGH}).run({"image": volume()})


def test_series_on_other_grids_are_brought_onto_the_first(make):
    """Intensity is a plane in space, so that linear resampling is exact; the sum of both decides."""
    network = {"_target_": "torch.nn.Conv3d", "in_channels": 2, "out_channels": 3, "kernel_size": 1}
    folder = make({"network_def": network, "preprocessing#transforms": [LOAD, RAS]}, thresholds(2))
    inputs = {"a": Input(("CT",)), "b": Input(("CT",))}
    pipeline = prepared(folder, inputs=inputs)

    def plane(affine, shape):
        place = np.tensordot(affine, np.concatenate([np.indices(shape), np.ones((1, *shape))]), axes=1)
        return Volume((3.0 * place[0] + 5.0 * place[1] + 2.0 * place[2]).astype(np.float32), affine, "CT")

    first = plane(np.array([[0, 0, 1.0, 2], [0, 1.0, 0, 3], [2.0, 0, 0, 4], [0, 0, 0, 1]]), (4, 5, 6))
    other = plane(np.array([[0, -0.7, 0, 9], [0, 0, 0.9, -2], [1.5, 0, 0, 0], [0, 0, 0, 1]]), (12, 16, 14))
    findings = pipeline.run({"a": first, "b": other})
    assert findings.grid == "a"
    expected = truth(2 * first.voxels)
    assert 0 < expected.mean() < 2
    assert np.mean(label_map(findings) == expected) > 0.99
    far = other.affine.copy()
    far[:3, 3] += 500
    with pytest.raises(Refused, match="the series b and a show different places"):
        pipeline.run({"a": first, "b": Volume(other.voxels, far, "CT")})


def test_a_key_per_input(make):
    """The bundle loads "venous" and "late" by name and joins them itself."""
    network = {"_target_": "torch.nn.Conv3d", "in_channels": 2, "out_channels": 3, "kernel_size": 1}
    keys = ["venous", "late"]
    steps = [{**LOAD, "keys": [*keys, "label"]}, {**FIRST, "keys": keys}, {**RAS, "keys": keys}]
    steps.append({"_target_": "ConcatItemsd", "keys": keys, "name": "image"})
    post = [{**INVERT, "orig_keys": "venous"}, ARGMAX]
    state = thresholds(2)
    state["weight"][:, 1] = 0  # only "venous" decides
    folder = make({"network_def": network, "preprocessing#transforms": steps, "postprocessing#transforms": post}, state)
    pipeline = prepared(folder, inputs={"late": Input(("CT",)), "venous": Input(("CT",))})
    late, venous = volume(seed=1), volume(seed=2)
    findings = pipeline.run({"late": late, "venous": venous})
    assert findings.grid == "late"
    assert np.array_equal(label_map(findings), truth(venous.voxels))


def test_INF_04_missing_inputs_and_no_numbers_are_refused(make):
    pipeline = prepared(make())
    with pytest.raises(Refused, match="the series image is missing"):
        pipeline.run({})
    source = volume()
    voxels = source.voxels.astype(np.float32)
    voxels[1, 2, 3] = np.nan
    with pytest.raises(Refused, match="no numbers"):
        pipeline.run({"image": Volume(voxels, source.affine, "CT")})
    with pytest.raises(Refused, match="is no volume"):
        pipeline.run({"image": Volume(voxels[0], source.affine, "CT")})


def test_INF_04_a_network_that_returns_no_numbers_is_a_fault(make):
    state = thresholds()
    state["bias"][0] = float("nan")
    with pytest.raises(PipelineFault, match="would pass for background"):
        prepared(make(state=state)).run({"image": volume()})


class Payload:
    """Executed by whoever unpickles it."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("container", ["torch", "pickle"])
def test_a_payload_in_the_weights_is_not_executed(make, tmp_path, container):
    mark = tmp_path / "executed"
    state = {**thresholds(), "x": Payload(str(mark))}
    folder = make(state=False)
    if container == "torch":
        import torch

        torch.save(state, folder / "models/model.pt")
    else:
        (folder / "models/model.pt").write_bytes(pickle.dumps(Payload(str(mark))))
    with pytest.raises(PipelineFault, match="more than tensors"):
        prepared(folder)
    assert not mark.exists()


@pytest.mark.parametrize("state", [{"weight": [1]}, {}, [1, 2]])
def test_weights_that_do_not_fit(make, state):
    with pytest.raises(PipelineFault, match=r"load|no state dict"):
        prepared(make(state=state))


def test_damaged_weights(make):
    folder = make()
    (folder / "models/model.pt").write_bytes((folder / "models/model.pt").read_bytes()[:200])
    with pytest.raises(PipelineFault):
        prepared(folder)


def test_missing_weights_say_where_to_find_them(make):
    with pytest.raises(PipelineFault, match=r"no weights \(\S+models/model\.pt\): fetch them"):
        prepared(make(state=False))


def test_weights_outside_of_the_folder_are_not_read(make, tmp_path):
    folder = make(state=False)
    make(name="other")
    with pytest.raises(PipelineFault, match="no weights"):
        prepared(folder, weights="../other/models/model.pt")


def test_weights_under_the_checkpoint_loaders_key(make):
    source = volume()
    findings = prepared(make(state={"model": thresholds(), "epoch": 3})).run({"image": source})
    assert np.array_equal(label_map(findings), truth(source.voxels))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript(make):
    import torch

    folder = make(state=False)
    network = torch.nn.Conv3d(1, 3, 1)
    network.load_state_dict(thresholds())
    torch.jit.trace(network, torch.zeros(1, 1, 4, 4, 4)).save(folder / "models/model.ts")
    source = volume()
    assert np.array_equal(label_map(prepared(folder).run({"image": source})), truth(source.voxels))


def test_nothing_is_written_and_the_evaluator_never_runs(make):
    folder = make()
    table = digests(folder)
    prepared(folder).run({"image": volume()})
    verify(folder, table)


def test_yaml_and_another_name(make):
    import yaml

    folder = make()
    config = json.loads((folder / "configs/inference.json").read_text())
    (folder / "configs/inference.json").unlink()
    (folder / "configs/predict.yaml").write_text(yaml.safe_dump(config))
    source = volume()
    pipeline = prepared(folder, config="configs/predict.yaml")
    assert np.array_equal(label_map(pipeline.run({"image": source})), truth(source.voxels))
    with pytest.raises(PipelineFault, match="name its inference configuration"):
        prepared(folder)


def test_two_bundles_each_import_their_own_scripts(make):
    """Both call their package `scripts`, as the zoo's do; imports inside of functions happen while running."""
    pipelines = []
    for name, factor in (("one", 1), ("two", 2)):
        folder = make({"preprocessing#transforms": [LOAD, FIRST, {"_target_": "scripts.scale.Scaled"}]}, name=name)
        (folder / "scripts").mkdir()
        (folder / "scripts/factor.py").write_text(f"FACTOR = {factor}\n")
        (folder / "scripts/scale.py").write_text(
            "class Scaled:\n    def __call__(self, data):\n        from scripts.factor import FACTOR\n"
            "        return {**data, 'image': data['image'] * FACTOR}\n"
        )
        pipelines.append(prepared(folder))
        verify(folder, digests(folder))
    source = volume()
    for _ in range(2):
        for factor, pipeline in enumerate(pipelines, start=1):
            found = label_map(pipeline.run({"image": source}))
            assert np.array_equal(found, truth(source.voxels.astype(int) * factor))
    assert not list(folder.rglob("__pycache__"))


def test_overrides(make):
    source = volume()
    folder = make()
    plain = prepared(folder, overrides={"inferer#roi_size": [4, 4, 4], "inferer::device": "cpu"})
    assert np.array_equal(label_map(plain.run({"image": source})), truth(source.voxels))
    with pytest.raises(PipelineFault, match="names 'inferrer#roi_size'"):
        prepared(folder, overrides={"inferrer#roi_size": [4, 4, 4]})


def test_every_device_of_the_configuration_is_the_workers(make):
    """A device that does not exist here would break the bundle if one of its own choices were left."""
    folder = make(
        {
            "device": "$torch.device('cuda:5')",
            "inferer#device": "$torch.device('cuda:5')",
            "inferer#sw_device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
            "network": "$@network_def.to(torch.device('cpu'))",
        }
    )
    source = volume()
    assert np.array_equal(label_map(prepared(folder).run({"image": source})), truth(source.voxels))


def test_too_little_memory_is_said_before_it_is_used(make):
    pipeline = prepared(make(), memory_limit_gb=1e-6)
    with pytest.raises(OutOfResources, match="AsDiscreted comes before Invertd"):
        pipeline.run({"image": volume()})


def test_memory_that_runs_out_is_no_fault_of_the_bundle(make):
    steps = [LOAD, FIRST, {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: torch.empty(1 << 50)"}]
    with pytest.raises(OutOfResources, match="larger device"):
        prepared(make({"preprocessing#transforms": steps})).run({"image": volume()})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"evaluator#_target_": "scripts.evaluator.Own"}, "evaluator of its own"),
        ({"preprocessing#transforms": [FIRST]}, "begins with no LoadImaged"),
        ({"network": "$1 / 0"}, "ZeroDivisionError"),
        ({"network": 5}, "has no network"),
        ({"network_def#_target_": "monai.networks.nets.NoSuchNet"}, "NoSuchNet"),
        ({"preprocessing#transforms": [LOAD, {"_target_": "scripts.absent.X"}]}, "scripts"),
        ({"evaluator#network": "@nothing"}, "nothing"),
        ({"evaluator#inferer": "@other", "other": "@evaluator#inferer"}, "refers to itself"),
    ],
)
def test_what_cannot_be_built_says_why(make, changes, reason):
    with pytest.raises(PipelineFault, match=reason):
        prepared(make(changes))


@pytest.mark.parametrize(
    ("post", "reason"),
    [
        ([{"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x['no']"}], "broke while running"),
        ([{"_target_": "ToNumpyd", "keys": "pred"}], "no MetaTensor"),
        ([{"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x[None]"}], "returns 5 axes"),
        ([{"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x * 0 + 2"}], "values other than 0 and 1"),
        ([{"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x[:1] * 0 - 1"}], "values between labels"),
    ],
)
def test_a_result_that_is_none_says_why(make, post, reason):
    with pytest.raises(PipelineFault, match=reason):
        prepared(make({"postprocessing#transforms": post})).run({"image": volume()})


def test_seeded_weights_are_the_same_each_time_and_leave_the_generator_alone(make):
    import torch

    folder = make(state=False)
    source = volume()
    source = Volume(source.voxels / np.float32(300) - np.float32(0.5), source.affine, "CT")
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    first, again, other = (label_map(prepared(folder, seed_weights=seed).run({"image": source})) for seed in (4, 4, 5))
    assert torch.equal(torch.rand(1), expected)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
