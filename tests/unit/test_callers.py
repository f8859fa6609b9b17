"""Whose calls are taken follows the name service, and one name that leads nowhere harms nobody else."""

from __future__ import annotations

import socket

import pytest

from pacs_ai.network_sections import Peer
from pacs_ai.receive.callers import Callers


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """A name service."""
    known: dict[str, list[str]] = {}

    def look_up(host: str, _port: object) -> list[tuple[object, ...]]:
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(0, 0, 0, "", (address, 0)) for address in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


def peer(name: str, host: str, ae_title: str = "", **more: object) -> Peer:
    return Peer(name=name, ae_title=ae_title or name.upper(), host=host, **more)


def test_addresses_and_further_ones_are_known_without_a_name_service(names):
    callers = Callers([peer("ct", "192.0.2.1"), peer("mr", "192.0.2.2", "CT", addresses=("192.0.2.3",))])
    callers.start()
    assert callers.allowed == {"CT": {"192.0.2.1", "192.0.2.2", "192.0.2.3"}}


def test_ASC_02_a_name_that_leads_nowhere_keeps_nobody_else_out(names, caplog):
    names["pacs.example"] = ["192.0.2.9"]
    callers = Callers([peer("pacs", "pacs.example"), peer("ct", "ct.example", addresses=("192.0.2.4",))])
    callers.start()
    allowed = callers.allowed
    assert allowed == {"PACS": {"192.0.2.9"}, "CT": {"192.0.2.4"}}
    callers.look()
    assert caplog.text.count("peer ct: host ct.example cannot be resolved") == 1
    assert "its calls are refused" in caplog.text
    names["ct.example"] = ["192.0.2.5"]
    callers.look()
    assert allowed["CT"] == {"192.0.2.4", "192.0.2.5"}
    assert "ct.example is resolved now" in caplog.text


@pytest.mark.parametrize("host", ["pacs..hosp", f"{'a' * 64}.hosp"])
def test_ASC_02_a_host_that_can_be_no_name_keeps_nobody_else_out(monkeypatch, caplog, host):
    asked = socket.getaddrinfo
    known = [(0, 0, 0, "", ("192.0.2.9", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda name, port: known if name == "pacs" else asked(name, port))
    callers = Callers([peer("ct", host), peer("pacs", "pacs")])
    callers.look()
    callers.look()
    assert callers.allowed == {"CT": set(), "PACS": {"192.0.2.9"}}
    assert caplog.messages == [f"peer ct: host {host} cannot be resolved (it is no host name); its calls are refused"]


def test_while_the_name_service_is_away_the_addresses_stay_and_a_move_is_followed(names, caplog):
    names["pacs.example"] = ["192.0.2.9"]
    callers = Callers([peer("pacs", "pacs.example")])
    callers.look()
    del names["pacs.example"]
    callers.look()
    assert callers.allowed["PACS"] == {"192.0.2.9"}
    assert "the addresses that it had are used" in caplog.text
    names["pacs.example"] = ["192.0.2.10"]
    callers.look()
    assert callers.allowed["PACS"] == {"192.0.2.10"}
