"""Grid functions with every process real: written over Modbus, acted on by the core, seen by the bench's truth."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from appliance import EAGER, PATIENT, Appliance, appliance
from waiting import wait_until

from firmware.points import Refusal
from firmware.sunspec import Adoption
from statemachine.signals import LimitReason, Mode, Why
from statemachine.states import CHARGING, State

pytestmark = pytest.mark.system


SITE = {**PATIENT, **EAGER, "bms_timeout": 2, "pcs_timeout": 2}
"""On a busy machine data comes late now and then, and that is not what these tests are about."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    with appliance(tmp_path_factory.mktemp("run"), soc=50.0, configured=SITE) as made:
        yield made


@pytest.fixture
def isolated(running: Appliance) -> Appliance:
    a = running
    a.inject(grid_hz=50.0, grid_v=400.0)
    for name, value in (("ES", 1), ("ESDlyTms", 0), ("711.Ena", 0), ("WMaxLimPctEna", 0), ("WMaxLimPctRvrtTms", 0)):
        a.site.write({name: value})
    a.command(Mode.OFF)
    a.site.write({"AckFaults": 1})
    a.until(State.ISOLATED)
    return a


def flowing(a: Appliance, mode: Mode, w: float = 0.0) -> None:
    a.command(mode, 0.2, 100.0 if mode is Mode.CHARGE else 10.0, w)
    wait_until(lambda: abs(a.truth("true_current_a")) > 100.0, 60, lambda: f"current flows; {a.state()} {a.faults()}")


def test_service_withdrawn_under_charge_opens_the_true_contactors_within_two_seconds(isolated: Appliance) -> None:
    a = isolated
    flowing(a, Mode.CHARGE)
    opened = a.truth("true_opened_under_load")
    a.site.write({"ES": 0})
    wait_until(a.all_open, 2, "the true contactors open")
    assert a.truth("true_opened_under_load") == opened
    assert a.faults() == []
    a.until(State.ISOLATED)
    assert a.get("Permit") == Why.SERVICE_NOT_PERMITTED
    with pytest.raises(Refusal):
        a.command(Mode.CHARGE)
    assert a.get("AckWhy") == Why.SERVICE_NOT_PERMITTED
    a.site.write({"ES": 1})
    scans = a.get("ScanCount")
    wait_until(lambda: a.get("ScanCount") > scans + 200, 30, "200 scans with service permitted again")
    assert a.all_open(), "the old command must not close anything"
    flowing(a, Mode.CHARGE)
    assert a.state() in CHARGING


def test_contactors_stay_open_while_the_grid_is_out_of_range_or_the_delay_runs(isolated: Appliance) -> None:
    a = isolated
    a.inject(grid_v=300.0)
    wait_until(lambda: a.get("Permit") == Why.ENTER_SERVICE, 5, "the voltage is seen")
    assert a.get("LLV") == pytest.approx(300.0)
    a.site.write({"ESDlyTms": 2})
    with pytest.raises(Refusal):
        a.command(Mode.READY)
    a.inject(grid_v=400.0)
    wait_until(lambda: 0 < a.get("ESDlyRemTms") <= 2, 5, "the delay runs")
    assert a.all_open()
    wait_until(lambda: a.get("Permit") == Why.NONE, 30, "the delay is over")
    assert a.get("ESDlyRemTms") == 0


def test_droop_moves_the_true_current_against_the_frequency(isolated: Appliance) -> None:
    a = isolated
    a.site.write({"Ctl2.DbOf": 0.036, "Ctl2.DbUf": 0.036, "Ctl2.KOf": 0.03, "Ctl2.KUf": 0.03, "Ctl2.RspTms": 0.5})
    a.site.write({"AdptCtlReq": 2})
    assert a.get("AdptCtlRslt") == Adoption.COMPLETED
    a.site.write({"711.Ena": 1})
    flowing(a, Mode.GRID, 200e3)
    wait_until(lambda: a.get("WEff") == pytest.approx(200e3, rel=0.02), 20, "the set-point")
    base_a = a.truth("true_current_a")
    a.inject(grid_hz=50.3)
    wait_until(lambda: a.truth("true_current_a") < base_a - 100.0, 20, "less power at a high frequency")
    assert LimitReason.DROOP in (a.get("DisLimReason"), a.get("LimReason"))
    a.inject(grid_hz=50.0)
    wait_until(lambda: a.truth("true_current_a") == pytest.approx(base_a, abs=5.0), 20, "back to the set-point")
    a.inject(grid_hz=49.7)
    wait_until(lambda: a.truth("true_current_a") > base_a + 100.0, 20, "more power at a low frequency")


def test_a_limit_holds_the_true_discharge_back_and_reverts(isolated: Appliance) -> None:
    a = isolated
    flowing(a, Mode.GRID, 300e3)
    wait_until(lambda: a.get("WEff") == pytest.approx(300e3, rel=0.02), 20, "the set-point")
    a.site.write({"WMaxLimPctEna": 1, "WMaxLimPct": 10, "WMaxLimPctRvrt": 100, "WMaxLimPctEnaRvrt": 0})
    most_w = 0.1 * a.get("WMax")
    wait_until(lambda: a.get("WEff") == pytest.approx(most_w, rel=0.02), 20, "the limit")
    assert a.get("DisLimReason") == LimitReason.WMAX_LIM
    a.site.write({"WMaxLimPctRvrtTms": 2})
    wait_until(lambda: a.get("WMaxLimPctEna") == 0, 20, "the time is over")
    wait_until(lambda: a.get("WEff") == pytest.approx(300e3, rel=0.02), 20, "the set-point again")


def test_a_server_that_dies_takes_no_grid_function_with_it(isolated: Appliance) -> None:
    a = isolated
    a.site.write({"ESDlyTms": 600})
    wait_until(lambda: a.get("Permit") == Why.ENTER_SERVICE, 5, "the delay is asked for")
    os.kill(a.pid("server"), signal.SIGKILL)
    wait_until(lambda: a.state() is State.ISOLATED, 30, "a new server answers")
    assert (a.get("ESDlyTms"), a.get("Permit")) == (600, Why.ENTER_SERVICE)
