"""Infer: jobs become results in the outbox."""
