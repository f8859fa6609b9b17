"""The node's certificate while it runs: files that are renewed are taken without a restart, and dates watched.

A hospital renews certificates by a script that nobody watches. So new files are tried before they are used, what was
good stays in use while they are not, and what will run out is told a month before.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

from pacs_ai import tls
from pacs_ai.errors import UserError
from pacs_ai.validity import CERTIFICATE, REVOCATION_LIST, valid_until

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pacs_ai.network_sections import Tls

_log = logging.getLogger(__name__)

#: How often the files are looked at, in seconds.
LOOK_SECONDS = 60.0
#: A certificate that holds no longer than this is to be renewed.
NOTICE = timedelta(days=30)
#: What will run out is told in the log so often, in seconds.
_REMINDER_SECONDS = 86_400.0


@dataclass(frozen=True)
class Worry:
    """Something about the files of `[tls]` that a person should see to.

    Parameters
    ----------
    is_fault
        Whether they cannot be used at all as they are, so that a node would not start with them.
    stops_tls
        Whether nobody is spoken to by TLS now, though the node starts.
    """

    words: str
    advice: str
    is_fault: bool
    stops_tls: bool = False


def worries(files: Tls) -> Iterator[Worry]:
    """Tell what is wrong with the files of `[tls]` as they lie on the disk now, and which of them will run out."""
    if not files.is_given:
        return
    try:
        tls.server_context(files)
        tls.client_context(files)
        yield from _dates(files)
    except UserError as error:
        advice = "make the files as docs/operations.md says; a node that runs goes on with those that it had"
        yield Worry(str(error), advice, is_fault=True)


def _dates(files: Tls) -> Iterator[Worry]:
    assert files.certificate_file is not None
    now = datetime.now(UTC)
    end = valid_until(files.certificate_file, CERTIFICATE)
    if end is not None and end - now < NOTICE:
        words = f"tls.certificate_file {files.certificate_file} holds until {end:%Y-%m-%d %H:%M} UTC"
        yield Worry(words, "have it renewed; the new files are taken without a restart", is_fault=False)
    if files.revocation_list is not None:
        end = valid_until(files.revocation_list, REVOCATION_LIST)
        if end is not None and end < now:
            words = f"tls.revocation_list {files.revocation_list} ran out at {end:%Y-%m-%d %H:%M} UTC"
            yield Worry(
                f"{words}: no peer whose authority's list it is can be spoken to by TLS",
                "fetch the authority's newest list; it is taken without a restart",
                is_fault=False,
                stops_tls=True,
            )


class Credentials:
    """How TLS is spoken now, from files that may change at any time.

    Parameters
    ----------
    files
        The `[tls]` of the configuration.
    make
        `tls.server_context` or `tls.client_context`.
    clock
        Monotonic seconds.

    Raises
    ------
    UserError
        The files are not good from the beginning.
    """

    def __init__(
        self, files: Tls, make: Callable[[Tls], ssl.SSLContext], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._files = files
        self._make = make
        self._clock = clock
        self._turn = threading.Lock()
        self._seen = _states(files)
        self._context = make(files)
        self._told = ""
        self._look_at = self._remind_at = clock()
        self.renew()

    def context(self) -> ssl.SSLContext:
        """Return what the next connection is made with."""
        return self._context

    def renew(self) -> None:
        """Take files that changed, where they are good; looks at them once a minute, so it may be called often."""
        with self._turn:
            if self._clock() < self._look_at:
                return
            self._look_at = self._clock() + LOOK_SECONDS
            self._take_changed()
            self._remind()

    def _take_changed(self) -> None:
        found = _states(self._files)
        if found == self._seen:
            return
        try:
            self._context = self._make(self._files)
        except (UserError, OSError) as error:  # said once, and tried again at every look; they may change amid it
            if str(error) != self._told:
                _log.error("the new files of [tls] are not used, those before still are: %s", error)
            self._told = str(error)
            return
        self._seen, self._told, self._remind_at = found, "", self._clock()
        _log.info("took the new files of [tls]")

    def _remind(self) -> None:
        if self._clock() < self._remind_at:
            return
        self._remind_at = self._clock() + _REMINDER_SECONDS
        try:
            for worry in _dates(self._files):
                _log.warning("%s; %s", worry.words, worry.advice)
        except UserError as error:
            _log.warning("how long [tls] holds is not known: %s", error)


@lru_cache(maxsize=16)
def calling(files: Tls) -> Credentials:
    """Return how this process calls others; the same for the same files, so that what was good is remembered."""
    return Credentials(files, tls.client_context)


def _states(files: Tls) -> tuple[tuple[int, int, int] | None, ...]:
    """Return what tells whether a file is another one: when it was written, its length, and its number."""
    paths = (files.certificate_file, files.key_file, files.trusted_file, files.revocation_list)
    return tuple(_state(path) for path in paths)


def _state(path: Path | None) -> tuple[int, int, int] | None:
    try:
        found = path.stat() if path is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)
