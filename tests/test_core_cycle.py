"""The Charge Management Function as the manual tells it, in milliseconds and without any process."""

from __future__ import annotations

from itertools import pairwise

import pytest
from rig import CoarseRig as Rig
from rig import profile, settings

from statemachine.contactors import Coils
from statemachine.signals import EventKind, LimitReason, Result, Why
from statemachine.states import State

NONE = Coils(False, False, False)


def test_nothing_moves_before_the_first_complete_plausible_snapshot() -> None:
    rig = Rig(bms_alive=False).send(mode=1)
    rig.scan(5000)
    assert rig.state() is State.INIT
    assert rig.coils == NONE
    assert rig.o.permit == Why.NO_DATA


def test_implausible_bms_data_does_not_start_the_appliance() -> None:
    rig = Rig(bms_changes={"plausible": False}).scan(2000)
    assert rig.state() is State.INIT


def test_an_unverified_device_does_not_start_the_appliance() -> None:
    for rig in (Rig(bms_changes={"identity_ok": False}), Rig(pcs_changes={"identity_ok": False})):
        assert rig.scan(900).o.state is State.INIT
        assert rig.scan(1100).o.state is State.FAULT
        assert State.ISOLATED not in rig.visited


def test_missing_devices_end_init_in_a_fault_that_says_so() -> None:
    rig = Rig(pcs_alive=False).until(State.FAULT, 31_000)
    assert rig.now_ms >= 30_000


def test_precharge_closes_negative_then_resistor_then_positive() -> None:
    rig = Rig().until(State.ISOLATED, 1000).send(mode=1).until(State.READY, 15_000)
    bits = [a for kind, a, _ in rig.events if kind == EventKind.COILS]
    assert bits == [0b001, 0b101, 0b111, 0b011]
    assert (EventKind.PRECHARGE, 1, 1) in rig.events
    assert abs(rig.link_v - rig.rack_v()) < rig.settings.precharge_voltage


def test_precharge_is_not_believed_before_the_link_voltage_has_risen() -> None:
    rig = Rig().until(State.ISOLATED, 1000).send(mode=1).scan(1000)
    assert rig.state() is State.PRECHARGE
    assert rig.coils == Coils(True, False, True)


def test_three_failed_precharges_are_a_fault_and_leave_everything_open() -> None:
    rig = Rig(precharge_works=False).until(State.ISOLATED, 1000).send(mode=1).until(State.FAULT, 60_000)
    assert [b for kind, _, b in rig.events if kind == EventKind.PRECHARGE] == [0, 0, 0]
    assert rig.coils == NONE
    rig.scan(20_000)
    assert rig.state() is State.FAULT


def test_a_stuck_contactor_fails_precharge() -> None:
    rig = Rig(stuck=Coils(True, False, False)).until(State.ISOLATED, 1000).send(mode=1).until(State.FAULT, 20_000)
    assert "PRECHARGE" in [s.name for s in rig.visited]


@pytest.mark.parametrize("dt_ms", [10.0, 50.0])
def test_a_full_charge_from_20_to_80_percent_goes_through_the_states_of_the_manual(dt_ms: float) -> None:
    rig = Rig(soc=20.0, dt_ms=dt_ms)
    rig.ready().send(mode=2, c_rate=0.5, target_soc_pct=80.0)
    rig.scan(60_000)
    assert rig.current_a == pytest.approx(-560.0, rel=0.01)
    rig.dt_ms = 2000.0
    rig.until(State.CHARGED, 3 * 3600_000)
    rig.dt_ms = dt_ms
    assert 79.9 < rig.soc < 80.2
    rig.scan(10_000)
    assert abs(rig.current_a) < 1.0
    rig.send(mode=0).until(State.ISOLATED, 15_000)
    assert rig.visited == [
        State.INIT, State.ISOLATED, State.PRECHARGE, State.READY, State.CHARGE_RAMP, State.CHARGE_BULK,
        State.CHARGE_STEP, State.CHARGED, State.STOPPING, State.ISOLATED,
    ][1:]  # fmt: skip
    assert rig.coils == NONE
    assert rig.o.faults_latched == 0


def test_the_limit_falls_from_70_percent() -> None:
    rig = Rig(soc=69.0, dt_ms=10.0)
    rig.charging(c_rate=0.4, target=90.0)
    rig.until(State.CHARGE_BULK, 60_000)
    flat = rig.o.charge_limit_a
    rig.dt_ms = 1000.0
    rig.until(State.CHARGE_STEP, 3600_000)
    assert rig.soc == pytest.approx(70.0, abs=0.2)
    assert rig.o.charge_limit_a == pytest.approx(flat, rel=0.02)
    rig.scan(20 * 60_000)
    assert rig.o.charge_limit_a < 0.9 * flat


def test_a_charge_to_full_holds_the_highest_cell_at_its_ceiling_then_balances() -> None:
    rig = Rig(soc=96.0, spread_v=0.030, cell_r_v_per_c=0.25)
    rig.charging(c_rate=0.5, target=100.0)
    rig.dt_ms = 100.0
    rig.until(State.CHARGE_ABSORB, 4 * 3600_000)
    highest = 0.0
    while rig.state() is State.CHARGE_ABSORB:
        rig.once()
        highest = max(highest, rig.cell_v())
    assert highest < profile().v_limit_v + 0.010
    assert rig.state() is State.CHARGE_BALANCE
    assert -rig.o.setpoint_a <= 0.05 * 1120.0 + 1e-6
    rig.spread_v = 0.005
    rig.until(State.CHARGED, 10_000)


def test_the_voltage_loop_does_not_oscillate() -> None:
    rig = Rig(soc=96.0, spread_v=0.002)
    rig.charging(c_rate=0.5, target=100.0)
    rig.dt_ms = 100.0
    rig.until(State.CHARGE_ABSORB, 4 * 3600_000)
    rig.scan(120_000)
    limits = []
    for _ in range(3000):
        limits.append(rig.once().charge_limit_a / 1120.0)
        if rig.state() is not State.CHARGE_ABSORB:
            break
    rises = sum(max(0.0, b - a) for a, b in pairwise(limits))
    assert rises < 0.02, "the limit should glide down, measured ripple of the loop is 0.009 C"


def test_a_bms_that_takes_the_current_away_near_full_ends_the_charge() -> None:
    """The manual's "stuck at 99 %": the BMS says 0 A before the ceiling is reached."""
    rig = Rig(soc=97.0).charging(c_rate=0.3, target=100.0)
    rig.bms_changes = {"charge_max_a": 0.0}
    rig.scan(1000).until(State.CHARGED, 30_000)


def test_balancing_that_never_ends_is_ended_by_time_with_a_warning() -> None:
    rig = Rig(soc=98.0, spread_v=0.030, settings=settings(balance_time_limit=60.0))
    rig.charging(c_rate=0.3, target=100.0)
    rig.dt_ms = 100.0
    rig.until(State.CHARGE_BALANCE, 6 * 3600_000).until(State.CHARGED, 62_000)
    rig.scan(200)
    assert rig.o.faults_active & 1 << 27
    assert rig.o.faults_latched == 0


def test_the_same_command_sent_many_times_changes_nothing() -> None:
    once, often = Rig().charging(), Rig().charging()
    for _ in range(300):
        once.once()
        often.command = often.command._replace(seq=often.command.seq + 1)
        often.once()
    assert often.visited == once.visited
    assert often.o.setpoint_a == once.o.setpoint_a
    assert often.core.memory.coils_ms == once.core.memory.coils_ms, "no contactor moved"


def test_a_repeated_charge_command_does_not_restart_a_finished_charge() -> None:
    rig = Rig(soc=79.0).charging(c_rate=0.5, target=80.0)
    rig.dt_ms = 100.0
    rig.until(State.CHARGED, 600_000)
    rig.soc = 79.0
    rig.send().scan(5000)
    assert rig.state() is State.CHARGED
    rig.send(target_soc_pct=85.0).until(State.CHARGE_RAMP, 1000)


@pytest.mark.parametrize(
    "change", [{"wset_version": 2, "wset_enabled": True, "wset_w": -5000.0}, {"w": -5000.0}], ids=str
)
def test_a_power_set_point_does_not_restart_a_finished_charge(change: dict[str, float]) -> None:
    rig = Rig(soc=79.0).charging(c_rate=0.5, target=80.0)
    rig.dt_ms = 100.0
    rig.until(State.CHARGED, 600_000)
    rig.soc = 78.0
    rig.command = rig.command._replace(**change)  # type: ignore[arg-type]
    rig.scan(5000)
    assert rig.state() is State.CHARGED


def test_discharge_ramps_out_and_ends_at_its_target() -> None:
    rig = Rig(soc=50.0).ready().send(mode=3, c_rate=0.5, target_soc_pct=49.0).until(State.DISCHARGE, 1000)
    rig.scan(10_000)
    assert 0.0 < rig.current_a < 0.5 * 1120.0
    rig.dt_ms = 100.0
    rig.until(State.READY, 600_000)
    assert rig.soc == pytest.approx(49.0, abs=0.1)
    rig.scan(30_000)
    assert rig.state() is State.READY
    assert rig.o.setpoint_a == 0.0


def test_grid_support_follows_power_both_ways() -> None:
    rig = Rig(soc=50.0).ready().send(mode=4, w=100_000.0).until(State.GRID_SUPPORT, 1000).scan(30_000)
    assert rig.o.demand_w == pytest.approx(100_000.0, rel=0.01)
    rig.send(w=-50_000.0).scan(30_000)
    assert rig.o.demand_w == pytest.approx(-50_000.0, rel=0.01)


def test_a_small_power_set_point_does_not_shrink_what_is_available() -> None:
    rig = Rig(soc=80.0).ready().send(mode=4, w=-20_000.0).until(State.GRID_SUPPORT, 1000).scan(30_000)
    assert rig.o.demand_w == pytest.approx(-20_000.0, rel=0.01), "step-charge lowers the permitted rate, not the wish"
    assert rig.o.available_charge_a > 300.0
    assert rig.o.charge_limit_a == pytest.approx(-rig.o.setpoint_a)


def test_a_set_point_reverts_after_its_timer() -> None:
    rig = Rig(soc=50.0).ready().send(mode=4).until(State.GRID_SUPPORT, 1000)
    rig.command = rig.command._replace(
        wset_version=1, wset_enabled=True, wset_w=80_000.0, wset_revert_w=-20_000.0, wset_revert_enabled=True,
        wset_revert_s=20.0,
    )  # fmt: skip
    rig.scan(15_000)
    assert rig.o.demand_w == pytest.approx(80_000.0, rel=0.01)
    assert 4.0 < rig.o.wset_remaining_s < 6.0
    rig.scan(15_000)
    assert rig.o.wset_reverted == 1
    assert rig.o.demand_w == pytest.approx(-20_000.0, rel=0.01)


def test_stop_ramps_down_first_and_opens_below_the_break_current() -> None:
    rig = Rig().charging()
    rig.scan(30_000)
    assert rig.current_a < -500.0
    rig.send(mode=0).until(State.STOPPING, 100)
    assert rig.coils == Coils(True, True, False), "category 1: the current goes first"
    while rig.once().coil_pos:
        pass
    assert abs(rig.current_a) <= rig.settings.break_current
    rig.until(State.ISOLATED, 1000)
    assert not rig.o.faults_active >> 24 & 1


def test_a_stop_that_cannot_ramp_opens_at_its_bound_and_says_so() -> None:
    rig = Rig().charging().scan(20_000)
    rig.bms_changes = {"rack_a": -500.0}
    rig.send(mode=0).until(State.STOPPING, 100)
    start = rig.now_ms
    while rig.coils.pos:
        rig.once()
        assert rig.now_ms - start < 11_000
    assert rig.now_ms - start >= 9_900
    assert rig.o.faults_active >> 24 & 1 or rig.once().faults_active >> 24 & 1


def test_service_is_entered_from_isolated_only_and_cannot_energise() -> None:
    rig = Rig().ready().send(mode=5).scan(100)
    assert rig.o.ack_why == Why.NOT_ISOLATED
    assert rig.state() is State.READY
    rig.send(mode=0).until(State.ISOLATED, 15_000)
    rig.send(mode=5).until(State.SERVICE, 100)
    rig.send(mode=2, c_rate=0.5, target_soc_pct=80.0).scan(2000)
    assert rig.o.ack_why == Why.IN_SERVICE
    assert rig.coils == NONE


def test_service_can_be_entered_with_an_open_interlock_and_a_silent_bms() -> None:
    rig = Rig().until(State.ISOLATED, 1000)
    rig.lines, rig.bms_alive = rig.lines._replace(interlocks=0), False
    rig.scan(1000).send(mode=5).until(State.SERVICE, 100)


def test_commands_are_acknowledged_with_their_sequence() -> None:
    rig = Rig().until(State.ISOLATED, 1000)
    rig.send(mode=1).scan(50)
    assert (rig.o.ack_seq, rig.o.ack_result) == (rig.command.seq, Result.ACCEPTED)


def test_a_rejected_command_does_not_act_later() -> None:
    rig = Rig().until(State.ISOLATED, 1000)
    rig.lines = rig.lines._replace(interlocks=0xF7)
    rig.send(mode=2, c_rate=0.5, target_soc_pct=80.0).scan(200)
    assert (rig.o.ack_result, rig.o.ack_why) == (Result.REJECTED, Why.INTERLOCK_OPEN)
    rig.lines = rig.lines._replace(interlocks=0xFF)
    rig.scan(20_000)
    assert rig.state() is State.ISOLATED
    assert rig.coils == NONE


def test_a_command_from_before_the_start_does_not_close_a_contactor() -> None:
    rig = Rig()
    rig.command = rig.command._replace(seq=7, mode=2, c_rate=0.5, target_soc_pct=80.0)
    rig.scan(20_000)
    assert rig.state() is State.ISOLATED
    assert rig.coils == NONE


def test_a_lost_heartbeat_ramps_to_zero_and_traffic_alone_does_not_restart() -> None:
    rig = Rig(heartbeats=True).charging()
    rig.scan(10_000)
    rig.heartbeats = False
    rig.until(State.READY, 12_000)
    rig.scan(5000)
    assert rig.o.setpoint_a == 0.0
    assert rig.o.faults_active >> 26 & 1
    rig.heartbeats = True
    rig.scan(5000)
    assert rig.state() is State.READY
    rig.send().until(State.CHARGE_RAMP, 1000)


def test_loss_policy_isolate_opens_and_hold_goes_on() -> None:
    for policy, expected in ((2, State.ISOLATED), (1, State.CHARGE_BULK)):
        rig = Rig(heartbeats=True).charging()
        rig.command = rig.command._replace(loss_policy=policy)
        rig.heartbeats = False
        rig.scan(40_000)
        assert rig.state() is expected


@pytest.mark.parametrize("void", [False, True])
def test_the_key_at_local_stops_the_rack_in_order_and_at_remote_closes_nothing(void: bool) -> None:
    rig = Rig(heartbeats=True).charging()
    if void:
        rig.heartbeats = False
        rig.until(State.READY, 12_000)
        rig.heartbeats = True
        rig.scan(5000)
    rig.lines = rig.lines._replace(remote=False)
    assert rig.scan(10).state() is State.STOPPING
    assert rig.o.ack_why == (Why.HEARTBEAT_LOST if void else Why.LOCAL_CONTROL)
    assert rig.until(State.ISOLATED, 12_000).coils == NONE
    assert rig.o.permit == Why.LOCAL_CONTROL
    assert not rig.core.memory.under_load
    rig.send(mode=2).scan(100)
    assert (rig.state(), rig.o.ack_result, rig.o.ack_why) == (State.ISOLATED, Result.REJECTED, Why.LOCAL_CONTROL)
    rig.lines = rig.lines._replace(remote=True)
    assert rig.scan(990).o.permit == Why.LOCAL_CONTROL
    assert rig.scan(20_000).state() is State.ISOLATED
    rig.send().until(State.CHARGE_RAMP, 20_000)
    assert [a for kind, a, _ in rig.events if kind == EventKind.KEY_SWITCH] == [0, 1]


def test_a_loose_wire_of_the_key_is_local_and_one_line_in_the_log() -> None:
    rig = Rig().charging()
    for remote in (False, True) * 500:
        rig.lines = rig.lines._replace(remote=remote)
        rig.scan(50)
    assert rig.state() is State.ISOLATED
    assert [a for kind, a, _ in rig.events if kind == EventKind.KEY_SWITCH] == [0]
    rig.lines = rig.lines._replace(remote=True)
    rig.scan(1000)
    assert [a for kind, a, _ in rig.events if kind == EventKind.KEY_SWITCH] == [0, 1]


def test_the_key_at_local_breaks_off_a_precharge() -> None:
    rig = Rig().until(State.ISOLATED, 1000).send(mode=1).until(State.PRECHARGE, 1000).scan(500)
    rig.lines = rig.lines._replace(remote=False)
    assert rig.scan(10).state() is State.STOPPING
    assert rig.until(State.ISOLATED, 2000).coils == NONE


def test_maintenance_begins_goes_on_and_ends_in_local() -> None:
    rig = Rig().until(State.ISOLATED, 1000)
    rig.lines = rig.lines._replace(remote=False)
    rig.scan(100).send(mode=5).until(State.SERVICE, 100)
    assert rig.scan(5000).state() is State.SERVICE
    rig.send(mode=1).scan(100)
    assert (rig.state(), rig.o.ack_why) == (State.SERVICE, Why.LOCAL_CONTROL)
    rig.send(mode=0).until(State.ISOLATED, 100)


def test_a_key_that_is_at_local_from_the_start_is_told() -> None:
    rig = Rig()
    rig.lines = rig.lines._replace(remote=False)
    assert (EventKind.KEY_SWITCH, 0, 0) in rig.scan(100).events


def frames(rig: Rig, ms: float, valid_ms: int = 300) -> Rig:
    """A master that sends a frame every 100 ms, ten new numbers a second."""
    for _ in range(round(ms / 100)):
        rig.send(epoch=7, valid_ms=valid_ms).scan(100)
    return rig


def test_when_the_frames_stop_the_set_point_is_held_then_the_rack_stands_by_and_the_next_frame_goes_on() -> None:
    rig = frames(Rig().charging(), 20_000)
    charge_a = rig.o.setpoint_a
    assert charge_a < -100.0
    rig.scan(3190)  # 100 of the 300 ms went by with the last frame
    assert rig.o.setpoint_a <= charge_a
    assert rig.o.ack_why == Why.NONE
    rig.scan(30)
    assert rig.o.ack_why == Why.VALIDITY_OVER
    assert rig.until(State.READY, 1000).scan(15_000).o.setpoint_a == 0.0
    assert (rig.state(), rig.coils) == (State.READY, Coils(True, True, False))
    frames(rig, 5000)
    assert rig.state() is State.CHARGE_RAMP
    assert [a for kind, a, _ in rig.events if kind == EventKind.VALIDITY] == [0, 1]


def test_ten_frames_a_second_are_one_command_in_the_log_and_do_not_restart_what_is_finished() -> None:
    rig = Rig(soc=79.9).charging(c_rate=0.5)
    rig.events.clear()
    frames(rig, 60_000)
    assert rig.state() is State.CHARGED
    assert rig.visited.count(State.CHARGE_RAMP) == 1
    assert sum(kind == EventKind.COMMAND for kind, _, _ in rig.events) == 1
    assert rig.o.ack_seq == rig.command.seq


def test_limits_win_over_every_frame() -> None:
    rig = frames(Rig().charging(), 5000)
    rig.bms_changes = {"charge_max_a": 50.0}
    for _ in range(50):
        frames(rig, 200)
        assert rig.o.setpoint_a >= -50.0 - 1e-6


def test_the_same_inputs_give_the_same_outputs() -> None:
    one, two = Rig(), Rig()
    for rig in (one, two):
        rig.charging().scan(5000)
    assert repr(one.o) == repr(two.o)
    assert repr(one.core.memory) == repr(two.core.memory)


def test_a_rate_above_the_plating_ceiling_is_limited_and_the_reason_named() -> None:
    rig = Rig(soc=60.0).charging(c_rate=1.0, target=90.0)
    rig.scan(60_000)
    assert rig.o.charge_reason == LimitReason.PLATING
    assert rig.o.charge_limit_a / 1120.0 < 0.60


def test_a_charge_ends_at_a_soc_window_just_below_full() -> None:
    rig = Rig(soc=99.75, settings=settings(max_soc=99.8)).charging(c_rate=0.5, target=100.0)
    rig.dt_ms = 100.0
    rig.until(State.CHARGED, 120_000)
    assert rig.soc == pytest.approx(99.8, abs=0.05)


def test_an_uncommissioned_rack_refuses_to_close_and_says_why() -> None:
    rig = Rig(settings=settings(commissioned=False)).until(State.ISOLATED, 1000)
    assert rig.o.permit == Why.NOT_COMMISSIONED
    rig.send(mode=2, c_rate=0.5, target_soc_pct=80.0).scan(100)
    assert (rig.state(), rig.o.ack_result, rig.o.ack_why) == (State.ISOLATED, Result.REJECTED, Why.NOT_COMMISSIONED)
    rig.send(mode=5).until(State.SERVICE, 100)
    rig.settings = settings(commissioned=True, revision=2)
    rig.send(mode=0).until(State.ISOLATED, 100).scan(1000)
    assert (rig.state(), rig.o.permit) == (State.ISOLATED, Why.NONE)
    rig.charging()


def test_a_commissioning_that_becomes_void_lets_the_charge_go_on_and_forbids_the_next_closing() -> None:
    rig = Rig().charging().scan(5000)
    before = rig.o.setpoint_a
    rig.settings = settings(commissioned=False, revision=2)
    rig.scan(2000)
    assert (rig.coils, rig.o.permit) == (Coils(True, True, False), Why.NOT_COMMISSIONED)
    assert rig.o.setpoint_a < before < 0.0
    rig.send(mode=0).until(State.ISOLATED, 15_000)
    rig.send(mode=1).scan(1000)
    assert (rig.state(), rig.o.ack_why) == (State.ISOLATED, Why.NOT_COMMISSIONED)
