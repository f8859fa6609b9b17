"""The certificates of [tls]: contexts of PS3.15 B.12, faults in words, and which names a certificate bears."""

from __future__ import annotations

import ssl

import pytest
from certificates import Authority, openssl

from pacs_ai import tls
from pacs_ai.config import Config
from pacs_ai.doctor.configuration import contradictions, examine
from pacs_ai.errors import UserError
from pacs_ai.network_sections import Receive, Tls


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def node(authority):
    return authority.issue("node", "DNS:node.example,IP:127.0.0.1")


def section(authority, made):
    return Tls(certificate_file=made.certificate, key_file=made.key, trusted_file=authority.trusted)


@pytest.mark.parametrize("make", [tls.server_context, tls.client_context])
def test_contexts_take_only_tls_1_2_and_1_3_with_forward_secrecy_and_a_certificate(authority, node, make):
    context = make(section(authority, node))
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_REQUIRED
    for cipher in context.get_ciphers():
        assert cipher["aead"], cipher["name"]
        assert cipher["protocol"] == "TLSv1.3" or cipher["name"].startswith("ECDHE-"), cipher["name"]


@pytest.mark.parametrize("make", [tls.server_context, tls.client_context])
def test_an_expired_certificate_of_our_own_is_said_in_words(authority, make):
    made = authority.issue("expired", days=-1)
    with pytest.raises(UserError, match=r"tls.certificate_file .*expired.*renewed"):
        make(section(authority, made))


def test_a_certificate_for_servers_alone_does_not_call(authority):
    made = authority.issue("server-only", purpose="serverAuth")
    tls.server_context(section(authority, made))
    with pytest.raises(UserError, match="purpose"):
        tls.client_context(section(authority, made))


def test_the_ports_that_are_opened_are_named():
    assert Receive().where == "port 11112"
    assert Receive(tls_port=2762).where == "port 11112 and TLS port 2762"
    assert Receive(plain=False, tls_port=2762).where == "TLS port 2762"


def test_the_key_has_to_belong_to_the_certificate(authority, node):
    other = authority.issue("other")
    mixed = Tls(certificate_file=node.certificate, key_file=other.key, trusted_file=authority.trusted)
    with pytest.raises(UserError, match=r"tls.key_file .*does not belong to"):
        tls.server_context(mixed)


def test_a_key_that_everyone_can_read_is_refused(authority):
    made = authority.issue("open")
    made.key.chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        tls.server_context(section(authority, made))


def test_a_key_with_a_passphrase_is_refused_without_asking_for_it(authority, tmp_path):
    made = authority.issue("locked")
    openssl("pkey", "-in", made.key, "-aes256", "-passout", "pass:abcd", "-out", tmp_path / "locked.key")
    locked = Tls(certificate_file=made.certificate, key_file=tmp_path / "locked.key", trusted_file=authority.trusted)
    with pytest.raises(UserError, match="passphrase"):
        tls.server_context(locked)


@pytest.mark.parametrize("name", ["certificate_file", "key_file", "trusted_file"])
def test_a_missing_file_and_one_that_is_none_are_named(authority, node, tmp_path, name):
    missing = section(authority, node).model_copy(update={name: tmp_path / "missing.pem"})
    with pytest.raises(UserError, match=f"tls.{name} .*No such file"):
        tls.server_context(missing)
    (tmp_path / "text").write_text("no certificate")
    (tmp_path / "text").chmod(0o600)
    with pytest.raises(UserError, match=f"tls.{name}"):
        tls.server_context(section(authority, node).model_copy(update={name: tmp_path / "text"}))


def test_config_check_looks_at_the_files(authority, node):
    good = Config(tls=section(authority, node))
    assert not contradictions(good)
    missing = good.model_copy(update={"tls": good.tls.model_copy(update={"key_file": authority.folder / "none"})})
    (fault,) = contradictions(missing)
    assert fault.subject == "[tls]"
    assert "tls.key_file" in fault.words


def test_names_are_compared_as_wholes_and_a_wildcard_stands_for_one_part():
    certificate = {
        "subject": ((("commonName", "MAIN PACS"),),),
        "subjectAltName": (("DNS", "pacs.Hospital.example"), ("DNS", "*.imaging.example"), ("IP Address", "10.1.2.3")),
    }
    for name in ("pacs.hospital.example", "PACS.HOSPITAL.EXAMPLE.", "ct3.imaging.example", "10.1.2.3", "main pacs"):
        assert tls.bears(certificate, name), name
    for name in ("hospital.example", "a.b.imaging.example", "imaging.example", "10.1.2.4", "pacs", "*"):
        assert not tls.bears(certificate, name), name
    assert not tls.bears({}, "pacs")


def test_the_configuration_says_where_tls_is_missing():
    peer = {"name": "pacs", "ae_title": "PACS", "host": "pacs.example", "tls": True}
    with pytest.raises(ValueError, match=r"peer pacs: tls needs \[tls\]"):
        Config.model_validate({"peer": [peer]})
    with pytest.raises(ValueError, match=r"receive.tls_port needs \[tls\]"):
        Config.model_validate({"receive": {"tls_port": 2762}})
    with pytest.raises(ValueError, match="nobody could reach the node"):
        Config.model_validate({"receive": {"plain": False}})
    with pytest.raises(ValueError, match="give all three"):
        Config.model_validate({"tls": {"key_file": "node.key"}})
    with pytest.raises(ValueError, match="the same"):
        Config.model_validate({"receive": {"tls_port": 11112}})


def test_config_check_says_what_is_odd_about_commitment():
    peer = {"name": "pacs", "ae_title": "PACS", "host": "pacs.example", "commitment": True}
    found = {one.subject: one.words for one in examine(Config.model_validate({"peer": [peer]}))}
    assert "commitment" not in found
    table = {"peer": [peer], "deliver": {"calling_ae_title": "AI"}, "receive": {"commitment": True}}
    found = {one.subject: one.words for one in examine(Config.model_validate(table))}
    assert "would answer to AI" in found["commitment"]
    assert "no archive" in found["receive.commitment"]
