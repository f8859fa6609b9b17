"""Data sets that are nearly right, grown from a seed, and what DCMTK reads of them."""

from __future__ import annotations

import copy
import re
import struct
import subprocess
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
)

from pacs_ai.dicom import characters

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence
    from pathlib import Path

#: The attributes that say whose an instance is and which one it is, as PS3.5 writes their tags.
IDENTITY = {
    0x00100020: "PatientID",
    0x0020000D: "StudyInstanceUID",
    0x0020000E: "SeriesInstanceUID",
    0x00080018: "SOPInstanceUID",
}
_CHARACTER_SET = 0x00080005
_SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG = tuple(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_UNDEFINED = 0xFFFFFFFF
#: What a node with default settings negotiates comes most often, the rest now and then.
SYNTAXES = [ExplicitVRLittleEndian] * 4 + [ImplicitVRLittleEndian] * 4 + [JPEGLSLossless] * 2
SYNTAXES += [ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]


@dataclass
class Element:
    """A data element (PS3.5 7.1) that may lie about its length, and hold items of undefined length."""

    tag: int
    vr: bytes
    value: bytes = b""
    items: list[Item] | None = None
    length: int | None = None
    undefined: bool = False
    fragments: list[bytes] | None = None
    content: bool | None = None  # items in implicit VR, whatever the transfer syntax says


@dataclass
class Item:
    """An item of a sequence (PS3.5 7.5)."""

    elements: list[Element] = field(default_factory=list)
    undefined: bool = False
    length: int | None = None
    tail: bytes | None = None


@dataclass(frozen=True)
class Case:
    """One encoded data set and the transfer syntax that it is said to have."""

    transfer_syntax_uid: str
    data_set: bytes

    def part_10(self) -> bytes:
        """Return the file that DCMTK is given (PS3.10 7.1)."""
        uid = self.transfer_syntax_uid.encode()
        uid += b"\0" * (len(uid) % 2)
        meta = struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid
        return bytes(128) + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(meta)) + meta + self.data_set


def encode(elements: Sequence[Element], order: str, *, implicit: bool) -> bytes:
    """Return the elements as they stand, lies included."""
    return b"".join(_encode_one(each, order, implicit=implicit) for each in elements)


def _encode_one(element: Element, order: str, *, implicit: bool) -> bytes:
    group, number = element.tag >> 16, element.tag & 0xFFFF
    value, undefined = element.value, element.undefined
    if element.items is not None:
        inner = implicit if element.content is None else element.content
        value = b"".join(_encode_item(each, order, implicit=inner) for each in element.items)
    if element.fragments is not None:
        value = b"".join(_marker(order, 0xE000, len(each)) + each for each in element.fragments)
    length = len(value) if element.length is None else element.length
    if undefined:
        value, length = value + _marker(order, 0xE0DD, 0), _UNDEFINED
    if implicit:
        return struct.pack(order + "HHL", group, number, length & _UNDEFINED) + value
    if element.vr in _SHORT:
        return struct.pack(order + "HH2sH", group, number, element.vr, length & 0xFFFF) + value
    return struct.pack(order + "HH2sHL", group, number, element.vr, 0, length & _UNDEFINED) + value


def _encode_item(item: Item, order: str, *, implicit: bool) -> bytes:
    value = encode(item.elements, order, implicit=implicit) + (item.tail or b"")
    if item.undefined:
        return _marker(order, 0xE000, _UNDEFINED) + value + _marker(order, 0xE00D, 0)
    return _marker(order, 0xE000, len(value) if item.length is None else item.length) + value


def _marker(order: str, number: int, length: int) -> bytes:
    return struct.pack(order + "HHL", 0xFFFE, number, length & _UNDEFINED)


def _padded(text: str, filler: bytes = b" ") -> bytes:
    raw = text.encode("latin-1")
    return raw + filler * (len(raw) % 2)


def _uid(tag: int, text: str) -> Element:
    return Element(tag, b"UI", _padded(text, b"\0"))


def sound(generator: random.Random) -> list[Element]:
    """Return the elements of a small image with two sequences, in order."""
    step = Item([Element(0x00400007, b"LO", b"STEP"), Element(0x00400009, b"SH", b"1 ")], generator.random() < 0.5)
    referenced = Item([_uid(0x00081150, "1.2.840.10008.5.1.4.1.1.2"), _uid(0x00081155, "1.2.9.1")])
    elements = [
        Element(_CHARACTER_SET, b"CS", generator.choice([b"ISO_IR 100", b"ISO_IR 192", b"\\ISO 2022 IR 87 "])),
        Element(0x00080008, b"CS", b"ORIGINAL\\PRIMARY"),
        _uid(0x00080016, "1.2.840.10008.5.1.4.1.1.2"),
        _uid(0x00080018, f"1.2.3.{generator.randrange(10 ** generator.randint(1, 12))}"),
        Element(0x00080060, b"CS", b"CT"),
        Element(0x00081140, b"SQ", items=[referenced], undefined=generator.random() < 0.5),
        Element(0x00090010, b"LO", b"MAKER "),
        Element(0x00091001, b"UN", generator.randbytes(2 * generator.randrange(8))),
        Element(0x00100010, b"PN", b"Test^Fuzz "),
        Element(0x00100020, b"LO", _padded(f"ID{generator.randrange(10 ** generator.randint(1, 9))}")),
        _uid(0x0020000D, f"1.2.4.{generator.randrange(10**6)}"),
        _uid(0x0020000E, f"1.2.5.{generator.randrange(10**6)}"),
        Element(0x00280010, b"US", b"\2\0"),
        Element(0x00280011, b"US", b"\2\0"),
        Element(0x00400275, b"SQ", items=[step], undefined=generator.random() < 0.5),
        Element(0x7FE00010, b"OW", b"\1\0\2\0\3\0\4\0"),
    ]
    return [each for each in elements if each.tag in {*IDENTITY, 0x00080016} or generator.random() < 0.8]


# -- what goes wrong, each a function of the elements of one level


def _some(generator: random.Random, elements: list[Element]) -> Element:
    return generator.choice(elements)


def _other_identity(generator: random.Random) -> Element:
    tag = generator.choice(list(IDENTITY))
    return _uid(tag, f"9.9.{generator.randrange(99)}") if tag != 0x00100020 else Element(tag, b"LO", b"OTHER ")


def _twice(generator: random.Random, elements: list[Element]) -> None:
    twin = copy.deepcopy(_some(generator, elements))
    if twin.items is None:
        twin.value = generator.choice([twin.value, b"9.9.9.", b""])
    elements.insert(generator.randrange(len(elements) + 1), twin)


def _swap(generator: random.Random, elements: list[Element]) -> None:
    one, other = generator.randrange(len(elements)), generator.randrange(len(elements))
    elements[one], elements[other] = elements[other], elements[one]


def _drop(generator: random.Random, elements: list[Element]) -> None:
    elements.pop(generator.randrange(len(elements)))


def _lie(generator: random.Random, elements: list[Element]) -> None:
    element = _some(generator, elements)
    true = len(element.value)
    lies = [0, 1, true + 1, true + 2, true - 2, true + 8, true + 64, 0xFFFE, 0xFFFF, 0x7FFFFFFF, _UNDEFINED, 0xFFFFFFFE]
    element.length = max(0, generator.choice(lies))


def _odd(generator: random.Random, elements: list[Element]) -> None:
    element = _some(generator, elements)
    element.value += generator.choice([b"1", b"\0", b" ", b"X", b"\n"])


def _other_vr(generator: random.Random, elements: list[Element]) -> None:
    odd = [b"ZZ", b"\0\0", b"ui", b"??", b"U\0", b"  "]
    _some(generator, elements).vr = generator.choice([*sorted(_SHORT), *_LONG, *_LONG, *odd])


def _other_tag(generator: random.Random, elements: list[Element]) -> None:
    strange = [0x00000000, 0x00000002, 0x00020010, 0x00020003, 0x00080000, 0x00080001, 0xFFFEE000, 0xFFFEE00D]
    strange += [0xFFFEE0DD, 0xFFFFFFFF, 0xFFFCFFFC, 0x00040000, 0x00070001, 0x00091010, 0x7FE10010, *IDENTITY]
    _some(generator, elements).tag = generator.choice(strange)


def _stranger(generator: random.Random, elements: list[Element]) -> None:
    elements.insert(generator.randrange(len(elements) + 1), _other_identity(generator))


def _value(generator: random.Random, elements: list[Element]) -> None:
    element = _some(generator, elements)
    pieces = [
        b"\0",
        b"\0\0",
        b" ",
        b"  ",
        b"\\",
        b"\\9.9",
        b"9.9\\",
        b"..",
        b"01",
        b"../..",
        b"\x1b$B",
        b"\xff",
        b"\n\r",
    ]
    piece = generator.choice([*pieces, b"1" * 70, b"\x1b[0m", b"^=", b"\x00\x31"])
    at = generator.choice([0, len(element.value), generator.randrange(len(element.value) + 1)])
    element.value = element.value[:at] + piece + element.value[at:]
    element.value += b" " * (len(element.value) % 2) if generator.random() < 0.8 else b""


def _hide(generator: random.Random, elements: list[Element]) -> None:
    """Put another identity into a sequence of one or another kind."""
    inner = sorted([_other_identity(generator) for _ in range(generator.randint(1, 4))], key=lambda each: each.tag)
    tag = generator.choice([0x00081140, 0x00400275, 0x00091002, 0x52009229, 0x52009230, 0x00081115, 0x0010102D])
    vr = generator.choice([b"SQ", b"SQ", b"UN", b"OB"])
    item = Item(inner, generator.random() < 0.5)
    content = True if vr == b"UN" and generator.random() < 0.8 else None
    element = Element(tag, vr, items=[item], undefined=generator.random() < 0.6, content=content)
    at = next((n for n, each in enumerate(elements) if each.tag > tag), len(elements))
    elements.insert(at if generator.random() < 0.8 else generator.randrange(len(elements) + 1), element)


def _nest(generator: random.Random, elements: list[Element]) -> None:
    element = Element(0x00081140, b"SQ", items=[Item([_other_identity(generator)])])
    for _ in range(generator.choice([2, 8, 14, 15, 16, 17, 40])):
        undefined = generator.random() < 0.5
        element = Element(0x00081140, b"SQ", items=[Item([element], undefined)], undefined=undefined)
    elements[:] = sorted([each for each in elements if each.tag != 0x00081140] + [element], key=lambda each: each.tag)


def _stray(generator: random.Random, elements: list[Element]) -> None:
    tag = generator.choice([0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD])
    elements.insert(generator.randrange(len(elements) + 1), Element(tag, b"\0\0", length=generator.choice([0, 0, 8])))


def _items(generator: random.Random, elements: list[Element]) -> None:
    sequences = [each for each in elements if each.items]
    if not sequences:
        return
    item = generator.choice(_some(generator, sequences).items)
    how = generator.randrange(4)
    if how == 0:
        item.length = generator.choice([0, 1, 4, 7, 8, 30, 0xFFFF, 0xFFFFFFFE])
    elif how == 1:
        item.tail = generator.choice([_marker("<", 0xE00D, 0), _marker("<", 0xE0DD, 0), b"\0" * 8, b"\0" * 3])
    elif how == 2:
        item.undefined = not item.undefined
    else:
        item.elements.clear()


def _pixels(generator: random.Random, elements: list[Element]) -> None:
    elements[:] = [each for each in elements if each.tag != 0x7FE00010]
    fragments = [generator.randbytes(2 * generator.randrange(5)) for _ in range(generator.randint(0, 4))]
    vr = generator.choice([b"OB", b"OB", b"OB", b"OW", b"UN", b"SQ"])
    elements.append(Element(0x7FE00010, vr, fragments=fragments, undefined=generator.random() < 0.9))
    if generator.random() < 0.3:
        elements.append(generator.choice([Element(0xFFFCFFFC, b"OB", bytes(4)), _other_identity(generator)]))


def _character_set(generator: random.Random, elements: list[Element]) -> None:
    terms = [b"ISO_IR 999999", b"unicode_escape", b"zlib_codec", b"ISO 2022 IR 6\\ISO 2022 IR 87", b"GB18030", b""]
    for element in elements:
        if element.tag == _CHARACTER_SET:
            element.value = _padded(generator.choice(terms).decode())
        if element.tag == 0x00100020 and generator.random() < 0.7:
            element.value = generator.choice(
                [b"\xc3\xa4\xc3\xb6", b"\x1b$B;3ED\x1b(B", b"\x81\x5c", b"\xa1\x5c\x81\x30"]
            )


_CHANGES: list[Callable[[random.Random, list[Element]], None]] = [
    *(_twice, _swap, _drop, _lie, _lie, _odd, _other_vr, _other_vr, _other_tag, _stranger, _value, _value),
    *(_hide, _hide, _nest, _stray, _items, _items, _pixels, _character_set),
]


def _levels(elements: list[Element]) -> list[list[Element]]:
    found = [elements]
    for element in elements:
        for item in element.items or ():
            found += _levels(item.elements)
    return found


def _scratch(generator: random.Random, raw: bytes) -> bytes:
    """Change a few bytes that no structure chose."""
    changed = bytearray(raw)
    for _ in range(generator.randint(1, 3)):
        at = generator.randrange(len(changed) + 1)
        how = generator.randrange(6)
        if how == 0:
            changed[at:at] = generator.randbytes(generator.choice([1, 2, 8]))
        elif how == 1:
            del changed[at : at + generator.choice([1, 2, 8])]
        elif how == 2 and generator.random() < 0.3:
            del changed[at:]
        elif how == 3:
            start = generator.randrange(len(changed) + 1)
            changed[at:at] = changed[start : start + generator.choice([8, 16, 40])]
        elif at < len(changed):
            changed[at] = generator.choice(
                [0, 1, 0x20, 0x5C, 0x7F, 0xFE, 0xFF, changed[at] ^ 1 << generator.randrange(8)]
            )
    return bytes(changed)


def grow(generator: random.Random) -> Case:
    """Return the next data set: sound but for none to four changes of its structure, and sometimes of its bytes."""
    syntax = generator.choice(SYNTAXES)
    elements = sound(generator)
    if syntax == JPEGLSLossless and generator.random() < 0.8:
        _pixels(generator, elements)
    for _ in range(generator.choice([0, 0, 1, 1, 1, 1, 1, 2, 2, 3])):
        chosen = generator.choice(_levels(elements)) if generator.random() < 0.3 else elements
        if chosen:
            generator.choice(_CHANGES)(generator, chosen)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    raw = encode(elements, order, implicit=syntax == ImplicitVRLittleEndian)
    if generator.random() < 0.2:
        raw = _scratch(generator, raw)
    if syntax == DeflatedExplicitVRLittleEndian:
        stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        raw = stream.compress(raw) + stream.flush()
        raw += b"\0" * (len(raw) % 2)
    return Case(str(syntax), raw)


# -- what DCMTK reads

_LINE = re.compile(rb"^(\S*)\(([0-9a-f]{4}),([0-9a-f]{4})\) (..) (.*)$")
_FILE = re.compile(rb"^# dcmdump \(\d+/\d+\): (.*)$")
_QUOTED = re.compile(rb"&(?:#(\d+)|(amp|lt|gt|quot|apos));")
_HEX = re.compile(rb"[0-9a-f]{2}(\\[0-9a-f]{2})* ")
_NAMED = {b"amp": b"&", b"lt": b"<", b"gt": b">", b"quot": b'"', b"apos": b"'"}
_ERROR = re.compile(rb"^[EF]: .*reading file: (.*)$")


@dataclass
class Reading:
    """What DCMTK says of one file: whether it objects, and the identity that it found, as text without padding."""

    objects: bool = False
    identity: dict[str, str] = field(default_factory=dict)


def dcmtk_reads(cases: Sequence[Case], folder: Path) -> list[Reading]:
    """Return what `dcmdump` reads of each, in one process."""
    names = [str(number) for number in range(len(cases))]
    for name, case in zip(names, cases, strict=True):
        (folder / name).write_bytes(case.part_10())
    command = ["dcmdump", "+E", "+F", "+L", "+Qn", "+p", "-Un", "+pe"]
    for tag in (_CHARACTER_SET, *IDENTITY):
        command += ["+P", f"{tag >> 16:04x},{tag & 0xFFFF:04x}"]
    done = subprocess.run([*command, *names], cwd=folder, capture_output=True, check=False, timeout=120)
    readings = {name.encode(): Reading() for name in names}
    for line in done.stderr.splitlines():
        if found := _ERROR.match(line):
            readings[found[1]].objects = True
    raw: dict[bytes, dict[int, bytes]] = {name: {} for name in readings}
    current: dict[int, bytes] = {}
    for line in done.stdout.splitlines():
        if found := _FILE.match(line):
            current = raw[found[1]]
        elif (found := _LINE.match(line)) and not found[1]:
            current.setdefault(int(found[2] + found[3], 16), _value_of(found[4], found[5]))
    for name, values in raw.items():
        character_set = values.get(_CHARACTER_SET, b"").decode("latin-1").rstrip(" \0")
        for tag, keyword in IDENTITY.items():
            text = characters.decode(values.get(tag, b""), character_set if keyword == "PatientID" else "")
            readings[name].identity[keyword] = "\\".join(part.strip(" ") for part in text.split("\\"))
    return [readings[name.encode()] for name in names]


def _value_of(vr: bytes, rest: bytes) -> bytes:
    """Return the value in a line of dcmdump, its quoted bytes as they were; b"" for what is no text."""
    if vr == b"UN":
        return bytes.fromhex(rest.split(b" ", 1)[0].replace(b"\\", b"").decode()) if _HEX.match(rest) else b""
    if not rest.startswith(b"["):
        return b""
    quoted = rest[1 : rest.rindex(b"]")]
    return _QUOTED.sub(lambda match: bytes([int(match[1])]) if match[1] else _NAMED[match[2]], quoted)
