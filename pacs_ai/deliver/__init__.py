"""Deliver: results in the outbox reach their peers."""
