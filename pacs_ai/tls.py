"""TLS for DICOM: who may speak to whom is proved by certificates, both ways, with TLS 1.2 or 1.3 and nothing older.

The profile is PS3.15 B.12 (BCP 195: RFC 8996, RFC 9325), with a certificate demanded from the caller too.
"""

from __future__ import annotations

import ssl
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pacs_ai.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pacs_ai.network_sections import Tls

#: TLS 1.2: forward secrecy and authenticated encryption only (RFC 9325 4.2). Those of TLS 1.3 are all of that kind.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
#: Bytes of one certificate file that are read, and of a revocation list, which may name thousands.
_LONGEST_FILE, _LONGEST_LIST = 1_048_576, 67_108_864
#: Rounds of messages within which any handshake is over.
_FLIGHTS = 8


def server_context(tls: Tls) -> ssl.SSLContext:
    """Return how the node is spoken to: it shows its certificate and demands one.

    Raises
    ------
    UserError
        A file is missing or unreadable, the key does not belong to the certificate or is readable by everyone, or the
        certificate is expired; the message says which, and what to do.
    """
    context = _context(tls, ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # every connection proves itself anew, in TLS 1.3 and 1.2
    context.options |= ssl.OP_NO_TICKET
    return context


def client_context(tls: Tls) -> ssl.SSLContext:
    """Return how the node speaks to others: it demands their certificate and shows its own; UserError as above.

    The name in a peer's certificate is not judged here: ask `bears`.
    """
    return _context(tls, ssl.PROTOCOL_TLS_CLIENT)


def bears(certificate: Mapping[str, Any], name: str) -> bool:
    """Tell whether a peer's certificate was made out for a name.

    Parameters
    ----------
    certificate
        As `ssl.SSLSocket.getpeercert` returns it.
    name
        DNS name, address or common name. Case does not matter; `*` may stand for the first part of a DNS name
        (RFC 6125 6.4.3).
    """
    wanted = name.rstrip(".").casefold()
    _, _, domain = wanted.partition(".")
    wildcard = f"*.{domain}" if "." in domain else wanted
    return any(borne.casefold() in {wanted, wildcard} for borne in names_in(certificate))


def names_in(certificate: Mapping[str, Any]) -> list[str]:
    """Return the names that a certificate was made out for: DNS names, addresses, common names."""
    alternatives = [value for kind, value in certificate.get("subjectAltName", ()) if kind in {"DNS", "IP Address"}]
    common = [value for part in certificate.get("subject", ()) for kind, value in part if kind == "commonName"]
    return list(dict.fromkeys((*alternatives, *common)))


def fault_words(error: ssl.SSLError) -> str:
    """Say what a failed handshake means, for an administrator."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted here ({error.verify_message})"
    told = next((words for reason, words in _ALERTS.items() if reason in (error.reason or "")), "")
    return told or f"TLS failed ({error.reason or 'no reason given'})"


#: OpenSSL's reason, or a piece of it -> what it means.
_ALERTS = {
    "ALERT_CERTIFICATE_REVOKED": "it says that the node's certificate was revoked",
    "ALERT_CERTIFICATE_EXPIRED": "it says that the node's certificate is expired",
    "ALERT_UNKNOWN_CA": "it does not trust the authority that signed the node's certificate",
    "ALERT_CERTIFICATE_UNKNOWN": "it does not accept the node's certificate",
    "ALERT_BAD_CERTIFICATE": "it does not accept the node's certificate",
    "ALERT_CERTIFICATE_REQUIRED": "it wants a certificate that the node did not show",
    "ALERT_PROTOCOL_VERSION": "it speaks neither TLS 1.2 nor 1.3",
    "UNSUPPORTED_PROTOCOL": "it speaks neither TLS 1.2 nor 1.3",
    "HANDSHAKE_FAILURE": "it shares no cipher with the node, or wants another certificate",
    "NO_SHARED_CIPHER": "it shares no cipher with the node",
    "WRONG_VERSION_NUMBER": "it does not speak TLS on this port",
    "HTTP_REQUEST": "it speaks HTTP",
    "UNEXPECTED_EOF": "it ended the connection amid the handshake; does it speak TLS on this port?",
}


def _context(tls: Tls, protocol: int) -> ssl.SSLContext:
    certificate, key, trusted = _files(tls)
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    try:
        context.load_verify_locations(trusted)
    except ssl.SSLError as error:
        raise UserError(f"tls.trusted_file {trusted} holds no certificate in PEM form") from error
    if tls.revocation_list is not None:
        _heed(context, tls.revocation_list, _CHECKS[tls.revocation_check])
    try:
        # Without a function a passphrase would be asked for on the terminal.
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except ssl.SSLError as error:
        raise UserError(_pair_words(error, certificate, key)) from error
    _try_own(protocol, certificate, key)
    return context


def _heed(context: ssl.SSLContext, revocation_list: Path, check: ssl.VerifyFlags) -> None:
    """Have peers refused whose certificate a list names, or whose authority has no list (RFC 5280 6.3).

    The file may hold the lists of several authorities.
    """
    try:
        context.load_verify_locations(revocation_list)
    except ssl.SSLError as error:
        raise UserError(f"tls.revocation_list {revocation_list} holds no revocation list in PEM form") from error
    if not context.cert_store_stats()["crl"]:
        raise UserError(f"tls.revocation_list {revocation_list} holds no revocation list, only certificates")
    context.verify_flags |= check


#: `tls.revocation_check` -> which certificates of a chain are held against the lists.
_CHECKS = {"peer": ssl.VERIFY_CRL_CHECK_LEAF, "chain": ssl.VERIFY_CRL_CHECK_CHAIN}


def _files(tls: Tls) -> tuple[Path, Path, Path]:
    found = (tls.certificate_file, tls.key_file, tls.trusted_file)
    certificate, key, trusted = (Path() if path is None else path for path in found)
    if not tls.is_given:
        raise UserError("TLS needs [tls] with certificate_file, key_file and trusted_file in the configuration")
    wanted = {"certificate_file": certificate, "key_file": key, "trusted_file": trusted}
    if tls.revocation_list is not None:
        wanted["revocation_list"] = tls.revocation_list
    for name, path in wanted.items():
        longest = _LONGEST_LIST if name == "revocation_list" else _LONGEST_FILE
        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(path.stat().st_mode)
                if len(file.read(longest + 1)) > longest:
                    raise UserError(f"tls.{name} {path} is too long for a certificate or key in PEM form")
        except OSError as error:
            raise UserError(f"tls.{name} {path} cannot be read: {error.strerror}") from error
        if name == "key_file" and mode & stat.S_IRWXO:
            raise UserError(f"tls.key_file {path} can be read by everyone on this machine; chmod 600 it")
    return certificate, key, trusted


def _no_passphrase() -> str:
    raise UserError("tls.key_file has a passphrase; give one without (openssl pkey -in OLD -out NEW)")


def _pair_words(error: ssl.SSLError, certificate: Path, key: Path) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"tls.key_file {key} does not belong to tls.certificate_file {certificate}; was one of them renewed?"
    if error.reason == "EE_KEY_TOO_SMALL":
        return f"the key of tls.certificate_file {certificate} is too short; RSA needs 2048 bits, EC 256"
    return f"tls.certificate_file {certificate} and tls.key_file {key} are no certificate and key in PEM form"


def _try_own(protocol: int, certificate: Path, key: Path) -> None:
    """Show the node's own certificate to itself: whoever looks at it checks its dates and what it may be used for."""
    shows = ssl.SSLContext(protocol)
    shows.check_hostname = False
    shows.verify_mode = ssl.CERT_NONE
    shows.load_cert_chain(certificate, key)
    looks = ssl.SSLContext(_OTHER_SIDE[protocol])
    looks.check_hostname = False
    looks.verify_mode = ssl.CERT_REQUIRED
    looks.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # its authority may be another than that of the peers
    looks.load_verify_locations(certificate)
    looks.load_cert_chain(certificate, key)
    try:
        _shake_hands(shows, looks)
    except ssl.SSLCertVerificationError as error:
        words = f"tls.certificate_file {certificate} is not valid ({error.verify_message})"
        raise UserError(f"{words}; have it renewed, or correct this machine's clock") from error


_OTHER_SIDE: Mapping[int, int] = {
    ssl.PROTOCOL_TLS_SERVER: ssl.PROTOCOL_TLS_CLIENT,
    ssl.PROTOCOL_TLS_CLIENT: ssl.PROTOCOL_TLS_SERVER,
}


def _shake_hands(shows: ssl.SSLContext, looks: ssl.SSLContext) -> None:
    """Complete a handshake in memory; SSLError as either side raises it."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    waiting = [
        shows.wrap_bio(there, back, server_side=shows.protocol == ssl.PROTOCOL_TLS_SERVER),
        looks.wrap_bio(back, there, server_side=looks.protocol == ssl.PROTOCOL_TLS_SERVER),
    ]
    for _ in range(_FLIGHTS):
        for side in tuple(waiting):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
                waiting.remove(side)
