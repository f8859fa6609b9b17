"""Whose turn it is: of those that wait, one from each address after the other."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pacs_ai.receive.connection import Connection


class Rotation:
    """Connections that wait for a turn; an address that has had one is behind all others.

    Parameters
    ----------
    most, most_bytes
        So many wait at a time, with requests of so many bytes; of one address a quarter.
    least
        Of one address so many at least.
    """

    def __init__(self, most: int, most_bytes: int, least: int) -> None:
        self._most = most, most_bytes
        self._most_of_address = max(most // 4, least), most_bytes // 4
        self._waiting: dict[str, dict[Connection, int]] = {}
        self._bytes: Counter[str] = Counter()

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    def __len__(self) -> int:
        """Return how many wait."""
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[Connection]:
        """Give all that wait."""
        for of_address in self._waiting.values():
            yield from of_address

    def add(self, connection: Connection, length: int) -> bool:
        """Let a connection wait with a request of so many bytes; False where there are too many, or too long ones."""
        address = connection.address
        of_address = self._waiting.get(address, {})
        used = len(self), self._bytes.total()
        used_by_address = len(of_address), self._bytes[address]
        for (count, held), (most, most_bytes) in ((used, self._most), (used_by_address, self._most_of_address)):
            if count >= most or held + length > most_bytes:
                return False
        self._waiting.setdefault(address, {})[connection] = length
        self._bytes[address] += length
        return True

    def discard(self, connection: Connection) -> None:
        """Let a connection wait no longer."""
        address = connection.address
        of_address = self._waiting.get(address, {})
        self._bytes[address] -= of_address.pop(connection, 0)
        if not of_address:
            self._waiting.pop(address, None)
            del self._bytes[address]

    def next(self) -> Connection:
        """Return whose turn it is; there must be one."""
        address = next(iter(self._waiting))
        of_address = self._waiting.pop(address)
        connection = next(iter(of_address))
        self._waiting[address] = of_address
        self.discard(connection)
        return connection
