"""What the configuration says of the network: the listener, the peers, and the certificates that prove who is who."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from pacs_ai.built_in_profiles import DEFAULT_PROFILE
from pacs_ai.model_sections import AeTitle, Name, Port, Seconds, Section


def _check_address(text: str) -> str:
    try:
        ip_network(text, strict=False)
    except ValueError as error:
        words = "is no address; give one, such as 10.1.2.3, or a network, such as 10.1.2.0/24"
        raise ValueError(f"{text!r} {words}") from error
    return text


class Receive(Section):
    """The listener."""

    ae_titles: tuple[AeTitle, ...] = ("PACS_AI",)
    """Called AE titles that are answered; any other is rejected. The first is the node's own when it calls others."""
    bind: str = "0.0.0.0"  # noqa: S104 - a PACS must reach it; the callers are restricted by `accept`
    """Address to listen on."""
    port: Port = 11112
    """TCP port to listen on."""
    plain: bool = True
    """Whether `port` is opened. `false` leaves `tls_port` alone: nobody speaks to the node without a certificate."""
    tls_port: Port | None = None
    """Second TCP port, on which only TLS is spoken (2762 is registered for it); it needs `[tls]`. Callers need a
    certificate of an authority in `tls.trusted_file`. Empty: none."""
    processes: Annotated[int, Field(ge=1, le=16)] = 1
    """Receiving processes that share the port."""
    accept: Literal["anyone", "peers"] = "anyone"
    """`peers`: only calling AE titles that are a `[[peer]]`, and only from that peer's host and `addresses`."""
    quiet_seconds: Seconds = 10.0
    """A series is complete when nothing of it arrived for so long; a `[[peer]]` may have its own."""
    released_seconds: Seconds = 1.0
    """The wait instead, where one association alone brought the whole series (two instances or more) and released."""
    idle_association_seconds: Seconds = 60.0
    """An open association that brought none of the series for so long no longer holds it up."""
    transfer_syntaxes: tuple[str, ...] = (
        "ExplicitVRLittleEndian",
        "ImplicitVRLittleEndian",
        "RLELossless",
        "JPEGBaseline8Bit",
        "JPEGExtended12Bit",
        "JPEGLossless",
        "JPEGLosslessSV1",
        "JPEGLSLossless",
        "JPEGLSNearLossless",
        "JPEG2000Lossless",
        "JPEG2000",
        "HTJ2KLossless",
        "HTJ2KLosslessRPCL",
        "HTJ2K",
    )
    """Accepted transfer syntaxes, preferred first (pydicom's keyword or UID); each instance is kept as it came.
    Deflated (`DeflatedExplicitVRLittleEndian`), big endian and video are accepted only when listed here."""
    further_sop_classes: tuple[str, ...] = ()
    """UIDs of storage SOP classes to accept beside the Standard's: private ones, or newer than this release."""
    max_connections: Annotated[int, Field(ge=1)] = 1000
    """Connections at one time that have not asked for an association yet, such as health checks; beyond that the one
    that has waited longest is closed. Each may hold 256 KiB of half a request in memory. Who has asked has an answer,
    however many connect."""
    max_connections_per_address: Annotated[int, Field(ge=1)] = 64
    """The same of one address."""
    max_associations: Annotated[int, Field(ge=1)] = 500
    """Associations at one time, of each receiving process; a further one is rejected (local limit exceeded)."""
    max_associations_per_peer: Annotated[int, Field(ge=1)] = 32
    """Associations of one calling AE title at one time, of each receiving process."""
    max_associations_per_address: Annotated[int, Field(ge=1)] = 250
    """Associations from one address at one time, whatever their AE titles, of each receiving process."""
    max_pdu_bytes: Annotated[int, Field(ge=4096, le=1_048_576)] = 131_072
    """Longest P-DATA-TF that peers may send, in bytes."""
    ahead_mb: Annotated[int, Field(ge=0, le=65536)] = 256
    """Disk space of each receiving process that instances up to 1 MiB are written ahead to, in MB: they are durable,
    and answered, with one sync for all that come at the same moment, and get their files and rows afterwards, after a
    crash too. It should hold some seconds of the fastest sender; 0: none, each instance waits for its file and row."""
    max_instance_gb: Annotated[float, Field(gt=0)] = 4.0
    """A longer instance is answered 0xA700, in GB."""
    association_request_seconds: Seconds = 10.0
    """A connection that has not asked for an association by then is closed."""
    handshake_seconds: Seconds = 5.0
    """Of these, for the TLS handshake."""
    network_seconds: Seconds = 60.0
    """An association that is silent for so long, between instances or amid one, is aborted."""
    min_bytes_per_second: Annotated[int, Field(ge=1)] = 8192
    """Least pace of an instance under way, averaged over 30 s; a slower sender is aborted, for it holds a place."""
    write_seconds: Seconds = 10.0
    """A peer that takes nothing of its answers for so long is aborted."""
    answer_seconds: Seconds = 30.0
    """An instance that is not durable by then is answered 0xA700: the sender tries again. One that is still coming
    then, because the disk takes no more, is aborted. While 16 of these hang, further ones are answered so at once."""
    commitment: bool = False
    """Whether peers may ask the node to commit to keeping what they sent (storage commitment, PS3.4 Annex J). They may
    delete their own copy once it has committed, and the node is no archive: leave it off unless you know why. What it
    committed to is never deleted, until `pacs-ai lift`."""
    grace_seconds: Seconds = 20.0
    """On stop, time for associations in progress to end."""

    @property
    def ports(self) -> dict[str, int]:
        """The ports that are opened, by what they are called."""
        found = {"port": self.port} if self.plain else {}
        return found if self.tls_port is None else {**found, "TLS port": self.tls_port}

    @property
    def where(self) -> str:
        """The ports that are opened, in words."""
        return " and ".join(f"{name} {number}" for name, number in self.ports.items())


class Tls(Section):
    """The node's certificate, for `receive.tls_port` and for peers with `tls = true` (TLS 1.2 and 1.3, PS3.15 B.12)."""

    certificate_file: Path | None = None
    """PEM file: the node's certificate, and after it those between it and the authority. A relative path counts from
    the configuration file, here and below."""
    key_file: Path | None = None
    """PEM file: its private key, without a passphrase, readable by the node's user alone."""
    trusted_file: Path | None = None
    """PEM file: the authorities that peers' certificates must chain to, when they call and when they are called."""
    revocation_list: Path | None = None
    """PEM file: the revocation lists (CRLs) of these authorities. A peer whose certificate is on one is refused, and so
    is every peer whose authority has no list here that still holds: have a script fetch it in time. Empty: none is
    heeded."""
    revocation_check: Literal["peer", "chain"] = "peer"
    """Whose certificates are held against these lists: `peer`, that of the peer alone; `chain`, those of all
    authorities above it too, for which the file must hold a list of each, the root's as well, one after another."""

    @model_validator(mode="after")
    def _whole(self) -> Tls:
        files = (self.certificate_file, self.key_file, self.trusted_file)
        if self.revocation_list and not any(files):
            raise ValueError("revocation_list needs certificate_file, key_file and trusted_file")
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
    addresses: tuple[Annotated[str, AfterValidator(_check_address)], ...] = ()
    """Further addresses and networks (`10.1.2.0/24`) that it may call from, where `receive.accept` is `peers`."""
    quiet_seconds: Seconds | None = None
    """Its own `quiet_seconds`: longer for a modality that sends one image per association."""
    connect_seconds: Seconds = 10.0
    """Time limit for finding its address, for the TCP connection, and for the TLS handshake, each."""
    answer_seconds: Seconds = 60.0
    """Time limit for the answer to an association request or a C-STORE."""
    commitment: bool = False
    """Ask it after delivery to commit to keeping the results (storage commitment, PS3.4 Annex J); a delivery is
    `confirmed` only then. What it does not have is looked for once more, then sent again. It must know the node's AE
    title, host and port, since it may answer on an association of its own; where it does not answer, a query (C-FIND)
    shows whether it has them."""
    commitment_seconds: Annotated[float, Field(gt=0, le=300)] = 300.0
    """Time for its answer to that."""
    verify_patient: bool = False
    """Ask it before sending (C-FIND, Study Root) whose the study is. Where that is another Patient ID, because the
    patient was merged or the study moved, the delivery is held until a person sends it again or cancels it; where it
    does not have the study, or does not answer, the delivery waits. Notes of retraction are sent without asking."""
    profile: Name = DEFAULT_PROFILE
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
    """Time limit for the connection, and, beside what their length needs at 8 KiB/s, for events to be read."""
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
        try:
            host.encode("idna")
        except UnicodeError as error:
            raise ValueError(f"{host} is no host name; give host:port, such as audit.example.org:6514") from error
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
