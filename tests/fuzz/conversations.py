"""What a peer might say on one connection, nearly right: association requests, messages and ends, grown from a seed."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage
from raw_peer import ABORT, P_DATA, RELEASE_RQ, RQ, VERIFICATION, command, data_set, item, pdu, store_command

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

_SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, "1.2.840.10008.1.2.2", "1.2.3", "", "x" * 70, "1.2\0"]
_CLASSES = [CTImageStorage, CTImageStorage, VERIFICATION, MRImageStorage, "1.2.840.10008.1.20.1", "9.9", "", "a" * 200]
_TITLES = [b"SENDER"] * 90 + [b"", b" " * 16, b"A\0B", b"\xff" * 16, b"A\\B", b"  SENDER", b"ANOTHER"]
_FIELDS = [0x01, 0x30, 0x20, 0x21, 0x10, 0x100, 0x110, 0x120, 0x130, 0x140, 0x150, 0x0FFF, 0x8001, 0x8030, 0, 0xFFFF]


def _noise(generator: random.Random, most: int = 12) -> bytes:
    return generator.randbytes(generator.randrange(most))


def _lying_item(generator: random.Random, kind: int, value: bytes) -> bytes:
    """Return an item that seldom lies about its kind or length."""
    if generator.random() < 0.005:
        return (
            struct.pack(">BxH", generator.choice([kind, 0, 0x10, 0x20, 0x50, 0x99]), generator.randrange(65536)) + value
        )
    return item(kind, value)


def _user_items(generator: random.Random) -> bytes:
    secret = _noise(generator, 40)
    several: list[Callable[[], bytes]] = [
        lambda: item(0x51, struct.pack(">L", generator.choice([0, 1, 7, 1023, 1024, 16384, 131072, 0xFFFFFFFF]))),
        lambda: item(0x51, _noise(generator)),
        lambda: item(0x52, generator.choice([b"1.2.3.4", b"", b"x", b"1" * 65, b"\0"])),
        lambda: item(0x53, struct.pack(">HH", *generator.choice([(0, 0), (1, 1), (65535, 65535)]))),
        lambda: item(0x53, _noise(generator)),
        lambda: item(0x54, _counted(CTImageStorage.encode()) + bytes((generator.randrange(3), generator.randrange(3)))),
        lambda: item(0x54, _noise(generator)),
        lambda: item(0x55, generator.choice([b"NAME", b"", b"N" * 17, b"\xff\xfe"])),
        lambda: item(0x56, _counted(CTImageStorage.encode()) + _noise(generator)),
        lambda: item(0x57, _counted(CTImageStorage.encode()) + _counted(b"1.2") + struct.pack(">H", 0)),
        lambda: item(0x57, _noise(generator, 30)),
        lambda: item(0x58, bytes((generator.randrange(7), generator.randrange(3))) + _counted(secret) + _counted(b"")),
        lambda: item(0x58, _noise(generator, 30)),
        lambda: item(generator.randrange(256), _noise(generator, 30)),
    ]
    length = item(0x51, struct.pack(">L", 131072)) + item(0x52, b"1.2.3.4") if generator.random() < 0.85 else b""
    return length + b"".join(generator.choice(several)() for _ in range(generator.choice([0, 0, 0, 0, 0, 0, 1, 2, 5])))


def _counted(value: bytes) -> bytes:
    return struct.pack(">H", len(value)) + value


def association_request(generator: random.Random) -> bytes:
    """Return an A-ASSOCIATE-RQ, more often sound than not."""
    called = b"PACS_AI" if generator.random() < 0.95 else generator.choice(_TITLES)
    version = 1 if generator.random() < 0.97 else generator.randrange(65536)
    body = struct.pack(">Hxx16s16s32x", version, called.ljust(16), generator.choice(_TITLES).ljust(16))
    items = [_lying_item(generator, 0x10, b"1.2.840.10008.3.1.1.1" if generator.random() < 0.97 else _noise(generator))]
    count = 3 if generator.random() < 0.9 else generator.choice([0, 1, 128, 129])
    for number in range(count):
        wild = generator.random() < 0.04
        context_id = (2 * number + 1) & 0xFF if generator.random() < 0.98 else generator.randrange(256)
        sound = (CTImageStorage, VERIFICATION, MRImageStorage)[number % 3]
        inner = _lying_item(generator, 0x30, (generator.choice(_CLASSES) if wild else sound).encode())
        syntaxes = [generator.choice(_SYNTAXES) for _ in range(generator.randrange(4))] if wild else _SYNTAXES[:1]
        inner += b"".join(_lying_item(generator, 0x40, each.encode()) for each in syntaxes)
        items.append(_lying_item(generator, 0x20, bytes((context_id, 0, generator.choice([0, 0, 0, 9]), 0)) + inner))
    items.append(_lying_item(generator, 0x50, _user_items(generator)))
    if generator.random() < 0.04:
        generator.shuffle(items)
    if generator.random() < 0.02:
        items.append(generator.choice(items))
    return pdu(RQ, body + b"".join(items))


def _command(generator: random.Random, uid: str) -> bytes:
    if generator.random() < 0.6:
        return store_command(uid)
    if generator.random() < 0.6:
        return command(0x30)
    field = generator.choice(_FIELDS)
    sop_class = generator.choice(_CLASSES)
    return command(field, sop_class, uid=generator.choice(["", uid]), has_data=generator.random() < 0.4)


def _bent(generator: random.Random, raw: bytes) -> bytes:
    """Return a command set or data set with a few bytes changed, cut or doubled."""
    changed = bytearray(raw)
    for _ in range(generator.randint(1, 3)):
        at = generator.randrange(len(changed) + 1)
        how = generator.randrange(5)
        if how == 0:
            changed[at:at] = changed[at - 10 : at]
        elif how == 1:
            del changed[at : at + generator.choice([1, 2, 10, 300])]
        elif how == 2:
            changed[at:at] = generator.randbytes(generator.choice([1, 2, 8]))
        elif at < len(changed):
            changed[at] = generator.choice([0, 1, 2, 0x7F, 0x80, 0xFF, changed[at] ^ 1 << generator.randrange(8)])
    return bytes(changed)


def _fragments(generator: random.Random, raw: bytes, control: int, context_id: int) -> list[bytes]:
    """Return presentation data values that hold a command (1) or a data set (0)."""
    cuts = sorted(generator.randrange(len(raw) + 1) for _ in range(generator.choice([0, 0, 1, 2, 5])))
    pieces = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    values = []
    for number, piece in enumerate(pieces):
        flags = control | (2 if number == len(pieces) - 1 else 0)
        if generator.random() < 0.01:
            flags = generator.randrange(256)
        if generator.random() < 0.01:
            context_id = generator.choice([0, 1, 2, 3, 5, 255])
        length = len(piece) + 2
        if generator.random() < 0.01:
            length = generator.choice([0, 1, 2, length - 1, length + 1, length + 100, 0xFFFFFFFF])
        values.append(struct.pack(">LBB", max(0, length), context_id, flags) + piece)
    return values


def message(generator: random.Random, uid: str) -> list[bytes]:
    """Return the P-DATA-TFs of one request."""
    encoded = data_set(uid, pixels=generator.choice([0, 64, 64, 5000]))
    raw = _command(generator, uid)
    is_echo = raw == command(0x30)
    raw = _bent(generator, raw) if generator.random() < 0.08 else raw
    encoded = _bent(generator, encoded) if generator.random() < 0.15 else encoded
    context_id = (3 if is_echo else 1) if generator.random() < 0.97 else generator.randrange(256)
    values = _fragments(generator, raw, 1, context_id)
    if not is_echo or generator.random() < 0.05:
        values += _fragments(generator, encoded, 0, context_id)
    pdus = []
    while values:
        count = generator.choice([1, 1, 2, 4])
        pdus.append(pdu(P_DATA, b"".join(values[:count])))
        values = values[count:]
    return pdus


def _strange(generator: random.Random) -> bytes:
    """Return a PDU that does not belong, or is none."""
    body = _noise(generator, 80)
    lengths = [None, None, 0, 1, 3, 5, 65537, 131073, 0xFFFFFFFF]
    return pdu(generator.choice([0, *range(1, 8), 8, 0x16, 0x47, 0xFF]), body, generator.choice(lengths))


def grow(generator: random.Random) -> list[bytes]:
    """Return what a peer sends on one connection, PDU by PDU."""
    pdus = [association_request(generator)] if generator.random() < 0.97 else [_strange(generator)]
    for number in range(generator.choice([1, 2, 2, 3, 3])):
        pdus += message(generator, f"1.2.3.{number}")
        if generator.random() < 0.06:
            pdus.insert(generator.randrange(len(pdus) + 1), _strange(generator))
    pdus.append(generator.choice([pdu(RELEASE_RQ, bytes(4)), pdu(RELEASE_RQ, bytes(4)), pdu(ABORT, bytes(4)), b""]))
    if generator.random() < 0.1:
        at = generator.randrange(len(pdus))
        pdus[at] = _bent(generator, pdus[at])
    return pdus
