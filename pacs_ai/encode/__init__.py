"""Encode: findings become DICOM objects."""
