"""Pixel data that this node encodes is decoded exactly by pydicom's decoders and by dcmtk's."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread, dcmwrite, uid
from pydicom.dataset import FileMetaDataset

from pacs_ai.encode.explicit import elements, items
from pacs_ai.encode.voxels.codecs import encapsulated, photometric_interpretation, pixel_data, planar_configuration
from pacs_ai.encode.voxels.rle import encode_frame, encode_plane
from pacs_ai.errors import NotUnderstood, Permanent

SYNTAXES = ("ExplicitVRLittleEndian", "RLELossless", "JPEGLSLossless", "JPEG2000Lossless")


def blobs(dtype, shape=(3, 37, 41)):
    """Frames of which the first is empty, the second has long runs, the third is noise."""
    frames = np.zeros(shape, dtype)
    frames[1, 5:30, 7:29] = np.iinfo(dtype).max
    frames[2] = np.random.default_rng(5).integers(0, np.iinfo(dtype).max, shape[1:], dtype, endpoint=True)
    return frames


def written(path, frames, syntax):
    """Write the frames as a Secondary Capture around the element that `pixel_data` makes."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = getattr(uid, syntax)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    samples = frames.shape[3] if frames.ndim == 4 else 1
    ds.SamplesPerPixel = samples
    ds.PhotometricInterpretation = photometric_interpretation(syntax, samples)
    if samples > 1:
        ds.PlanarConfiguration = planar_configuration(syntax)
    ds.NumberOfFrames, ds.Rows, ds.Columns = frames.shape[:3]
    ds.BitsAllocated = ds.BitsStored = 8 * frames.itemsize
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, 0
    with path.open("wb") as target:
        dcmwrite(target, ds, enforce_file_format=True)
        target.writelines(pixel_data(iter(frames), syntax))
    return path


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    "frames", [blobs(np.uint8), blobs(np.uint16), blobs(np.uint8, (3, 37, 41, 3))], ids=["8", "16", "rgb"]
)
def test_frames_are_decoded_exactly(tmp_path, syntax, frames):
    ds = dcmread(written(tmp_path / "one.dcm", frames, syntax))
    assert ds["PixelData"].is_undefined_length == (syntax != "ExplicitVRLittleEndian")
    assert np.array_equal(ds.pixel_array, frames)
    assert b"".join(pixel_data(frames, syntax)) == b"".join(pixel_data(list(frames), syntax))


@pytest.mark.parametrize(("syntax", "tool"), [("RLELossless", "dcmdrle"), ("JPEGLSLossless", "dcmdjpls")])
@pytest.mark.parametrize(
    "frames", [blobs(np.uint8), blobs(np.uint16), blobs(np.uint8, (3, 37, 41, 3))], ids=["8", "16", "rgb"]
)
def test_dcmtk_decodes_the_same(tmp_path, syntax, tool, frames):
    program = shutil.which(tool, path="/usr/bin")
    if program is None:
        pytest.skip(f"DECODER MISSING: apt-get install dcmtk; nothing was held against {tool}")
    source = written(tmp_path / "one.dcm", frames, syntax)
    subprocess.run([program, source, tmp_path / "raw.dcm"], check=True, timeout=60)
    ds = dcmread(tmp_path / "raw.dcm")
    assert ds.file_meta.TransferSyntaxUID == uid.ExplicitVRLittleEndian
    assert np.array_equal(ds.pixel_array, frames)


def unpacked(segment, octets):
    """PackBits as PS3.5 G.3.2 tells to decode it."""
    found, place = bytearray(), 0
    while len(found) < octets:
        count = segment[place]
        if count < 128:
            found += segment[place + 1 : place + 2 + count]
            place += 2 + count
        else:
            assert count > 128
            found += segment[place + 1 : place + 2] * (257 - count)
            place += 2
    assert len(segment) - place in {0, 1}
    return bytes(found)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 700),
    kinds=st.integers(1, 4),
    longest=st.integers(1, 400),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_plane_is_unpacked_again(rows, columns, kinds, longest, seed):
    rng = np.random.default_rng(seed)
    runs = rng.integers(0, kinds, rows * columns).astype(np.uint8)
    plane = np.repeat(runs, rng.integers(1, longest + 1, len(runs)))[: rows * columns].reshape(rows, columns)
    segment = encode_plane(plane)
    assert len(segment) % 2 == 0
    assert unpacked(segment, plane.size) == plane.tobytes()
    assert len(segment) <= rows * (columns + -(-columns // 128)) + plane.size // 3 + 2


def test_rows_do_not_share_a_run(monkeypatch):
    """PS3.5 G.3.1: each row is encoded separately. Two rows of one value are two runs."""
    assert encode_plane(np.zeros((2, 100), np.uint8)) == bytes((157, 0, 157, 0))
    whole = encode_plane(blobs(np.uint8)[2])
    monkeypatch.setattr("pacs_ai.encode.voxels.rle.TOGETHER", 50)
    assert encode_plane(blobs(np.uint8)[2]) == whole


def test_high_bytes_come_first():
    frame = np.full((1, 4), 0x0102, np.uint16)
    coded = encode_frame(frame)
    assert coded[:12] == bytes((2, 0, 0, 0, 64, 0, 0, 0, 66, 0, 0, 0))
    assert coded[64:] == bytes((253, 1, 253, 2))


def test_the_walker_passes_encapsulated_pixel_data():
    frames = blobs(np.uint8)
    element = b"".join(pixel_data(frames, "RLELossless"))
    after = element + b"".join(pixel_data(frames, "ExplicitVRLittleEndian"))
    (first, second) = elements(after, 0, len(after))
    fragments = list(items(after, *first[2:]))
    assert [end - start for start, end in fragments] == [12, *(len(encode_frame(frame)) for frame in frames)]
    assert second[2:] == (len(element) + 12, len(after))
    with pytest.raises(NotUnderstood, match="no end"):
        list(elements(element[:-1], 0, len(element) - 1))


def test_offsets_point_at_each_frame():
    parts = b"".join(encapsulated([b"abc", b"defg", b""]))
    assert parts[12:32] == bytes((0xFE, 0xFF, 0x00, 0xE0, 12, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0, 0, 24, 0, 0, 0))


def test_pixel_data_beyond_2_gib_is_refused(monkeypatch):
    monkeypatch.setattr("pacs_ai.encode.voxels.codecs.MAX_BYTES", 100)
    for syntax in SYNTAXES:
        with pytest.raises(Permanent, match="one DICOM instance can hold 2 GiB"):
            pixel_data(blobs(np.uint8), syntax)
