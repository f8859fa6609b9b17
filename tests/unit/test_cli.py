"""What a person sees of the commands: help, configuration, explanations, errors as one sentence, exit codes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, SegmentationStorage

from pacs_ai import config as configuration
from pacs_ai.cli import main, toml, words
from pacs_ai.cli.choosing import choose
from pacs_ai.dicom.identifiers import derive_uid
from pacs_ai.errors import Refused, UserError
from pacs_ai.models.lung import CtLung
from pacs_ai.pipeline import Card, Input

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "highdicom", "monai", "sqlalchemy", "pynetdicom", "pydicom", "numpy", "pydantic", "rich")


@pytest.fixture
def run(tmp_path, monkeypatch) -> Callable[..., click.testing.Result]:
    """Run `pacs-ai` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, config: str | None = None):
        given: list[str] = []
        if config is not None:
            (tmp_path / "node.toml").write_text(config)
            given = ["--config", "node.toml"]
        result = CliRunner().invoke(main, [*given, *map(str, arguments)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def write_series(folder: Path, name: str, count: int = 3, **attributes: object) -> list[Path]:
    """Write small instances of one series of the study "study"."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = {"MR": MRImageStorage, "SEG": SegmentationStorage}.get(
            str(attributes.get("Modality")), CTImageStorage
        )
        ds.SOPInstanceUID = derive_uid("cli", name, number)
        ds.StudyInstanceUID = derive_uid("cli", "study")
        ds.SeriesInstanceUID = derive_uid("cli", name)
        ds.PatientID = "CLI-1"
        ds.Modality = "CT"
        for keyword, value in attributes.items():
            setattr(ds, keyword, value)
        path = folder / f"{name}-{number}.dcm"
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


# -- help


def test_help_loads_nothing_that_takes_time():
    code = (
        "import sys; from pacs_ai.cli import main; main(['--help'], standalone_mode=False); "
        f"sys.exit(','.join(name for name in {HEAVY} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "", f"`pacs-ai --help` loads {done.stderr}"


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=" ".join)
def test_every_command_explains_itself_with_an_example(run, path):
    command = dict(commands())[path]
    result = run(*path, "--help")
    assert result.exit_code == 0
    assert "Example:" in result.output
    assert f"pacs-ai {path[0]}" in result.output or "config" in path
    assert len(command.get_short_help_str(limit=200)) <= 64, "cut off in the list of commands"
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.hidden or parameter.help


def test_commands_come_in_the_order_of_the_journey(run):
    listed = [line.split()[0] for line in run("--help").output.partition("Commands:")[2].splitlines() if line.strip()]
    assert listed[:3] == ["run", "demo", "status"]
    assert "doctor" in listed


# -- the configuration


def test_sample_configuration_has_no_fault(run):
    sample = REPOSITORY / "config" / "pacs-ai.toml"
    result = run("--config", sample, "config", "check", "--json")
    report = json.loads(result.output)
    assert result.exit_code == 0
    assert report["sound"]
    assert [finding["subject"] for finding in report["findings"] if finding["level"] == "warning"] == ["receive.accept"]


def test_values_of_the_sample_are_defaults_unless_it_says_otherwise():
    loaded, default = configuration.load(REPOSITORY / "config" / "pacs-ai.toml"), configuration.Config()
    for name in ("node", "receive", "infer", "deliver", "retention", "log"):
        assert getattr(loaded, name) == getattr(default, name), name


def test_what_is_commented_out_in_the_sample_is_sound_too(tmp_path):
    """Every commented table of the sample, switched on."""
    text = (REPOSITORY / "config" / "pacs-ai.toml").read_text()
    lines = []
    for line in text.splitlines():
        bare = line.removeprefix("# ")
        is_entry = bare != line and (bare.startswith("[") or (" = " in bare and not bare.startswith(("#", " "))))
        lines.append(bare if is_entry else line)
    path = tmp_path / "all.toml"
    path.write_text("\n".join(lines))
    loaded = configuration.load(path)
    assert {peer.name for peer in loaded.peer} == {"main-pacs", "ct-2"}
    assert {pipeline.name for pipeline in loaded.pipeline} == {"ct-lung", "spleen"}
    assert set(loaded.route[1].inputs) == {"t1c", "t1", "t2", "flair"}


def test_configuration_is_found_in_the_working_folder(run, tmp_path):
    (tmp_path / "pacs-ai.toml").write_text('[node]\nname = "here"\n')
    assert '\nname = "here"' in run("config", "show").output
    assert f"# {tmp_path}" in run("config", "show").output


def test_shown_values_are_a_configuration_that_means_the_same(run, tmp_path):
    text = """
        [store]
        folder = "/somewhere/else"
        [[peer]]
        name = "p"
        ae_title = "P"
        host = "h"
        quiet_seconds = 12.5
        [[pipeline]]
        name = "ct-lung"
        settings = { strange = ["a\\"b", 1, 2.5, true], "dotted.key" = { x = "y\\\\z" } }
        [[pipeline]]
        name = "bundle"
        bundle = "/models/b"
        [pipeline.files]
        "configs/inference.json" = "ab"
        [pipeline.labels.1]
        name = "L"
        type = ["1", "SCT", "l"]
        [[route]]
        run = "ct-lung"
        when = { modality = "CT", min_instances = 3, attributes = { ScanOptions = "*HELICAL*" } }
        deliver_to = ["p"]
        [[route]]
        name = "several"
        run = "bundle"
        [route.inputs]
        a = { modality = "MR" }
        b = { modality = "MR", contrast = true }
    """
    shown = run("config", "show", config=text).output
    (tmp_path / "again.toml").write_text(shown)
    assert configuration.load(tmp_path / "again.toml") == configuration.load(tmp_path / "node.toml")


def test_each_value_says_where_it_comes_from(run):
    result = run("config", "show", "--json", config='[receive]\nport = 104\n[[peer]]\nname="p"\nae_title="P"\nhost="h"')
    origins = {(value["table"], value["key"]): value["origin"] for value in json.loads(result.output)}
    assert origins["[receive]", "port"] == "file"
    assert origins["[receive]", "bind"] == "default"
    assert origins["[store]", "folder"] == "default"
    assert origins["[[peer]]", "host"] == "file"
    assert origins["[[peer]]", "port"] == "default"


def test_CFG_02_secrets_are_masked(run):
    text = """
        [store]
        database = "postgresql+psycopg://node:s3cret@db/pacs"
        [[pipeline]]
        name = "ct-lung"
        settings = { api_key = "s3cret", plain = "seen" }
    """
    for form in ((), ("--json",)):
        shown = run("config", "show", *form, config=text).output
        assert "s3cret" not in shown
        assert "postgresql+psycopg://node:********@db/pacs" in shown
        assert "seen" in shown


ROUTE = '[[route]]\nrun = "{}"\nwhen = {{ {} }}\n'
NAMESAKES = """
[[peer]]
name = "ct-a"
ae_title = "CT"
host = "10.0.0.1"
{}
[[peer]]
name = "ct-b"
ae_title = "CT"
host = "10.0.0.2"
{}
"""
PEER = '[[peer]]\nname = "ct"\nhost = "10.1.2.3"\nae_title = "CT"\naddresses = [{}]\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ROUTE.format("ct-liver", 'modality = "CT"'), "there is no pipeline ct-liver"),
        (ROUTE.format("ct-lung", "attributes = { WindowCenter = '40' }"), "the condition on WindowCenter could never"),
        (
            '[[route]]\nrun = "ct-lung"\n[route.inputs]\nother = { modality = "CT" }',
            "inputs are other, but ct-lung needs",
        ),
        ('[receive]\ntransfer_syntaxes = ["JPEG"]', '"JPEG" is no transfer syntax'),
        ('[receive]\nfurther_sop_classes = ["x"]', '"x" is no SOP Class UID'),
        ('[receive]\naccept = "peers"', "nobody may send"),
        ('[[pipeline]]\nname = "mine"\n' + ROUTE.format("mine", 'modality = "CT"'), "no installed plugin offers it"),
        ('[[pipeline]]\nname = "b"\nbundle = "/nowhere"\n' + ROUTE.format("b", 'modality = "CT"'), "not in the table"),
    ],
)
def test_CFG_01_contradictions_are_found(run, text, words):
    result = run("config", "check", config=text)
    assert result.exit_code == 1
    assert words in " ".join(result.output.split())
    assert "→" in result.output


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[receive]\nport = 0", "receive.port"),
        (NAMESAKES.format("", "quiet_seconds = 60"), "ct-a and ct-b have one AE title, CT: give them the same quiet"),
        (
            NAMESAKES.format("", "certificate_name = 'ct-b'"),
            "ct-b have one AE title, CT: give them the same certificate",
        ),
        ("[receive]\ncommitment = true\n" + NAMESAKES.format("", ""), "which of them asks for storage commitment"),
        ("[receive]\nprot = 104", "receive.prot: unknown key; is port meant?"),
        ("[recieve]\nport = 104", "recieve: unknown key; is receive meant?"),
        ('[[peer]]\nae = "PACS"', "peer.1.ae_title: is missing"),
        ('[[peer]]\nname = "a"\nhost = "b"\nae_titel = "PACS"', "peer.1.ae_titel: unknown key; is ae_title meant?"),
        ('[receive]\nae_titles = ["SEVENTEEN_LETTERS"]', "receive.ae_titles.1: may have at most 16 characters"),
        ('[receive]\nae_titles = ["A\\\\B"]', "receive.ae_titles.1: has a character, or a blank at an end"),
        ("[receive]\nahead_mb = 100000", "receive.ahead_mb: may be at most 65536"),
        ("[deliver]\nfirst_backoff_seconds = 301", "deliver.first_backoff_seconds: may be at most 300"),
        ("[deliver]\nlongest_backoff_seconds = 1800", "deliver.longest_backoff_seconds: may be at most 300"),
        ('[receive]\naccept = "all"', "receive.accept: must be 'anyone' or 'peers'"),
        ('[receive]\nport = "many"', "receive.port: must be a whole number"),
        (
            PEER.format('"10.1.2.3", "10.1.2.0/24", "10.1.2.7/24", "2001:db8::/32", "10.1.2.300"'),
            "5: '10.1.2.300' is no address; give one, such as 10.1.2.3, or a network, such as 10.1.2.0/24",
        ),
        (PEER.format('"ct.hospital.example"'), "peer.1.addresses.1: 'ct.hospital.example' is no address"),
        (PEER.format('"10.1.2.0/33"'), "peer.1.addresses.1: '10.1.2.0/33' is no address"),
        ("port = ", "no valid TOML"),
        (ROUTE.format("ct-lung", 'modality = "CT"') + 'deliver_to = ["nobody"]', "which is no [[peer]]"),
    ],
)
def test_CFG_01_wrong_keys_are_named_in_one_sentence_each(run, text, words):
    for command in (("config", "check"), ("status",), ("run",)):
        result = run(*command, config=text)
        assert result.exit_code == 2
        assert words in result.stderr
        assert result.stderr.startswith("pacs-ai: ")


def test_one_pacs_may_be_two_peers_of_which_each_gets_its_own_objects(run):
    tables = NAMESAKES.replace("10.0.0.2", "10.0.0.1").format("profile = 'ohif'", "profile = 'archive'")
    assert run("config", "check", config="[receive]\ncommitment = true\n" + tables).exit_code == 0


def test_node_does_not_start_with_contradictions(run):
    result = run("run", config=ROUTE.format("ct-liver", 'modality = "CT"'))
    assert result.exit_code == 2
    assert "route ct-liver: there is no pipeline ct-liver" in result.stderr


def test_CFG_01_node_does_not_start_on_a_taken_port(run):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = run("run", config=f'[receive]\nbind = "127.0.0.1"\nport = {port}')
    assert result.exit_code == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in result.stderr
    assert "set another receive.port" in result.stderr


def test_device_belongs_to_an_infer_process(run):
    assert run("run", "route", "--device", "cpu").exit_code == 2


_VALUES = st.recursive(
    st.text() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.booleans(),
    lambda inside: st.lists(inside) | st.dictionaries(st.text(), inside),
)


@given(_VALUES)
def test_values_survive_being_written_as_toml(value):
    assert tomllib.loads(f"x = {toml.literal(value)}")["x"] == value


def test_toml_has_no_nothing():
    with pytest.raises(TypeError):
        toml.literal(None)


# -- bundles


def test_bundle_table_can_be_pasted(run, shared_bundles, tmp_path):
    result = run("config", "bundle", shared_bundles / "spleen_ct_segmentation")
    assert result.exit_code == 0
    (tmp_path / "pasted.toml").write_text(result.output)
    (section,) = configuration.load(tmp_path / "pasted.toml").pipeline
    assert section.labels[1].type == ("78961009", "SCT", "Spleen")
    assert section.inputs["image"].modality == ("CT",)
    assert "configs/inference.json" in section.files
    assert "There are no weights" in result.output


def test_bundle_table_names_all_inputs_in_channel_order(run, shared_bundles, tmp_path):
    result = run("config", "bundle", shared_bundles / "brats_mri_segmentation")
    (tmp_path / "pasted.toml").write_text(result.output)
    (section,) = configuration.load(tmp_path / "pasted.toml").pipeline
    assert list(section.inputs) == ["t1c", "t1", "t2", "flair"]


def test_bundle_labels_that_cannot_be_guessed_are_marked(run, tmp_path):
    folder = tmp_path / "odd"
    (folder / "configs").mkdir(parents=True)
    channels = {"0": "background", "1": "liver", "2": "gizmo"}
    image = {"type": "image", "modality": "CT", "channel_def": {"0": "image"}}
    content = {"network_data_format": {"inputs": {"image": image}, "outputs": {"pred": {"channel_def": channels}}}}
    (folder / "configs" / "metadata.json").write_text(json.dumps(content))
    result = run("config", "bundle", folder)
    assert "# [pipeline.labels.2]" in result.output
    assert "'gizmo'" in result.output
    assert tomllib.loads(result.output)["pipeline"][0]["labels"]["1"]["name"] == "liver"


def test_what_a_bundle_says_stays_a_comment(run, tmp_path):
    """A name with a line break would else be a table of the configuration; one with an escape would move the cursor."""
    said = "x\n[[route]]\nrun = 'evil' \x1b[2J"
    content = {"name": said, "version": said, "description": said, "copyright": said, "authors": said,
               "network_data_format": {"inputs": {"image": {"modality": "CT"}},
                                       "outputs": {"pred": {"channel_def": {"1": said, "2": "liver"}}}}}  # fmt: skip
    folder = tmp_path / "odd\n[log]"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "metadata.json").write_text(json.dumps(content))
    for command in (("config", "bundle", folder), ("models", "new", folder, "--print")):
        result = run(*command)
        assert result.exit_code == 0, result.stderr
        assert "\x1b" not in result.output
        assert not {"route", "log"} & tomllib.loads(result.output.replace("#? ", "")).keys()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "is no MONAI bundle"),
        ({"metadata.json": "{"}, "is no JSON"),
        ({"metadata.json": "[]"}, "is no JSON object"),
        ({"metadata.json": "[" * 100_000}, "is no JSON"),
    ],
)
def test_what_is_no_bundle_is_said(run, tmp_path, files, words):
    (tmp_path / "b" / "configs").mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / "b" / "configs" / name).write_text(text)
    result = run("config", "bundle", tmp_path / "b")
    assert result.exit_code == 2
    assert words in result.stderr


def test_bundle_that_segments_nothing_is_refused(run, shared_bundles):
    result = run("config", "bundle", shared_bundles / "lung_nodule_ct_detection")
    assert result.exit_code == 1
    assert "is no segmentation bundle" in result.stderr


# -- explain


EXPLAIN = """
[[peer]]
name = "p"
ae_title = "P"
host = "h"
[[route]]
name = "lungs"
run = "ct-lung"
when = { modality = "CT", min_instances = 3, calling_ae = "CT_*" }
deliver_to = ["p"]
[[route]]
name = "pair"
run = "ct-lung"
[route.inputs]
t1 = { modality = "MR", description = "t1*" }
flair = { modality = "MR", description = "*flair*" }
"""


def test_explain_names_the_condition_that_failed(run, tmp_path):
    write_series(tmp_path / "study", "chest")
    result = run("explain", "study", config=EXPLAIN)
    assert result.exit_code == 0
    text = " ".join(result.output.split())
    assert "✗ lungs: ct-lung, results to p" in text
    assert "not met: calling_ae is missing, the route wants CT_*" in text
    assert "✗ pair: ct-lung, results to nobody" in text
    assert "t1: not met: modality is CT, the route wants MR" in text


def test_explain_assumes_the_sender_that_is_given(run, tmp_path):
    write_series(tmp_path / "study", "chest")
    result = run("explain", "study", "--calling-ae", "CT_7", "--all", config=EXPLAIN)
    assert "✓ lungs" in result.output
    assert "met: number of images is 3" in result.output


def test_explain_tells_programs_every_condition(run, tmp_path):
    write_series(tmp_path / "study", "chest", count=2)
    (series,) = json.loads(run("explain", "study", "--json", config=EXPLAIN).stdout)
    lungs = series["routes"][0]
    assert lungs["verdict"] == "no"
    assert {c["name"]: c["passed"] for c in lungs["conditions"]["image"]} == {
        "modality": True,
        "min_instances": False,
        "calling_ae": False,
    }


def test_explain_binds_the_series_of_a_study(run, tmp_path):
    write_series(tmp_path / "study", "one", Modality="MR", SeriesDescription="t1 tse", SeriesNumber=3)
    waiting = json.loads(run("explain", "study", "--json", config=EXPLAIN).stdout)[0]["routes"][1]
    assert waiting["verdict"] == "wait"
    assert "flair missing" in waiting["words"]
    write_series(tmp_path / "study", "two", Modality="MR", SeriesDescription="ax flair", SeriesNumber=5)
    both = json.loads(run("explain", "study", "--json", config=EXPLAIN).stdout)
    assert [series["routes"][1]["verdict"] for series in both] == ["run", "run"]
    assert both[0]["routes"][1]["inputs"] == {
        "t1": str(derive_uid("cli", "one")),
        "flair": str(derive_uid("cli", "two")),
    }
    assert "flair is series 5" in run("explain", "study", config=EXPLAIN).output


def test_explain_says_what_is_never_analysed_and_what_was_left_out(run, tmp_path):
    write_series(tmp_path / "study", "seg", Modality="SEG")
    (tmp_path / "study" / "notes.txt").write_text("no DICOM")
    write_series(tmp_path / "study" / "copy", "seg", count=1, Modality="SEG")
    result = run("explain", "study", config=EXPLAIN)
    assert "never analysed: it is a segmentation" in result.output
    assert "2 files left out" in result.stderr


def test_explain_takes_one_file(run, tmp_path):
    path, *_ = write_series(tmp_path, "chest")
    assert "1 instance" in run("explain", path.name, config=EXPLAIN).output


# -- errors in plain words


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--config", "gone.toml", "status"), 2, "there is no configuration file gone.toml"),
        (("status",), 2, "start the node once (pacs-ai run)"),
        (("jobs", "1"), 2, "there is no database"),
        (("retry",), 2, "name jobs, or deliveries"),
        (("cancel",), 2, "Missing argument"),
        (("jobs", "--state", "odd"), 2, "'odd' is not one of"),
        (("jobs", "x"), 2, "is not a valid integer"),
        (("pause", "ct-liver"), 2, "there is no pipeline ct-liver; there are "),
        (("resolve", "1.2.3"), 2, "--keep"),
        (("explain", "nowhere"), 2, "there is no database"),
        (("explain", "empty"), 2, "the folder empty is empty"),
        (("explain", "text.txt"), 2, "holds no DICOM images"),
        (("echo", "nobody"), 2, "there is no [[peer]] called 'nobody'"),
        (("echo", "A@h:99999"), 2, "port: may be at most 65535"),
        (("echo", "SEVENTEEN_LETTERS@h:104"), 2, "ae_title: may have at most 16 characters"),
        (("echo", "A\\B@h:104"), 2, "is no address, which is written AE@HOST:PORT"),
        (("send", "A@127.0.0.1:9", "empty"), 2, "nothing to send"),
        (("send", "A@127.0.0.1:9", "nowhere"), 2, "does not exist"),
        (("infer", "ct-liver", "empty", "-o", "out"), 2, "there is no pipeline ct-liver"),
        (("infer", "ct-lung", "empty", "-o", "out"), 2, "the folder empty is empty"),
        (("infer", "ct-lung", "nowhere", "-o", "out"), 2, "does not exist"),
        (("infer", "ct-lung", "empty"), 2, "'--out'"),
        (("infer", "ct-lung", "empty", "-o", "text.txt"), 2, "is a file"),
        (("unheard",), 2, "No such command"),
    ],
)
def test_user_errors_are_one_sentence_and_leave_nothing_behind(run, tmp_path, arguments, code, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("x" * 200)
    result = run(*arguments)
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "text.txt"]


def test_a_peer_that_is_not_there_is_no_user_error(run):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]  # bound, not listening
        result = run("echo", f"A@127.0.0.1:{port}")
        told = run("echo", f"A@127.0.0.1:{port}", "--json")
    assert result.exit_code == told.exit_code == 1
    assert f"A at 127.0.0.1:{port} cannot be reached" in result.stderr
    assert json.loads(told.stdout)["answered"] is False


def test_folder_with_several_series_lists_them(run, tmp_path):
    write_series(tmp_path / "study", "one", SeriesDescription="thin")
    write_series(tmp_path / "study", "two", SeriesDescription="thick")
    result = run("infer", "ct-lung", "study", "-o", "out")
    assert result.exit_code == 2
    assert "2 series" in result.stderr
    assert f"{derive_uid('cli', 'two')}  CT thick, 3 instances" in result.stderr
    result = run("infer", "ct-lung", "study", "-o", "out", "--series", "1.2.3")
    assert "has no series 1.2.3" in result.stderr


# -- which series serve a pipeline's inputs


def pair_card(*names: str) -> Card:
    return replace(CtLung.card, name="pair", inputs={name: Input(("MR", "CT")) for name in names})


def pair_routes(text: str) -> tuple[configuration.Route, ...]:
    return configuration.Config.model_validate(tomllib.loads(text)).route


PAIR = """
[[route]]
run = "pair"
[route.inputs]
t1 = { modality = "MR", description = "t1*" }
flair = { modality = "MR", description = "*flair*" }
"""


def test_inputs_are_taken_from_subfolders_of_their_names(tmp_path):
    write_series(tmp_path / "t1", "one")
    write_series(tmp_path / "flair", "two")
    chosen = choose(tmp_path, "pair", pair_card("t1", "flair"), (), None)
    assert {name: {path.parent.name for path, _ in files.values()} for name, files in chosen.items()} == {
        "t1": {"t1"},
        "flair": {"flair"},
    }


def test_inputs_are_told_apart_by_the_route(tmp_path):
    write_series(tmp_path, "one", Modality="MR", SeriesDescription="t1 tse")
    write_series(tmp_path, "two", Modality="MR", SeriesDescription="ax flair")
    chosen = choose(tmp_path, "pair", pair_card("t1", "flair"), pair_routes(PAIR), None)
    assert [path.name for path, _ in chosen["flair"].values()] == ["two-0.dcm", "two-1.dcm", "two-2.dcm"]


@pytest.mark.parametrize(("routes", "said"), [("", "put each series into a subfolder"), (PAIR, "flair missing")])
def test_what_input_is_missing_is_said(tmp_path, routes, said):
    write_series(tmp_path, "one", Modality="MR", SeriesDescription="t1 tse")
    with pytest.raises(UserError, match=said):
        choose(tmp_path, "pair", pair_card("t1", "flair"), pair_routes(routes), None)


def test_subfolder_must_hold_one_series(tmp_path):
    for name in ("one", "two"):
        write_series(tmp_path / "t1", name)
        write_series(tmp_path / "flair", name)
    with pytest.raises(UserError, match="must hold one series, but holds 2 series"):
        choose(tmp_path, "pair", pair_card("t1", "flair"), (), None)


def test_of_several_series_the_one_that_a_route_wants_is_taken(tmp_path, capsys):
    write_series(tmp_path, "one", SeriesDescription="thin", SeriesNumber=4)
    write_series(tmp_path, "two", SeriesDescription="thick")
    routes = pair_routes('[[route]]\nrun = "pair"\nwhen = { description = "thin" }')
    chosen = choose(tmp_path, "pair", pair_card("image"), routes, None)
    assert {path.name[:3] for path, _ in chosen["image"].values()} == {"one"}
    assert "series 4 was taken" in capsys.readouterr().err
    chosen = choose(tmp_path, "pair", pair_card("image"), routes, str(derive_uid("cli", "two")))
    assert {path.name[:3] for path, _ in chosen["image"].values()} == {"two"}


def test_results_beside_the_images_are_no_choice(tmp_path):
    write_series(tmp_path, "one")
    write_series(tmp_path, "seg", Modality="SEG")
    assert list(choose(tmp_path, "pair", pair_card("image"), (), None)) == ["image"]


# -- errors as they are raised


class _Group(words.Group):
    """A group with a command that raises what it is told to."""


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (UserError("say what to do"), 2, "pacs-ai: say what to do\n"),
        (Refused("no lungs here"), 1, "pacs-ai: no lungs here\n"),
        (PermissionError(13, "Permission denied", "/root/x"), 1, "pacs-ai: /root/x: Permission denied\n"),
        (KeyboardInterrupt(), 130, "pacs-ai: interrupted\n"),
    ],
)
def test_errors_are_plain(raised, code, said):
    @click.command()
    def failing() -> None:
        raise raised

    result = CliRunner().invoke(_Group(commands={"failing": failing}), ["failing"])
    assert (result.exit_code, result.stderr) == (code, said)


def test_faults_of_the_program_keep_their_traceback():
    @click.command()
    def failing() -> None:
        raise ZeroDivisionError

    result = CliRunner().invoke(_Group(commands={"failing": failing}), ["failing"])
    assert isinstance(result.exception, ZeroDivisionError)


# -- words


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-1, "0.0 s"), (0.42, "0.4 s"), (59, "59 s"), (150, "2 min"), (7300, "2 h"), (200000, "2 days")],
)
def test_spans_of_time_are_said_as_people_do(seconds, said):
    assert words.lasting(seconds) == said


@pytest.mark.parametrize(("count", "said"), [(12, "12 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (3e12, "3.0 TB")])
def test_sizes_are_said_as_people_do(count, said):
    assert words.size(count) == said
