"""What the configuration says of the others on the network: the peers, and the certificates that prove who is who."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from pacs_ai import profiles
from pacs_ai.model_sections import AeTitle, Name, Port, Seconds, Section


class Tls(Section):
    """The node's certificate, for `receive.tls_port` and for peers with `tls = true` (TLS 1.2 and 1.3, PS3.15 B.12)."""

    certificate_file: Path | None = None
    """PEM file: the node's certificate, and after it those between it and the authority. A relative path counts from
    the configuration file, here and below."""
    key_file: Path | None = None
    """PEM file: its private key, without a passphrase, readable by the node's user alone."""
    trusted_file: Path | None = None
    """PEM file: the authorities that peers' certificates must chain to, when they call and when they are called."""

    @model_validator(mode="after")
    def _whole(self) -> Tls:
        files = (self.certificate_file, self.key_file, self.trusted_file)
        if any(files) and not all(files):
            raise ValueError("give all three: certificate_file, key_file and trusted_file")
        return self

    @property
    def is_given(self) -> bool:
        """Whether the node has a certificate."""
        return self.certificate_file is not None


class Peer(Section):
    """A remote application entity: a PACS, a modality, a viewer."""

    name: Name
    """What routes and commands call it."""
    ae_title: AeTitle
    """Its AE title, as caller and as destination."""
    host: str
    """Host name or address."""
    port: Port = 104
    """Its DICOM port; that on which it speaks TLS, where `tls` is set."""
    tls: bool = False
    """Call it over TLS, with the certificate of `[tls]`."""
    certificate_name: str = ""
    """DNS name or common name that its certificate must bear, when the node calls it and when it calls. Empty: when the
    node calls, that of `host`; when it calls, any that an authority in `tls.trusted_file` signed."""
    addresses: tuple[str, ...] = ()
    """Further addresses that it may call from, where `receive.accept` is `peers`."""
    quiet_seconds: Seconds | None = None
    """Its own `quiet_seconds`: longer for a modality that sends one image per association."""
    connect_seconds: Seconds = 10.0
    """Time limit for the TCP connection."""
    answer_seconds: Seconds = 60.0
    """Time limit for the answer to an association request or a C-STORE."""
    commitment: bool = False
    """Ask it after delivery to commit to keeping the results (storage commitment, PS3.4 Annex J); a delivery is
    `confirmed` only then. What it does not have is sent again. It must know the node's AE title, host and port, since
    it may answer on an association of its own; where it does not answer, a query (C-FIND) shows whether it has them."""
    commitment_seconds: Annotated[float, Field(gt=0, le=300)] = 300.0
    """Time for its answer to that."""
    verify_patient: bool = False
    """Ask it before sending (C-FIND, Study Root) whose the study is. Where that is another Patient ID, because the
    patient was merged or the study moved, the delivery is held until a person sends it again or cancels it; where it
    does not have the study, or does not answer, the delivery waits. Notes of retraction are sent without asking."""
    profile: Name = profiles.DEFAULT_PROFILE
    """Which objects it gets: `ohif`, `slicer`, `generic-pacs`, `dictation`, `archive`, or a `[[profile]]`."""


class Audit(Section):
    """The audit trail: who sent, analysed, delivered, withdrew and deleted what (PS3.15 A.5). It names patients."""

    to_file: bool = True
    """Whether events are written to `audit.log`, one on each line, as RFC 5424 has it."""
    folder: Path | None = None
    """Where `audit.log` lies; empty: `audit` below `store.folder`. A relative path counts from the configuration
    file."""
    max_file_mb: Annotated[float, Field(ge=0.1)] = 100.0
    """A longer `audit.log` is set aside under the time of its end, and a new one begun, in MB. None is deleted."""
    repository: str = ""
    """`host:port` of an Audit Record Repository that takes syslog over TLS (RFC 5425, port 6514; PS3.15 A.6). It needs
    `[tls]`. Empty: none."""
    repository_name: str = ""
    """DNS name or common name that its certificate must bear; empty: its host."""
    repository_seconds: Seconds = 10.0
    """Time limit for the connection, and for each step of sending."""
    source: str = ""
    """Audit Source ID; empty: `node.name`."""
    site: str = ""
    """Audit Enterprise Site ID: the hospital; empty: none."""

    @field_validator("repository")
    @classmethod
    def _address(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if value and not (host and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError("give host:port, such as audit.example.org:6514")
        return value

    @property
    def is_kept(self) -> bool:
        """Whether there is an audit trail at all."""
        return self.to_file or bool(self.repository)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the repository."""
        host, _, port = self.repository.rpartition(":")
        return host.removeprefix("[").removesuffix("]"), int(port)
