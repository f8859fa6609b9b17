"""Certificates that are renewed while the node runs, and dates that are told before they come."""

from __future__ import annotations

import logging
import os
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from certificates import Authority

from pacs_ai import tls, validity
from pacs_ai.cli import glance
from pacs_ai.config import Config
from pacs_ai.credentials import LOOK_SECONDS, Credentials, calling, worries
from pacs_ai.doctor.configuration import contradictions, examine
from pacs_ai.doctor.findings import Level
from pacs_ai.errors import UserError
from pacs_ai.network_sections import Tls
from pacs_ai.validity import CERTIFICATE, REVOCATION_LIST, valid_until


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def lasting(authority):
    return authority.issue("lasting", days=400)


@pytest.fixture
def files(authority, lasting, tmp_path):
    """Files of [tls] that a test may change."""
    return Tls(
        certificate_file=shutil.copy(lasting.certificate, tmp_path / "node.pem"),
        key_file=shutil.copy(lasting.key, tmp_path / "node.key"),
        trusted_file=shutil.copy(authority.trusted, tmp_path / "trusted.pem"),
    )


class Clock:
    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds


def put(made, files):
    """Renew both files, with other times of writing."""
    for new, old in ((made.certificate, files.certificate_file), (made.key, files.key_file)):
        shutil.copy(new, old)
        os.utime(old, (0, 0))


def days_left(end):
    return (end - datetime.now(UTC)) / timedelta(days=1)


def test_dates_are_read_from_certificates_and_lists(authority, lasting, tmp_path):
    assert days_left(valid_until(lasting.certificate, CERTIFICATE)) == pytest.approx(400, abs=0.1)
    assert days_left(valid_until(authority.revoke(hours=48), REVOCATION_LIST)) == pytest.approx(2, abs=0.1)
    chain = tmp_path / "chain.pem"
    chain.write_bytes(lasting.certificate.read_bytes() + authority.trusted.read_bytes())
    assert days_left(valid_until(chain, CERTIFICATE)) == pytest.approx(30, abs=0.1)  # the first that runs out
    assert valid_until(lasting.key, CERTIFICATE) is None


def test_years_have_two_digits_until_2049_and_four_afterwards():
    assert validity._time(0x17, b"491231235959Z").year == 2049
    assert validity._time(0x17, b"500101000000Z").year == 1950
    assert validity._time(0x18, b"20500101000000Z").year == 2050


@pytest.mark.parametrize("body", [b"AAAA", b"MIIB", b"MAA=", b"*", b"MAQwAjAA"])
def test_what_is_no_certificate_is_said_in_words(body, tmp_path):
    path = tmp_path / "no.pem"
    path.write_bytes(b"-----BEGIN CERTIFICATE-----\n" + body + b"\n-----END CERTIFICATE-----\n")
    with pytest.raises(UserError, match="cannot be understood"):
        valid_until(path, CERTIFICATE)


def test_renewed_files_are_taken_within_a_minute(authority, files, caplog):
    clock = Clock()
    credentials = Credentials(files, tls.client_context, clock)
    first = credentials.context()
    put(authority.issue("renewed", days=90), files)
    credentials.renew()
    assert credentials.context() is first  # not looked at yet
    clock.seconds += LOOK_SECONDS
    with caplog.at_level(logging.INFO):
        credentials.renew()
    assert credentials.context() is not first
    assert caplog.messages == ["took the new files of [tls]"]


def test_new_files_that_are_not_good_are_told_once_and_not_used(authority, files, caplog):
    clock = Clock()
    credentials = Credentials(files, tls.server_context, clock)
    first = credentials.context()
    put(authority.issue("late", days=-1), files)
    for _ in range(3):
        clock.seconds += LOOK_SECONDS
        credentials.renew()
    assert credentials.context() is first
    (said,) = caplog.messages
    assert "those before still are" in said
    assert "expired" in said
    files.key_file.unlink()
    clock.seconds += LOOK_SECONDS
    credentials.renew()
    assert "cannot be read" in caplog.messages[1]
    put(authority.issue("good", days=90), files)
    files.key_file.chmod(0o600)
    clock.seconds += LOOK_SECONDS
    credentials.renew()
    assert credentials.context() is not first


def test_files_that_vanish_while_they_are_read_change_nothing(files, caplog):
    clock, faults = Clock(), []

    def make(given):
        if faults:
            raise faults.pop()
        return tls.server_context(given)

    credentials = Credentials(files, make, clock)
    first = credentials.context()
    os.utime(files.key_file, (0, 0))
    faults.append(FileNotFoundError(2, "No such file or directory"))
    for _ in range(2):
        assert credentials.context() is first
        clock.seconds += LOOK_SECONDS
        credentials.renew()
    assert credentials.context() is not first
    assert "No such file" in caplog.messages[0]


def test_a_month_before_its_end_a_certificate_is_told_in_log_status_and_doctor(authority, files, caplog):
    put(authority.issue("short", days=29), files)
    clock = Clock()
    credentials = Credentials(files, tls.server_context, clock)
    assert "holds until" in caplog.messages[0]
    for _ in range(1500):
        clock.seconds += LOOK_SECONDS
        credentials.renew()
    assert len(caplog.messages) == 2  # again after a day
    (worry,) = worries(files)
    assert "renewed" in worry.advice
    config = Config(tls=files)
    assert contradictions(config) == []  # a node starts with it
    (warning,) = [finding for finding in examine(config) if finding.subject == "[tls]"]
    assert warning.level is Level.WARNING
    assert warning.words == worry.words


def test_certificates_that_hold_are_nobodys_worry(files):
    assert list(worries(files)) == []
    assert list(worries(Tls())) == []


def test_status_tells_of_new_files_that_are_not_good(authority, files):
    put(authority.issue("gone", days=-1), files)
    (worry,) = worries(files)
    assert worry.is_fault
    look = glance.Look("n", "", {"deliveries": {}}, [], [], {}, {}, [], [], [], [], [], None, certificates=[worry])
    (trouble,) = [one for one in glance._troubles(Config(), look) if one.subject == "[tls]"]
    assert "expired" in trouble.words
    assert "goes on with those that it had" in trouble.advice


def test_a_list_that_ran_out_is_a_worry_and_one_that_is_none_a_fault(authority, files, tmp_path):
    old = files.model_copy(update={"revocation_list": authority.revoke(hours=-1)})
    (worry,) = worries(old)
    assert "ran out" in worry.words
    assert not worry.is_fault
    assert worry.stops_tls
    (finding,) = [one for one in examine(Config(tls=old)) if one.subject == "[tls]"]
    assert finding.level is Level.FAULT
    for content, words in (("nothing", "in PEM form"), (authority.trusted.read_text(), "only certificates")):
        path = tmp_path / "list.pem"
        path.write_text(content)
        (worry,) = worries(files.model_copy(update={"revocation_list": path}))
        assert words in worry.words
        assert worry.is_fault
    with pytest.raises(ValueError, match="revocation_list needs"):
        Tls(revocation_list=path)


def test_callers_share_what_was_good(authority, files):
    first = calling(files)
    files.key_file.unlink()
    assert calling(files) is first
    with pytest.raises(UserError):
        tls.client_context(files)
