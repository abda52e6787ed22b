"""The appliance image in a virtual machine: its I/O adapters are emulated here and wired to the bench."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # helpers beside the tests are imported by their plain names
