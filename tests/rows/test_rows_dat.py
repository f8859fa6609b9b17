"""What a data set may be made of: what would choke a parser is refused, what is odd but whole is kept byte for byte."""

from __future__ import annotations

import itertools
import random
import struct

import pytest
from fuzz.data_sets import Case
from listening_bed import until
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage, MRImageStorage
from raw_peer import CT_CONTEXTS, RawPeer, associate_rq, data_set, store

from pacs_ai.dicom import attributes, folder
from pacs_ai.dicom.structure import Walk
from pacs_ai.receive.guard import Bounds

NOT_UNDERSTOOD = 0xC000
NO_UIDS = ["../../../../tmp/pwn", "/etc/cron.d/x", "a\0b", "1.2\n3", "1" * 200, "", "1..2", ".1", "1.2."]
DELIMITER = struct.pack("<HHL", 0xFFFE, 0xE00D, 0)


def long(group: int, number: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """Return an element with a length of 32 bits, as it is or as it is said to be."""
    return struct.pack("<HH2sHL", group, number, vr, 0, len(value) if length is None else length) + value


def short(group: int, number: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """Return an element with a length of 16 bits."""
    return struct.pack("<HH2sH", group, number, vr, len(value) if length is None else length) + value


def answered(peer: RawPeer, encoded: bytes, uid: str = "1.2.3") -> int:
    """Return the status of a C-STORE."""
    peer.send(store(encoded, uid))
    return peer.status()


@pytest.mark.parametrize("uid", NO_UIDS)
def test_DAT_01_a_uid_that_is_none_is_refused_and_no_path_holds_it(bed, uid):
    peer = bed.peer().associate()
    assert answered(peer, data_set(uid), uid) in {NOT_UNDERSTOOD, 0x0117}
    assert answered(peer, data_set(uid), "1.2.3") in {NOT_UNDERSTOOD, 0xA900}
    assert answered(peer, data_set("1.2.3"), "1.2.3") == 0x0000
    (only,) = bed.stored()
    assert only == bed.files.path(bed.arrivals[0].sha256)


def test_DAT_01_leading_zeros_of_a_component_are_let_pass(bed):
    """PS3.5 9.1 forbids them, and real archives hold them; a path never does."""
    assert answered(bed.peer().associate(), data_set("01.2"), "01.2") == 0x0000
    assert "01.2" not in str(bed.stored())


def test_DAT_02_another_instance_or_class_than_announced_is_a_mismatch_and_is_not_kept(bed):
    peer = bed.peer().associate()
    assert answered(peer, data_set("1.2.3"), "1.2.4") == 0xA900
    assert answered(peer, data_set("1.2.3", sop_class="1.2.840.10008.5.1.4.1.1.4")) == 0xA900
    until(lambda: bed.stored() == [])
    assert bed.arrivals == []


def test_DAT_02_why_instances_are_not_stored_is_in_the_log_with_their_number(make_bed, caplog):
    caplog.set_level("INFO")
    bed = make_bed(bounds=Bounds(instance_bytes=100_000))
    peer = bed.peer().associate()
    assert [answered(peer, data_set("a\0b"), "a\0b") for _ in range(2)] == [0x0117, 0x0117]
    peer.send(store(data_set(sop_class=MRImageStorage), "1.2.3", sop_class=MRImageStorage))
    assert peer.status() == 0xA900
    assert answered(peer, data_set("1.2.4"), "1.2.3") == 0xA900
    assert answered(peer, data_set(pixels=200_000)) == 0xA700
    assert answered(peer, b"xx") == NOT_UNDERSTOOD
    assert peer.release()
    until(lambda: "association of SENDER released" in caplog.text)
    assert (
        "association of SENDER released: 0 instances stored, 6 not; 2: Affected SOP Instance UID is no UID; "
        "1: SOP class is not that of the presentation context; "
        "1: command and data set name different SOP classes or instances; 1: longer than this node accepts; "
        "1: not a whole and sound DICOM data set"
    ) in caplog.text


def nested(depth: int, *, undefined: bool) -> bytes:
    """Return sequences within one another."""
    inner = b""
    for _ in range(depth):
        if undefined:
            item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + inner + DELIMITER
            inner = long(0x0040, 0x0275, b"SQ", item + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0), 0xFFFFFFFF)
        else:
            inner = long(0x0040, 0x0275, b"SQ", struct.pack("<HHL", 0xFFFE, 0xE000, len(inner)) + inner)
    return inner


@pytest.mark.parametrize("undefined", [False, True], ids=["defined", "undefined"])
def test_DAT_03_sixteen_nested_sequences_are_kept_and_more_are_refused(bed, undefined):
    peer = bed.peer().associate()
    assert answered(peer, data_set(more=nested(16, undefined=undefined))) == 0x0000
    for depth in (17, 300, 1000, 20_000):
        assert answered(peer, data_set(more=nested(depth, undefined=undefined))) == NOT_UNDERSTOOD
    assert len(bed.arrivals) == 1


def test_a_whole_slide_with_an_item_for_each_of_its_tiles_is_kept(bed):
    """22 x 23 mm at 0.25 um in tiles of 256 x 256 (TILED_SPARSE, PS3.3 C.7.6.17.3)."""
    place = b"".join(short(0x0048, number, b"SL", bytes(4)) for number in (0x021E, 0x021F))
    inner = long(0x0048, 0x021A, b"SQ", struct.pack("<HHL", 0xFFFE, 0xE000, len(place)) + place)
    tiles = (struct.pack("<HHL", 0xFFFE, 0xE000, len(inner)) + inner) * 122_500
    peer = bed.peer().associate()
    assert answered(peer, data_set(more=long(0x5200, 0x9230, b"SQ", tiles))) == 0x0000


BOMBS = {
    "elements": b"".join(short(0x0041 + (n >> 16) * 2, n & 0xFFFF, b"LO", b"") for n in range(0x10, 1_000_000)),
    "items": long(0x0040, 0x0275, b"SQ", struct.pack("<HHL", 0xFFFE, 0xE000, 0) * 1_000_000),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_DAT_04_a_million_of_anything_is_refused_without_reading_it_into_objects(bed, kind):
    peer = bed.peer().associate()
    assert answered(peer, data_set(more=BOMBS[kind])) == NOT_UNDERSTOOD
    assert bed.is_served()


def test_DAT_04_data_sets_that_take_long_to_look_at_have_one_thread_among_them(bed, monkeypatch):
    """Sixteen that compute would each hold up the one that serves all peers, again and again."""
    inside, most, walk_on = [], [], Walk.feed

    def feed(self, piece):
        inside.append(piece)
        most.append(len(inside))
        try:
            walk_on(self, piece)
        finally:
            inside.pop()

    monkeypatch.setattr(Walk, "feed", feed)
    many = data_set(more=b"".join(short(0x0041 + (n >> 15) * 2, n & 0x7FFF, b"LO", b"") for n in range(0x10, 95_000)))
    peers = [bed.peer().associate() for _ in range(8)]
    whole = store(many, "1.2.3")
    for peer in peers:
        peer.send(whole[:-1])
    for peer in peers:
        peer.send(whole[-1:])
    assert bed.is_served()
    assert all(peer.status() == 0x0000 for peer in peers)
    assert max(most) == 1


ENDLESS = {
    "pixels of 4 GB": long(0x0041, 0x10, b"OW", b"", 0xFFFFFFF0),
    "3 GB": long(0x0041, 0x10, b"OB", b"", 3_000_000_000),
    "64 KB": short(0x0041, 0x10, b"LT", b"", 0xFFFE),
    "a sequence": long(0x0041, 0x10, b"SQ", b"", 0xFFFFFFFF),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_DAT_05_a_length_beyond_the_end_is_refused(bed, kind):
    assert answered(bed.peer().associate(), data_set(more=ENDLESS[kind])) == NOT_UNDERSTOOD
    assert bed.arrivals == []


def test_DAT_05_a_data_set_cut_off_anywhere_is_refused(bed):
    peer, whole = bed.peer().associate(), data_set()
    without_pixels = len(whole) - 12 - 64  # what ends there is a whole data set
    for end in {*range(1, len(whole), 7)} - {without_pixels}:
        assert answered(peer, whole[:end]) == NOT_UNDERSTOOD
    implicit = bed.peer().associate(associate_rq(contexts=[(1, CT_CONTEXTS[0][1], ("1.2.840.10008.1.2",))]))
    assert answered(implicit, struct.pack("<HHL", 8, 0x16, 0xFFFFFFFE)) == NOT_UNDERSTOOD


MISPLACED = {
    "twice": short(0x0020, 0x000E, b"UI", b"1.2.77.9"),
    "descending": short(0x0010, 0x0020, b"LO", b"P2"),
    "an earlier group": short(0x0008, 0x0060, b"CS", b"MR"),
}


@pytest.mark.parametrize("kind", MISPLACED)
def test_DAT_06_tags_that_come_twice_or_descend_are_refused(bed, kind):
    assert answered(bed.peer().associate(), data_set(more=MISPLACED[kind])) == NOT_UNDERSTOOD


ODD_NUMBERS = {
    "Rows as UL": short(0x28, 0x10, b"UL", struct.pack("<L", 512)),
    "Rows 0": short(0x28, 0x10, b"US", bytes(2)),
    "Rows of odd length": short(0x28, 0x10, b"US", b"\0\2\0"),
    "17 bits": short(0x28, 0x100, b"US", b"\x11\0"),
    "-1 frames": short(0x28, 8, b"IS", b"-1"),
    "abc frames": short(0x28, 8, b"IS", b"abc "),
    "no samples": short(0x28, 2, b"US", bytes(2)),
}


@pytest.mark.parametrize("kind", ODD_NUMBERS)
def test_DAT_09_numbers_that_no_image_can_have_are_kept_as_they_came(bed, kind):
    """They say nothing of an identity: the instance is kept byte for byte, and refused when it is analysed."""
    encoded = data_set(more=ODD_NUMBERS[kind])
    assert answered(bed.peer().associate(), encoded) == 0x0000
    assert bed.files.read(bed.arrivals[0].sha256).endswith(encoded)
    assert attributes.numbers(bed.arrivals[0].header, "NumberOfFrames") in {(), (-1.0,)}


CHARACTER_SETS = [b"unicode_escape", b"zlib_codec", b"ISO_IR 999999", b"ISO 2022 IR 87\\ISO 2022 IR 159", b"GB18030 "]
NAMES = [b"\\u0041", b"x\x9c\x01", b"\x1b$B\x1b", "Wáng^小东".encode("gb18030"), b"\x1b(Q\x1b\x1b$)"]


def padded(value: bytes) -> bytes:
    """Return a text value of even length (PS3.5 6.2)."""
    return value + b" " * (len(value) % 2)


def test_DAT_10_no_peer_chooses_a_codec(bed):
    peer = bed.peer().associate()
    for number, (term, name) in enumerate(itertools.product(CHARACTER_SETS, NAMES)):
        encoded = data_set(f"1.2.{number}")
        encoded = encoded.replace(short(8, 5, b"CS", b"ISO_IR 192"), short(8, 5, b"CS", padded(term)))
        encoded = encoded.replace(short(0x10, 0x10, b"PN", b"Test^Raw"), short(0x10, 0x10, b"PN", padded(name)))
        assert answered(peer, encoded, f"1.2.{number}") == 0x0000
        assert bed.files.read(bed.arrivals[-1].sha256).endswith(encoded)
        assert bed.arrivals[-1].header.get("PatientName").isprintable()


def test_DAT_11_a_hostile_name_is_kept_as_it_is_and_logged_nowhere(bed, caplog):
    caplog.set_level("DEBUG")
    name = "<script>\u202eevil\x1b[31m\0\\^".encode() + b"Z" * 9000
    name += b" " * (len(name) % 2)
    encoded = data_set().replace(b"PN\x08\0Test^Raw", b"PN" + struct.pack("<H", len(name)) + name)
    peer = bed.peer().associate()
    assert answered(peer, encoded) == 0x0000
    assert answered(peer, encoded[:-1]) == NOT_UNDERSTOOD
    assert bed.files.read(bed.arrivals[0].sha256).endswith(encoded)
    assert "script" not in caplog.text
    assert "evil" not in caplog.text


def test_DAT_12_private_and_unknown_elements_are_kept_byte_for_byte(bed):
    generator = random.Random(12)
    more = short(0x0029, 0x1010, b"LO", b"no creator")  # CSA headers and others like them, without their creator
    more += long(0x0029, 0x1020, b"OB", generator.randbytes(30_000)) + short(0x0043, 0x0010, b"LO", b"GEMS_PARM_01")
    more += long(0x0043, 0x1001, b"UN", generator.randbytes(1 << 20)) + long(0x0051, 0x1001, b"ZZ", b"abcd")
    encoded = data_set(more=more)
    assert answered(bed.peer().associate(), encoded) == 0x0000
    assert bed.files.read(bed.arrivals[0].sha256).endswith(encoded)


FOREIGN_GROUPS = [
    short(0, 0, b"UL", bytes(4)),
    short(0, 0x100, b"US", b"\1\0"),
    short(2, 0x10, b"UI", b"1.2.840.10008.1.2\0"),
]


@pytest.mark.parametrize("element", FOREIGN_GROUPS, ids=["0000,0000", "0000,0100", "0002,0010"])
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_DAT_13_commands_and_file_meta_within_a_data_set_are_refused(bed, element, first):
    encoded = element + data_set() if first else data_set(more=element)
    assert answered(bed.peer().associate(), encoded) == NOT_UNDERSTOOD


def test_DAT_15_the_preamble_of_a_stored_file_is_the_nodes_own(bed):
    """No peer chooses the first 128 bytes of a file: nothing that is stored runs as a program (PS3.10 7.5)."""
    assert answered(bed.peer().associate(), data_set()) == 0x0000
    raw = bed.files.read(bed.arrivals[0].sha256)
    assert raw[:132] == bytes(128) + b"DICM"


@pytest.mark.filterwarnings("ignore:Invalid value")
def test_DAT_16_a_dicomdir_leads_nowhere(tmp_path):
    """What lies in the folder is read; what a DICOMDIR in it points to is not looked for."""
    for path in (tmp_path / "outside", tmp_path / "media" / "inside"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(Case(ExplicitVRLittleEndian, data_set(f"1.2.{len(path.name)}")).part_10())
    directory = Dataset()
    directory.DirectoryRecordSequence = [Dataset(), Dataset()]
    for record, target in zip(directory.DirectoryRecordSequence, (["..", "outside"], ["..\\..\\outside"]), strict=True):
        record.add_new("ReferencedFileID", "CS", target)
    directory.file_meta = FileMetaDataset()
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID = "1.2.9"
    dcmwrite(tmp_path / "media" / "DICOMDIR", directory, enforce_file_format=True)
    found = folder.read(folder.find_files(tmp_path / "media"))
    assert [list(series.files) for series in found.series] == [["1.2.6"]]
    assert [path.name for path, _ in found.skipped] == ["DICOMDIR"]


@pytest.mark.parametrize("size", [0, 1, 7, 5000], ids=str)
def test_DAT_17_nothing_and_noise_are_refused(bed, size):
    peer = bed.peer().associate()
    for number in range(5):
        assert answered(peer, random.Random(number).randbytes(size)) == NOT_UNDERSTOOD
    assert bed.arrivals == []
    until(lambda: bed.stored() == [])
