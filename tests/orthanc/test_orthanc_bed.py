"""The test PACS itself: it starts, keeps what we send bit for bit, routes CT and MR to the node, and can be away."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import yaml
from pydicom import Dataset, FileMetaDataset, dcmread
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom import AE, evt
from pynetdicom.dsutils import split_dataset

from pacs_ai.deliver import scu
from pacs_ai.deliver.scu import Outgoing, Remote
from pacs_ai.dicom import contexts
from pacs_ai.dicom.identifiers import derive_uid
from pacs_ai.dicom.status import Category

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.orthanc

LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"
START = Path(__file__).resolve().parents[2] / "orthanc-test" / "start.py"


@pytest.fixture
def make_series(tmp_path):
    """Write a series of small instances: modality, SOP class, count."""

    def make(modality: str, sop_class_uid: str, count: int = 3, name: str = "") -> list[Outgoing]:
        key = (str(tmp_path), modality, name)
        folder = tmp_path / f"{modality}{name}"
        folder.mkdir()
        found = []
        for number in range(count):
            ds = Dataset()
            ds.file_meta = FileMetaDataset()
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            ds.SOPClassUID, ds.SOPInstanceUID = sop_class_uid, derive_uid(*key, number)
            ds.StudyInstanceUID, ds.SeriesInstanceUID = derive_uid(str(tmp_path), "study"), derive_uid(*key, "series")
            ds.PatientID, ds.PatientName, ds.Modality, ds.InstanceNumber = "BED", "Test^Bed", modality, number + 1
            ds.Rows = ds.Columns = 64
            ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 16, 16, 15, 1, 1
            ds.PhotometricInterpretation = "MONOCHROME2"
            ds.PixelData = np.full((64, 64), number, np.int16).tobytes()
            path = folder / f"{number}.dcm"
            ds.save_as(path, enforce_file_format=True)
            found.append(Outgoing(path, str(sop_class_uid), str(ds.SOPInstanceUID), str(ExplicitVRLittleEndian)))
        return found

    return make


def remote_of(orthanc, calling_ae_title: str = "PACS_AI") -> Remote:
    return Remote(orthanc.ae_title, orthanc.host, orthanc.dicom_port, calling_ae_title)


def study_of(instances: list[Outgoing]) -> str:
    return str(dcmread(instances[0].path, specific_tags=["StudyInstanceUID"]).StudyInstanceUID)


def data_set_bytes(raw: bytes, folder: Path) -> bytes:
    path = folder / "read.dcm"
    path.write_bytes(raw)
    return raw[split_dataset(path)[1] :]


@dataclass
class Node:
    """Stands where the node would: keeps the SOP Instance UIDs and modalities of what Orthanc routes to it."""

    port: int
    arrived: list[tuple[str, str]] = field(default_factory=list)
    status: int = 0x0000

    def modalities(self) -> list[str]:
        return sorted(modality for modality, _ in self.arrived)


@pytest.fixture
def node(orthanc) -> Iterator[Node]:
    """A storage SCP on the port to which Orthanc routes."""
    found = Node(orthanc.node_port)
    lock = threading.Lock()

    def store(event: evt.Event) -> int:
        with lock:
            if found.status == 0:
                found.arrived.append((str(event.dataset.Modality), str(event.request.AffectedSOPInstanceUID)))
            return found.status

    ae = AE("PACS_AI")
    ae.supported_contexts = contexts.acceptor_contexts()
    server = ae.start_server(("127.0.0.1", found.port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    yield found
    server.shutdown()


def test_echo_both_ways(orthanc, node):
    assert scu.echo(remote_of(orthanc)).ms is not None
    assert orthanc.echo()


def test_only_known_callers_are_let_in(orthanc):
    stranger = scu.echo(remote_of(orthanc, "STRANGER"))
    assert stranger.ms is None
    wrong = scu.echo(Remote("OTHER", "127.0.0.1", orthanc.dicom_port, "PACS_AI"))
    assert 'does not answer to the called AE title "OTHER"' in wrong.words


def test_orthanc_keeps_what_we_send_bit_for_bit(orthanc, make_series, tmp_path):
    instances = make_series("OT", SecondaryCaptureImageStorage, 5)
    outcomes = list(scu.send(remote_of(orthanc), instances))
    assert [outcome.category for outcome in outcomes] == [Category.SUCCESS] * 5
    assert orthanc.statistics()["CountInstances"] == 5
    for one in instances:
        found = orthanc.instance(one.sop_instance_uid)
        assert data_set_bytes(orthanc.file(found), tmp_path) == data_set_bytes(one.path.read_bytes(), tmp_path)
        assert orthanc.metadata(found, "RemoteAET") == "PACS_AI"
        assert orthanc.tags(found)["PatientID"] == "BED"


def test_real_compressed_slices_are_kept_as_sent(orthanc, shared_data):
    found = [
        one
        for one in scu.scan([shared_data / "ct_transfer_syntaxes"]).instances
        if one.transfer_syntax_uid in {str(JPEGLSLossless), str(ExplicitVRLittleEndian)}
    ]
    assert found
    assert all(outcome.stored for outcome in scu.send(remote_of(orthanc, "SENDER"), found))
    for one in found:
        instance = orthanc.instance(one.sop_instance_uid)
        assert orthanc.metadata(instance, "TransferSyntax") == one.transfer_syntax_uid
        # Orthanc writes sequences of undefined length anew, with their length; their content is the same.
        assert dcmread(io.BytesIO(orthanc.file(instance))) == dcmread(one.path)


def test_the_same_again_is_a_success_and_no_second_copy(orthanc, make_series):
    instances = make_series("OT", SecondaryCaptureImageStorage)
    for _ in range(2):
        assert all(outcome.category is Category.SUCCESS for outcome in scu.send(remote_of(orthanc), instances))
    assert orthanc.statistics()["CountInstances"] == 3


def test_a_label_map_is_refused_with_advice_and_the_rest_goes_through(orthanc, make_series):
    """Orthanc 1.10 does not know Label Map Segmentation (UnknownSopClassAccepted is false)."""
    label_map = make_series("SEG", LABEL_MAP_SEGMENTATION, 1)
    plain = make_series("OT", SecondaryCaptureImageStorage, 1)
    refused, stored = scu.send(remote_of(orthanc), label_map + plain)
    assert refused.category is Category.PERMANENT
    assert "does not accept Label Map Segmentation Storage" in refused.words
    assert stored.category is Category.SUCCESS
    asked = [(str(kind), str(ExplicitVRLittleEndian)) for kind in (SegmentationStorage, LABEL_MAP_SEGMENTATION)]
    assert [answer.accepted for answer in scu.accepted_contexts(remote_of(orthanc), asked)] == [True, False]


def test_ct_and_mr_are_routed_to_the_node_and_nothing_else(orthanc, node, make_series):
    wanted = make_series("CT", CTImageStorage) + make_series("MR", MRImageStorage, 2)
    others = make_series("SEG", SegmentationStorage, 1) + make_series("OT", SecondaryCaptureImageStorage, 1)
    assert all(outcome.stored for outcome in scu.send(remote_of(orthanc, "MODALITY"), others + wanted))
    orthanc.wait_until(lambda: len(node.arrived) >= 5, what="CT and MR at the node")
    # All series became stable in the same second; a later one shows that nothing more was on its way.
    late = make_series("CT", CTImageStorage, 1, name="late")
    orthanc.upload(*(one.path for one in late))
    orthanc.wait_until(lambda: len(node.arrived) >= 6, what="the later CT at the node")
    assert node.modalities() == ["CT"] * 4 + ["MR"] * 2
    assert {uid for _, uid in node.arrived} == {one.sop_instance_uid for one in wanted + late}


def test_what_came_from_the_node_is_not_sent_back(orthanc, node, make_series):
    own = make_series("CT", CTImageStorage, 2, name="own")
    assert all(outcome.stored for outcome in scu.send(remote_of(orthanc, "PACS_AI"), own))
    orthanc.wait_until(lambda: "came from the node, not sent back" in orthanc.log(), what="the routing decision")
    foreign = make_series("CT", CTImageStorage, 1, name="foreign")
    orthanc.upload(foreign[0].path)
    orthanc.wait_until(lambda: node.arrived, what="the foreign CT at the node")
    assert [uid for _, uid in node.arrived] == [foreign[0].sop_instance_uid]


def test_a_push_that_failed_can_be_sent_again(orthanc, node, make_series):
    instances = make_series("OT", SecondaryCaptureImageStorage, 2)
    orthanc.upload(*(one.path for one in instances))
    node.status = 0xA700
    study = orthanc.study(study_of(instances))
    job = orthanc.wait_for_job(orthanc.store(study))
    assert job["State"] == "Failure"
    node.status = 0x0000
    assert orthanc.resubmit_failed() >= 1
    orthanc.wait_until(lambda: len(node.arrived) >= 2, what="the second push")


def test_orthanc_can_be_away_and_comes_back_with_all_it_had(orthanc, make_series):
    instances = make_series("OT", SecondaryCaptureImageStorage, 4)
    first, second = instances[:2], instances[2:]
    assert all(outcome.stored for outcome in scu.send(remote_of(orthanc), first))
    orthanc.stop()
    away = list(scu.send(remote_of(orthanc), second))
    assert [outcome.category for outcome in away] == [Category.TRANSIENT] * 2
    assert "cannot be reached" in away[0].words
    orthanc.start()
    assert orthanc.statistics()["CountInstances"] == 2
    assert all(outcome.stored for outcome in scu.send(remote_of(orthanc), second))
    found = orthanc.wait_for_instances(study_of(instances), "OT", 4)
    assert len(found) == 4
    assert len(orthanc.series(study_of(instances))) == 1
    assert dcmread(io.BytesIO(orthanc.file(found[0]))).Modality == "OT"


def test_dicomweb_is_there(orthanc, make_series):
    instances = make_series("OT", SecondaryCaptureImageStorage, 1)
    orthanc.upload(instances[0].path)
    studies = orthanc.get("/dicom-web/studies")
    assert [study["0020000D"]["Value"][0] for study in studies] == [study_of(instances)]


def test_both_ways_share_one_configuration():
    """compose.yaml mounts what start.py reads, and sets for itself only where things are."""
    service = yaml.safe_load((START.parent / "compose.yaml").read_text())["services"]["orthanc"]
    shared = json.loads((START.parent / "orthanc.json").read_text())
    mounted = [Path(volume.split(":")[0]).name for volume in service["volumes"] if volume.startswith("./")]
    assert sorted(mounted) == ["autoroute.lua", "orthanc.json"]
    assert all((START.parent / name).is_file() for name in mounted)
    own = {name for name in service["environment"] if name.startswith("ORTHANC__")}
    assert own == {"ORTHANC__DICOM_MODALITIES", "ORTHANC__LUA_SCRIPTS", "ORTHANC__REMOTE_ACCESS_ALLOWED"}
    assert not {"DicomModalities", "LuaScripts", "RemoteAccessAllowed", "DicomPort", "HttpPort"} & set(shared)
    assert service["environment"]["TCP_NODELAY"] == "1"
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_the_script_ends_cleanly_and_takes_orthanc_with_it(tmp_path, orthanc_server):
    words = [sys.executable, str(START), "--folder", str(tmp_path), "--no-autoroute"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line.split())
        if line.strip() == "ready":
            break
    http_port = int(next(words[1] for words in lines if words[0] == "REST").rstrip("/").rsplit(":", 1)[1])
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", http_port), timeout=5)


def test_the_script_says_what_is_missing(tmp_path):
    words = [sys.executable, str(START), "--folder", str(tmp_path)]
    code = "import runpy, shutil, sys; shutil.which = lambda *a, **k: None; sys.argv = sys.argv[1:]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    found = subprocess.run([sys.executable, "-c", code, *words[1:]], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "apt-get install orthanc orthanc-dicomweb" in found.stderr
