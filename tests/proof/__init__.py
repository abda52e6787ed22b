"""`make prove`: exhaustive search over the real state machine, its golden listing and the mutants of its tables."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # helpers beside the tests are imported by their plain names
