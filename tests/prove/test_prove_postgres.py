"""A small share of `make prove`: PostgreSQL dies under a node at work."""

from __future__ import annotations

import pytest

from prove import postgres


@pytest.mark.postgres
def test_STO_09_postgresql_dies_under_load_and_nothing_is_lost_nor_done_twice(tmp_path):
    if why := postgres.missing():
        pytest.skip(why)
    outcome = postgres.run(tmp_path, 2, 1, 100.0)
    assert outcome.violations == []
    assert outcome.done == 2
    assert outcome.figures["acknowledged"] > 0
