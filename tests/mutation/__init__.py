"""`make mutation`: changes the code rule by rule and expects a test to notice each change."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # helpers beside the tests are imported by their plain names
