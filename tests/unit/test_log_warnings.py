"""What libraries warn of in a running node, where the texts are of its peers' making."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from pacs_ai.log import trace

TESTS = Path(__file__).parents[1]
WARNED = """
import pydicom.valuerep
from pacs_ai import log
from pacs_ai.dicom.contexts import acceptor_contexts
from pacs_ai.receive.negotiation import Negotiator
from raw_peer import CT_CONTEXTS, associate_rq

log.configure("receive")
negotiator = Negotiator(acceptor_contexts(("1.2.840.10008.1.2.1",), ()), 131072)
for number in range(50):
    negotiator.agree(associate_rq(contexts=[*CT_CONTEXTS, (5, f"1.0{number}", ("1.2.840.10008.1.2.1",))]))
remembered = getattr(pydicom.valuerep, "__warningregistry__", {})
assert not [key for key in remembered if key != "version"], remembered
print("none is remembered")
"""


def test_ASC_04_no_text_of_a_peer_is_remembered_or_shown_as_a_warning():
    told = subprocess.run([sys.executable, "-c", WARNED], capture_output=True, text=True, check=False, cwd=TESTS)
    assert (told.stdout, told.stderr) == ("none is remembered\n", "")


def test_a_traceback_in_the_log_has_no_text_of_any_error():
    try:
        try:
            float("Secret^Name")
        except ValueError as error:
            raise RuntimeError("Secret^Name") from error
    except RuntimeError as error:
        told = trace(error)
    assert "Secret" not in told.replace('float("Secret^Name")', "").replace('RuntimeError("Secret^Name")', "")
    assert re.search(r"\nValueError\n\nfrom which came:\n\nTraceback(.|\n)*\nRuntimeError$", told)


def test_of_a_long_chain_of_errors_the_last_are_told():
    error = ValueError()
    for _ in range(2000):
        following = KeyError()
        following.__cause__, error = error, following
    assert trace(error).count("KeyError") == 20


MISTAKEN = """
import logging
from pacs_ai import log
log.configure("receive")
logging.getLogger("pacs_ai").error("%d", "Secret^Name")
logging.getLogger("pacs_ai").error("goes on")
"""


def test_a_mistaken_line_of_the_log_shows_nothing_of_what_it_was_to_say():
    told = subprocess.run([sys.executable, "-c", MISTAKEN], capture_output=True, text=True, check=True, cwd=TESTS)
    assert "Secret" not in told.stderr
    assert told.stderr.endswith("goes on\n")
