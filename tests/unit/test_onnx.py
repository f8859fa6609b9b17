"""ONNX files: the same answers as the network that was exported, and nothing read outside of the folder."""

from __future__ import annotations

import hashlib
import sys

import numpy as np
import pytest
import torch

from pacs_ai.errors import PipelineFault, Refused
from pacs_ai.models import package
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


def write_conv(folder, *, name="model.onnx", external=""):
    """Write a 3-D convolution of three channels as ONNX; return the same in torch."""
    torch.manual_seed(3)
    network = torch.nn.Conv3d(1, 3, 3, padding=1)
    weight = onnx.numpy_helper.from_array(network.weight.detach().numpy(), "w")
    bias = onnx.numpy_helper.from_array(network.bias.detach().numpy(), "b")
    value = onnx.helper.make_tensor_value_info
    shape = ["n", 1, "z", "y", "x"]
    graph = onnx.helper.make_graph(
        [node("Conv", ["x", "w", "b"], "y", pads=[1] * 6)],
        "net",
        [value("x", onnx.TensorProto.FLOAT, shape)],
        [value("y", onnx.TensorProto.FLOAT, ["n", 3, "z", "y", "x"])],
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
    with pytest.raises(PipelineFault, match=r"pip install pacs_ai\[onnx\]"):
        prepared(tmp_path, SEGMENTATION)
