"""`make soak`: random faults and acknowledgement on the whole appliance, watched from outside."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # helpers beside the tests are imported by their plain names
