"""A technician's round, with ems-tool beside: every input that commissioning asks for, in both positions."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from appliance import Remote
from waiting import wait_until

from statemachine.states import State

OPEN, CLOSED = (dict.fromkeys((f"interlock_{n}" for n in range(1, 9)), level) for level in (0, 1))


def hold(a: Remote, **inputs: float) -> None:
    """A position, for longer than it must stand."""
    a.inject(**inputs)
    scans = a.get("ScanCount")
    wait_until(lambda: a.get("ScanCount") > scans + 60, 30, "60 scans", a.pause_s)


def in_service(a: Remote) -> None:
    a.until(State.SERVICE)


def walk(a: Remote, ready: Callable[[Remote], None] = in_service) -> None:
    """The round, from when `ready` returns."""
    ready(a)
    hold(a)
    hold(a, **OPEN)
    hold(a, **CLOSED)
    hold(a, kill_switch=1, tamper=1)
    a.until(State.EMERGENCY_STOP)
    hold(a, kill_switch=0, tamper=0)
    hold(a, reset_button=1)
    hold(a, reset_button=0)


def commission(
    a: Remote,
    modbus_port: int,
    record: Path,
    timeout_s: float = 60.0,
    ready: Callable[[Remote], None] = in_service,
) -> str:
    """What ems-tool printed; it leaves the record at `record`."""
    options = ("--commission", "--record", str(record), "--port", str(modbus_port))
    tool = subprocess.Popen(
        [sys.executable, "-m", "firmware.ems_tool", *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        walk(a, ready)
        said, _ = tool.communicate(timeout=timeout_s)
    finally:
        tool.kill()
    assert tool.returncode == 0, said
    return said
