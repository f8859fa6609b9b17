"""Structured reports, and what else is a document: key objects and notices."""
