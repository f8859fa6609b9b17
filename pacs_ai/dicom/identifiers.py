"""UIDs that are derived, never drawn at random: same work, same UID (PS3.5 B.2); and those of this implementation."""

from __future__ import annotations

import hashlib
import json
import uuid

from pydicom.uid import UID

#: What an association speaks: DICOM (PS3.7 A.2.1).
APPLICATION_CONTEXT_NAME = UID("1.2.840.10008.3.1.1.1")
#: Implementation Class UID (PS3.7 D.3.3.2): a UUID-derived constant of this implementation.
IMPLEMENTATION_CLASS_UID = UID("2.25.157945235386225986404949825481963713122")
IMPLEMENTATION_VERSION_NAME = "PACS_AI_0_1"


def digest(*parts: object) -> str:
    """Return the SHA-256 (hex) of the parts as canonical JSON; equal parts, equal digest."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def derive_uid(*parts: object) -> UID:
    """Return the UID ``2.25.<UUID as integer>`` that belongs to these parts (PS3.5 B.2, RFC 9562 version 8)."""
    raw = bytearray(bytes.fromhex(digest(*parts))[:16])
    raw[6] = (raw[6] & 0x0F) | 0x80
    raw[8] = (raw[8] & 0x3F) | 0x80
    return UID(f"2.25.{uuid.UUID(bytes=bytes(raw)).int}")
