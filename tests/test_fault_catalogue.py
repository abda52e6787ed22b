"""Every row of the fault catalogue is raised in a running rack and reacts as its severity says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from rig import CLOCK, LINES, STORE, settings
from rig import CoarseRig as Rig

from statemachine import core, wear
from statemachine.contactors import Coils
from statemachine.faults import BY_NAME, FAULTS, SAVED_MASK, Severity, names
from statemachine.signals import EventKind, GuardTrip, Lines, WatchdogState
from statemachine.states import CHARGING, CLOSED, State

NO_SUPPLY = LINES._replace(kill_ok=False, tamper_ok=False, insulation_ok=False, interlocks=0)


def shown(rig: Rig) -> list[str]:
    return names(rig.o.faults_active | rig.o.faults_latched)


def bms(**changes: float) -> Callable[[Rig], None]:
    return lambda rig: rig.bms_changes.update(changes)


def pcs(**changes: float) -> Callable[[Rig], None]:
    return lambda rig: rig.pcs_changes.update(changes)


def lines(**changes: Any) -> Callable[[Rig], None]:
    def change(rig: Rig) -> None:
        rig.lines = rig.lines._replace(**changes)

    return change


def attribute(name: str, value: object) -> Callable[[Rig], None]:
    return lambda rig: setattr(rig, name, value)


def command(**changes: Any) -> Callable[[Rig], None]:
    def change(rig: Rig) -> None:
        rig.command = rig.command._replace(**changes)

    return change


def guard(**changes: Any) -> Callable[[Rig], None]:
    def change(rig: Rig) -> None:
        rig.guard = rig.guard._replace(**changes)

    return change


def loops(*ma: float) -> Callable[[Rig], None]:
    return lines(loops_ma=(*ma, *(13.0,) * (8 - len(ma))))


def worn(**changes: float) -> Callable[[Rig], None]:
    def change(rig: Rig) -> None:
        m = rig.core.memory
        rig.core.memory = m._replace(wear=m.wear._replace(**changes))  # type: ignore[arg-type]

    return change


def chatter(rig: Rig) -> None:
    for n in range(24):
        rig.lines = rig.lines._replace(interlocks=0xFF if n % 2 else 0xFE)
        rig.scan(10)


def heartbeat(rig: Rig) -> None:
    rig.heartbeats = True
    rig.scan(1000)
    rig.heartbeats = False


def inrush(rig: Rig) -> None:
    """The rack is opened, closed again, and current flows before it was asked for."""
    rig.send(mode=0).until(State.ISOLATED, 20_000)
    rig.send(mode=1).until(State.PRECHARGE, 100)
    while not rig.coils.pos:
        rig.once()
    rig.bms_changes = {"rack_a": -40.0}
    rig.scan(300)
    rig.bms_changes = {}


def fall(rig: Rig) -> None:
    """A loop that falls faster than any thermal mass."""
    for _ in range(5):
        rig.lines = rig.lines._replace(loops_ma=(6.0, *(13.0,) * 7))
        rig.scan(100)


def stands_still(rig: Rig) -> None:
    """Seven loops warm by 3 K in a minute and a half; the first does not move."""
    rig.dt_ms = 100.0
    for n in range(100):
        rig.lines = rig.lines._replace(loops_ma=(13.0, *(13.0 + 0.006 * n,) * 7))
        rig.scan(1000)
    rig.dt_ms = 10.0


def opened_under_load(rig: Rig) -> None:
    rig.bms_changes = {"rack_a": -300.0}
    rig.send(mode=0).scan(30_000)


def restarted(rig: Rig) -> None:
    seen = rig.inputs(rig.coils)
    rig.out = rig.core.step(seen._replace(restarted=True), rig.dt_ms)


def not_ready_in_time(rig: Rig) -> None:
    fresh = Rig(bms_alive=False).scan(31_000)
    rig.core, rig.out = fresh.core, fresh.out


def fails_to_precharge(rig: Rig) -> None:
    rig.send(mode=0).until(State.ISOLATED, 20_000)
    rig.precharge_works, rig.link_v = False, 0.0
    rig.send(mode=1).scan(40_000)


def fails_to_close(rig: Rig) -> None:
    rig.send(mode=0).until(State.ISOLATED, 20_000)
    rig.stuck = Coils(False, True, False)
    rig.send(mode=1).scan(40_000)


def never_ends_its_stop(rig: Rig) -> None:
    rig.send(mode=0).until(State.STOPPING, 100)
    m = rig.core.memory
    rig.core.memory = m._replace(in_state_ms=75_000.0)
    rig.welded = Coils(True, True, False)


def welded(rig: Rig) -> None:
    rig.welded = Coils(False, True, False)
    rig.send(mode=0).scan(20_000)


def current_while_open(rig: Rig) -> None:
    rig.send(mode=0).until(State.ISOLATED, 20_000)
    rig.bms_changes = {"rack_a": -30.0}


def opened_and(then: Callable[[Rig], None]) -> Callable[[Rig], None]:
    def scenario(rig: Rig) -> None:
        rig.send(mode=0).until(State.ISOLATED, 20_000)
        then(rig)

    return scenario


def balancing_ends_by_time(rig: Rig) -> None:
    rig.core.memory = rig.core.memory._replace(balance_over=True)


def stands_at_zero(rig: Rig) -> None:
    rig.pcs_changes, rig.bms_changes = {"dc_a": 0.0}, {"rack_a": 0.0}


def uncalibrated(rig: Rig) -> None:
    rig.pcs_changes = {"dc_v": float("nan")}


SCENARIOS: dict[str, Callable[[Rig], None]] = {
    "ERR_KILL_SWITCH": lines(kill_ok=False),
    "ERR_TAMPER": lines(tamper_ok=False),
    "ERR_GROUND_FAULT": bms(insulation_kohm=99.0),
    "ERR_DELTA_V": attribute("dv_offset_v", 2.5),
    "ERR_MAX_V_EXCEEDED": bms(cell_v_max=4.26),
    "ERR_CELL_OVERVOLTAGE": bms(cell_v_max=4.31),
    "ERR_MIN_V_EXCEEDED": bms(cell_v_min=2.70, rack_a=5.0),
    "ERR_OVER_TEMPERATURE": bms(cell_c_max=50.1),
    "ERR_THERMAL_TRIP": bms(cell_c_max=60.1),
    "ERR_COMM_LOST": attribute("bms_alive", False),
    "ERR_PCS_LOST": attribute("pcs_alive", False),
    "ERR_BMS_ALARM": bms(alarm_stop=1),
    "ERR_BMS_TRIP": bms(alarm_trip=1),
    "ERR_PCS_FAULT": pcs(fault_bits=1),
    "ERR_INTERLOCK_OPEN": lines(interlocks=0xF7),
    "ERR_CONTACTOR_WELDED": welded,
    "ERR_CONTACTOR_DROPPED": attribute("stuck", Coils(False, True, False)),
    "ERR_PRECHARGE": fails_to_precharge,
    "ERR_GUARD": guard(armed=False, trip=GuardTrip.HEARTBEAT_LATE),
    "ERR_SCAN_OVERRUN": attribute("overruns_in_row", 3),
    "ERR_CONTROLLER_RESTART": restarted,
    "ERR_OVERCURRENT": bms(rack_a=-900.0),
    "ERR_DELTA_OFFSET": uncalibrated,
    "ERR_INIT_TIMEOUT": not_ready_in_time,
    "ERR_OPENED_UNDER_LOAD": opened_under_load,
    "ERR_THERMAL_LOOP": loops(3.5),
    "ERR_SITE_HEARTBEAT": heartbeat,
    "ERR_BALANCE_TIMEOUT": balancing_ends_by_time,
    "ERR_CONFIG": command(config_error=True),
    "ERR_BMS_IMPLAUSIBLE": bms(plausible=False),
    "ERR_CURRENT_WHILE_OPEN": current_while_open,
    "ERR_THERMAL_ZONE": loops(3.5, 21.5),
    "ERR_LOOP_DISAGREE": loops(13.0, 15.5),
    "ERR_LOOP_STUCK": stands_still,
    "ERR_LOOP_RATE": fall,
    "ERR_SAMPLER": lines(loops_age_ms=301.0),
    "ERR_INTERLOCK_CHATTER": chatter,
    "ERR_OUTPUT_READBACK": attribute("output_sticks", Coils(True, True, True)),
    "ERR_SUPPLY_24V": attribute("lines", NO_SUPPLY),
    "ERR_CLOSINGS_PER_HOUR": opened_and(worn(closing_level=20.0)),
    "ERR_PRECHARGE_HOT": opened_and(worn(precharge_level=6.0)),
    "ERR_CLOSED_UNDER_LOAD": inrush,
    "ERR_CONTACTOR_ABUSED": opened_and(worn(opened_under_load=6, closed_under_load=4)),
    "ERR_CONTACTOR_WORN": worn(cycles=100_000),
    "ERR_CONTACTOR_STUCK": fails_to_close,
    "ERR_STOP_TIMEOUT": never_ends_its_stop,
    "ERR_BMS_IDENTITY": bms(identity_ok=False),
    "ERR_PCS_IDENTITY": pcs(identity_ok=False),
    "ERR_BMS_LINK_POOR": bms(loss_pct=2.1),
    "ERR_PCS_LINK_POOR": pcs(loss_pct=2.1),
    "ERR_CELL_SENSOR": bms(cells_bad=1, plausible=False),
    "ERR_INSULATION_LOW": bms(insulation_kohm=199.0),
    "ERR_STRING_OFFLINE": bms(strings_online=3, charge_max_a=0.0, discharge_max_a=0.0),
    "ERR_BMS_WARNING": bms(alarm_warn=4),
    "ERR_CELL_DEEP_DISCHARGE": bms(cell_v_min=1.99),
    "ERR_DC_OVERVOLTAGE": pcs(dc_v=1324.0),
    "ERR_CURRENT_MISMATCH": pcs(dc_a=0.0),
    "ERR_PCS_NOT_FOLLOWING": stands_at_zero,
    "ERR_SERVER_LOST": attribute("command_age_ms", 2001.0),
    "ERR_STORE": attribute("store", STORE._replace(writes_ok=False)),
    "ERR_CLOCK": attribute("clock", None),
    "ERR_WATCHDOG": guard(watchdog=WatchdogState.FAILED),
}
_AFTER: dict[Severity, frozenset[State]] = {
    Severity.WARNING: CLOSED | {State.ISOLATED},
    Severity.DERATE: CLOSED,
    Severity.STOP: frozenset({State.STOPPING, State.FAULT}),
    Severity.TRIP: frozenset({State.EMERGENCY_STOP}),
    Severity.LOCKOUT: frozenset({State.STOPPING, State.LOCKOUT}),
}


def test_every_row_has_its_scenario() -> None:
    assert len(FAULTS) >= 60
    assert set(SCENARIOS) == set(BY_NAME)


def raised(name: str) -> Rig:
    rig = Rig().charging()
    SCENARIOS[name](rig)
    fault = BY_NAME[name]
    for _ in range(fault.confirm_ms // 10 + 1200):
        if name in shown(rig):
            return rig
        rig.once()
    raise AssertionError(f"{name} not raised; {shown(rig)} in {rig.state().name}")


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_fault_is_raised_and_reacts_as_its_severity_says(name: str) -> None:
    rig = raised(name)
    fault = BY_NAME[name]
    if fault.severity >= Severity.TRIP and fault.severity is not Severity.LOCKOUT:
        assert rig.coils == Coils(False, False, False), "category 0: off in the scan that confirms it"
    rig.scan(1000)
    severities = {BY_NAME[other].severity for other in shown(rig)}
    assert rig.state() in _AFTER[Severity.TRIP if Severity.TRIP in severities else max(severities)]
    if fault.severity is Severity.DERATE:
        assert rig.state() in CHARGING | {State.READY}
        assert rig.o.charge_limit_a <= 0.5 * 1120.0


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_fault_led_shows_the_worst_fault_but_a_lost_supply_and_a_ground_fault_before_all(name: str) -> None:
    rig = raised(name)
    worst = max((BY_NAME[n] for n in shown(rig)), key=lambda fault: (fault.severity, -fault.bit)).name
    first = next((n for n in ("ERR_SUPPLY_24V", "ERR_GROUND_FAULT") if n in shown(rig)), worst)
    assert rig.o.led_codes[3] == BY_NAME[first].led


@pytest.mark.parametrize(
    ("name", "healthy"),
    [
        ("ERR_DC_OVERVOLTAGE", pcs(dc_v=1322.9)),
        ("ERR_CELL_DEEP_DISCHARGE", bms(cell_v_min=2.0)),
        ("ERR_INSULATION_LOW", bms(insulation_kohm=200.0)),
        ("ERR_BMS_LINK_POOR", bms(loss_pct=2.0)),
        ("ERR_PCS_LINK_POOR", pcs(loss_pct=2.0)),
        ("ERR_SERVER_LOST", attribute("command_age_ms", 2000.0)),
        ("ERR_SAMPLER", lines(loops_age_ms=300.0)),
        ("ERR_CONTACTOR_WORN", worn(cycles=99_999)),
        ("ERR_STRING_OFFLINE", bms(strings_online=4)),
        ("ERR_LOOP_DISAGREE", loops(13.0, 15.0)),
        ("ERR_CONTACTOR_ABUSED", opened_and(worn(opened_under_load=5, closed_under_load=4))),
        ("ERR_WATCHDOG", guard(watchdog=WatchdogState.RUNNING)),
        ("ERR_SUPPLY_24V", lines(kill_ok=False, insulation_ok=False, interlocks=0)),
    ],
)
def test_at_its_boundary_a_fault_is_not_raised(name: str, healthy: Callable[[Rig], None]) -> None:
    rig = Rig().charging()
    healthy(rig)
    rig.scan(max(2 * BY_NAME[name].confirm_ms, 3000))
    assert name not in shown(rig)


def test_closings_are_counted_and_the_permitted_number_an_hour_is_all_there_is() -> None:
    rig = Rig(settings=settings(max_closings_per_hour=3, max_precharges=100)).until(State.ISOLATED, 2000)
    for _ in range(3):
        rig.send(mode=1).until(State.READY, 5000)
        assert "ERR_CLOSINGS_PER_HOUR" not in shown(rig), "never while it is closed"
        rig.send(mode=0).scan(500)
    assert rig.state() is State.FAULT
    assert rig.o.wear.cycles == 3
    rig.acknowledge().scan(100)
    assert rig.state() is State.FAULT, "the hour is not over"
    rig.dt_ms = 200.0
    rig.scan(3600_000 / 3)
    rig.dt_ms = 10.0
    rig.acknowledge().scan(100)
    assert rig.state() is State.ISOLATED
    rig.send(mode=1).until(State.READY, 5000)


def test_a_precharge_that_fails_again_and_again_must_cool() -> None:
    rig = Rig(precharge_works=False).until(State.ISOLATED, 2000)
    rig.send(mode=1).until(State.FAULT, 60_000)
    assert rig.o.wear.precharges == 3
    rig.acknowledge().until(State.ISOLATED, 1000)
    rig.send(mode=1).until(State.FAULT, 60_000).scan(100)
    rig.acknowledge().scan(100)
    assert shown(rig) == ["ERR_PRECHARGE_HOT"]


def test_an_opening_under_load_wears_the_contactors_also_in_an_emergency() -> None:
    rig = Rig().charging().scan(20_000)
    rig.lines = rig.lines._replace(kill_ok=False)
    rig.once()
    assert rig.o.wear.opened_under_load == 1
    assert "ERR_OPENED_UNDER_LOAD" not in shown(rig), "category 0 is meant to"


def hold_reset(rig: Rig, ms: float) -> Rig:
    rig.lines = rig.lines._replace(reset_pressed=True)
    rig.scan(ms)
    rig.lines = rig.lines._replace(reset_pressed=False)
    return rig.scan(20)


def test_a_lockout_is_left_by_a_service_press_and_an_acknowledge_after_the_cause() -> None:
    rig = raised("ERR_CONTACTOR_WELDED").scan(1000)
    assert rig.state() is State.LOCKOUT
    hold_reset(rig, 10_100).acknowledge().scan(100)
    assert rig.state() is State.LOCKOUT, "the contactor is still welded"
    rig.welded = Coils(False, False, False)
    hold_reset(rig.scan(1000), 10_100)
    assert rig.state() is State.LOCKOUT, "not acknowledged since"
    rig.welded = Coils(False, True, False)
    rig.scan(1000)
    rig.welded = Coils(False, False, False)
    rig.scan(1000).acknowledge().scan(100)
    assert rig.state() is State.LOCKOUT, "nobody has looked at it since it came back"
    hold_reset(rig, 9_900)
    assert rig.state() is State.LOCKOUT, "too short for a service press"
    hold_reset(rig, 10_100)
    rig.acknowledge().scan(100)
    assert rig.state() is State.ISOLATED
    assert not any(rig.coils)


def test_a_service_press_counts_as_an_inspection_of_abused_contactors() -> None:
    rig = raised("ERR_CONTACTOR_ABUSED").scan(100)
    assert rig.state() is State.LOCKOUT
    hold_reset(rig, 10_100).acknowledge().scan(100)
    assert rig.state() is State.ISOLATED
    assert (rig.o.wear.opened_under_load, rig.o.wear.closed_under_load) == (0, 0)
    assert rig.o.wear.cycles > 0, "only new contactors begin at zero"


def test_a_service_press_in_service_means_new_contactors_and_elsewhere_nothing() -> None:
    rig = Rig().ready()
    hold_reset(rig, 10_100)
    assert rig.o.wear.cycles == 1
    rig.send(mode=0).until(State.ISOLATED, 20_000)
    rig.send(mode=5).until(State.SERVICE, 1000)
    hold_reset(rig, 10_100)
    assert rig.o.wear == wear.Wear()
    assert (EventKind.SERVICE_PRESS, 1, 0) in rig.events


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.severity >= Severity.STOP], ids=lambda f: f.name)
def test_what_was_saved_latches_again_after_a_power_cycle_and_nothing_closes(fault: object) -> None:
    assert isinstance(fault, type(FAULTS[0]))
    rig = Rig(core=core.Core(core.started(1 << fault.bit, wear.Wear(cycles=7)))).scan(2000)
    assert rig.o.wear.cycles == 7
    saved = bool(SAVED_MASK >> fault.bit & 1)
    assert saved is (fault.severity >= Severity.TRIP)
    assert (fault.name in shown(rig)) is saved
    rig.send(mode=1).scan(6000)
    expected = {Severity.TRIP: State.EMERGENCY_STOP, Severity.LOCKOUT: State.LOCKOUT}
    assert rig.state() is expected.get(fault.severity, State.READY)
    if saved:
        assert State.PRECHARGE not in rig.visited


def test_the_clock_is_expected_only_where_time_servers_are_configured() -> None:
    unsynchronised = CLOCK._replace(trusted=False, synchronised=False)
    rig = Rig(clock=unsynchronised, dt_ms=50.0).scan(70_000)
    assert "ERR_CLOCK" not in shown(rig)
    rig = Rig(clock=unsynchronised, settings=replace(settings(), clock_servers=2), dt_ms=50.0).scan(59_000)
    assert "ERR_CLOCK" not in shown(rig)
    assert "ERR_CLOCK" in shown(rig.scan(2000))


def test_an_interlock_that_bounces_shorter_than_its_confirm_time_is_found_by_counting() -> None:
    rig = Rig().charging()
    healthy: Lines = rig.lines
    for _ in range(9):
        rig.lines = healthy._replace(interlocks=0xFD)
        rig.scan(10)
        rig.lines = healthy
        rig.scan(100)
    assert "ERR_INTERLOCK_CHATTER" not in shown(rig)
    for _ in range(4):
        rig.lines = healthy._replace(interlocks=0xFD)
        rig.scan(10)
        rig.lines = healthy
        rig.scan(100)
    assert shown(rig) == ["ERR_INTERLOCK_CHATTER"]
