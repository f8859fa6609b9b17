"""DICOM knowledge that several parts share: attributes, contexts, statuses, identifiers, geometry, evidence."""
