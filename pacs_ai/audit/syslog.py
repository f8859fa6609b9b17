"""The envelope of an audit message: RFC 5424 with facility 10 (PS3.15 A.6), for a line of a file or a TLS stream."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pacs_ai.store.trail import Event

#: security/authorization messages
_FACILITY = 10
_APPLICATION = "pacs_ai"
_MSGID = "DICOM+RFC3881"
#: RFC 5424 6.4: UTF-8 begins with it.
_BOM = "\ufeff"
_LONGEST_HOST = 255


@dataclass(frozen=True)
class Envelope:
    """What stands before each message: host name and process ID of the teller."""

    host: str
    pid: int

    def line(self, event: Event) -> bytes:
        """Return it as one line of a file."""
        return f"{self._header(event)}{event.message}\n".encode()

    def frame(self, event: Event) -> bytes:
        """Return it with its length in front, for a stream (RFC 5425 4.3)."""
        text = f"{self._header(event)}{_BOM}{event.message}".encode()
        return b"%d %s" % (len(text), text)

    def _header(self, event: Event) -> str:
        priority = 8 * _FACILITY + event.severity
        at = event.at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
        host = "".join(c for c in self.host if "!" <= c <= "~")[:_LONGEST_HOST] or "-"
        return f"<{priority}>1 {at}Z {host} {_APPLICATION} {self.pid} {_MSGID} - "
