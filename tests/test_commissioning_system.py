"""Commissioning as a technician does it: on the bench, with ems-tool, through the real appliance."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from appliance import PATIENT, RUNNER, STEADY, Appliance, appliance
from commission_walk import commission, hold
from waiting import wait_until

from firmware.commissioning import RECORD, verified
from firmware.models.commissioning import CommState
from firmware.points import PointError
from statemachine.signals import Mode, Why
from statemachine.states import CHARGING, State

pytestmark = pytest.mark.system
SITE = {**PATIENT, **STEADY, "bms_timeout": 2, "pcs_timeout": 2}
"""On a busy machine data comes late now and then, and that is not what this test is about."""
ASKED = {"EMS_BENCH_COMMISSIONING": "1"}


def refused(a: Appliance) -> bool:
    """A charge is, because the rack is not commissioned."""
    a.until(State.ISOLATED)
    with pytest.raises(PointError):
        a.command(Mode.CHARGE, 0.05)
    return a.get("AckWhy") == a.get("Permit") == Why.NOT_COMMISSIONED


def charge(a: Appliance) -> None:
    a.until(State.ISOLATED)
    wait_until(lambda: not a.get("Permit"), 20, lambda: f"a permit; {Why(int(a.get('Permit'))).name}")
    a.command(Mode.CHARGE, 0.05)
    a.until(*CHARGING)


def configure(a: Appliance, old: str, new: str) -> None:
    path = a.logs / "config" / "limits.conf"
    path.write_text(path.read_text().replace(old, new))
    os.kill(a.pid("server"), signal.SIGHUP)


def state_of(a: Appliance, wanted: CommState) -> None:
    def there() -> bool:
        try:
            return a.get("CommState") == wanted
        except PointError:
            return False

    wait_until(there, 20, f"CommState {wanted.name}")


def test_nothing_closes_before_the_commissioning_which_survives_a_restart_and_not_a_change(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    with appliance(tmp_path, soc=30.0, configured=SITE, environment=ASKED, nice=-10) as a:
        assert refused(a)
        said = commission(a, a.ports.EMS_MODBUS_PORT, record)
        for name in ("interlock 4 (24 V)", "kill-switch", "tamper", "reset"):
            assert f"  {name}: ok" in said
        assert "Commissioned" in said
        assert verified(record.read_bytes())["configuration"]["limits.conf"]["max_soc"] == 100
        charge(a)

        configure(a, "max_soc = 100", "max_soc = 90")
        state_of(a, CommState.VOID)
        hold(a)
        assert a.get("Permit") == Why.NOT_COMMISSIONED
        assert a.state() in CHARGING
        wait_until(lambda: "COMMISSIONING void: limits.conf max_soc 100 -> 90" in a.log(), 10, "the log says why")
        a.command(Mode.OFF)
        assert refused(a)

        configure(a, "max_soc = 90", "max_soc = 100")
        state_of(a, CommState.COMMISSIONED)
        ports = a.ports

    start = (*RUNNER, "--keep-state")
    with appliance(tmp_path, soc=30.0, configured=SITE, environment=ASKED, nice=-10, start=start, ports=ports) as a:
        state_of(a, CommState.COMMISSIONED)
        charge(a)
        a.command(Mode.OFF)
        a.until(State.ISOLATED)

        path = tmp_path / "state" / RECORD
        edited = json.loads(path.read_bytes())
        edited["checks"][0]["open"] = "2026-01-01T00:00:00Z"
        path.write_text(json.dumps(edited))
        os.kill(a.pid("server"), signal.SIGKILL)
        state_of(a, CommState.NOT_COMMISSIONED)
        wait_until(lambda: a.get("Permit") == Why.NOT_COMMISSIONED, 10, "the permit is gone")
        assert refused(a)
        wait_until(lambda: "COMMISSIONING record refused: the signature is wrong" in a.log(), 10, "the log says why")
