"""A decoder that crashes takes only the child process with it: its job fails in words, and the others go on."""

from __future__ import annotations

import pydicom
from pydicom.uid import JPEGLSLossless
from running_node import peer_table

from pacs_ai.states import JobState


def test_INF_10_a_crash_in_a_codec_fails_its_job_alone(make_node, make_peer, make_series):
    pacs = make_peer()
    node = make_node(
        peer=[peer_table("pacs", pacs.ae_title, pacs.port)],
        pipeline=[{"name": "brittle", "use": "story", "settings": {"codec_dies": True}}],
        route=[{"when": {"modality": "CT"}, "run": "brittle", "deliver_to": ["pacs"]}],
    ).start()
    worker = node.pid("infer")
    bad, paths = make_series(1)
    for path in paths:
        ds = pydicom.dcmread(path)
        ds.compress(JPEGLSLossless, generate_instance_uid=False)
        ds.save_as(path)
    node.send_all(paths)
    good, others = make_series(2)
    node.send_all(others)
    failed = node.job_in(bad, JobState.FAILED)
    assert (
        failed.reason
        == "given up after 3 crashes; the last: the decoder of the images was killed by signal 11 (SIGSEGV)"
    )
    node.delivered(good)
    assert node.pid("infer") == worker, "the worker itself lived on"
    node.account()
