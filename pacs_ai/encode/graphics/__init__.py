"""Outlines: RT structure sets and presentation states."""
