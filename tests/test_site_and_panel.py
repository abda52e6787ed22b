"""The scripted site controller, the front panel, and the judgement of the demo."""

from __future__ import annotations

import io
from collections.abc import Mapping
from math import nan
from pathlib import Path

import pytest

from firmware import words
from firmware.demo import Seen, bands, judge, states_in
from firmware.panel import NAMES, Panel, led_row, line, screen
from firmware.points import PointClient, PointError, Refusal
from firmware.registers import POINT
from firmware.site_script import Refused, SiteController
from statemachine import leds
from statemachine.signals import Mode, Result, Why
from statemachine.states import State


class Appliance(PointClient):
    """Answers reads from a table and follows a list of states, one a read."""

    def __init__(self, states: list[State], refuse: Why = Why.NONE) -> None:
        super().__init__("nowhere", 1, POINT)
        self.states, self.refuse = states, refuse
        self.values: dict[str, float] = {"CmdSeq": 41, "FaultBits": 0, "FaultBits2": 0, "Permit": Why.NONE}
        self.writes: list[Mapping[str, float]] = []

    def read(self, *names: str) -> dict[str, float]:
        if "CmfState" in names:
            self.values["CmfState"] = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return {name: self.values[name] for name in names}

    def write(self, values: Mapping[str, float]) -> None:
        self.writes.append(values)
        self.values |= values
        if "CmdSeq" in values:
            result = Result.REJECTED if self.refuse else Result.ACCEPTED
            self.values |= {"AckSeq": values["CmdSeq"], "AckResult": result, "AckWhy": self.refuse}


def _site(appliance: Appliance) -> SiteController:
    return SiteController(appliance, lambda seconds: None, lambda text: None)


def test_the_site_controller_charges_with_one_write_and_a_new_sequence_number() -> None:
    way = [
        State.INIT,
        State.ISOLATED,
        State.PRECHARGE,
        State.READY,
        State.CHARGE_RAMP,
        State.CHARGE_STEP,
        State.CHARGED,
    ]
    appliance = Appliance(list(way))
    site = _site(appliance)
    site.charge(0.5, 80.0, timeout_s=5)
    commands = [values for values in appliance.writes if "CmdMode" in values]
    assert commands == [{"CmdSeq": 42, "CmdMode": Mode.CHARGE, "CmdW": 0, "CmdRamp": 0.5, "CmdTgtSoC": 80.0}]
    assert [state for _, state in site.passed] == way
    assert {"CtrlHb": 1} in appliance.writes


def test_a_refused_command_is_told_with_its_reason() -> None:
    site = _site(Appliance([State.ISOLATED], refuse=Why.INTERLOCK_OPEN))
    with pytest.raises(Refused, match="command 42 rejected: an interlock is open"):
        site.command(Mode.CHARGE)


class Arming(Appliance):
    """The guard arms only some looks after the state is ISOLATED; a command before that is refused."""

    looks = 3

    def read(self, *names: str) -> dict[str, float]:
        if names == ("Permit",):
            self.looks -= 1
            self.values["Permit"] = Why.GUARD_NOT_ARMED if self.looks > 0 else Why.NONE
        return super().read(*names)

    def write(self, values: Mapping[str, float]) -> None:
        if "CmdSeq" in values and self.looks > 0:
            self.values |= {"AckWhy": Why.GUARD_NOT_ARMED, "RefAddr": POINT["CmdMode"].address}
            raise Refusal("nowhere:1", "CmdSeq", 4)
        super().write(values)


def test_a_command_waits_until_the_contactors_may_close() -> None:
    appliance = Arming([State.ISOLATED, State.ISOLATED, State.ISOLATED, State.CHARGED])
    _site(appliance).charge(0.5, 80.0, timeout_s=5)
    assert appliance.looks == 0


def test_a_write_that_is_refused_is_told_with_its_reason() -> None:
    with pytest.raises(Refused, match="command 42 refused at CmdMode: the guard is not armed; press reset"):
        _site(Arming([State.ISOLATED])).command(Mode.CHARGE)


def test_contactors_that_may_never_close_are_told_with_the_reason() -> None:
    appliance = Appliance([State.ISOLATED])
    appliance.values["Permit"] = Why.BMS_ALARM
    with pytest.raises(Refused, match="the contactors may not close after 0 s: "):
        _site(appliance).until_permitted(0)


def test_a_charge_that_ends_in_a_fault_is_told_with_the_fault() -> None:
    appliance = Appliance([State.ISOLATED, State.CHARGE_RAMP, State.FAULT])
    appliance.values["FaultBits"] = 1 << 9
    with pytest.raises(Refused, match="the charge ended in FAULT; faults ERR_COMM_LOST"):
        _site(appliance).charge(0.5, 80.0, timeout_s=5)


def test_a_silent_controller_is_no_state() -> None:
    appliance = Appliance([State.INIT])
    site = _site(appliance)
    appliance.states = [nan]  # type: ignore[list-item]
    assert site.state() == State.INIT
    assert site.passed == []


def _values(**changes: float) -> dict[str, float]:
    values = dict.fromkeys(NAMES, 0.0)
    values |= {"CmfState": State.CHARGE_BULK, "Soc": 41.23, "RackA": -560.0, "ChaLimA": 560.0, "LimReason": 1}
    return (
        values | {"GuardArmed": 1, "CellVMin": 3.7, "CellVMax": 3.71, "CellTmpMin": 24.0, "CellTmpMax": 26.0} | changes
    )


def test_the_panel_says_state_soc_current_limit_and_reason_in_a_line() -> None:
    assert line(_values()) == (
        "CHARGE_BULK  SoC 41.2 %  -560.0 A  charge limit 560.0 A by the command  cells 3.700..3.710 V 24.0..26.0 degC  "
        "faults none"
    )


def test_the_panel_shows_faults_in_words_and_whether_their_cause_is_there() -> None:
    text = screen(_values(FaultBits=1 << 2 | 1 << 9, FaultActive=1 << 2), 0)
    assert "ACTIVE  ERR_GROUND_FAULT: Insulation to earth too low." in text
    assert "latched ERR_COMM_LOST: BMS data is stale." in text


def test_the_panel_shows_missing_values_as_missing() -> None:
    fields = (*words.FAULT_BITS, *words.FAULT_ACTIVE, "StatusBits")
    text = screen(dict.fromkeys(NAMES, nan) | dict.fromkeys(fields, 0xFFFFFFFF), 0)
    assert "SoC        --" in text
    assert "no faults" in text


def test_a_ground_fault_flashes_the_red_led() -> None:
    values = _values(LedRun=1, LedFault=3, LedKill=nan)
    assert led_row(values, 0, colour=False) == "● RUN on    ○ CHARGE off   ○ COMM off   ● FAULT fast  ○ KILL --"
    assert led_row(values, 130, colour=False) == "● RUN on    ○ CHARGE off   ○ COMM off   ○ FAULT fast  ○ KILL --"
    assert "\x1b[31m●\x1b[0m FAULT" in led_row(values, 0)


def test_the_panel_blinks_a_code_as_the_led_does_and_names_it() -> None:
    values = _values(LedFault=0x23)
    rows = [led_row(values, ms, colour=False) for ms in range(0, 6000, 50)]
    assert ["● FAULT 2-3" in row for row in rows] == [leds.level(0x23, ms) for ms in range(0, 6000, 50)]
    assert all("FAULT 2-3" in row for row in rows)


class Changing(Appliance):
    def read(self, *names: str) -> dict[str, float]:
        if not self.states:
            raise PointError("no connection to nowhere:1")
        return _values(CmfState=self.states.pop(0))


def test_without_a_terminal_the_panel_prints_a_line_a_change_and_one_every_five_seconds() -> None:
    out = io.StringIO()
    panel = Panel(Changing([State.READY, State.READY, State.CHARGED, State.CHARGED]), out, live=False, notes=[])
    for now_s in (0.0, 1.0, 2.0, 8.0, 9.0):
        panel.tick(now_s)
    said = [text.split(" ", 1)[1] for text in out.getvalue().splitlines()]
    assert [text.split("  ")[0] for text in said] == ["READY", "CHARGED", "CHARGED", "no connection to nowhere:1"]


_WAY = [
    State.INIT, State.ISOLATED, State.PRECHARGE, State.READY, State.CHARGE_RAMP, State.CHARGE_BULK, State.CHARGE_STEP,
    State.CHARGED, State.STOPPING, State.ISOLATED,
]  # fmt: skip
_OPEN = {"true_pos": 0.0, "true_neg": 0.0, "true_precharge": 0.0}
_GOOD = Seen([(float(n), state) for n, state in enumerate(_WAY)], 0, 0, 80.2, 120.0, _OPEN)


def test_the_demo_accepts_the_cycle_of_the_manual() -> None:
    assert [check.good for check in judge(_GOOD)] == [True] * 4


@pytest.mark.parametrize(
    ("seen", "failing"),
    [
        (_GOOD._replace(states=[row for row in _GOOD.states if row[1] != State.PRECHARGE]), 0),
        (_GOOD._replace(states=_GOOD.states[:-1]), 0),
        (_GOOD._replace(soc_pct=78.9), 1),
        (_GOOD._replace(contactors={**_OPEN, "true_neg": 1.0}), 2),
        (_GOOD._replace(fault_bits=1 << 24), 3),
        (_GOOD._replace(faults_logged=1), 3),
    ],
)
def test_the_demo_fails_on_any_other(seen: Seen, failing: int) -> None:
    assert [n for n, check in enumerate(judge(seen)) if not check.good] == [failing]


def test_the_demo_reads_the_states_from_the_log(tmp_path: Path) -> None:
    log = tmp_path / "battery.log"
    log.write_text(
        "2026-11-22T13:00:00.000Z 100.000 historian started\n"
        "2026-11-22T13:00:01.000Z 101.000 controller STATE INIT -> ISOLATED\n"
        "2026-11-22T13:00:02.000Z 102.500 controller COILS negative closed, positive open, precharge closed\n"
        "2026-11-22T13:00:03.000Z 103.000 controller STATE ISOLATED -> PRECHARGE\n"
    )
    assert states_in(log) == [(1.0, State.INIT), (1.0, State.ISOLATED), (3.0, State.PRECHARGE)]


def test_limit_reasons_become_bands() -> None:
    assert list(bands([0.0, 1.0, 2.0, 3.0], ["RAMP", "RAMP", "STEP", "STEP"])) == [
        (0.0, 2.0, "RAMP"),
        (2.0, 3.0, "STEP"),
    ]
