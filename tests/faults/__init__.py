"""`make faults`: every hazard of one table shown by an injection or a test, with promised and measured reaction."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # helpers beside the tests are imported by their plain names
