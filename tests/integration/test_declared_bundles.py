"""Every inference configuration of the zoo is loaded as declarations, or refused with what was not understood."""

from __future__ import annotations

from pathlib import Path

import pytest

from pacs_ai.errors import PipelineFault
from pacs_ai.models.runtimes.monai_bundle import MonaiBundlePackage
from pacs_ai.testing import zoo

BUNDLES = Path(__file__).resolve().parents[3] / "shared" / "bundles"
#: Small and quick, one of each kind: images and volumes, segmentation and classification, JSON and YAML.
QUICK = {"ventricular_short_axis_3label", "segmentation_template", "classification_template"}
#: Bundle -> what of it is not declared; all others are in `zoo.CASES`.
REFUSED = {
    "brats_mri_axial_slices_generative_diffusion": "has no",
    "brats_mri_generative_diffusion": "has no",
    "lung_nodule_ct_detection": "scripts.evaluator.DetectionEvaluator",
    "maisi_ct_generative": "has no",
    "mednist_gan": "has no preprocessing",
    "mednist_reg": "begins with no LoadImaged",
    "pathology_nuclei_classification": "AddLabelAsGuidanced",
    "pathology_nuclei_segmentation_classification": "HoVerNet",
    "pathology_nuclick_annotation": "AddClickSignalsd",
    "pathology_tumor_detection": "begins with no LoadImaged",
    "renalStructures_CECT_segmentation": "scripts.my_transforms.ConcatImages",
    "renalStructures_UNEST_segmentation": "scripts.networks.unest.UNesT",
    "spleen_deepedit_annotation": "scripts.transforms.OrientationGuidance",
    "valve_landmarks": "begins with no LoadImaged",
    "vista2d": "begins with no LoadImaged",
    "vista3d": "Vista3dEvaluator|has no",
    "wholeBrainSeg_Large_UNEST_segmentation": "scripts.networks.unest_base_patch_4.UNesT",
}
CONFIGURATIONS = [
    pytest.param(bundle.name, configuration, marks=() if bundle.name in QUICK else pytest.mark.nightly)
    for bundle in sorted(BUNDLES.glob("*"))
    if bundle.is_dir()
    for configuration in zoo.configurations(bundle)
]


@pytest.mark.parametrize(("bundle", "configuration"), CONFIGURATIONS)
def test_it_is_loaded_and_runs_or_is_refused_by_name(shared_bundles, tmp_path, bundle, configuration):
    case = zoo.case_of(bundle, configuration)
    pipeline = MonaiBundlePackage(zoo.trial(shared_bundles / bundle, configuration, tmp_path / bundle, case))
    if case is None:
        with pytest.raises(PipelineFault, match=REFUSED[bundle]):
            pipeline.prepare("cpu")
        return
    pipeline.prepare("cpu")
    found = pipeline.run(zoo.phantom_for(case))
    assert "random-weights" in pipeline.card.version
    if case.classes:
        assert all(0 <= answer.probability <= 1 for answer in found.classifications)
        assert len(found.classifications) == case.classes
    for segment in found.segments:
        assert segment.voxels.shape == case.shape


def test_every_bundle_of_the_folder_is_one_or_the_other(shared_bundles):
    names = {path.name for path in shared_bundles.glob("*") if path.is_dir()}
    assert names == set(REFUSED) | {name.partition("/")[0] for name in zoo.CASES}
    assert not set(REFUSED) & set(zoo.CASES)
