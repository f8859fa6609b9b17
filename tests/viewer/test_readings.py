"""What a reading with published weights outlines is shown in OHIF, voxel by voxel."""

from __future__ import annotations

from pathlib import Path

import pytest
from objects import only
from sources import Analysed, Source
from test_ohif import open_segmentation

from pacs_ai.errors import PipelineFault, Unavailable, UserError
from pacs_ai.models.install import install
from pacs_ai.models.registry import Registry
from pacs_ai.profiles import Kind
from pacs_ai.testing import samples

pytestmark = [pytest.mark.viewer, pytest.mark.orthanc, pytest.mark.nightly]

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "models"


def test_a_brain_is_shown_in_its_colours(viewer, pacs, tmp_path):
    models = tmp_path / "models"
    try:
        install("brain-tissue", models, lambda _what, _done, _whole: None, brought=PUBLISHED)
    except (UserError, PipelineFault, Unavailable) as error:
        pytest.skip(f"BRAIN-TISSUE MISSING: {error}, so it was not tested here")
    sent = tmp_path / "sent"
    samples.write("brain-tissue", sent)
    brain = Analysed.by(Registry(models=models).create("brain-tissue"), pacs, Source.of(sorted(sent.rglob("*.dcm"))))
    shown = brain.shown_as("brain tissue", only(Kind.SEGMENTATION))
    open_segmentation(viewer, brain, shown, brain.findings)
    viewer.until_drawn("reading brain-tissue")
