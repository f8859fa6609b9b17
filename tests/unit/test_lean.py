"""What a process goes without: tried in processes of their own, for nothing can be unloaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

_IN_ANY = """
from pacs_ai import lean
lean.leave_out({kind!r})
import sys
assert not [name for name in lean.PIXEL_LIBRARIES if sys.modules.get(name) and name != "numpy"]
from pydicom.pixels import get_decoder
from pydicom.uid import JPEGLSLossless
assert not get_decoder(JPEGLSLossless).is_available
"""
_A_PLUGIN_IMPORTS = "import jpeg_ls, PIL.Image, requests"
_NOTHING = """
try:
    import numpy
except ImportError:
    pass
else:
    raise AssertionError("numpy is loaded")
"""


@pytest.mark.parametrize(("kind", "then"), [(None, _A_PLUGIN_IMPORTS), ("receive", _NOTHING)])
def test_a_process_goes_without_decoders(kind, then):
    program = _IN_ANY.format(kind=kind) + then
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_worker_s_cpu_needs_no_torch():
    program = "import sys; from pacs_ai.infer import child, device; child.resolve_device('cpu'); "
    program += "device.parameters('cpu'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
