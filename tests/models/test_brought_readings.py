"""Readings whose weights their user brings: what they answer, what they refuse, and that public names fit."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pacs_ai.errors import PipelineFault, Refused, UserError
from pacs_ai.models import convert
from pacs_ai.models.convert import lung_nodules, mura
from pacs_ai.models.package import ZOO, Package, read
from pacs_ai.models.readings.answers import answers
from pacs_ai.models.readings.bone import BoneRadiograph, mura_network
from pacs_ai.models.readings.mammography import Mammography, breast, views_of
from pacs_ai.pipeline import Code, Frame, Frames, Question

VIEWS = {"cc_left": ("CC", "L"), "cc_right": ("CC", "R"), "mlo_left": ("MLO", "L"), "mlo_right": ("MLO", "R")}
PRESENT, ABSENT = Code("52101004", "SCT", "Present"), Code("272519000", "SCT", "Absent")


def package(name: str, **settings) -> Package:
    """Return a package of the zoo without the table of the weights that are not there."""
    one = read(ZOO / name)
    changes = {"settings": {**one.model.settings, **settings}, "files": {}}
    return replace(one, model=one.model.model_copy(update=changes))


def prepared(kind, name: str, monkeypatch):
    monkeypatch.setattr(Package, "verify", lambda _: None)  # the recipe's folder is not a package yet
    pipeline = kind(package(name, seed_weights=3))
    pipeline.prepare("cpu")
    return pipeline


def mammogram(view: str, side: str, seed: int = 0, **header: str) -> Frame:
    """A half disc of noise at the chest wall, on the image's side where the breast is."""
    rows, columns = np.mgrid[:120, :80]
    inside = ((rows - 60) / 50) ** 2 + (columns / 60) ** 2 < 1
    pixels = inside * np.random.default_rng(seed).integers(500, 3000, inside.shape)
    if side == "R":
        pixels = pixels[:, ::-1]
    return Frame(pixels.astype(np.uint16), None, {"ViewPosition": view, "ImageLaterality": side, **header})


def study() -> dict[str, Frames]:
    return {name: Frames((mammogram(*stated),), "MG") for name, stated in VIEWS.items()}


def test_four_views_are_answered(monkeypatch):
    pipeline = prepared(Mammography, "mammography", monkeypatch)
    assert "RANDOM WEIGHTS" in pipeline.card.intended_use
    found = pipeline.run(study()).classifications
    by_concept = {one.concept.value: one for one in found}
    assert set(by_concept) == {"129715009", "suspicious-left-breast", "suspicious-right-breast"}
    assert by_concept["129715009"].value.value in {"129716005", "129717001", "129718006", "129719003"}
    assert by_concept["suspicious-left-breast"].probability == pytest.approx(
        by_concept["suspicious-right-breast"].probability, abs=1e-5
    ), "both breasts are the same but for the side, and are turned alike"
    together = Frames(tuple(frames.images[0] for frames in study().values()), "MG")
    assert pipeline.run(dict.fromkeys(VIEWS, together)).classifications == found


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mlo_left": None}, "missing-input: the mediolateral oblique view of the left breast is missing"),
        ({"cc_right": None, "cc_left": None}, "left breast and the craniocaudal view of the right breast are missing"),
        ({"cc_left": mammogram("", "L")}, "view: .* states no View Position"),
        ({"cc_left": mammogram("CC", "")}, "laterality: .* states no Image Laterality"),
        ({"cc_left": mammogram("CC", "L", BreastImplantPresent="YES")}, "out-of-distribution: .* implant"),
        ({"cc_left": mammogram("CC", "R")}, "the craniocaudal view of the left breast is missing"),
        ({"cc_left": mammogram("CC", "L", ViewModifierCodeSequence="Spot Compression")}, "1 images of special views"),
        (
            {"mlo_right": mammogram("MLO", "R", PresentationIntentType="FOR PROCESSING")},
            "or for processing, do not count",
        ),
    ],
)
def test_a_view_that_is_missing_or_unknown_is_named(change, reason):
    given = study()
    for name, frame in change.items():
        if frame is None:
            del given[name]
        else:
            given[name] = Frames((frame,), "MG")
    with pytest.raises(Refused) as raised:
        views_of(given)
    assert re.search(reason, f"{raised.value.reason}: {raised.value}")


def test_special_views_and_raw_images_stand_in_for_no_standard_view():
    given, spot = study(), mammogram("CC", "L", 5, ViewModifierCodeSequence="Spot Compression")
    raw = mammogram("CC", "L", 6, PresentationIntentType="FOR PROCESSING")
    part = mammogram("CC", "L", 7, PartialView="YES")
    (standard,) = given["cc_left"].images
    given["cc_left"] = Frames((standard, spot, raw, part), "MG")
    assert views_of(given)["cc_left"] is standard


def test_a_breast_is_cut_out_turned_and_scaled():
    left, right = (breast(mammogram("CC", side), "cc") for side in ("L", "R"))
    assert np.allclose(left, right)
    assert left.shape == (512, 256)
    assert left.min() == 0.0
    assert 0.95 < left.max() <= 1.0
    assert left[:, :64].mean() > 2 * left[:, -64:].mean(), "the chest wall is on the left"
    with pytest.raises(Refused, match="shows no breast"):
        breast(Frame(np.zeros((50, 40), np.uint16), None), "cc")


@pytest.mark.nightly
def test_bone_is_the_mean_over_views(monkeypatch):
    pipeline = prepared(BoneRadiograph, "bone-radiograph", monkeypatch)
    noise = np.random.default_rng(1)
    views = [Frame(noise.integers(0, 4000, (70, 50)).astype(np.uint16), None) for _ in range(2)]
    chances = []
    for images in ([views[0]], [views[1]], views):
        (answer,) = pipeline.run({"image": Frames(tuple(images), "DX")}).classifications
        assert answer.concept.value == "121402"
        assert answer.value.meaning == ("Abnormal" if answer.probability >= 0.5 else "Normal")
        chances.append(answer.probability)
    assert chances[2] == pytest.approx(np.mean(chances[:2]), abs=1e-6)
    flat = Frames((Frame(np.zeros((50, 50), np.uint16), None),), "DX")
    with pytest.raises(Refused, match="no radiograph"):
        pipeline.run({"image": flat})
    with pytest.raises(Refused, match="21 views"):
        pipeline.run({"image": Frames(tuple(views[:1] * 21), "DX")})


def zeros(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return tensors of the names and shapes of a network that has none itself."""
    with torch.device("cpu"):
        return {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in network.state_dict().items()}


def test_names_of_mura_checkpoints_fit(tmp_path):
    """A checkpoint with torchvision's names and shapes, as a DataParallel module saves it."""
    with torch.device("meta"):
        network = mura_network()
    state = zeros(network)
    public = {
        "module." + name.replace(".layers.", ".").replace("class_layers.out", "classifier"): tensor
        for name, tensor in state.items()
    }
    assert "module.features.denseblock1.denselayer1.norm1.weight" in public
    torch.save({"state_dict": public}, tmp_path / "checkpoint.pt")
    read_back = mura.densenet169(tmp_path, {})
    assert set(read_back) == set(state)
    assert all(read_back[name].shape == tensor.shape for name, tensor in state.items())
    assert mura.name_of("features.denseblock2.denselayer3.conv.2.weight") == (
        "features.denseblock2.denselayer3.layers.conv2.weight"
    )
    with pytest.raises(UserError, match="takes texts as file"):
        convert.convert("mura", tmp_path, {"x": 1})
    torch.save({"weight": torch.zeros(3)}, tmp_path / "checkpoint.pt")
    with pytest.raises(PipelineFault, match="no DenseNet-169"):
        mura.densenet169(tmp_path, {})


class _LayerGetter(torch.nn.ModuleDict):
    """What MONAI takes from torchvision, which is not installed: a trunk's children up to the last wanted."""

    def __init__(self, trunk: torch.nn.Module, return_layers: dict[str, str]) -> None:
        children = dict(trunk.named_children())
        last = max(list(children).index(name) for name in return_layers)
        super().__init__({name: children[name] for name in list(children)[: last + 1]})
        self.return_layers = dict(return_layers)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        found = {}
        for name, module in self.items():
            image = module(image)
            if name in self.return_layers:
                found[self.return_layers[name]] = image
        return found


def monai_s_retinanet(settings, monkeypatch) -> torch.nn.Module:
    """Build the published network of MONAI's own modules, whose names are those of the published checkpoint."""
    from monai.apps.detection.networks.retinanet_network import RetinaNet
    from monai.networks.blocks import backbone_fpn_utils
    from monai.networks.nets import resnet

    getter = SimpleNamespace(_utils=SimpleNamespace(IntermediateLayerGetter=_LayerGetter))
    monkeypatch.setattr(backbone_fpn_utils, "torchvision_models", getter)
    trunk = resnet.ResNet(
        block=resnet.ResNetBottleneck,
        layers=[3, 4, 6, 3],
        block_inplanes=resnet.get_inplanes(),
        n_input_channels=1,
        conv1_t_size=[7, 7, 7],
        conv1_t_stride=list(settings.first_stride),
    )
    extractor = backbone_fpn_utils._resnet_fpn_extractor(trunk, 3, returned_layers=list(settings.layers))
    return RetinaNet(
        spatial_dims=3,
        num_classes=1,
        num_anchors=len(settings.anchors),
        feature_extractor=extractor,
        size_divisible=settings.divisible,
    ).eval()


def test_a_checkpoint_of_monai_s_own_modules_fits_and_answers_alike(tmp_path, monkeypatch):
    from pacs_ai.models.networks import retinanet
    from pacs_ai.models.readings.lesion_settings import LesionSettings

    torch.manual_seed(1)
    settings = LesionSettings()
    theirs, ours = monai_s_retinanet(settings, monkeypatch), retinanet.network(settings).eval()
    state = theirs.state_dict()
    assert len(state) == 190
    assert state["regression_head.bbox_reg.weight"].shape == (18, 256, 3, 3, 3)
    assert not any("layer3" in name for name in state)
    torch.save({"model": {f"network.{name}": tensor for name, tensor in state.items()}}, tmp_path / "model.pt")
    read_back = lung_nodules.retinanet(tmp_path, {})
    assert list(read_back) == list(state)
    ours.load_state_dict(read_back)
    image = torch.rand(1, 1, 32, 32, 16)
    with torch.inference_mode():
        expected, found = theirs(image), ours(image)
    assert found.keys() == expected.keys() == {"classification", "box_regression"}
    for name, levels in expected.items():
        assert [tuple(level.shape) for level in found[name]] == [tuple(level.shape) for level in levels]
        assert all(torch.equal(one, other) for one, other in zip(found[name], levels, strict=True))
    torch.save({"weight": torch.zeros(3)}, tmp_path / "model.pt")
    with pytest.raises(PipelineFault, match="no checkpoint of MONAI's"):
        lung_nodules.retinanet(tmp_path, {})


def question(name: str, threshold: float = 0.5, *, concept: str = "", **keys) -> Question:
    asked = Code(concept or name, "99X", concept or name)
    return Question(name, asked, Code(f"{name}+", "99X", name), threshold=threshold, **keys)


def test_answers():
    asked = (question("a", negative=ABSENT), question("b", 0.7), question("c", reported=False))
    first, *others = answers(asked, [0.4, 0.6, 0.9])
    assert (first.value, first.probability, first.threshold, others) == (ABSENT, 0.4, 0.5, [])
    among = tuple(question(letter, 0.25, concept="density") for letter in "abcd")
    (one,) = answers(among, [0.1, 0.2, 0.6, 0.1])
    assert (one.value.value, one.probability, one.threshold) == ("c+", 0.6, None)
    assert answers(among[:2], [0.1, 0.2]) == ()
    for wrong in ([0.5], [0.5, 1.2, 0.1], [0.5, float("nan"), 0.1]):
        with pytest.raises(PipelineFault, match="probabilities"):
            answers(asked, wrong)


@pytest.mark.parametrize(("kind", "name"), [(Mammography, "mammography"), (BoneRadiograph, "bone-radiograph")])
def test_without_weights_it_says_what_to_do(kind, name, monkeypatch):
    monkeypatch.setattr(Package, "verify", lambda _: None)
    with pytest.raises(PipelineFault, match="your own checkpoint"):
        kind(package(name)).prepare("cpu")
    with pytest.raises(PipelineFault, match="settings of"):
        kind(package(name, nonsense=1))
    for seed in ("3", 1.5, True):
        with pytest.raises(PipelineFault, match="whole number"):
            kind(package(name, seed_weights=seed))
    with pytest.raises(PipelineFault, match="before it was prepared"):
        kind(package(name)).run({})


@pytest.mark.nightly
def test_real_mammograms(shared_data, monkeypatch):
    """Both craniocaudal views of one real study; they stand in for the oblique ones, which the collection has apart."""
    import pydicom

    folder = shared_data / "mg_cbis_ddsm_malign"
    given = {}
    for path in sorted(folder.glob("*.dcm")):
        ds = pydicom.dcmread(path)
        for view in ("CC", "MLO"):
            header = {"ViewPosition": view, "ImageLaterality": str(ds.Laterality)}
            name = f"{view.lower()}_{'left' if ds.Laterality == 'L' else 'right'}"
            given[name] = Frames((Frame(ds.pixel_array, None, header),), "MG")
    for name, frames in given.items():
        plane = breast(frames.images[0], name)
        assert plane[:, :64].mean() > plane[:, -64:].mean(), "the chest wall is on the left"
    found = prepared(Mammography, "mammography", monkeypatch).run(given)
    assert len(found.classifications) == 3
