"""Until when certificates and revocation lists hold, read from their PEM files, for which no private key is needed."""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pacs_ai.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CERTIFICATE, REVOCATION_LIST = "CERTIFICATE", "X509 CRL"
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", re.DOTALL)
#: Tags of DER (X.690 8.1.2) that are met on the way to the dates.
_SEQUENCE, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0x17, 0x18
_LONG_FORM = 0x80


def valid_until(path: Path, kind: str) -> datetime | None:
    """Return when the first of a PEM file's certificates or revocation lists to do so runs out.

    Parameters
    ----------
    kind
        CERTIFICATE (notAfter: RFC 5280 4.1.2.5) or REVOCATION_LIST (nextUpdate: RFC 5280 5.1.2.5).

    Returns
    -------
        None where none of them ever does, or none is there.

    Raises
    ------
    UserError
        The file cannot be read, or what is in it cannot be understood.
    """
    try:
        blocks = [body for name, body in _BLOCK.findall(path.read_bytes()) if name == kind.encode()]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        ends = [_end(base64.b64decode(body), kind) for body in blocks]
    except (binascii.Error, ValueError, IndexError) as error:
        raise UserError(
            f"{path} holds a {kind.lower()} that cannot be understood; write it anew, in PEM form"
        ) from error
    return min((end for end in ends if end is not None), default=None)


def _end(der: bytes, kind: str) -> datetime | None:
    """Return the date after which a certificate or a list is no longer good; of a list that is its second date."""
    ((_, whole),) = _values(der)
    _, signed = [*_values(whole)][0]  # noqa: RUF015 - IndexError where there is none
    fields = [*_values(signed)]
    if kind == CERTIFICATE:
        # [version], serial number, signature, issuer, validity, ...: the third sequence
        validity = [value for tag, value in fields if tag == _SEQUENCE][2]
        fields = [*_values(validity)]
    times = [_time(tag, value) for tag, value in fields if tag in {_UTC_TIME, _GENERALIZED_TIME}]
    if not times:
        raise ValueError("no dates")
    return times[1] if len(times) > 1 else None


def _values(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each value that stands in a row; ValueError where one is longer than what is there."""
    at = 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length >= _LONG_FORM:
            count = length - _LONG_FORM
            length, at = int.from_bytes(der[at : at + count], "big"), at + count
        if at + length > len(der):
            raise ValueError("longer than what is there")
        yield tag, der[at : at + length]
        at += length


def _time(tag: int, value: bytes) -> datetime:
    """Return a moment; two digits of a year up to 49 are of this century (RFC 5280 4.1.2.5.1)."""
    text = value.decode("ascii")
    if tag == _UTC_TIME:
        text = ("20" if int(text[:2]) < 50 else "19") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
