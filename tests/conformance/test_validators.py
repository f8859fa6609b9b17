"""Every kind of object, over eight character sets, clean and unclean sources, held against the field's validators.

`make test` asks each validator about each kind once, over the character sets and cleanliness pairwise; `make nightly`
asks about the full product. What was said stands in build/validators.json, for docs/results.md.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from conformance_material import (
    CHARSETS,
    Ledger,
    beyond_exemptions,
    iod_errors,
    make,
    phantom,
    run,
    tool,
)
from orthanc_bed import Orthanc, missing

from pacs_ai.encode.results import ENCODERS
from pacs_ai.infer.frames import load_frames
from pacs_ai.infer.volume import load_volume
from pacs_ai.profiles import Kind
from pacs_ai.testing.pipelines import Everything, RadiographRegions

PRODUCT = list(itertools.product(CHARSETS, (True, False)))
#: Every character set and either cleanliness, each kind in all of them: the pairs of two factors beside the kind.
PAIRWISE = [(charset, number % 2 == 0) for number, charset in enumerate(CHARSETS)]
STUDIES = [
    pytest.param(
        one, id=f"{one[0]}-{'clean' if one[1] else 'unclean'}", marks=[] if one in PAIRWISE else pytest.mark.nightly
    )
    for one in PRODUCT
]
REAL = {
    "chest CT": ("ct_chest_tcga_thick", load_volume, Everything),
    "enhanced MR": ("mr_enhanced_vendors/philips_enhanced/anatomical/001", load_volume, Everything),
    "mammogram": ("mg_cbis_ddsm_malign/1-280.dcm", load_frames, RadiographRegions),
}
PIXELMED = Path("/usr/share/java/pixelmed.jar")
#: Explained in docs/results.md: a de-identified source's own values, and attributes whose cure is to leave them out.
CURED = (
    "ClinicalTrial", "OtherPatientIDsSequence", "PatientAge", "PatientSpecies", "PatientWeight",
    "ProcedureCodeSequence", "StudyID", "StudyTime", "ReferringPhysicianName", "AccessionNumber",
)  # fmt: skip


@pytest.fixture(scope="module")
def ledger():
    """What is said, written down when all was asked."""
    kept = Ledger()
    yield kept
    kept.write()


@pytest.fixture(scope="module", params=STUDIES)
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    charset, clean = request.param
    return make(phantom(folder / "source", charset, clean), folder / "results", Everything())


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """One clean study in every transfer syntax of every form."""
    folder = tmp_path_factory.mktemp("plain")
    return make(phantom(folder / "source", "Latin 1", True), folder / "results", Everything(most=1), syntaxes=True)


@pytest.fixture(scope="module", params=REAL)
def real(request, tmp_path_factory):
    name, load, pipeline = REAL[request.param]
    source = request.getfixturevalue("shared_data") / name
    files = [source] if source.is_file() else source.rglob("*")
    paths = sorted(path for path in files if path.is_file() and is_dicom(path))
    return make(paths, tmp_path_factory.mktemp("real"), pipeline(), load)


def is_dicom(path):
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def few(objects):
    """Of a series of derived images only the first and the last: they differ in their place."""
    seen = {}
    for one in objects:
        seen.setdefault(one.name, []).append(one)
    return [one for several in seen.values() for one in (several if len(several) < 3 else (several[0], several[-1]))]


def judge(ledger, objects, validator, complaints):
    """Note what a validator says of each object, and fail with all of it."""
    found = {}
    for one in objects:
        said = complaints(one)
        ledger.note(one.name, validator, "; ".join(said) or "ok")
        if said:
            found[one.name] = said
    assert found == {}


def test_every_kind_is_made(plain):
    assert {one.kind for one in plain.objects} == set(ENCODERS)


def test_RES_03_dciodvfy_finds_no_error(made, ledger):
    judge(ledger, few(made.objects), "dciodvfy", lambda one: beyond_exemptions(one.name, iod_errors(one.path)))


def test_dciodvfy_finds_no_error_in_any_transfer_syntax(plain, ledger):
    judge(ledger, few(plain.objects), "dciodvfy", lambda one: beyond_exemptions(one.name, iod_errors(one.path)))


def test_dciodvfy_finds_no_error_over_real_series(real, ledger):
    copied = set(iod_errors(real.sources[0]))  # a derived image is an image of its source's kind, with its faults

    def complaints(one):
        mine = set(iod_errors(one.path)) - (copied if one.kind is Kind.DERIVED_IMAGES else set())
        return beyond_exemptions(one.name, sorted(mine))

    judge(ledger, few(real.objects), "dciodvfy", complaints)


def test_RES_03_dcentvfy_finds_one_patient_and_one_study(made, ledger, tmp_path):
    listed = tmp_path / "list"
    listed.write_text("\n".join(map(str, (*made.sources, *(one.path for one in made.objects)))) + "\n")
    verdict = run(tool("dcentvfy"), "-f", listed)
    lines = {re.sub("(for|versus) (file )?<.*", "", line) for line in (verdict.stderr + verdict.stdout).splitlines()}
    strange = sorted(line for line in lines if line and not ("Warning" in line and any(map(line.__contains__, CURED))))
    for one in made.objects:
        ledger.note(one.name, "dcentvfy", "; ".join(strange) or "ok")
    assert strange == []


def test_RES_03_dcmtk_reads_every_report_without_a_message(made, ledger):
    def complaints(one):
        said = [run(f"/usr/bin/{name}", one.path).stderr for name in ("dsrdump", "dsr2html")]
        return beyond_exemptions(one.name, [line for text in said for line in text.splitlines()])

    tool("dsrdump")
    judge(ledger, [one for one in made.objects if one.is_tree], "dsrdump, dsr2html", complaints)


def test_RES_04_the_name_is_the_sources_byte_for_byte(made):
    source = pydicom.dcmread(made.sources[0], stop_before_pixels=True)
    written = source.get_item("PatientName").value
    for one in made.objects:
        ds = pydicom.dcmread(one.path, stop_before_pixels=True)
        assert ds.get_item("PatientName").value == written
        assert ds.SpecificCharacterSet == source.SpecificCharacterSet
        assert ds.PatientName == source.PatientName


def test_highdicom_reads_them_again(made, ledger):
    readers = {
        Kind.SEGMENTATION: highdicom.seg.segread,
        Kind.REPORT: highdicom.sr.srread,
        Kind.KEY_OBJECTS: highdicom.ko.KeyObjectSelectionDocument.from_dataset,
        Kind.PARAMETRIC_MAP: highdicom.imread,
    }

    def complaints(one):
        readers[one.kind](one.ds if one.kind is Kind.KEY_OBJECTS else one.path)
        return []

    judge(ledger, [one for one in made.objects if one.kind in readers], "highdicom", complaints)


def test_highdicom_reads_exactly_the_numbers_of_a_map(plain):
    maps = [one for one in plain.objects if one.kind is Kind.PARAMETRIC_MAP]
    for one, truth in zip(maps, plain.findings.maps, strict=True):
        volume = highdicom.imread(one.path).get_volume(dtype=np.float32)
        order = np.argsort([float(ds.ImagePositionPatient[2]) for ds in plain.loaded.evidence.datasets])
        assert np.array_equal(np.sort(volume.array, axis=None), np.sort(truth.voxels[order], axis=None))


def test_dcmqi_reads_every_measurement(made, ledger, tmp_path):
    reader = tool("tid1500reader")

    def complaints(one):
        target = tmp_path / f"{one.name}.json"
        outcome = run(reader, "--inputDICOM", one.path, "--outputMetadata", target)
        if outcome.returncode:
            return [outcome.stderr[-200:]]
        groups = json.loads(target.read_text(errors="replace"))["Measurements"]
        read = [float(item["value"]) for group in groups for item in group["measurementItems"]]
        lost = [
            value.value for value in made.findings.measurements if not np.isclose(read, value.value, rtol=1e-6).any()
        ]
        return [f"lost {lost}"] if lost else []

    judge(ledger, [one for one in made.objects if one.kind is Kind.REPORT], "dcmqi", complaints)


def test_dcmqi_reads_exactly_the_voxels(plain, ledger, tmp_path):
    import nibabel

    reader = tool("segimage2itkimage")

    def complaints(one):
        folder = tmp_path / one.name
        folder.mkdir()
        outcome = run(reader, "--inputDICOM", one.path, "--outputDirectory", folder, "--outputType", "nii")
        if outcome.returncode:
            return [(outcome.stderr or outcome.stdout)[-200:]]
        images = sorted(folder.glob("*.nii*"))
        read = sorted(int((np.asarray(nibabel.load(path).dataobj) > 0).sum()) for path in images)
        truth = sorted(int(segment.mask.sum()) for segment in plain.findings.segments if segment.mask.any())
        return [] if read == truth else [f"{read} voxels instead of {truth}"]

    judge(ledger, [one for one in plain.objects if one.name == "segmentation-binary"], "dcmqi", complaints)


def test_RES_03_orthanc_gives_back_the_bytes_that_it_got(plain, ledger, tmp_path):
    if missing():
        pytest.skip(missing())
    server = Orthanc(tmp_path, autoroute=False)
    server.start()
    try:

        def complaints(one):
            server.upload(one.path)
            stored = server.instance(str(pydicom.dcmread(one.path, stop_before_pixels=True).SOPInstanceUID))
            same = stored and server.call("GET", f"/instances/{stored}/file") == one.path.read_bytes()
            return [] if same else ["not the same bytes"]

        judge(ledger, few(plain.objects), "Orthanc", complaints)
    finally:
        server.stop()


def pixelmed_errors(one):
    """Errors that PixelMed's DicomSRValidator states; its limits on expressions are lifted, the templates need it."""
    java = tool("java")
    if not PIXELMED.exists():
        pytest.skip("VALIDATOR MISSING: apt-get install libpixelmed-java; no report was held against its templates")
    limits = [f"-Djdk.xml.{name}=0" for name in ("xpathExprGrpLimit", "xpathExprOpLimit", "xpathTotalOpLimit")]
    memory = min(8, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**31)
    command = (java, *limits, f"-Xmx{memory}g", "-cp", PIXELMED, "com.pixelmed.validate.DicomSRValidator", one.path)
    verdict = run(*command, seconds=280)
    lines = (verdict.stdout + verdict.stderr).splitlines()
    assert "IOD validation complete" in lines, lines[-5:]
    return beyond_exemptions(one.name, [line for line in lines if line.startswith("Error")])


@pytest.mark.parametrize(
    "name",
    [
        "report-comprehensive-3d",
        pytest.param("report-comprehensive", marks=pytest.mark.nightly),
        pytest.param("report-segments", marks=pytest.mark.nightly),
        "text-report-basic-text",
        pytest.param("values-enhanced", marks=pytest.mark.nightly),
        pytest.param("values-basic-text", marks=pytest.mark.nightly),
        "key-objects-slices",
    ],
)
def test_pixelmed_finds_no_error(plain, ledger, name):
    judge(ledger, [one for one in plain.objects if one.name == name], "PixelMed", pixelmed_errors)


def test_the_validators_would_have_found_a_fault(plain, tmp_path):
    """The negative control: without it, validators that read nothing would pass too."""
    for one in few(plain.objects):
        ds = one.ds
        del ds.StudyInstanceUID
        ds.save_as(tmp_path / "broken.dcm")
        assert iod_errors(tmp_path / "broken.dcm"), one.name
