"""Alembic's environment: migrations are run by `pacs_ai.store.migrate`, on its connection."""
