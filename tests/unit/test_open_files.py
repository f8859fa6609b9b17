"""A receive process lets itself open as many files as the connections that it allows may need."""

from __future__ import annotations

import logging
import resource
from typing import TYPE_CHECKING

import pytest

from pacs_ai.network_sections import Receive
from pacs_ai.receive.process import allow_files

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def hard() -> Iterator[int]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, before[1]))
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_NET_17_the_limit_of_a_shell_is_raised_as_far_as_connections_need(hard: int, caplog: pytest.LogCaptureFixture):
    if hard < 1000:
        pytest.skip("FEW FILES: the hard limit of open files is below 1000, so raising the soft one was not tested")
    with caplog.at_level(logging.WARNING):
        allow_files(Receive(max_connections=200, max_associations=150))
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (756, hard)
        allow_files(Receive(max_connections=1, max_associations=1))
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (756, hard), "it is never lowered"
    assert not caplog.records


def test_what_the_system_does_not_allow_is_told(hard: int, caplog: pytest.LogCaptureFixture):
    if hard == resource.RLIM_INFINITY:
        pytest.skip("NO LIMIT: the system lets any number of files be open")
    with caplog.at_level(logging.WARNING):
        allow_files(Receive(max_connections=hard, max_associations=1))
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    assert f"{hard} files may be open" in caplog.text
