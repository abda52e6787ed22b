"""Signals of the processes that wait with a deadline, and the percentiles of their scans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from math import ceil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import wait_until

from firmware.statistics import Histogram

_WAITER = """
import signal, sys, time
from firmware.realtime import STOP_SIGNALS, arrived
signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
print("waiting", flush=True)
while True:
    if number := arrived(0.05):
        sys.exit(number)
"""


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_process_that_was_stopped_and_goes_on_takes_that_for_no_signal() -> None:
    with subprocess.Popen([sys.executable, "-c", _WAITER], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            for _ in range(5):
                os.kill(process.pid, signal.SIGSTOP)
                wait_until(lambda: _state(process.pid) == "T", 5, "stopped")
                with pytest.raises(subprocess.TimeoutExpired):  # past the deadline of the wait
                    process.wait(0.1)
                os.kill(process.pid, signal.SIGCONT)
                wait_until(lambda: _state(process.pid) != "T", 5, "going on")
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(5) == signal.SIGTERM
        finally:
            process.kill()


@given(st.sampled_from([5_000, 10_000, 50_000]), st.lists(st.integers(0, 50_000), min_size=1), st.floats(0.01, 1.0))
def test_a_percentile_is_the_upper_edge_of_its_bin_at_every_scan_period(
    longest_us: int, seen_us: list[int], fraction: float
) -> None:
    histogram = Histogram(longest_us)
    for us in seen_us:
        histogram.add(us)
    exact_us = sorted(seen_us)[max(0, ceil(fraction * len(seen_us)) - 1)]
    (found_us,) = histogram.percentiles(fraction)
    assert histogram.max_us == max(seen_us)
    if exact_us < longest_us:
        assert exact_us <= found_us <= exact_us + longest_us / 1000
