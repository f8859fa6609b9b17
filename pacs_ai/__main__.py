"""`python -m pacs_ai` is `pacs-ai`."""

from pacs_ai.cli import main

main()
