"""What is read of a bundle without executing it: digests, card, labels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from pacs_ai.errors import PipelineFault
from pacs_ai.models.bundle import BundleSpec, MonaiBundle
from pacs_ai.models.bundle_metadata import described, input_names
from pacs_ai.models.digest import digest_of, digests, verified_bytes, verify
from pacs_ai.pipeline import ANATOMICAL_STRUCTURE, Clearance, Code, Input, Label

LIVER = Label("liver", ANATOMICAL_STRUCTURE, Code("10200004", "SCT", "Liver"))


@pytest.fixture
def folder(tmp_path):
    """A bundle that would leave a file `executed` beside itself if any of its code ran."""
    folder = tmp_path / "bundle"
    for name in ("configs", "models", "scripts"):
        (folder / name).mkdir(parents=True)
    mark = f"$open({str(tmp_path / 'executed')!r}, 'w')"
    inference = {"imports": [mark], "preprocessing": mark, "network": mark}
    (folder / "configs/inference.json").write_text(json.dumps(inference))
    (folder / "configs/metadata.json").write_text(json.dumps(metadata()))
    (folder / "scripts/__init__.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    (folder / "models/model.pt").write_bytes(b"weights")
    return folder


def metadata(**changes) -> dict:
    output = {
        "type": "image",
        "format": "segmentation",
        "channel_def": {"0": "background", "1": "liver", "2": "spleen"},
        "num_channels": 3,
    }
    image = {"modality": "CT", "channel_def": {"0": "image"}}
    return {
        "name": "Two organs",
        "version": "1.2",
        "authors": "A. Author",
        "intended_use": "Research",
        "copyright": "(c) A",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": output}},
        **changes,
    }


def spec_of(folder, **keys) -> BundleSpec:
    return BundleSpec(folder, digests(folder), **keys)


def with_metadata(folder, content) -> BundleSpec:
    (folder / "configs/metadata.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return spec_of(folder)


def test_digests_name_every_file(folder):
    table = digests(folder)
    assert list(table) == [
        "configs/inference.json",
        "configs/metadata.json",
        "models/model.pt",
        "scripts/__init__.py",
    ]
    assert table["models/model.pt"] == "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    verify(folder, table)
    verify(folder, {name: value.upper() for name, value in table.items()})


def test_a_changed_byte_is_named(folder):
    table = digests(folder)
    (folder / "models/model.pt").write_bytes(b"weightz")
    with pytest.raises(PipelineFault, match=r"models/model\.pt differs"):
        verify(folder, table)


def test_a_missing_file_is_named(folder):
    table = digests(folder)
    (folder / "scripts/__init__.py").unlink()
    with pytest.raises(PipelineFault, match=r"scripts/__init__\.py is missing"):
        verify(folder, table)


@pytest.mark.parametrize("name", ["scripts/more.py", ".hidden", "scripts/__pycache__/__init__.cpython-311.pyc"])
def test_an_extra_file_is_named(folder, name):
    table = digests(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
    with pytest.raises(PipelineFault, match="is not in the table") as fault:
        verify(folder, table)
    assert name in str(fault.value)


def test_many_faults_are_counted(folder):
    table = digests(folder)
    for number in range(20):
        (folder / f"extra{number}").write_bytes(b"")
    with pytest.raises(PipelineFault, match="and 12 more"):
        verify(folder, table)


@pytest.mark.parametrize("to", ["outside file", "outside folder", "inside file"])
def test_links_are_refused(folder, tmp_path, to):
    table = digests(folder)
    (tmp_path / "outside").mkdir()
    target = {"outside file": tmp_path / "copy.pt", "outside folder": tmp_path / "outside"}.get(to)
    if to == "outside folder":
        (folder / "more").symlink_to(target)
    else:
        shutil.copy(folder / "models/model.pt", target or folder / "models/same.pt")
        (folder / "models/model.pt").unlink()
        (folder / "models/model.pt").symlink_to(target or "same.pt")
    with pytest.raises(PipelineFault, match="is a symbolic link"):
        verify(folder, table)
    with pytest.raises(PipelineFault, match="is a symbolic link"):
        digests(folder)


def test_a_pipe_does_not_hang_the_check(folder):
    os.mkfifo(folder / "pipe")
    with pytest.raises(PipelineFault, match=r"pipe in \S+ is no regular file"):
        digests(folder)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(PipelineFault, match="put the model there"):
        verify(tmp_path / "nowhere", {})


def test_metadata_are_read_only_if_they_are_the_configured_ones(folder):
    table = digests(folder)
    assert json.loads(verified_bytes(folder, "configs/metadata.json", table))["version"] == "1.2"
    (folder / "configs/metadata.json").write_text(json.dumps(metadata(version="6.6")))
    with pytest.raises(PipelineFault, match="differs"):
        MonaiBundle(BundleSpec(folder, table))
    with pytest.raises(PipelineFault, match="not in the table"):
        MonaiBundle(BundleSpec(folder, {}))
    (folder / "configs/metadata.json").unlink()
    with pytest.raises(PipelineFault, match="missing"):
        MonaiBundle(BundleSpec(folder, table))


def test_prepare_executes_nothing_of_a_changed_bundle(folder, tmp_path):
    pipeline = MonaiBundle(spec_of(folder))
    (folder / "scripts/more.py").write_text("")
    with pytest.raises(PipelineFault, match=r"scripts/more\.py is not in the table"):
        pipeline.prepare("cpu")
    assert not (tmp_path / "executed").exists()


def test_one_digest_for_all(folder):
    table = digests(folder)
    assert digest_of(table) == digest_of(dict(reversed(table.items())))
    assert digest_of(table) != digest_of({**table, "x": "0"})


def test_the_card_says_what_the_metadata_say(folder, tmp_path):
    card = MonaiBundle(spec_of(folder)).card
    assert (card.name, card.version, card.manufacturer) == ("Two organs", "1.2", "A. Author")
    assert card.intended_use == "Research. (c) A"
    assert card.inputs == {"image": Input(("CT",))}
    assert [label.name for label in card.labels] == ["liver", "spleen"]
    assert card.procedure == Code("25045-6", "LN", "CT unspecified body region")
    assert card.clearance is Clearance.RESEARCH
    assert card.model_digest == digest_of(digests(folder))
    assert not (tmp_path / "executed").exists()


def test_the_configuration_says_more(folder):
    procedure = Code("44139-4", "LN", "PET whole body")
    spec = spec_of(
        folder,
        labels={7: LIVER},
        inputs={"venous": Input(("CT",), 40)},
        title="Leber",
        procedure=procedure,
        manufacturer="M",
        clearance=Clearance.PRODUCT,
    )
    card = MonaiBundle(spec).card
    assert (card.labels, dict(card.inputs), card.title) == ((LIVER,), {"venous": Input(("CT",), 40)}, "Leber")
    assert (card.procedure, card.manufacturer, card.clearance) == (procedure, "M", Clearance.PRODUCT)


def test_random_weights_are_marked_whatever_the_configuration_says(folder):
    plain = spec_of(folder, clearance=Clearance.PRODUCT)
    card = MonaiBundle(replace(plain, seed_weights=1)).card
    assert card.version == "1.2+random-weights"
    assert card.clearance is Clearance.RESEARCH
    other = MonaiBundle(replace(plain, seed_weights=2)).card
    assert len({card.model_digest, other.model_digest, MonaiBundle(plain).card.model_digest}) == 3


def changed(**keys) -> dict:
    content = metadata()
    output, image = (
        content["network_data_format"]["outputs"]["pred"],
        content["network_data_format"]["inputs"]["image"],
    )
    for key, value in keys.items():
        (image if key in {"modality", "inputs"} else output)["channel_def" if key == "inputs" else key] = value
    return content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is no JSON"),
        ("[]", "is no JSON object"),
        ("{}", "states modality None"),
        (changed(type="probabilities"), "is no segmentation bundle"),
        (changed(format="magnitude"), "is no segmentation bundle"),
        (changed(channel_def={"0": "background", "1": "a thing"}), "no code is known for 'a thing'"),
        (changed(channel_def=None), "names no channels"),
        (changed(modality="none"), "states modality 'none'"),
    ],
)
def test_what_is_missing_is_said(folder, content, reason):
    with pytest.raises(PipelineFault, match=reason):
        MonaiBundle(with_metadata(folder, content))


def test_several_channels_become_named_inputs_in_their_order(folder):
    content = changed(modality="MRI", inputs={"1": "T1 pre", "0": "FLAIR"})
    card = MonaiBundle(with_metadata(folder, content)).card
    assert card.inputs == {"flair": Input(("MR",)), "t1_pre": Input(("MR",))}


@pytest.mark.parametrize(
    "formats",
    [
        [1],
        {"inputs": [], "outputs": 3},
        {"inputs": {"image": "CT"}, "outputs": {"pred": ["x"]}},
        {"outputs": {"pred": {"channel_def": {"\u00b2": "liver", "x": "spleen", "9" * 5000: "lung", "-1": 3}}}},
        {"outputs": {"pred": {"channel_def": ["liver"], "num_channels": "many", "type": {}, "format": []}}},
    ],
)
def test_metadata_of_another_form_say_nothing(formats):
    said = described({"network_data_format": formats})
    assert (said.modality, said.inputs, said.channels, said.count) == (None, ("image",), (), 1)


def test_metadata_nested_too_deeply_are_no_json(folder):
    with pytest.raises(PipelineFault, match="is no JSON"):
        MonaiBundle(with_metadata(folder, "[" * 100_000))


def test_every_channel_has_an_input_of_its_own():
    assert input_names(["T1", "T1 (post)", "t1", "T1", "?", "!"]) == (
        "t1",
        "t1_post",
        "t1_2",
        "t1_3",
        "image",
        "image_2",
    )


def test_run_before_prepare_is_a_fault(folder):
    with pytest.raises(PipelineFault, match="before it was prepared"):
        MonaiBundle(spec_of(folder)).run({})


def test_a_card_needs_neither_torch_nor_monai(folder):
    code = (
        "import sys; from pathlib import Path; from pacs_ai.models.bundle import BundleSpec, MonaiBundle; "
        "from pacs_ai.models.digest import digests; f = Path(sys.argv[1]); "
        "MonaiBundle(BundleSpec(f, digests(f))).card; "
        "assert not {'torch', 'monai', 'scipy', 'nibabel'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
