"""The receive process, which keeps 2,000 idle associations in less than 100 MB, loads nothing that decodes pixels."""

import subprocess
import sys

from pacs_ai import lean

_RECEIVING = """
from pacs_ai import lean
lean.leave_out("receive")
import pacs_ai.cli, pacs_ai.config, pacs_ai.node, pacs_ai.receive.process
import sys
from pathlib import Path
(line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
print(line.split()[1], *(name for name in lean.PIXEL_LIBRARIES if sys.modules.get(name)))
"""


def test_the_receive_process_runs_without_what_decodes_pixels():
    told = subprocess.run([sys.executable, "-c", _RECEIVING], capture_output=True, text=True, check=True, timeout=120)
    kilobytes, *loaded = told.stdout.split()
    assert loaded == []
    assert int(kilobytes) < 85_000  # 70,000 when this was written; 115,000 with all that pydicom would take


def test_other_processes_are_left_what_they_need(monkeypatch):
    monkeypatch.setattr(lean, "PIXEL_LIBRARIES", ("a_library_of_no_name",))
    for process in (None, "route", "infer", "deliver"):
        lean.leave_out(process)
        assert "a_library_of_no_name" not in sys.modules
