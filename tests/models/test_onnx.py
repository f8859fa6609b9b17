"""ONNX files: the same answers as the network that was exported, and nothing read outside of the folder."""

from __future__ import annotations

import contextlib
import hashlib
import sys

import numpy as np
import pytest
import torch

from pacs_ai.errors import PipelineFault, Refused
from pacs_ai.models import package
from pacs_ai.models.convert.formats import onnx_graph
from pacs_ai.models.engine.windows import predict
from pacs_ai.pipeline import Frame, Frames, Volume

onnx = pytest.importorskip("onnx", reason="ONNX MISSING: pip install onnx onnxruntime, so no ONNX file was tested here")
pytest.importorskip(
    "onnxruntime", reason="ONNXRUNTIME MISSING: pip install pacs_ai[onnx]; no ONNX file was tested here"
)

CARD = """
name = "net"
version = "1"
manufacturer = "nobody"
title = "Net"
runtime = "onnx"
intended_use = "None: random weights."
procedure = ["25045-6", "LN", "CT unspecified body region"]
licence = "CC0-1.0"
source = "seeded"
"""
SEGMENTATION = """
[inputs.image]
modality = ["CT"]
[labels.1]
name = "Liver"
type = ["10200004", "SCT", "Liver"]
[labels.2]
name = "Spleen"
type = ["78961009", "SCT", "Spleen"]
[settings]
low = -1000.0
high = 1000.0
"""
QUESTIONS = """
[[questions]]
name = "one"
concept = ["60046008", "SCT", "Pleural effusion"]
positive = ["52101004", "SCT", "Present"]
negative = ["272519000", "SCT", "Absent"]
[[questions]]
name = "two"
concept = ["36118008", "SCT", "Pneumothorax"]
positive = ["52101004", "SCT", "Present"]
threshold = 1.0
[inputs.image]
modality = ["DX"]
given = "frames"
[settings]
task = "classification"
activation = "sigmoid"
size = [16, 20]
high = 255.0
"""


def node(kind, inputs, output, **attributes):
    return onnx.helper.make_node(kind, inputs, [output], **attributes)


def write_conv(folder, *, name="model.onnx", external="", seed=3, space=("z", "y", "x"), kind=np.float32):
    """Write a convolution of three channels, 3-D or 2-D by its axes of space, as ONNX; return the same in torch."""
    torch.manual_seed(seed)
    network = (torch.nn.Conv3d if len(space) == 3 else torch.nn.Conv2d)(1, 3, 3, padding=1)
    weight = onnx.numpy_helper.from_array(network.weight.detach().numpy().astype(kind), "w")
    bias = onnx.numpy_helper.from_array(network.bias.detach().numpy().astype(kind), "b")
    value, number = onnx.helper.make_tensor_value_info, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    graph = onnx.helper.make_graph(
        [node("Conv", ["x", "w", "b"], "y", pads=[1] * 2 * len(space))],
        "net",
        [value("x", number, ["n", 1, *space])],
        [value("y", number, ["n", 3, *space])],
        [weight, bias],
    )
    save(folder, graph, name, external)
    return network


def save(folder, graph, name="model.onnx", external=""):
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    folder.mkdir(parents=True, exist_ok=True)
    if external:
        onnx.save_model(model, folder / name, save_as_external_data=True, location=external, size_threshold=0)
    else:
        onnx.save_model(model, folder / name)


def packed(folder, text):
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}
    lines = [f'"{name}" = "{value}"' for name, value in files.items() if name != package.MODEL]
    (folder / package.MODEL).write_text(CARD + text + "[files]\n" + "\n".join(lines))
    return package.read(folder)


def prepared(folder, text):
    pipeline = packed(folder, text).build()
    pipeline.prepare("cpu")
    return pipeline


@pytest.fixture
def volume():
    voxels = np.random.default_rng(0).integers(-900, 900, (10, 26, 30)).astype(np.int16)
    return Volume(voxels, np.diag([2.0, 1.0, 1.0, 1.0]), "CT")


def expected(volume, network, roi=(10, 26, 30)):
    image = torch.from_numpy(((volume.voxels + 1000) / 2000).astype(np.float32))[None, None]
    with torch.no_grad():
        return predict(image, network, roi, 0.5, "gaussian")[0].numpy()


@pytest.mark.parametrize(("more", "roi"), [("", (10, 26, 30)), ("size = [8, 16, 16]\n", (8, 16, 16))])
def test_segmentation_is_that_of_the_network(tmp_path, volume, more, roi):
    network = write_conv(tmp_path)
    findings = prepared(tmp_path, SEGMENTATION + more).run({"image": volume})
    labels = expected(volume, network, roi).argmax(0)
    assert [segment.label for segment in findings.segments] == ["Liver", "Spleen"]
    assert (findings.segments[0].voxels == labels).mean() > 0.999


def test_sigmoid_channels_may_overlap_and_axes_may_be_turned(tmp_path, volume):
    network = write_conv(tmp_path)
    text = SEGMENTATION.replace("labels.2", "labels.3") + 'activation = "sigmoid"\naxes = "csr"\nthreshold = 0.6\n'
    findings = prepared(tmp_path, text).run({"image": volume})
    turned = torch.nn.Conv3d(1, 3, 3, padding=1)
    turned.load_state_dict({"weight": network.weight.transpose(2, 4).clone(), "bias": network.bias})
    probability = 1 / (1 + np.exp(-expected(volume, turned)))
    found = {segment.label: segment.mask for segment in findings.segments}
    for channel, name in ((0, "Liver"), (2, "Spleen")):
        mask = found.get(name, np.zeros(volume.shape, bool))
        assert (mask == (probability[channel] > 0.6)).mean() > 0.999


def test_other_voxels_than_those_received(tmp_path, volume):
    write_conv(tmp_path)
    findings = prepared(tmp_path, SEGMENTATION + "spacing_mm = [2.0, 2.0, 2.0]\n").run({"image": volume})
    assert findings.segments[0].voxels.shape == volume.shape


def test_plane_by_plane(tmp_path, volume):
    network = write_conv(tmp_path, space=("y", "x"))
    findings = prepared(tmp_path, SEGMENTATION + "size = [16, 16]\n").run({"image": volume})
    image = torch.from_numpy(((volume.voxels + 1000) / 2000).astype(np.float32))[:, None]
    with torch.no_grad():
        planes = [predict(plane[None], network, (16, 16), 0.5, "gaussian")[0].numpy() for plane in image]
    assert (findings.segments[0].voxels == np.stack([plane.argmax(0) for plane in planes])).mean() > 0.999


def test_a_size_that_the_file_fixes_is_taken(tmp_path, volume):
    network = write_conv(tmp_path, space=(8, 16, 16))
    findings = prepared(tmp_path, SEGMENTATION).run({"image": volume})
    assert (findings.segments[0].voxels == expected(volume, network, (8, 16, 16)).argmax(0)).mean() > 0.999
    with pytest.raises(PipelineFault, match="leave it out"):
        prepared(tmp_path, SEGMENTATION + "size = [8, 16, 20]\n")


def test_half_precision(tmp_path, volume):
    network = write_conv(tmp_path, kind=np.float16)
    findings = prepared(tmp_path, SEGMENTATION).run({"image": volume})
    assert (findings.segments[0].voxels == expected(volume, network).argmax(0)).mean() > 0.99


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # the exporter's, of torch itself
def test_what_torch_exports_is_what_torch_computes(tmp_path, volume):
    pytest.importorskip("onnxscript", reason="ONNXSCRIPT MISSING: pip install onnxscript, so no export was tested here")
    torch.manual_seed(5)
    network = torch.nn.Sequential(
        torch.nn.Conv3d(1, 6, 3, padding=1), torch.nn.InstanceNorm3d(6, affine=True), torch.nn.LeakyReLU(0.01),
        torch.nn.MaxPool3d(2), torch.nn.Conv3d(6, 6, 1), torch.nn.Upsample(scale_factor=2), torch.nn.Conv3d(6, 3, 1),
    ).eval()  # fmt: skip
    free = {0: torch.export.Dim("n"), **{axis: 2 * torch.export.Dim(f"half{axis}", min=4) for axis in (2, 3, 4)}}
    with contextlib.redirect_stdout(None):
        made = torch.onnx.export(network, (torch.zeros(2, 1, 8, 16, 16),), dynamo=True, dynamic_shapes=(free,))
    made.save(tmp_path / "model.onnx", external_data=True)
    pipeline = prepared(tmp_path, SEGMENTATION + "size = [8, 16, 16]\n")
    found = pipeline.run({"image": volume}).segments[0].voxels
    assert (found == expected(volume, network, (8, 16, 16)).argmax(0)).mean() > 0.999


@pytest.mark.parametrize("external", ["", "weights.bin"])
def test_what_was_compared_is_what_is_loaded(tmp_path, volume, monkeypatch, external):
    """A file that is swapped between the comparison of digests and the loading is not the one that runs."""
    network, real = write_conv(tmp_path, external=external), onnx_graph.parsed

    def swapped(content, name):
        write_conv(tmp_path, seed=9, external=external)
        return real(content, name)

    pipeline = packed(tmp_path, SEGMENTATION).build()
    monkeypatch.setattr(onnx_graph, "parsed", swapped)
    if external:
        with pytest.raises(PipelineFault, match="differs"):
            pipeline.prepare("cpu")
        return
    pipeline.prepare("cpu")
    found = pipeline.run({"image": volume}).segments[0].voxels
    assert (found == expected(volume, network).argmax(0)).mean() > 0.999


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("size = [4]\n", "2 or 3 numbers"),
        ("size = [0, 4]\n", "from 1 on"),
        ("spacing_mm = [1.0, 0.0, 1.0]\n", "spacing_mm.2: Input should be greater than 0"),
        ("std = 0\n", "greater than 0"),
        ('task = "detection"\n', "'segmentation' or 'classification'"),
        ("colour = 1\n", "unknown key"),
    ],
)
def test_settings_are_checked_before_anything_is_loaded(tmp_path, more, words):
    write_conv(tmp_path)
    with pytest.raises(PipelineFault, match=words):
        packed(tmp_path, SEGMENTATION + more).build()


def test_a_range_of_no_width_and_inputs_of_another_kind_are_told(tmp_path):
    write_conv(tmp_path)
    with pytest.raises(PipelineFault, match="`low` must be less than `high`"):
        packed(tmp_path, SEGMENTATION.replace("low = -1000.0", "low = 1000.0")).build()
    frames = SEGMENTATION.replace('modality = ["CT"]', 'modality = ["DX"]\ngiven = "frames"')
    with pytest.raises(PipelineFault, match='takes given = "volume"'):
        packed(tmp_path, frames).build()


def test_an_answer_of_another_size_is_told(tmp_path, volume):
    value = onnx.helper.make_tensor_value_info
    shape = ["n", 1, "z", "y", "x"]
    graph = onnx.helper.make_graph(
        [node("MaxPool", ["x"], "y", kernel_shape=[2, 2, 2], strides=[2, 2, 2])],
        "net",
        [value("x", onnx.TensorProto.FLOAT, shape)],
        [value("y", onnx.TensorProto.FLOAT, ["n", 1, "a", "b", "c"])],
    )
    save(tmp_path, graph)
    with pytest.raises(PipelineFault, match="the image's own size are wanted"):
        prepared(tmp_path, SEGMENTATION).run({"image": volume})


def test_a_graph_of_other_inputs_is_told(tmp_path):
    value = onnx.helper.make_tensor_value_info
    both = [value(name, onnx.TensorProto.FLOAT, ["n", 1, 8, 8]) for name in ("x", "more")]
    graph = onnx.helper.make_graph(
        [node("Add", ["x", "more"], "y")], "net", both, [value("y", onnx.TensorProto.FLOAT, ["n", 1, 8, 8])]
    )
    save(tmp_path, graph)
    with pytest.raises(PipelineFault, match=r"takes x tensor\(float\), more tensor\(float\)"):
        prepared(tmp_path, SEGMENTATION)


def write_classifier(folder):
    """Mean of the image -> two logits, 10 (mean - 0.5) and its opposite."""
    value, tensor = onnx.helper.make_tensor_value_info, onnx.numpy_helper.from_array
    graph = onnx.helper.make_graph(
        [
            node("GlobalAveragePool", ["x"], "m"),
            node("Flatten", ["m"], "f"),
            node("Gemm", ["f", "w", "b"], "y"),
        ],
        "net",
        [value("x", onnx.TensorProto.FLOAT, ["n", 3, 16, 20])],
        [value("y", onnx.TensorProto.FLOAT, ["n", 2])],
        [tensor(np.float32([[10, -10], [0, 0], [0, 0]]), "w"), tensor(np.float32([-5, 5]), "b")],
    )
    save(folder, graph)


def test_classification(tmp_path):
    write_classifier(tmp_path)
    pipeline = prepared(tmp_path, QUESTIONS)
    bright = Frames((Frame(np.full((40, 50), 204, np.uint16), None),), "DX")
    (answer,) = pipeline.run({"image": bright}).classifications
    assert answer.value.meaning == "Present"
    assert answer.probability == pytest.approx(1 / (1 + np.exp(-3)), abs=1e-4)
    colour = Frames((Frame(np.full((40, 50, 3), 51, np.uint8), None),), "DX")
    (answer,) = pipeline.run({"image": colour}).classifications
    assert answer.value.meaning == "Absent"
    both = Frames((*bright.images, *colour.images), "DX")
    (answer,) = pipeline.run({"image": both}).classifications
    assert answer.probability == pytest.approx(0.5, abs=1e-4)  # the mean of both images
    pipeline.release()
    with pytest.raises(PipelineFault, match="before it was prepared"):
        pipeline.run({"image": bright})


def test_weights_beside_are_read_and_weights_elsewhere_refused(tmp_path, volume):
    network = write_conv(tmp_path / "a", external="weights.bin")
    findings = prepared(tmp_path / "a", SEGMENTATION).run({"image": volume})
    assert (findings.segments[0].voxels == expected(volume, network).argmax(0)).mean() > 0.999
    content = (tmp_path / "a" / "model.onnx").read_bytes()
    for elsewhere in (b"../weightsbin", b"/etc/passwdxx", b"unknownxx.bin"):
        folder = tmp_path / elsewhere.strip(b"./").decode().replace("/", "_")
        folder.mkdir()
        (folder / "model.onnx").write_bytes(content.replace(b"weights.bin", elsewhere[:11]))
        (folder / "weights.bin").write_bytes((tmp_path / "a" / "weights.bin").read_bytes())
        with pytest.raises(PipelineFault, match="none of the package's files"):
            prepared(folder, SEGMENTATION)


def test_what_is_no_graph_or_of_another_shape_is_said(tmp_path, volume, monkeypatch):
    write_conv(tmp_path)
    with pytest.raises(PipelineFault, match=r"3 channels, .labels. names number 9"):
        prepared(tmp_path, SEGMENTATION.replace("labels.2", "labels.9")).run({"image": volume})
    pipeline = prepared(tmp_path, SEGMENTATION)
    with pytest.raises(Refused, match="missing"):
        pipeline.run({})
    write_classifier(tmp_path)
    with pytest.raises(PipelineFault, match="refused"):
        prepared(tmp_path, SEGMENTATION).run({"image": volume})
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08\x12\x04xxxx:\x02\x08\x01")
    with pytest.raises(PipelineFault):
        prepared(tmp_path, SEGMENTATION)
    write_conv(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(PipelineFault, match="pip install"):
        prepared(tmp_path, SEGMENTATION)
