"""What the receiving side tells the rest about an association and about each instance that arrived durably."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from pacs_ai.dicom.attributes import Header


@dataclass(frozen=True)
class AssociationInfo:
    """One association that a peer opened.

    Parameters
    ----------
    assoc_id
        Ours, unique across receive processes and restarts.
    calling_ae_title, called_ae_title
        As negotiated (PS3.8 9.3.2), without padding; free of control characters.
    address
        The peer's IP address as text.
    opened_at
        UTC.
    """

    assoc_id: str
    calling_ae_title: str
    called_ae_title: str
    address: str
    opened_at: datetime


@dataclass(frozen=True)
class Refusal:
    """A connection, association or instance that this node turned away.

    Parameters
    ----------
    what
        "connection" (no DICOM, no TLS, or no time left), "association" or "instance".
    address
        The peer's IP address as text.
    calling_ae_title, called_ae_title
        As the peer gave them, control characters escaped; "" where it came to none.
    reason
        In words, without anything of a patient.
    at
        UTC.
    times
        How often, where it is told once for several.
    """

    what: str
    address: str
    calling_ae_title: str
    called_ae_title: str
    reason: str
    at: datetime
    times: int = 1


@dataclass(frozen=True)
class Arrival:
    """One instance whose file is written and synced, ready for its row.

    Parameters
    ----------
    header
        Of the data set.
    sha256, size
        Of the whole Part 10 file: SHA-256 in hex, and bytes.
    transfer_syntax_uid
        The one negotiated, in which the data set is kept.
    calling_ae_title, called_ae_title, address, assoc_id
        As in `AssociationInfo`.
    priority
        Priority (0000,0700) of the C-STORE command: 0 medium, 1 high, 2 low (PS3.7 9.3.1.1).
    received_at
        When the last fragment had come; UTC.
    """

    header: Header
    sha256: str
    size: int
    transfer_syntax_uid: str
    calling_ae_title: str
    called_ae_title: str
    address: str
    assoc_id: str
    priority: int
    received_at: datetime
