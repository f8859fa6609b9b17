"""Whose turn it is: of those that wait, one from each address after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pacs_ai.receive.connection import Connection


class Rotation:
    """Connections that wait for a turn; an address that has had one is behind all others."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[Connection, None]] = {}

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    def add(self, connection: Connection) -> None:
        """Let a connection wait, behind those of its address."""
        self._waiting.setdefault(connection.address, {})[connection] = None

    def discard(self, connection: Connection) -> None:
        """Let a connection wait no longer."""
        of_address = self._waiting.get(connection.address, {})
        of_address.pop(connection, None)
        if not of_address:
            self._waiting.pop(connection.address, None)

    def next(self) -> Connection:
        """Return whose turn it is; there must be one."""
        address = next(iter(self._waiting))
        of_address = self._waiting.pop(address)
        connection = next(iter(of_address))
        del of_address[connection]
        if of_address:
            self._waiting[address] = of_address
        return connection
