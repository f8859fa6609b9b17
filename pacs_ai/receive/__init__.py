"""Receive: what a peer sends becomes durable and indexed before it is answered."""
