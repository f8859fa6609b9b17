"""DAT-08: pixel data whose claims, runs or tables lie cost no memory, and never show one frame in another's place."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from pacs_ai.errors import NotUnderstood, Refused
from pacs_ai.infer.pixel_equality import compare_pixels
from pacs_ai.infer.pixels import Layout, decode, split_frames

MIB = 2**20
#: A quarter of what the smallest of these claims unpacks to; a process's pages are counted to some megabytes only.
MOST_MIB = 128


class Growth:
    """The most memory that was taken within a block beyond that before, in MiB."""

    def __enter__(self):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak
        self._before = self._peak()
        return self

    def __exit__(self, *_):
        self.mib = (self._peak() - self._before) / 1024

    @staticmethod
    def _peak():
        (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM"))
        return int(line.split()[1])


def layout(rows=16, columns=16, frames=1, syntax=RLELossless, bits=8):
    return Layout(rows, columns, frames, bits, bits, bits - 1, False, "MONOCHROME2", UID(syntax))


def item(value=b"", element=0xE000):
    return struct.pack("<HHL", 0xFFFE, element, len(value)) + value


def encapsulated(fragments, offsets=()):
    table = item(b"".join(struct.pack("<L", offset) for offset in offsets))
    return table + b"".join(map(item, fragments)) + item(element=0xE0DD)


def runs(count, segments=1):
    """Return an RLE frame whose first segment is `count` runs of 128 bytes (PS3.5 G.3)."""
    header = struct.pack("<16L", segments, *[64] * segments, *[0] * (15 - segments))
    return header + b"\x81\x07" * count


def rle(value, pixels=256):
    """Return an RLE frame of one value."""
    assert pixels % 128 == 0
    return struct.pack("<16L", 1, 64, *[0] * 14) + bytes((0x81, value)) * (pixels // 128)


def codestream(rows=16, columns=16, form="JPEG", value=9):
    written = io.BytesIO()
    Image.fromarray(np.full((rows, columns), value, np.uint8)).save(written, form, **_OPTIONS.get(form, {}))
    return written.getvalue()


_OPTIONS = {"JPEG2000": {"no_jp2": True, "irreversible": False}}


def test_DAT_08_runs_that_unpack_to_gigabytes_take_the_memory_of_the_image_alone():
    bomb = runs(4 * MIB)  # 8 MiB that unpack to 512
    with Growth() as growth:
        try:
            values = decode(layout(), bomb)
        except Refused:
            pass
        else:
            assert values.shape == (16, 16)
    assert growth.mib < MOST_MIB


@pytest.mark.parametrize("segments", [0, 2, 15, 16, 2**32 - 1])
def test_DAT_08_a_number_of_segments_that_lies_is_refused(segments):
    frame = struct.pack("<L", segments) + runs(2)[4:]
    with pytest.raises(Refused):
        decode(layout(), frame)


@pytest.mark.parametrize("offset", [0, 63, 68, 2**31, 2**32 - 1])
def test_DAT_08_segments_that_begin_elsewhere_are_refused(offset):
    frame = bytearray(runs(2))
    frame[4:8] = struct.pack("<L", offset)
    with Growth() as growth, pytest.raises(Refused):
        decode(layout(), bytes(frame))
    assert growth.mib < MOST_MIB


@pytest.mark.parametrize("syntax", [RLELossless, JPEGBaseline8Bit, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize("claimed", [(65535, 65535, 1000), (65535, 65535, 1), (4096, 4096, 512)])
def test_DAT_08_two_kilobytes_do_not_hold_gigabytes(syntax, claimed):
    element = encapsulated([bytes(2000)])
    with Growth() as growth, pytest.raises(Refused, match="claim to hold"):
        split_frames(layout(*claimed, syntax=syntax), element)
    assert growth.mib < MOST_MIB


def test_DAT_08_sixty_seven_megabytes_do_not_become_one_frame_of_four_gigabytes():
    element = encapsulated([bytes(67 * 10**6)])
    with pytest.raises(Refused, match="claim to hold"):
        split_frames(layout(65535, 32768, bits=16), element)


@pytest.mark.parametrize(("form", "syntax"), [("JPEG", JPEGBaseline8Bit), ("JPEG2000", JPEG2000Lossless)])
def test_DAT_08_a_codestream_that_claims_another_size_is_refused_before_it_is_unpacked(form, syntax):
    stream = bytearray(codestream(form=form))
    if form == "JPEG":
        at = stream.find(b"\xff\xc0") + 5
        stream[at : at + 4] = struct.pack(">HH", 65500, 65500)
    else:
        at = stream.find(b"\xff\x51") + 6
        stream[at : at + 8] = struct.pack(">LL", 1_000_000, 1_000_000)
    with Growth() as growth, pytest.raises(Refused):
        decode(layout(syntax=syntax), bytes(stream))
    assert growth.mib < MOST_MIB


@pytest.mark.filterwarnings("ignore:The end of the encapsulated pixel data")  # so pydicom warns of a fourth
@pytest.mark.parametrize("held", [0, 1, 2, 4])
def test_DAT_08_another_number_of_fragments_than_frames_is_refused(held):
    element = encapsulated([rle(value) for value in range(held)])
    with pytest.raises(Refused):
        split_frames(layout(frames=3), element)


#: What an offset table may claim of three fragments of 68 bytes and their headers; the truth is 0, 76, 152.
_TABLES = [
    (0, 76, 152), (0, 152, 76), (152, 76, 0), (0, 76, 76), (0, 76, 160), (0, 5, 152), (76, 152, 228), (0, 76),
    (0, 76, 152, 228), (0, 76, 2**32 - 1), (2**32 - 1,) * 3, (0, 0, 0), tuple(range(0, 400, 4)),
]  # fmt: skip


@pytest.mark.parametrize("offsets", _TABLES)
def test_DAT_08_an_offset_table_that_lies_moves_no_frame(offsets):
    """The frames are those that are there, each in its place, or none is shown."""
    element = encapsulated([rle(value) for value in (1, 2, 3)], offsets)
    shape = layout(frames=3)
    try:
        frames = [decode(shape, frame) for frame in split_frames(shape, element)]
    except Refused:
        assert offsets != (0, 76, 152)
        return
    assert [set(frame.ravel().tolist()) for frame in frames] == [{1}, {2}, {3}]


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_DAT_08_an_offset_into_the_middle_of_a_frame_of_several_fragments_is_refused(cut):
    streams = [codestream(value=value, form="JPEG2000") for value in (10, 20, 30)]
    streams = [stream + b"\0" * (len(stream) % 2) for stream in streams]
    fragments = [part for stream in streams for part in (stream[:40], stream[40:])]
    starts = [0]
    for fragment in fragments:
        starts.append(starts[-1] + 8 + len(fragment))
    shape = layout(frames=3, syntax=JPEG2000Lossless)
    true = [starts[0], starts[2], starts[4]]
    for offsets, is_true in ((true, True), ([*true[:cut], true[-1] if cut < 2 else starts[5]][:3], False)):
        element = encapsulated(fragments, offsets)
        try:
            found = [int(decode(shape, frame)[0, 0]) for frame in split_frames(shape, element)]
        except Refused:
            assert not is_true
        else:
            assert found == [10, 20, 30]


def written(path, pixels, syntax, **changes):
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    ds.Rows = ds.Columns = 16
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    ds.update(changes)
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    ds.PixelData = pixels
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = UID(syntax).is_encapsulated
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path, enforce_file_format=True)
    return path


def test_DAT_08_what_differs_in_its_encoding_is_compared_within_bounds(tmp_path):
    plain = written(tmp_path / "plain", bytes([7]) * 256, ExplicitVRLittleEndian)
    same = written(tmp_path / "same", encapsulated([rle(7)]), RLELossless)
    other = written(tmp_path / "other", encapsulated([rle(8)]), RLELossless)
    assert compare_pixels(plain, same)
    assert not compare_pixels(plain, other)
    huge = {"Rows": 65535, "Columns": 65535, "NumberOfFrames": 1000}
    bomb = written(tmp_path / "bomb", encapsulated([rle(7)]), RLELossless, **huge)
    with Growth() as growth, pytest.raises(NotUnderstood):
        compare_pixels(bomb, bomb)
    assert growth.mib < MOST_MIB
