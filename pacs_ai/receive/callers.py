"""Which AE titles may call from which addresses, where only peers may; their host names are looked up again and again.

A name service that is away, or one peer that it does not know any more, must not keep the others from being heard.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pacs_ai.network_sections import Peer

LOGGER = logging.getLogger(__name__)

#: So often names are looked up, and so long a start waits for the first look, in seconds.
LOOK_SECONDS, FIRST_SECONDS = 60.0, 5.0


class Callers:
    """Whom the node listens to.

    Parameters
    ----------
    peers
        Those of the configuration; several may share an AE title.
    """

    def __init__(self, peers: Iterable[Peer]) -> None:
        self._peers = tuple(peers)
        self._found: dict[str, frozenset[str]] = {}
        self._failing: set[str] = set()
        self._looked = threading.Event()
        self._allowed = {peer.ae_title: frozenset[str]() for peer in self._peers}
        self._note()

    @property
    def allowed(self) -> Mapping[str, frozenset[str]]:
        """Calling AE title -> addresses and networks; the same object, with what is known at each moment."""
        return self._allowed

    def start(self) -> None:
        """Look names up from now on, in a thread; returns after the first look, or where that takes long."""
        if any(not _is_address(peer.host) for peer in self._peers):
            threading.Thread(target=self._run, name="callers", daemon=True).start()
            self._looked.wait(FIRST_SECONDS)

    def look(self) -> None:
        """Look up every name once; of one that leads nowhere the addresses stay that it had."""
        for peer in self._peers:
            if not _is_address(peer.host):
                self._resolve(peer)
        self._note()

    def _run(self) -> None:
        while True:
            self.look()
            self._looked.set()
            time.sleep(LOOK_SECONDS)

    def _resolve(self, peer: Peer) -> None:
        try:
            self._found[peer.host] = frozenset(str(entry[4][0]) for entry in socket.getaddrinfo(peer.host, None))
        except (OSError, UnicodeError) as error:  # UnicodeError: no name can be written so, "pacs..example" for one
            if peer.host not in self._failing:
                meanwhile = (
                    "the addresses that it had are used" if peer.host in self._found else "its calls are refused"
                )
                why = error.strerror if isinstance(error, OSError) else "it is no host name"
                why = why or type(error).__name__
                LOGGER.error("peer %s: host %s cannot be resolved (%s); %s", peer.name, peer.host, why, meanwhile)  # noqa: TRY400
            self._failing.add(peer.host)
        else:
            if peer.host in self._failing:
                LOGGER.warning("peer %s: host %s is resolved now", peer.name, peer.host)
            self._failing.discard(peer.host)

    def _note(self) -> None:
        allowed: dict[str, frozenset[str]] = {}
        for peer in self._peers:
            own = {peer.host} if _is_address(peer.host) else self._found.get(peer.host, frozenset[str]())
            allowed[peer.ae_title] = allowed.get(peer.ae_title, frozenset()) | own | set(peer.addresses)
        self._allowed.update(allowed)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
