"""A newcomer's first run: a real node, a small PACS and a sample chest CT on one machine, and proof that it worked."""

from __future__ import annotations

from pacs_ai.demo.show import run

__all__ = ["run"]
