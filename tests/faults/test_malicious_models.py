"""Models that were made to harm (MOD-01 to MOD-09): none executes anything, each is refused in a sentence of use."""

from __future__ import annotations

import ast
import gzip
import io
import json
import os
import pickle
import random
import socket
import struct
import sys
import tarfile
import textwrap
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.numpy import save as safetensors_bytes

from pacs_ai import config
from pacs_ai.errors import PacsAiError, PipelineFault, UserError
from pacs_ai.infer.bench import Bench
from pacs_ai.infer.order import Ready
from pacs_ai.models import convert
from pacs_ai.models import install as installing
from pacs_ai.models.convert.formats import onnx_graph
from pacs_ai.models.digest import digests, sha256
from pacs_ai.models.install import archives, fetch
from pacs_ai.models.package import read
from pacs_ai.models.registry import Registry
from pacs_ai.models.watch import Watch

CARD = """
name = "evil"
version = "1"
manufacturer = "nobody"
title = "Evil"
runtime = "{runtime}"
intended_use = "none"
procedure = ["25045-6", "LN", "CT unspecified body region"]
licence = "none"
source = "made by a test"
{more}
[inputs.image]
modality = ["CT"]

[labels.1]
name = "Liver"
type = ["10200004", "SCT", "Liver"]

[files]
{files}
"""


def noise(length: int) -> bytes:
    """Return random bytes, the same each time."""
    return random.Random(length).randbytes(length)


class Payload:
    """A pickle that makes the canary's file when it is opened."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch '{self.canary}'",)


class Demand:
    """A pickle that asks for 2^36 bytes."""

    def __reduce__(self):
        return bytearray, (2**36,)


def package(folder: Path, *, runtime: str = "liver", more: str = "", **files: bytes) -> Path:
    """Write a package whose table of digests is right."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    table = "\n".join(f'"{name}" = "{value}"' for name, value in digests(folder).items())
    (folder / "model.toml").write_text(CARD.format(runtime=runtime, more=more, files=table))
    return folder


def torch_bytes(content: object, **options: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def rewritten(content: bytes, compression: int) -> bytes:
    """The same archive with another compression."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return stream.getvalue()


def torchscript() -> bytes:
    class Doubling(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x

    stream = io.BytesIO()
    with warnings.catch_warnings():  # torch 2.13 calls TorchScript deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(Doubling(), torch.ones(2)), stream)
    return stream.getvalue()


def exported(canary: Path) -> bytes:
    """What torch.export writes: an archive with a pickle of its constants."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model/archive_format", "pt2")
        archive.writestr("model/data.pkl", pickle.dumps(Payload(canary), 2))
        archive.writestr("model/byteorder", "little")
        archive.writestr("model/version", "3\n")
    return stream.getvalue()


def tarred(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


# -- checkpoints that are programs (MOD-01), or claim more than they have (MOD-05)

CHECKPOINTS = {
    "model.pt": lambda canary: torch_bytes({"weight": torch.ones(2), "hook": Payload(canary)}),
    "model.pth": lambda canary: torch_bytes(Payload(canary), _use_new_zipfile_serialization=False),
    "model.ckpt": lambda canary: torch_bytes({"state_dict": OrderedDict(weight=Payload(canary))}),
    "model.pkl": lambda canary: pickle.dumps(Payload(canary)),
    "model.pth.tar": lambda canary: tarred(pickle=pickle.dumps(Payload(canary), 2), storages=b"", tensors=b""),
    "script.pt": lambda _: torchscript(),
    "model.pt2": exported,
    "expanded.pt": lambda _: torch_bytes({"weight": torch.zeros(1).expand(2**36)}),
    "demand.pt": lambda _: torch_bytes({"weight": Demand()}),
    "bomb.pt": lambda _: rewritten(torch_bytes({"weight": torch.zeros(4_000_000)}), zipfile.ZIP_DEFLATED),
    "many.pt": lambda _: torch_bytes({str(i): one for one in [torch.zeros(1000)] for i in range(50)}),
    "cut.pt": lambda _: torch_bytes({"weight": torch.ones(1000)})[:2000],
    "nothing.pt": lambda _: b"",
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_MOD_01_checkpoints_execute_nothing(name, tmp_path, canary):
    (tmp_path / name).write_bytes(CHECKPOINTS[name](canary))
    with pytest.raises(PipelineFault) as refusal:
        convert.convert("torch", tmp_path, {"file": name})
    assert name in str(refusal.value)
    assert any(advice in str(refusal.value) for advice in ("get the", "save the weights alone", "state_dict"))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_folds_of_an_nnunet_execute_nothing(name, tmp_path, canary):
    fold = tmp_path / "fold_0" / "checkpoint_final.pth"
    fold.parent.mkdir()
    fold.write_bytes(CHECKPOINTS[name](canary))
    with pytest.raises(PipelineFault, match="fold 0") as refusal:
        convert.convert("nnunet", tmp_path)
    assert "weights_only" not in str(refusal.value)  # torch's advice is to open it all the same


FOLD = {"init_args": {"configuration": "2d"}, "network_weights": {"a": torch.ones(2)}}
FOLDS = {
    "names": FOLD | {"network_weights": {1: torch.ones(2)}},
    "axes": FOLD | {"inference_allowed_mirroring_axes": ("x",)},
    "more axes": FOLD | {"inference_allowed_mirroring_axes": [[0]]},
    "no axes": FOLD | {"inference_allowed_mirroring_axes": 1},
    "giant": FOLD | {"network_weights": {"a": torch.zeros(1).expand(2**36)}},
    "no weights": FOLD | {"network_weights": {"a": "b"}},
    "no configuration": FOLD | {"init_args": []},
}


@pytest.mark.parametrize("name", FOLDS)
def test_folds_that_are_none_are_refused(name, tmp_path):
    (tmp_path / "fold_0.pth").write_bytes(torch_bytes(FOLDS[name]))
    with pytest.raises(PipelineFault):
        convert.convert("nnunet", tmp_path)


def compressed(kind: int) -> bytes:
    """A .keras archive."""
    stream, inner = io.BytesIO(), io.BytesIO()
    with h5py.File(inner, "w") as file:
        file["layer/kernel"] = np.ones((3, 4), "f4")
    with zipfile.ZipFile(stream, "w", kind) as archive:
        archive.writestr("model.weights.h5", inner.getvalue())
    return stream.getvalue()


def damaged(content: bytes, dice: np.random.Generator) -> bytes:
    """Some bytes changed, or the end cut off."""
    if dice.random() < 0.2:
        return content[: dice.integers(len(content))]
    changed = bytearray(content)
    for place in dice.integers(len(content), size=dice.choice([1, 2, 5, 20])):
        changed[place] = dice.integers(256)
    return bytes(changed)


DAMAGED = {
    "torch": ("torch", "m.pt", lambda: torch_bytes({"weight": torch.ones(3, 4)})),
    "torch of old": (
        "torch", "m.pt", lambda: torch_bytes({"weight": torch.ones(3, 4)}, _use_new_zipfile_serialization=False)
    ),
    "nnunet": ("nnunet", "fold_0.pth", lambda: torch_bytes(FOLD)),
    "nnunet of old": ("nnunet", "fold_0.pth", lambda: torch_bytes(FOLD, _use_new_zipfile_serialization=False)),
    "keras": ("keras", "m.keras", lambda: compressed(zipfile.ZIP_DEFLATED)),
    "keras by lzma": ("keras", "m.keras", lambda: compressed(zipfile.ZIP_LZMA)),
    "keras by bzip2": ("keras", "m.keras", lambda: compressed(zipfile.ZIP_BZIP2)),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_told_in_a_sentence(kind, tmp_path):
    """Whatever is wrong with a file: no error but the node's own."""
    reader, name, make = DAMAGED[kind]
    dice, whole = np.random.default_rng(1), make()
    refused = 0
    for _ in range(150):
        (tmp_path / name).write_bytes(damaged(whole, dice))
        try:
            convert.convert(reader, tmp_path)
        except PacsAiError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    "arrays",
    [{"a": torch.zeros(2, dtype=torch.complex128)}, {"a": np.zeros(2, np.longdouble)}, {"\ud800": np.zeros(2)}, {}],
)
def test_what_safetensors_cannot_hold_is_told(arrays):
    with pytest.raises(PipelineFault):
        convert.safetensors(arrays)


def test_the_small_checkpoint_of_a_giant_is_small(tmp_path):
    """1.6 kB that claim 2^36 elements: refused at once, and no memory was asked for."""
    (tmp_path / "m.pt").write_bytes(torch_bytes({"weight": torch.zeros(1).expand(2**36)}))
    assert (tmp_path / "m.pt").stat().st_size < 2000
    with pytest.raises(PipelineFault, match="claims 68719476736 elements"):
        convert.convert("torch", tmp_path)


# -- Keras


def external_link(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["kernel"] = h5py.ExternalLink("/etc/hostname.h5", "/kernel")


def soft_link(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["kernel"] = h5py.SoftLink("/elsewhere")


def giant(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("kernel", (2**40,), "f4", chunks=(1024,))


def foreign_storage(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("kernel", (4,), "u1", external=[("/etc/passwd", 0, 4)])


def virtual(path: Path) -> None:
    layout = h5py.VirtualLayout((4,), "u1")
    layout[:] = h5py.VirtualSource("/etc/other.h5", "kernel", (4,))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("kernel", layout)


def deep(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("/".join(["g"] * 60))


def texts(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["kernel"] = np.array([b"import os"])


def keras_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(32 << 20))


def no_h5(path: Path) -> None:
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + noise(500))


@pytest.mark.parametrize(
    "make", [external_link, soft_link, giant, foreign_storage, virtual, deep, texts, keras_bomb, no_h5]
)
def test_keras_files_lead_nowhere(make, tmp_path, canary):
    make(tmp_path / "model.h5")
    with pytest.raises(PipelineFault, match=r"get the original|save it plainly|no Keras model|no HDF5 file"):
        convert.convert("keras", tmp_path)


def test_a_lambda_layer_is_never_looked_at(tmp_path, canary):
    """Keras keeps the code of a Lambda in the file: the arrays beside it are read, the code is not."""
    layer = {"class_name": "Lambda", "config": {"function": ["4wEAAAA=", None, None], "module": f"touch {canary}"}}
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.attrs["model_config"] = json.dumps({"config": {"layers": [layer]}})
        file["model_weights/dense/kernel:0"] = np.ones((2, 2), "f4")
    assert b"dense/kernel" in convert.convert("keras", tmp_path)


# -- TensorFlow.js and TensorFlow


def manifest(paths: list[str], **weight: object) -> str:
    entry = {"name": "kernel", "shape": [4], "dtype": "float32"} | weight
    return json.dumps({"weightsManifest": [{"paths": paths, "weights": [entry]}]})


TFJS = {
    "outside": manifest(["../../secret.bin"]),
    "absolute": manifest(["/etc/passwd"]),
    "link": manifest(["link.bin"]),
    "missing": manifest(["nowhere.bin"]),
    "giant": manifest(["a.bin"], shape=[2**20, 2**20, 2**20]),
    "negative": manifest(["a.bin"], shape=[-4]),
    "type": manifest(["a.bin"], dtype="string"),
    "scale": manifest(["a.bin"], quantization={"dtype": "float32", "scale": "os.system", "min": 0}),
    "longer": manifest(["a.bin"], shape=[2]),
    "deep": "[" * 100_000,
    "nested": json.dumps({"weightsManifest": "a.bin"}),
}


@pytest.mark.parametrize("name", TFJS)
def test_tensorflow_js_stays_in_its_folder(name, tmp_path, canary):
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    folder = tmp_path / "one" / "two"
    folder.mkdir(parents=True)
    (folder / "a.bin").write_bytes(bytes(16))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "model.json").write_text(TFJS[name])
    with pytest.raises(PipelineFault):
        convert.convert("tfjs", folder)


@pytest.mark.parametrize("index", [b"", noise(300), bytes(292) + struct.pack("<Q", 0xDB4775248B80FB57), b"\xff" * 400])
def test_tensorflow_variables_are_within_their_bytes(index, tmp_path, canary):
    (tmp_path / "variables.index").write_bytes(index)
    (tmp_path / "variables.data-00000-of-00001").write_bytes(bytes(100))
    with pytest.raises(PipelineFault):
        convert.convert("tf-variables", tmp_path)


# -- safetensors (MOD-05)


def safetensors_of(header: object, content: bytes = bytes(16)) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def tensor(start: int, end: int, shape: list[int]) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


SAFETENSORS = {
    "header of 2^63": struct.pack("<Q", 2**63) + b"{}",
    "header of 10^9": struct.pack("<Q", 10**9) + b"{}" + bytes(1000),
    "overlap": safetensors_of({"a": tensor(0, 16, [4]), "b": tensor(8, 16, [2])}),
    "out of range": safetensors_of({"a": tensor(0, 1 << 40, [1 << 38])}),
    "expanded": safetensors_of({"a": tensor(0, 16, [2**18, 2**18])}),
    "no JSON": struct.pack("<Q", 4) + b"os()",
    "cut": safetensors_bytes({"a": np.ones(1000, "f4")})[:500],
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_MOD_05_safetensors_are_within_their_bytes(name, tmp_path, canary):
    made = read(package(tmp_path / "evil", weights_dot_safetensors=SAFETENSORS[name]))
    for read_it in (made.tensors, made.arrays):
        with pytest.raises(PipelineFault, match="is no safetensors file"):
            read_it("weights.safetensors")


# -- model.toml (MOD-04)

TOMLS = {
    "deep": "x = " + "[" * 100_000,
    "deep tables": "[" + ".".join(["a"] * 100_000) + "]",
    "huge": "x = '" + "A" * 1_100_000 + "'",
    "no text": b"\xff\xfe\x00",
    "unknown key": CARD.format(runtime="liver", more='exec = "os.system"', files=""),
    "name": CARD.format(runtime="liver", more="", files="").replace('"evil"', '"../../etc/cron.d/evil"'),
    "number": CARD.format(runtime="liver", more="", files="").replace('version = "1"', "version = 1e400"),
}


@pytest.mark.parametrize("name", TOMLS)
def test_cards_are_refused_by_name(name, tmp_path, canary):
    content = TOMLS[name]
    (tmp_path / "model.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PipelineFault, match=r"no valid TOML|fault\(s\)|longer than"):
        read(tmp_path)


def test_a_linked_card_is_no_card(tmp_path, canary):
    package(tmp_path / "good")
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "model.toml").symlink_to(tmp_path / "good" / "model.toml")
    with pytest.raises(PipelineFault, match=r"has no model\.toml"):
        read(tmp_path / "evil")


@pytest.mark.parametrize("runtime", ["os:system", "../x", "pickle", "builtins"])
def test_runtimes_are_the_node_s_own(runtime, tmp_path, canary):
    with pytest.raises(PipelineFault, match="wants the runtime"):
        read(package(tmp_path / "evil", runtime=runtime)).build()


def changed(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(safetensors_bytes({"a": np.zeros(4, "f4")}))


def one_more(folder: Path) -> None:
    (folder / "sitecustomize.py").write_text("import os")


def linked(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.rename(folder.parent / "elsewhere")
    path.symlink_to(folder.parent / "elsewhere")


def other_card(folder: Path) -> None:
    path = folder / "model.toml"
    path.write_text(path.read_text() + "\n# another\n")


@pytest.fixture
def good(tmp_path):
    return package(tmp_path / "models" / "evil", weights_dot_safetensors=safetensors_bytes({"a": np.ones(4, "f4")}))


@pytest.mark.parametrize("deed", [changed, one_more, linked, other_card])
def test_MOD_04_what_differs_from_its_digest_is_not_used(deed, good, canary):
    before = read(good)
    before.verify()
    deed(good)
    with pytest.raises(PipelineFault, match=r"differs|not in the table|symbolic link"):
        before.verify()


def test_files_outside_of_the_folder_are_none_of_it(tmp_path, canary):
    (tmp_path / "secret").write_bytes(b"secret")
    folder = package(tmp_path / "evil")
    card = folder / "model.toml"
    card.write_text(card.read_text() + f'"../secret" = "{sha256(tmp_path / "secret")}"\n')
    with pytest.raises(PipelineFault):
        read(folder).verify()
    with pytest.raises(PipelineFault, match="leads out of the package's folder"):
        installing.install("evil", tmp_path, lambda *_: None, brought=tmp_path, force=True)


def test_a_pinned_digest_holds(good, canary):
    """MOD-07: clearance is the pinned package's alone, and another package of that name is refused."""
    pinned = read(good).digest
    section = config.Pipeline(name="evil", digest=pinned)
    cleared = good / "model.toml"
    text = cleared.read_text().replace('name = "evil"', 'name = "evil"\nclearance = "PRODUCT"', 1)
    cleared.write_text(text)
    assert Registry([], [], good.parent)._source("evil").package().model.clearance == "RESEARCH"
    with pytest.raises(PipelineFault, match="not the one that"):
        Registry([section], [], good.parent).package("evil")
    renewed = config.Pipeline(name="evil", digest=read(good).digest)
    assert Registry([renewed], [], good.parent).package("evil").model.clearance == "PRODUCT"


@pytest.mark.parametrize("deed", [changed, one_more, linked, other_card])
def test_MOD_08_a_package_that_is_swapped_while_the_node_runs_is_refused(deed, good, canary):
    """MOD-08."""
    watch = Watch(read(good), "ab" * 32)
    watch.check()
    watch.check("ab" * 32)
    deed(good)
    with pytest.raises(PipelineFault, match="is not the one that was installed"):
        watch.check()


def test_a_touched_package_is_hashed_again_and_goes_on(good, monkeypatch):
    package_ = read(good)
    watch = Watch(package_, package_.digest)
    watch.check()
    hashed = []
    monkeypatch.setattr(type(package_), "verify", lambda one: hashed.append(one))  # noqa: PLW0108 - bound to it
    watch.check()
    assert hashed == []
    os.utime(good / "weights.safetensors", ns=(1, 1))
    watch.check()
    watch.check()
    assert len(hashed) == 1


def test_a_job_of_another_model_is_refused(good):
    watch = Watch(read(good), "ab" * 32)
    with pytest.raises(PipelineFault, match="it was replaced"):
        watch.check("cd" * 32)


# -- archives (MOD-06)


def zipped(*names: str, link: str = "", twice: str = "") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, b"weights")
        if link:
            entry = zipfile.ZipInfo(link)
            entry.external_attr = 0o120777 << 16
            archive.writestr(entry, "/etc/passwd")
        if twice:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                archive.writestr(twice, b"other")
    return stream.getvalue()


def bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights", bytes(48 << 20))
    return stream.getvalue()


def tarball(kind: bytes = tarfile.REGTYPE, name: str = "package/weights", link: str = "") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, link
        entry.size = 7 if kind == tarfile.REGTYPE else 0
        archive.addfile(entry, io.BytesIO(b"weights"))
    return stream.getvalue()


def long_header() -> bytes:
    """A pax header that says it is 2^33 bytes long, over a stream of zeros."""
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 2**33
    return gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(4 << 20))


def lzma_damaged() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("weights", noise(1000))
    content = bytearray(stream.getvalue())
    content[60:90] = bytes(30)
    return bytes(content)


def many() -> bytes:
    """A zip whose table of contents, all that is read, names 10^5 files."""
    names = [f"f{number:05d}".encode() for number in range(100_000)]
    table = b"".join(b"PK\1\2" + bytes(24) + struct.pack("<H", 6) + bytes(16) + name for name in names)
    return table + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 0xFFFE, 0xFFFE, len(table), 0, 0)


ARCHIVES = {
    "slip.whl": lambda: zipped("weights", "../../evil.py"),
    "absolute.whl": lambda: zipped("weights", "/etc/cron.d/evil"),
    "backslash.whl": lambda: zipped("weights", "..\\evil.py"),
    "link.whl": lambda: zipped("weights", link="weights.link"),
    "twice.whl": lambda: zipped("weights", twice="weights"),
    "bomb.whl": bomb,
    "many.whl": many,
    "cut.whl": lambda: zipped("weights")[:60],
    "lzma.whl": lzma_damaged,
    "noise.whl": lambda: noise(1000),
    "slip.tgz": lambda: tarball(name="package/../../evil.py"),
    "absolute.tgz": lambda: tarball(name="/etc/cron.d/evil"),
    "link.tgz": lambda: tarball(tarfile.SYMTYPE, link="/etc/passwd"),
    "hard.tgz": lambda: tarball(tarfile.LNKTYPE, link="/etc/passwd"),
    "device.tgz": lambda: tarball(tarfile.CHRTYPE),
    "pipe.tgz": lambda: tarball(tarfile.FIFOTYPE),
    "sparse.tgz": lambda: tarball(tarfile.GNUTYPE_SPARSE),
    "header.tgz": long_header,
    "bomb.tgz": lambda: gzip.compress(bytes(64 << 20)),
    "noise.tgz": lambda: noise(1000),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_MOD_06_archives_stay_in_their_folder(name, tmp_path, canary):
    path, to = tmp_path / name, tmp_path / "to" / "members"
    path.write_bytes(ARCHIVES[name]())
    to.mkdir(parents=True)
    if name == "bomb.tgz":  # a tarball of zeros is an empty one, however long
        archives.extract(path, {"weights": "w"}, to)
    else:
        with pytest.raises(PipelineFault, match="get the original archive"):
            archives.extract(path, {"weights": "w", "package/weights": "w2"}, to)
    outside = {one.name for one in tmp_path.rglob("*")} - {name, "to", "members", "w", "w2", canary.name}
    assert not outside


RECIPE = """
[install]
{source}
convert = ""

[install.sha256]
"evil-1-py3-none-any.whl" = "{digest}"

[install.members]
"weights" = "{name}"
"""


def recipe(models: Path, *, source: str = 'pypi = "evil==1"', digest: str = "00", name: str = "w.bin") -> None:
    folder = package(models / "evil")
    card = folder / "model.toml"
    table = f'"w.bin" = "{"ab" * 32}"\n' + RECIPE.format(source=source, digest=digest, name=name)
    card.write_text(card.read_text() + table)


def test_an_archive_with_another_digest_is_not_opened(tmp_path, canary, monkeypatch):
    recipe(tmp_path / "models")

    def download(_: str, to: Path) -> Path:
        (to / "evil-1-py3-none-any.whl").write_bytes(zipped("weights"))
        return to / "evil-1-py3-none-any.whl"

    monkeypatch.setattr(fetch, "pypi", download)
    monkeypatch.setattr(archives, "extract", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(PipelineFault, match=r"the recipe names 00.*nothing of it was opened"):
        installing.install("evil", tmp_path / "models", lambda *_: None)


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "a/b", "..", "model.toml/../x"])
def test_members_do_not_leave_their_folder(name, tmp_path, canary):
    recipe(tmp_path / "models", name=name)
    with pytest.raises(PipelineFault, match="no name of a file"):
        installing.install("evil", tmp_path / "models", lambda *_: None, brought=tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        'pypi = "--index-url=https://evil.example/simple evil==1"',
        'pypi = "evil @ https://evil.example/evil.whl"',
        'pypi = "./evil"',
        'npm = "--registry=https://evil.example evil@1"',
        'npm = "git+ssh://evil.example/evil.git"',
        'npm = "evil@latest"',
        'url = "http://evil.example/w.bin"',
        'url = "file:///etc/passwd"',
    ],
)
def test_sources_are_pins_and_https(source, tmp_path, canary, monkeypatch):
    recipe(tmp_path / "models", source=source)
    monkeypatch.setattr(fetch.subprocess, "run", lambda *_, **__: pytest.fail("something was run"))
    with pytest.raises(UserError, match=r"correct (pypi|npm|url) in \[install\]"):
        installing.install("evil", tmp_path / "models", lambda *_: None)


@pytest.mark.parametrize("name", ["..", "../evil", "/etc", ".installing", ""])
def test_names_of_packages_are_names(name, tmp_path, canary):
    with pytest.raises(UserError, match="no name of a package"):
        installing.install(name, tmp_path, lambda *_: None)


# -- MONAI bundles (MOD-03)

METADATA = {"version": "1", "network_data_format": {"outputs": {"pred": {"channel_def": {"1": "liver"}}}}}
NETWORK = {"_target_": "monai.networks.nets.UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2,
           "channels": [4, 8], "strides": [2]}  # fmt: skip


def inference(**changes: object) -> dict[str, object]:
    parts = {
        "network_def": NETWORK,
        "preprocessing": {"_target_": "Compose", "transforms": []},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "Compose", "transforms": []},
    }
    return parts | changes


def shell(canary: Path) -> str:
    return f"touch '{canary}'"


BUNDLES = {
    "expression": lambda canary: inference(network_def=f"$__import__('os').system({shell(canary)!r})"),
    "target": lambda canary: inference(network_def={"_target_": "os.system", "command": shell(canary)}),
    "eval": lambda canary: inference(network_def={"_target_": "builtins.eval", "source": f"open('{canary}', 'w')"}),
    "class": lambda canary: inference(network_def=f"$().__class__.__base__.__subclasses__() and open('{canary}', 'w')"),
    "imports": lambda canary: inference(
        imports=["$import os"], network_def=f"$os.system({shell(canary)!r}) or @other", other=NETWORK
    ),
    "comprehension": lambda canary: inference(network_def=f"$[open('{canary}', 'w') for _ in range(1)]"),
    "method": lambda canary: inference(
        network_def="$@code.exec_module(1)", code={"_target_": "importlib.util.spec_from_file_location"}
    ),
    "transform": lambda canary: inference(
        preprocessing={
            "_target_": "Compose",
            "transforms": [{"_target_": "Lambdad", "keys": "image", "func": f"$lambda x: open('{canary}', 'w')"}],
        }
    ),
    "scripts": lambda _: inference(network_def={"_target_": "scripts.evil.Network"}),
    "numpy": lambda _: inference(network_def={"_target_": "numpy.load", "file": "x.npy", "allow_pickle": True}),
    "torch": lambda _: inference(network_def={"_target_": "torch.load", "f": "x.pt", "weights_only": False}),
    "power": lambda _: inference(network_def="$9 ** 9 ** 9 ** 9"),
    "billion laughs": lambda _: inference(
        network_def="@x40", x0=["ha"], **{f"x{n + 1}": [f"%x{n}", f"%x{n}"] for n in range(40)}
    ),
    "arrays that are none": lambda _: inference(network_def="$torch.load('models/other.pt')"),
}


@pytest.mark.parametrize("name", BUNDLES)
def test_MOD_03_bundles_execute_nothing(name, tmp_path, canary):
    folder = package(
        tmp_path / "evil",
        runtime="monai-bundle",
        configs__metadata_dot_json=json.dumps(METADATA).encode(),
        configs__inference_dot_json=json.dumps(BUNDLES[name](canary)).encode(),
        models__model_dot_pt=torch_bytes({}),
        models__other_dot_safetensors=SAFETENSORS["overlap"],
        scripts__evil_dot_py=f"open({str(canary)!r}, 'w')".encode(),
    )
    with pytest.raises(PacsAiError) as refusal:
        read(folder).build().prepare("cpu")
    assert isinstance(refusal.value, PipelineFault)


# -- ONNX


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 & 127 | 128 * (number > 15) | 2] + [1] * (number > 15) + [len(content)]) + content


def weight_at(place: str) -> bytes:
    return field(8, b"w") + field(13, field(1, b"location") + field(2, place.encode())) + bytes([14 << 3, 1])


def onnx_file(graph: bytes) -> bytes:
    return bytes([8, 8]) + field(7, graph + field(12, field(1, b"y")))


ONNX = {
    "initializer": lambda place: onnx_file(field(5, weight_at(place))),
    "constant": lambda place: onnx_file(field(1, field(5, field(5, weight_at(place))))),
    "branch": lambda place: onnx_file(field(1, field(5, field(6, field(5, weight_at(place)))))),
    "sparse": lambda place: onnx_file(field(15, field(1, weight_at(place)))),
}


@pytest.mark.parametrize("place", ["../../etc/passwd", "/etc/passwd", "elsewhere.bin"])
@pytest.mark.parametrize("kind", ONNX)
def test_onnx_takes_no_weights_from_elsewhere(kind, place, tmp_path, canary):
    content = ONNX[kind](place)
    folder = package(tmp_path / "evil", runtime="onnx", model_dot_onnx=content)
    assert onnx_graph.read(folder, "model.onnx").external == (place,)
    with pytest.raises(PipelineFault, match="nothing outside of"):
        read(folder).build().prepare("cpu")


def test_onnx_files_are_within_their_bytes(tmp_path, canary):
    for content in (b"", noise(200), b"\xff" * 64, onnx_file(b"")[:5]):
        (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(PipelineFault):
            onnx_graph.read(tmp_path, "m.onnx")


# -- what is not in the code (MOD-02)

FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "marshal.loads", "shelve.open", "dill.load",
    "torch.jit.load", "torch.hub.load", "yaml.unsafe_load", "yaml.full_load", "os.system",
}  # fmt: skip
#: Trusted code, named file by file in the configuration (DESIGN.md 6): the one place that may open TorchScript.
TRUSTED = {("pacs_ai/models/bundle_program.py", "torch.jit.load")}


def calls(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}, node.lineno


def test_MOD_02_CFG_05_nothing_in_the_tree_opens_programs():
    root = Path(__file__).resolve().parents[2]
    found = []
    for path in sorted((root / "pacs_ai").rglob("*.py")):
        name = path.relative_to(root).as_posix()
        for called, words, line in calls(path):
            bad = called in FORBIDDEN | FORBIDDEN_CALLS and (name, called) not in TRUSTED
            bad |= called == "torch.load" and words.get("weights_only") != "True"
            bad |= words.get("weights_only") == "False" or words.get("trust_remote_code") == "True"
            bad |= words.get("allow_pickle", "False") != "False"
            bad |= called == "yaml.load" and not {"Loader", None} & set(words) and "SafeLoader" not in path.read_text()
            found += [f"{name}:{line}: {called}"] if bad else []
    assert found == []


# -- the network (MOD-09)

CURIOUS = """
import socket, subprocess, sys
from pacs_ai.pipeline import Card, Code, Findings, Input

class Curious:
    card = Card("curious", "1", "us", "Curious", {{"image": Input(("CT",))}}, (), Code("1", "99X", "x"), "test")

    def prepare(self, device):
        said = []
        for what in (lambda: socket.create_connection(("127.0.0.1", {port}), 5),
                     lambda: socket.getaddrinfo("localhost", {port}),
                     lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"PHI", ("127.0.0.1", {port}))):
            try:
                what()
                said.append("reached")
            except PermissionError as error:
                said.append("may not" if "may not reach the network" in str(error) else "denied")
        code = "import socket; socket.create_connection(('127.0.0.1', {port}), 5)"
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True).returncode
        said.append("started" if ended == 0 else "not")
        one, other = socket.socketpair()
        one.sendall(b"x"); said.append(other.recv(1).decode()); one.close(); other.close()
        open({told!r}, "w").write(" ".join(said))

    def run(self, inputs):
        return Findings()
"""


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def test_MOD_09_a_model_cannot_reach_the_network(tmp_path, listener, monkeypatch):
    port = listener.getsockname()[1]
    (tmp_path / "curious.py").write_text(textwrap.dedent(CURIOUS.format(port=port, told=str(tmp_path / "told"))))
    made = tmp_path / "curious-1.dist-info"
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: curious\nVersion: 1\n")
    (made / "entry_points.txt").write_text("[pacs_ai.pipelines]\ncurious = curious:Curious\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    settings = config.Config.model_validate(
        {"store": {"folder": str(tmp_path / "node")}, "route": [{"run": "curious", "when": {"modality": "CT"}}]}
    )
    bench = Bench(settings, "cpu")
    try:
        message = bench.receive(120)
    finally:
        bench.end()
    assert isinstance(message, Ready)
    assert message.broken == {}
    assert (tmp_path / "told").read_text() == "may not may not may not not x"
    with pytest.raises(BlockingIOError):
        listener.accept()


@pytest.fixture
def canary(tmp_path):
    """A file that any payload would make, and an environment that none may change."""
    path = tmp_path / "canary"
    watched = ("PATH", "HOME", "PYTHONPATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONSTARTUP")
    environment = [os.environ.get(name) for name in watched]
    modules = set(sys.modules)
    yield path
    assert not path.exists(), "something was executed"
    assert [os.environ.get(name) for name in watched] == environment
    assert not {"evil", "scripts.evil"} & (set(sys.modules) - modules)
