"""A parametric map holds every number on every slice, and says what it is."""

from __future__ import annotations

from dataclasses import replace

import highdicom
import numpy as np
import pytest
from objects import only
from picture_material import PHANTOM, make_case, maps_of, radiographs, validator_errors

from pacs_ai.encode.voxels import parametric_map
from pacs_ai.encode.voxels.parametric_map import encode_parametric_map
from pacs_ai.errors import Permanent
from pacs_ai.pipeline import Map
from pacs_ai.profiles import Kind
from pacs_ai.testing import CORONAL, SAGITTAL

FLOAT = only(Kind.PARAMETRIC_MAP)
TILTED = (0.96, 0.28, 0.0, -0.28, 0.96, 0.0)


def with_maps(case):
    return replace(case, findings=replace(case.findings, maps=maps_of(case)))


@pytest.mark.parametrize("orientation", [None, SAGITTAL, CORONAL, TILTED])
@pytest.mark.parametrize("multiframe", [False, True])
def test_every_number_lies_at_its_source_frame(orientation, multiframe):
    phantom = PHANTOM if orientation is None else replace(PHANTOM, orientation=orientation)
    case = with_maps(make_case(phantom, multiframe=multiframe))
    for one, made in zip(case.findings.maps, encode_parametric_map(case, FLOAT, None), strict=True):
        ds = made.dataset
        values = np.frombuffer(ds.FloatPixelData, "<f4").reshape(-1, ds.Rows, ds.Columns)
        seen = set()
        for frame, shown in zip(ds.PerFrameFunctionalGroupsSequence, values, strict=True):
            source = frame.DerivationImageSequence[0].SourceImageSequence[0]
            key = (source.ReferencedSOPInstanceUID, source.get("ReferencedFrameNumber"))
            (index,) = [n for n, r in enumerate(case.own.slices) if (r.sop_instance_uid, r.frame_number) == key]
            position = [float(value) for value in frame.PlanePositionSequence[0].ImagePositionPatient]
            assert np.allclose(position, case.volume.affine[:3] @ [index, 0, 0, 1], atol=1e-3)
            assert np.array_equal(shown, one.voxels[index])
            seen.add(index)
        assert seen == set(range(len(case.own.slices)))


def test_highdicom_reads_it_again(tmp_path):
    case = with_maps(make_case())
    made, other = encode_parametric_map(case, FLOAT, None)
    made.write(tmp_path / "map.dcm")
    values = highdicom.imread(tmp_path / "map.dcm").get_volume(apply_real_world_transform=True).array
    expected = case.findings.maps[0].voxels
    assert np.array_equal(values, expected) or np.array_equal(values, expected[::-1])
    assert other.dataset.InstanceNumber == made.dataset.InstanceNumber + 1
    assert other.sop_instance_uid != made.sop_instance_uid
    assert other.series_instance_uid != made.series_instance_uid, "OHIF shows one map of a series"


@pytest.mark.parametrize("multiframe", [False, True])
def test_the_validator_finds_nothing_and_bytes_are_the_same_twice(multiframe, tmp_path):
    case = with_maps(make_case(multiframe=multiframe))
    first, second = encode_parametric_map(case, FLOAT, None), encode_parametric_map(case, FLOAT, None)
    assert [one.sha256 for one in first] == [one.sha256 for one in second]
    for one in first:
        assert not validator_errors(one, tmp_path)


def test_quantity_unit_and_range_are_stated():
    case = with_maps(make_case())
    shared = [one.dataset.SharedFunctionalGroupsSequence[0] for one in encode_parametric_map(case, FLOAT, None)]
    probability, saliency = (one.RealWorldValueMappingSequence[0] for one in shared)
    assert probability.MeasurementUnitsCodeSequence[0].CodeValue == "{ratio}"
    assert probability.QuantityDefinitionSequence[0].ConceptCodeSequence[0].CodeValue == "111047"
    assert probability.DoubleFloatRealWorldValueFirstValueMapped == 0
    assert probability.DoubleFloatRealWorldValueLastValueMapped == 1
    assert saliency.DoubleFloatRealWorldValueFirstValueMapped == float(case.findings.maps[1].voxels.min())
    assert probability.RealWorldValueSlope == 1
    assert [float(one.FrameVOILUTSequence[0].WindowWidth) > 0 for one in shared] == [True, True]


def test_a_flat_map_has_a_window(tmp_path):
    case = make_case()
    flat = Map("Flat", maps_of(case)[0].concept, maps_of(case)[0].unit, np.zeros(case.volume.shape, np.float32))
    (made,) = encode_parametric_map(replace(case, findings=replace(case.findings, maps=(flat,))), FLOAT, None)
    assert not validator_errors(made, tmp_path)
    assert float(made.dataset.SharedFunctionalGroupsSequence[0].FrameVOILUTSequence[0].WindowWidth) == 1


def test_no_maps_and_no_volume_give_none():
    assert encode_parametric_map(make_case(), FLOAT, None) == ()
    case = radiographs()
    maps = (
        Map("x", maps_of(make_case())[0].concept, maps_of(make_case())[0].unit, np.zeros((2, 300, 240), np.float32)),
    )
    assert encode_parametric_map(replace(case, findings=replace(case.findings, maps=maps)), FLOAT, None) == ()


def test_what_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(parametric_map, "MAX_BYTES", 1000)
    with pytest.raises(Permanent, match="leave parametric maps out of the profile"):
        encode_parametric_map(with_maps(make_case()), FLOAT, None)
