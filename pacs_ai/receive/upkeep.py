"""What is done for the segments beside indexing: take over what other processes left, and use a quiet moment.

In a quiet moment nothing is left to recover, room is made for what comes, what was set aside is tried again, and no
bytes are kept that nobody needs.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from pacs_ai.errors import Transient
from pacs_ai.log import unexpected
from pacs_ai.receive import second_try

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pacs_ai.dicom.arrival import Arrival
    from pacs_ai.store.ahead import Ahead
    from pacs_ai.store.files import Files
    from pacs_ai.store.segments import Place, Segment

LOGGER = logging.getLogger(__name__)


class Queue(Protocol):
    """Where that is put which is to be indexed."""

    def take_over(self, arrival: Arrival, place: Place) -> None:
        """Take an instance that another process was stopped from indexing."""

    def end(self, assoc_id: str, released: bool) -> None:
        """Have an association's end noted behind all that is here."""

    def is_open(self, assoc_id: str) -> bool:
        """Whether an association of this process goes on."""


class Upkeep:
    """What one process's thread for indexing does beside it.

    Parameters
    ----------
    ahead
        The segments.
    files, record, is_recorded
        See `indexing.Indexing`.
    queue
        See `Queue`.
    """

    def __init__(
        self,
        ahead: Ahead,
        files: Files,
        record: Callable[[Sequence[Arrival]], object],
        is_recorded: Callable[[str, str, int], bool],
        queue: Queue,
    ) -> None:
        self._ahead, self._files, self._record, self._is_recorded = ahead, files, record, is_recorded
        self._queue = queue
        self._adopted: list[tuple[Arrival, Place]] = []
        self._laps: frozenset[tuple[Segment, str]] = frozenset()
        self._known_aside: set[Path] = set()
        self._last_fault = ""
        #: Whether what was set aside may have rows by now: after a start, and after each burst.
        self.may_have_rows = True

    @property
    def is_recovering(self) -> bool:
        """Whether something that another process had written ahead has no row yet, as far as can be known."""
        return (
            bool(self._adopted)
            or self._ahead.is_unreadable
            or any(segment.left and segment.lap.hex() == lap for segment, lap in self._laps)
        )

    def recover(self, left: Sequence[tuple[Arrival, Place]]) -> None:
        """Have indexed what another process was stopped from indexing; its associations ended with it.

        Raises
        ------
        Transient
            It is not known what of it has its row; nothing was done.
        """
        self._laps |= {(place.segment, place.lap) for _, place in left}
        done = [place for _, place in left if self._is_recorded(place.name, place.lap, place.number)]
        numbers = {(place.name, place.number) for place in done}
        rest = [(arrival, place) for arrival, place in left if (place.name, place.number) not in numbers]
        self._ahead.done(done)
        if rest:
            LOGGER.warning("%d instances that an earlier process had received are indexed now", len(rest))
        for arrival, place in rest:
            self._queue.take_over(arrival, place)
        for assoc_id in dict.fromkeys(arrival.assoc_id for arrival, _ in rest):
            self._queue.end(assoc_id, released=False)

    def recover_adopted(self) -> None:
        """Have indexed what was taken over and could not be looked up before; cheap where there is none."""
        if not self._adopted:
            return
        try:
            self.recover(self._adopted)
        except Transient as error:
            self._tell(f"what another process left is indexed later: {error}")
        except Exception as error:  # noqa: BLE001 - outermost loop: what came to this process must not wait for it
            self._tell(f"what another process left is indexed later: {unexpected(error)}")
        else:
            self._adopted = []

    def use(self, is_quiet: Callable[[], bool]) -> None:
        """Use a quiet moment; what fails is told and tried again in the next one."""
        try:
            self._tidy(is_quiet)
        except Exception as error:  # noqa: BLE001 - outermost loop: indexing must go on, whatever this was
            self._tell(f"what was written ahead cannot be tidied now: {unexpected(error)}")
        else:
            if not self._adopted:
                self._last_fault = ""

    def _tidy(self, is_quiet: Callable[[], bool]) -> None:
        ahead = self._ahead
        self._files.disk.look_again()
        ahead.rest()
        ahead.prepare()
        self._laps = frozenset(
            (segment, lap) for segment, lap in self._laps if segment.left and segment.lap.hex() == lap
        )
        self._adopted += ahead.adopt()
        self.recover_adopted()
        if self.may_have_rows:
            self.may_have_rows = not self._try_again()
        while is_quiet() and ahead.wipe():
            pass

    def set_aside(self, arrival: Arrival, place: Place) -> Path:
        """Keep the file of an instance that can never have a row where a person finds it; raises Transient."""
        path = self._ahead.set_aside(arrival, place)
        self._known_aside.add(path)
        return path

    def _try_again(self) -> bool:
        """Index what was set aside, where that is possible by now; False where the store does not answer."""
        for path in self._ahead.was_set_aside():
            try:
                arrival = second_try.index(path, self._files, self._record)
            except Transient:
                return False
            except Exception as error:  # noqa: BLE001 - outermost loop: it stays where it is
                if path not in self._known_aside:
                    LOGGER.error("%s still cannot be indexed (%s)", path, type(error).__name__)  # noqa: TRY400
                self._known_aside.add(path)
            else:
                LOGGER.warning("%s is indexed now, and its file deleted there", path)
                if not self._queue.is_open(arrival.assoc_id):
                    self._queue.end(arrival.assoc_id, released=False)
        return True

    def _tell(self, words: str) -> None:
        """Say once what goes wrong again and again."""
        if words != self._last_fault:
            LOGGER.warning("%s", words)
        self._last_fault = words
