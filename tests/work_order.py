"""Which tests stay together, and which begin first, where pytest-xdist runs several at a time (`make test`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xdist.scheduler import LoadFileScheduling

if TYPE_CHECKING:
    import pytest
    from xdist.remote import Producer

#: Folders whose modules share one costly server: a node with every model, a viewer in a browser.
TOGETHER = ("tests/readings/", "tests/viewer/")
#: What takes longest begins first, so that no processor idles while the last one ends; then all others, as collected.
LONGEST = ("tests/readings/", "tests/viewer/", "tests/orthanc/test_stories.py")


def first_the_longest(items: list[pytest.Item]) -> None:
    """Put the tests that take longest first; what stands in one folder or module keeps its order."""
    rank = {name: number for number, name in enumerate(LONGEST)}

    def rank_of(item: pytest.Item) -> int:
        return next((number for name, number in rank.items() if item.nodeid.startswith(name)), len(rank))

    items.sort(key=rank_of)


class Together(LoadFileScheduling):
    """Give each worker one module after the other, in the order of collection, or a folder that stays together."""

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # that would begin with many quick tests

    def _split_scope(self, nodeid: str) -> str:
        return next((folder for folder in TOGETHER if nodeid.startswith(folder)), super()._split_scope(nodeid))
