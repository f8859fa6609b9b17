"""Certificates for tests, made by Debian's openssl: an authority and what it signs."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


_OPTIONS = {"ec": ("-pkeyopt", "ec_paramgen_curve:P-256"), "rsa": ("-pkeyopt", "rsa_keygen_bits:2048")}


def openssl(*words: object) -> None:
    """Run openssl; its complaint is the failure."""
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Certificate:
    """One certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority in a folder of its own."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.name = name
        self.own = self._request(name)
        extensions = self._extensions(
            name, "basicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign,cRLSign\n"
        )
        openssl(
            *("x509", "-req", "-in", folder / f"{name}.csr", "-signkey", self.own.key, "-days", 30),
            *("-extfile", extensions, "-out", self.own.certificate),
        )

    @property
    def trusted(self) -> Path:
        """PEM file of the authority's own certificate."""
        return self.own.certificate

    def issue(
        self, name: str, alternative: str = "", *, days: int = 30, purpose: str = "", algorithm: str = "ec"
    ) -> Certificate:
        """Sign a certificate for a common name and e.g. "DNS:a.example,IP:127.0.0.1"; `days` may lie in the past."""
        made = self._request(name, algorithm)
        text = "basicConstraints=CA:false\n"
        text += f"subjectAltName={alternative}\n" if alternative else ""
        text += f"extendedKeyUsage={purpose}\n" if purpose else ""
        openssl(
            *("x509", "-req", "-in", self.folder / f"{name}.csr", "-CA", self.own.certificate, "-CAkey", self.own.key),
            *("-CAcreateserial", "-days", days, "-extfile", self._extensions(name, text), "-out", made.certificate),
        )
        return made

    def subordinate(self, name: str) -> Authority:
        """Return an authority that this one has signed; whoever shows what it issued must show its certificate too."""
        made = Authority(self.folder / name, name)
        text = "basicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign,cRLSign\n"
        openssl(
            *("x509", "-req", "-in", made.folder / f"{name}.csr", "-CA", self.own.certificate, "-CAkey", self.own.key),
            *("-CAcreateserial", "-days", 30, "-extfile", made._extensions(name, text), "-out", made.own.certificate),
        )
        return made

    def revoke(self, *made: Certificate, hours: int = 24) -> Path:
        """Write a list of what is revoked, the next of which is due in so many hours; returns its PEM file."""
        index, path = self.folder / "index.txt", self.folder / f"{self.name}.crl"
        index.write_text("")
        settings = self._extensions("revoking", f"[ca]\ndefault_ca=own\n[own]\ndatabase={index}\ndefault_md=sha256\n")
        signer = ("ca", "-config", settings, "-cert", self.own.certificate, "-keyfile", self.own.key)
        for one in made:
            openssl(*signer, "-revoke", one.certificate)
        due = datetime.now(UTC) + timedelta(hours=hours)
        dates = [f"{moment:%Y%m%d%H%M%SZ}" for moment in (due - timedelta(days=2), due)]
        openssl(*signer, "-gencrl", "-crl_lastupdate", dates[0], "-crl_nextupdate", dates[1], "-out", path)
        return path

    def _request(self, name: str, algorithm: str = "ec") -> Certificate:
        made = Certificate(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        openssl(
            *("req", "-new", "-newkey", algorithm, *_OPTIONS[algorithm], "-nodes", "-subj", f"/CN={name}"),
            *("-keyout", made.key, "-out", self.folder / f"{name}.csr"),
        )
        made.key.chmod(0o600)
        return made

    def _extensions(self, name: str, text: str) -> Path:
        path = self.folder / f"{name}.ext"
        path.write_text(text)
        return path
