"""The doctor finds what is wrong with an installation, says what to do, and changes nothing."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from pydicom.uid import AllTransferSyntaxes
from pynetdicom import build_context
from pynetdicom.sop_class import (
    BasicTextSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    ParametricMapStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    Verification,
)

from pacs_ai import config as configuration
from pacs_ai.cli import main
from pacs_ai.doctor import Finding, Level, machine, network, storage
from pacs_ai.doctor import configuration as whole
from pacs_ai.doctor.samples import SAMPLES
from pacs_ai.errors import Refused
from pacs_ai.store import migrate, probe, processes
from pacs_ai.store.database import Database
from pacs_ai.store.owners import this_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Config = configuration.Config


@pytest.fixture
def make_config(tmp_path, free_port) -> Callable[..., Config]:
    """Make a configuration on loopback; keyword arguments are further tables."""

    def make(**tables: object) -> Config:
        store = {"folder": tmp_path / "data", "min_free_gb": 0.01, "min_free_percent": 0}
        receive = {"bind": "127.0.0.1", "port": free_port}
        given = {"store": store, "receive": receive, **tables}
        for name, section in (("store", store), ("receive", receive)):
            given[name] = {**section, **tables.get(name, {})}
        return Config.model_validate(given)

    return make


@pytest.fixture(autouse=True)
def usual_disk(monkeypatch) -> None:
    """Have all that is found of the disk be as on a usual one, whatever the machine's is like."""
    monkeypatch.setattr(probe, "sync_milliseconds", lambda _: 2.0)
    monkeypatch.setattr(probe, "mount_of", lambda _: probe.Mount("/", "ext4", "/dev/sda1"))
    have_free(monkeypatch, 50.0)


def have_free(monkeypatch, gigabytes: float) -> None:
    """Have a disk of 100 GB with so much free."""
    blocks = round(gigabytes * 1_000_000)
    state = os.statvfs_result((1000, 1000, 100_000_000, blocks, blocks, 1000, 1000, 1000, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: state)


def levels(found: Iterable[Finding]) -> dict[str, Level]:
    return {finding.subject: finding.level for finding in found}


def only(found: Iterable[Finding], level: Level) -> Finding:
    (one,) = [finding for finding in found if finding.level is level]
    return one


# -- the whole


def test_sound_installation_has_no_fault(tmp_path, free_port, keeping_peer):
    path = tmp_path / "pacs-ai.toml"
    path.write_text(f"""
        [store]
        folder = "data"
        min_free_gb = 0.01
        min_free_percent = 0
        [receive]
        bind = "127.0.0.1"
        port = {free_port}
        accept = "peers"
        [infer]
        devices = ["cpu"]
        [[peer]]
        name = "main-pacs"
        ae_title = "{keeping_peer.ae_title}"
        host = "127.0.0.1"
        port = {keeping_peer.port}
        [[route]]
        run = "ct-lung"
        when = {{ modality = "CT" }}
        deliver_to = ["main-pacs"]
    """)
    result = CliRunner().invoke(main, ["--config", str(path), "doctor", "--json"])
    report = json.loads(result.stdout)
    assert (result.exit_code, report["sound"]) == (0, True), report
    assert not [finding for finding in report["findings"] if finding["level"] != "ok"]
    words = [finding["words"] for finding in report["findings"] if finding["area"] == "peer"]
    assert len(words) == 1
    (fits,) = [finding["words"] for finding in report["findings"] if finding["area"] == "profile"]
    assert fits == "takes every object of its profile ohif; slicer, generic-pacs, dictation, archive would fit too"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["pacs-ai.toml", "peer0"], "something was made"


def test_faults_are_said_with_advice_and_exit_code(tmp_path, free_port):
    path = tmp_path / "pacs-ai.toml"
    path.write_text(f"""
        [store]
        min_free_gb = 0.01
        min_free_percent = 0
        [receive]
        bind = "127.0.0.1"
        port = {free_port}
        [infer]
        devices = ["warp:7"]
        [[peer]]
        name = "archive"
        ae_title = "GONE"
        host = "127.0.0.1"
        port = {free_port}
        connect_seconds = 1
        [[route]]
        run = "ct-liver"
        when = {{ modality = "CT" }}
        deliver_to = ["archive"]
    """)
    result = CliRunner().invoke(main, ["--config", str(path), "doctor"])
    assert result.exit_code == 1
    text = " ".join(result.stdout.split())
    for words in ("there is no pipeline ct-liver", "warp:7 is no device", "cannot be reached", "3 faults"):
        assert words in text
    assert text.count("→") >= 3


# -- the disk


def test_folder_that_cannot_be_written_is_a_fault(make_config, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    finding = only(storage.examine_folder(make_config()), Level.FAULT)
    assert "cannot be written by this user" in finding.words
    assert str(tmp_path) in finding.words


def test_a_file_where_the_folder_is_to_be_is_a_fault(make_config, tmp_path):
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        finding = only(storage.examine_folder(make_config(store={"folder": tmp_path / place})), Level.FAULT)
        assert finding.words == f"{tmp_path / 'file'} is a file, not a folder"


def test_a_folder_that_takes_nothing_is_a_fault_and_no_traceback(make_config, monkeypatch):
    def full(_folder: Path) -> float:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(probe, "sync_milliseconds", full)
    assert "No space left on device" in only(storage.examine_folder(make_config()), Level.FAULT).words


@pytest.mark.parametrize(("free", "level"), [(9.9, Level.FAULT), (15.0, Level.WARNING), (20.1, Level.OK)])
@pytest.mark.parametrize("least", [{"min_free_gb": 10}, {"min_free_percent": 10}])
def test_low_room_is_a_fault_before_the_node_refuses_data(make_config, monkeypatch, least, free, level):
    have_free(monkeypatch, free)
    assert levels(storage.examine_folder(make_config(store=least)))["room"] is level


def test_room_that_is_written_ahead_to_must_fit_above_the_watermark(make_config, monkeypatch):
    have_free(monkeypatch, 11.04)
    small = make_config(store={"min_free_gb": 10}, receive={"ahead_mb": 900, "processes": 2})
    (finding,) = [one for one in storage.examine_folder(small) if one.subject == "ahead_mb"]
    assert finding.level is Level.WARNING
    assert "takes up to 1.9 GB more (2 processes), but only 1.0 GB is free" in finding.words
    enough = make_config(store={"min_free_gb": 10}, receive={"ahead_mb": 900})
    assert "ahead_mb" not in levels(storage.examine_folder(enough))


def test_what_was_set_aside_is_a_fault_with_its_place(make_config, tmp_path):
    config = make_config()
    assert "set aside" not in levels(storage.examine_folder(config))
    (tmp_path / "data" / "ahead").mkdir(parents=True)
    for name in ("a" * 64, "b" * 64):
        (tmp_path / "data" / "ahead" / f"{name}.dcm").touch()
    finding = only(storage.examine_folder(config), Level.FAULT)
    assert finding.words.startswith("2 received instances could not be indexed")
    assert str(tmp_path / "data" / "ahead") in finding.words
    assert "restart" in finding.advice


@pytest.mark.parametrize(("kind", "words"), [("tmpfs", "lies in memory"), ("nfs4", "lies on another machine")])
def test_wrong_kind_of_file_system_is_a_warning(make_config, monkeypatch, kind, words):
    monkeypatch.setattr(probe, "mount_of", lambda _: probe.Mount("/data", kind, "server:/data"))
    found = [finding for finding in storage.examine_folder(make_config()) if finding.subject == "file system"]
    assert words in found[0].words
    assert found[0].level is Level.WARNING


@pytest.mark.parametrize(("ms", "advice"), [(120.0, "use an SSD"), (0.01, "too fast to be true")])
def test_slow_disk_is_a_warning_and_so_is_one_that_cannot_be(make_config, monkeypatch, ms, advice):
    monkeypatch.setattr(probe, "sync_milliseconds", lambda _: ms)
    found = [finding for finding in storage.examine_folder(make_config()) if finding.subject == "speed"]
    assert found[0].level is Level.WARNING
    assert advice in found[0].advice


def test_open_folder_is_a_warning(make_config, tmp_path):
    (tmp_path / "data").mkdir(mode=0o755)
    finding = only(storage.examine_folder(make_config()), Level.WARNING)
    assert "others can look into it (mode 0755)" in finding.words
    assert finding.advice.startswith("chmod 0700")


def test_mount_is_the_one_that_the_path_lies_on(tmp_path, monkeypatch):
    monkeypatch.undo()  # the machine's own
    assert probe.mount_of(Path("/proc/self")).kind == "proc"
    assert probe.mount_of(tmp_path).place == "/" or str(tmp_path).startswith(probe.mount_of(tmp_path).place)
    assert probe.sync_milliseconds(tmp_path) > 0
    assert not list(tmp_path.iterdir())


# -- the database


def made(config: Config) -> Database:
    database = Database(config.database_url)
    migrate.upgrade(database)
    return database


def test_database_is_sound_once_the_node_has_made_it(make_config):
    config = make_config()
    (before,) = storage.examine_database(config)
    assert before.level is Level.OK
    assert "not there yet" in before.words
    made(config).close()
    (after,) = storage.examine_database(config)
    assert after.level is Level.OK
    assert "journal_mode=wal, synchronous=2" in after.words


def test_a_damaged_database_file_is_a_fault_with_what_to_do(make_config, tmp_path):
    config = make_config()
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / "pacs_ai.sqlite").write_bytes(b"no database" * 1000)
    finding = only(storage.examine_database(config), Level.FAULT)
    assert "restore a backup" in finding.words
    assert "backup" in finding.advice


def test_database_of_another_release_is_a_fault(make_config):
    config = make_config()
    database = made(config)
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    assert "has schema 9999" in only(storage.examine_database(config), Level.FAULT).words


def test_database_server_that_is_not_there_is_a_fault_without_its_password(make_config, free_port):
    url = f"postgresql+psycopg://node:s3cret@127.0.0.1:{free_port}/pacs"
    finding = only(storage.examine_database(make_config(store={"database": url})), Level.FAULT)
    assert "does not answer" in finding.words
    assert "s3cret" not in f"{finding.subject}{finding.words}{finding.advice}"


def test_durability_is_what_the_database_says(database):
    sound, words = probe.durability(database)
    if database.is_sqlite:
        assert (sound, words) == (True, "journal_mode=wal, synchronous=2 (2 is FULL)")
    else:  # the tests' server is quick instead of safe
        assert not sound
        assert "fsync=off, synchronous_commit=" in words


class _Settings:
    """A PostgreSQL whose settings are as they are given."""

    is_sqlite = False

    def __init__(self, **settings):
        self.settings = settings

    @contextlib.contextmanager
    def read(self):
        yield self

    def execute(self, statement):
        value = self.settings[str(statement).removeprefix("SHOW ")]
        return SimpleNamespace(scalar_one=lambda: value)


@pytest.mark.parametrize("commit", ["on", "local", "remote_write", "remote_apply", "off"])
@pytest.mark.parametrize("fsync", ["on", "off"])
def test_a_commit_is_durable_where_postgresql_flushes_its_own_log(commit, fsync):
    sound, words = probe.durability(_Settings(server_version="16.1", synchronous_commit=commit, fsync=fsync))
    assert sound == (commit != "off" and fsync == "on")
    assert words == f"PostgreSQL 16.1, fsync={fsync}, synchronous_commit={commit}"


# -- decoders, libraries, device


def test_every_default_transfer_syntax_is_tried_and_decoded(make_config):
    config = make_config()
    found = list(machine.examine_decoders(config))
    assert [finding.level for finding in found] == [Level.OK]
    assert found[0].words.startswith(f"{len(config.receive.transfer_syntaxes)} accepted transfer syntaxes")
    compressed = {uid.keyword for uid in AllTransferSyntaxes if uid.is_compressed} - {"DeflatedExplicitVRLittleEndian"}
    assert set(SAMPLES) == compressed & set(config.receive.transfer_syntaxes)


def test_decoder_that_fails_is_a_fault(make_config, monkeypatch):
    def fail(layout, _frame):
        raise Refused(f"no decoder for {layout.transfer_syntax_uid.name}")

    monkeypatch.setattr("pacs_ai.infer.pixels.decode", fail)
    config = make_config(receive={"transfer_syntaxes": ["ExplicitVRLittleEndian", "JPEGLSLossless"]})
    finding = only(machine.examine_decoders(config), Level.FAULT)
    assert finding.subject == "JPEG-LS Lossless Image Compression"
    assert "take it out of receive.transfer_syntaxes" in finding.advice


def test_decoder_that_decodes_wrong_is_a_fault(make_config, monkeypatch):
    from pacs_ai.infer import pixels

    right = pixels.decode
    monkeypatch.setattr("pacs_ai.infer.pixels.decode", lambda *given: right(*given)[::-1])
    finding = only(machine.examine_decoders(make_config(receive={"transfer_syntaxes": ["RLELossless"]})), Level.FAULT)
    assert "decoded wrong" in finding.words


def test_what_has_no_sample_is_said(make_config):
    config = make_config(receive={"transfer_syntaxes": ["ExplicitVRLittleEndian", "MPEG2MPML"]})
    assert "was not tried" in only(machine.examine_decoders(config), Level.WARNING).words


def test_CFG_06_libraries_are_held_against_the_requirements(monkeypatch):
    assert [finding.level for finding in machine.examine_libraries()] == [Level.OK]
    versions = {"python-gdcm": "3.2.2", "pydicom": "3.1.0"}
    right = machine.metadata.version
    monkeypatch.setattr(machine.metadata, "version", lambda name: versions.get(name) or right(name))
    faults = [finding for finding in machine.examine_libraries() if finding.level is Level.FAULT]
    assert {finding.subject for finding in faults} == set(versions)
    assert all(finding.advice.startswith("pip install") for finding in faults)


@pytest.mark.parametrize(
    ("installed", "bounds", "kept"),
    [
        ("2.13.0+cpu", "<3,>=2.10", True),
        ("2.9.1", "<3,>=2.10", False),
        ("3.2.6", ">=3.2.6,<3.3", True),
        ("3.0", "==3.0.0", True),
        ("3.3rc1", "<3.3", False),
    ],
)
def test_versions_are_compared_by_their_numbers(monkeypatch, installed, bounds, kept):
    monkeypatch.setattr(machine.metadata, "version", lambda _: installed)
    assert (machine._library_fault("some", bounds) is None) is kept


def test_device_that_is_not_here_is_a_fault(make_config):
    found = list(machine.examine_device(make_config(infer={"devices": ["cpu", "cuda:99"]})))
    assert [finding.level for finding in found] == [Level.OK, Level.FAULT]
    assert "torch" in found[0].words
    assert "cuda:99 is not here" in found[1].words


@pytest.mark.parametrize(("there", "words"), [(True, "OpenVINO compiles"), (False, "pip install")])
def test_a_processor_is_told_what_compiles_for_it(make_config, monkeypatch, there, words):
    found = machine.importlib.util.find_spec
    monkeypatch.setattr(
        machine.importlib.util, "find_spec", lambda name: there or None if name == "openvino" else found(name)
    )
    [finding] = machine.examine_device(make_config(infer={"devices": ["cpu"]}))
    assert finding.level is Level.OK
    assert words in finding.words


# -- the network


def port_of(config) -> Finding:
    (finding,) = network.examine_ports(config)
    return finding


def test_both_ports_are_looked_at(make_config, free_port):
    receive = {"tls_port": free_port, "port": free_port + 1}
    files = dict.fromkeys(("certificate_file", "key_file", "trusted_file"), "none.pem")
    config = make_config(receive=receive, tls=files)
    with socket.socket() as other:
        other.bind(("127.0.0.1", free_port))
        other.listen()
        found = {one.subject: one for one in network.examine_ports(config)}
    taken = found[f"127.0.0.1 TLS port {free_port}"]
    assert (taken.level, taken.words) == (Level.FAULT, "another program has it")
    assert "receive.tls_port" in taken.advice
    assert len(found) == 2


def test_port_of_another_program_is_a_fault(make_config, free_port):
    with socket.socket() as other:
        other.bind(("127.0.0.1", free_port))
        other.listen()
        config = make_config(deliver={"calling_ae_title": "X"})
        finding = port_of(config)
    assert finding.level is Level.FAULT
    assert "another program has it" in finding.words


def test_port_of_the_running_node_is_called(make_config, make_peer):
    peer = make_peer(ae_title="PACS_AI")
    config = make_config(receive={"port": peer.port})
    database = made(config)
    processes.register(database, this_process("receive"), "receive")
    assert "the node runs and answers C-ECHO" in port_of(config).words
    peer.stop()
    assert "does not listen" in port_of(config).words
    database.close()


def test_port_that_this_user_may_not_take_is_a_fault(make_config):
    config = make_config(receive={"bind": "192.0.2.1"})
    assert port_of(config).advice == "correct receive.bind"


def one_peer(peer, **route: object) -> dict[str, object]:
    table = {"name": "p", "ae_title": peer.ae_title, "host": "127.0.0.1", "port": peer.port}
    return {"peer": [table], "route": [{"run": "ct-lung", "when": {}, **route}]}


def profile_findings(config) -> list[Finding]:
    found = network.examine_peer(config, config.peer[0])
    return [finding for finding in found if finding.area == "profile"]


def test_peer_that_takes_no_sr_is_a_fault(make_config, make_peer):
    peer = make_peer(supported=[build_context(Verification), build_context(SegmentationStorage)])
    found = profile_findings(make_config(**one_peer(peer, deliver_to=["p"])))
    lacking = [finding for finding in found if finding.level is Level.FAULT]
    assert any("the report (Comprehensive 3D SR Storage, Explicit VR Little Endian)" in f.words for f in lacking)
    assert all("have its administrator enable it for" in finding.advice for finding in lacking)
    assert not any("set profile" in finding.advice for finding in lacking), "no profile fits a peer without SR"


def test_peer_of_2012_is_told_what_it_gets_and_which_profile_fits(make_config, make_peer):
    taken = (Verification, SegmentationStorage, ComprehensiveSRStorage, EnhancedSRStorage, BasicTextSRStorage)
    taken += (SecondaryCaptureImageStorage, ParametricMapStorage)
    peer = make_peer(supported=[build_context(each) for each in taken])
    (finding,) = profile_findings(make_config(**one_peer(peer, deliver_to=["p"])))
    assert finding.level is Level.WARNING
    assert finding.words == (
        "does not take the report (Comprehensive 3D SR Storage, Explicit VR Little Endian); "
        "gets the report (Comprehensive SR Storage, Explicit VR Little Endian) instead"
    )
    assert 'set profile = "generic-pacs" (what fits: generic-pacs, dictation)' in finding.advice
    tables = one_peer(peer, deliver_to=["p"])
    tables["peer"][0]["profile"] = "generic-pacs"
    (finding,) = profile_findings(make_config(**tables))
    assert finding.level is Level.OK


def test_peer_that_gets_nothing_is_only_called(make_config, make_peer):
    config = make_config(**one_peer(make_peer()))
    assert len(list(network.examine_peer(config, config.peer[0]))) == 1


def test_peer_that_is_not_there_is_a_fault_only_where_it_gets_results(make_config, make_peer):
    peer = make_peer()
    peer.stop()
    for further, level in (({"deliver_to": ["p"]}, Level.FAULT), ({}, Level.WARNING)):
        config = make_config(**one_peer(peer, **further))
        finding = only(network.examine_peer(config, config.peer[0]), level)
        assert "cannot be reached" in finding.words
        assert "firewall" in finding.advice


def test_a_peer_that_cannot_be_resolved_is_a_fault_where_its_calls_would_be_refused(make_config, monkeypatch):
    def nowhere(*_arguments: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    peer = {"name": "ct", "ae_title": "CT", "host": "ct.example"}
    config = make_config(peer=[peer], receive={"accept": "peers"})
    finding = only(network.examine_peer(config, config.peer[0]), Level.FAULT)
    assert "its calls are refused" in finding.words


def test_a_database_of_another_kind_is_a_fault_of_the_configuration(make_config):
    config = make_config(store={"database": "oracle://scott"})
    finding = only(whole.examine(config), Level.FAULT)
    assert finding.words.startswith("store.database must be sqlite")


def test_peer_that_knows_us_not_is_a_fault(make_config, make_peer):
    config = make_config(**one_peer(make_peer(), deliver_to=["p"]))
    wrong = config.peer[0].model_copy(update={"ae_title": "WRONG"})
    finding = only(network.examine_peer(config, wrong), Level.FAULT)
    assert 'does not answer to the called AE title "WRONG"' in finding.words
