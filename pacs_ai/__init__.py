"""pacs_ai: the AI node for a hospital's PACS."""

__version__ = "0.1.0"
