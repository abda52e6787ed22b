"""Signals of the processes that wait with a deadline."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import wait_until

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
