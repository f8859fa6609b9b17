"""Orthanc commits to what it was sent, on an association of its own, and says what it has lost."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from commitment_bed import Bed
from running_node import nodes, peer_table
from stations import ME

from pacs_ai.receive.commitment import services
from pacs_ai.receive.ingest import DurableIngest
from pacs_ai.receive.process import listen
from pacs_ai.receive.scp import Receiver
from pacs_ai.store.files import Files
from pacs_ai.testing import Phantom, write_phantom

pytestmark = pytest.mark.orthanc


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_DEL_07_orthanc_confirms_what_it_has_and_gets_again_what_it_lost(orthanc, stations, source, tmp_path):
    files = Files(tmp_path / "store" / "files")
    peer = SimpleNamespace(ae_title=orthanc.ae_title, port=orthanc.dicom_port, answers="elsewhere")
    bed = Bed(stations, source, files, peer, tmp_path, commitment_seconds=60)
    settings = listen(bed.config, services(bed.config, stations.database, ME))
    receiver = Receiver(replace(settings, bind="127.0.0.1", port=orthanc.node_port), DurableIngest(files, lambda _: []))
    receiver.start()
    try:
        bed.deliver()
        lost = orthanc.instance(bed.uids[1])
        orthanc.call("DELETE", f"/instances/{lost}")
        assert bed.step()
        orthanc.wait_until(lambda: stations.deliveries() == ["confirmed", "sent"], what="Orthanc's answer")
        orthanc.wait_until(lambda: "looked for again" in bed.rows[1].reason, what="the failure in it")
        bed.due()
        assert bed.step()
        orthanc.wait_until(lambda: "sent" not in stations.deliveries(), what="Orthanc's answer to the next request")
        assert stations.deliveries() == ["confirmed", "waiting"]
        assert "0x0112" in bed.rows[1].reason
        bed.deliver()
        assert bed.step()
        orthanc.wait_until(lambda: stations.deliveries() == ["confirmed", "confirmed"], what="Orthanc's last answer")
        assert {row.reason for row in bed.rows} == {"the peer committed to keep it"}
    finally:
        receiver.stop(1.0)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_DEL_07_orthanc_is_looked_at_where_its_answer_does_not_come(orthanc, stations, source, tmp_path):
    files = Files(tmp_path / "store" / "files")
    peer = SimpleNamespace(ae_title=orthanc.ae_title, port=orthanc.dicom_port, answers="elsewhere")
    bed = Bed(stations, source, files, peer, tmp_path)  # and nobody listens where Orthanc answers
    bed.deliver()
    bed.step()
    bed.due()
    bed.step()
    assert stations.deliveries() == ["confirmed", "confirmed"]
    assert {row.reason for row in bed.rows} == {"the peer shows it in a query"}


def test_DEL_07_a_running_node_has_its_results_confirmed(orthanc, tmp_path):
    peer = peer_table("orthanc", orthanc.ae_title, orthanc.dicom_port) | {"commitment": True, "verify_patient": True}
    with nodes(tmp_path / "node") as make:
        node = make(
            port=orthanc.node_port,
            peer=[peer],
            route=[{"when": {"modality": "CT", "min_instances": 20}, "run": "ct-lung", "deliver_to": ["orthanc"]}],
        ).start()
        phantom = Phantom(40, 96, 96, seed=7, order="shuffled")
        orthanc.upload(*write_phantom(tmp_path / "study", phantom))
        orthanc.wait_for_instances(phantom.study_instance_uid, "SR", seconds=120)
        orthanc.wait_until(
            lambda: [one.state for one in node.deliveries()] == ["confirmed", "confirmed"],
            seconds=120,
            what="Orthanc's commitment",
        )
        node.account()
