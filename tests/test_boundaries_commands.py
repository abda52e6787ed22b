"""Which command is refused where, and what becomes of a command: every rule at its edge."""

from __future__ import annotations

from typing import Any

import pytest
from rig import COMMAND

from statemachine import wishes
from statemachine.commands import refusal
from statemachine.reversion import Reversion
from statemachine.signals import EPOCH, Command, LossPolicy, Mode, Result, Why
from statemachine.states import CLOSED, State
from statemachine.wishes import IDLE, Wish, Wishes

NOT_YET = {
    State.INIT: Why.STARTING,
    State.FAULT: Why.FAULT_LATCHED,
    State.EMERGENCY_STOP: Why.EMERGENCY_STOP,
    State.LOCKOUT: Why.LOCKOUT,
}
PERMIT_COUNTS = (State.ISOLATED, State.STOPPING)
CEASED = Why.SERVICE_NOT_PERMITTED
KNOWN = Wishes(seq=7, mode=Mode.READY, voided_seq=3, result=Result.ACCEPTED, heartbeat=0, wset=Reversion(0))


@pytest.mark.parametrize("remote", [True, False])
@pytest.mark.parametrize("state", State)
def test_off_is_allowed_everywhere(state: State, remote: bool) -> None:
    assert refusal(Mode.OFF, state, Why.NO_DATA, remote) is Why.NONE


@pytest.mark.parametrize("mode", [Mode.READY, Mode.CHARGE, Mode.DISCHARGE, Mode.GRID])
@pytest.mark.parametrize("state", State)
def test_what_a_command_to_close_is_told(state: State, mode: Mode) -> None:
    expected = NOT_YET.get(state, Why.NONE)
    if state is State.SERVICE:
        expected = Why.IN_SERVICE
    assert refusal(mode, state, Why.NONE, True) is expected
    without = refusal(mode, state, Why.INTERLOCK_OPEN, True)
    assert without is (Why.INTERLOCK_OPEN if state in PERMIT_COUNTS else expected)
    held = refusal(mode, state, Why.UPDATING, True)
    assert held is (Why.UPDATING if state in (*PERMIT_COUNTS, State.SERVICE) else expected)
    assert refusal(mode, state, Why.NONE, False) is Why.LOCAL_CONTROL


@pytest.mark.parametrize("remote", [True, False])
@pytest.mark.parametrize("state", State)
def test_service_is_entered_from_isolated_only_whatever_forbids_closing(state: State, remote: bool) -> None:
    allowed = state in (State.ISOLATED, State.SERVICE)
    expected = Why.NONE if allowed else NOT_YET.get(state, Why.NOT_ISOLATED)
    assert refusal(Mode.SERVICE, state, Why.NO_DATA, remote) is expected


def judged(
    c: Command | None, was: Wishes = KNOWN, state: State = State.READY, permit: Why = Why.NONE,
    age_ms: float = 0.0, dt_ms: float = 10.0, remote: bool = True,
) -> tuple[Wishes, Wish]:  # fmt: skip
    return wishes.step(was, c, age_ms, state, permit, remote, dt_ms)


def command(**changes: Any) -> Command:
    return COMMAND._replace(**{"seq": 7, "mode": Mode.READY, **changes})


def test_at_the_start_nothing_was_commanded() -> None:
    assert Wishes() == (
        -1, Mode.OFF, -1, Result.NONE, Why.NONE, -1, 0.0, False, Reversion(-1, 0.0, 0), 0.0, False, True, 1000.0,
    )  # fmt: skip
    assert IDLE == (Mode.OFF, (0, 0.0, 0.0, 0.0), 0.0, 0.0, 0.0, False, False)


def test_without_a_server_there_is_no_wish_and_nothing_is_forgotten() -> None:
    assert judged(None) == (KNOWN, IDLE)
    assert judged(None, age_ms=1e9) == (KNOWN, IDLE)


def test_the_same_command_again_changes_nothing() -> None:
    after, wish = judged(command(c_rate=0.5, target_soc_pct=80.0, w=100.0))
    assert after == KNOWN._replace(quiet_ms=10.0)
    assert wish == Wish(Mode.READY, (Mode.READY, 0.0, 0.5, 80.0), 0.5, 80.0, 100.0, False, False)


@pytest.mark.parametrize("changes", [{"seq": 8}, {"mode": Mode.CHARGE}, {"seq": 6}])
def test_a_new_number_or_a_new_mode_is_judged(changes: dict[str, int]) -> None:
    was = KNOWN._replace(result=Result.NONE)
    after, wish = judged(command(**changes), was)
    assert (after.seq, after.mode, after.result, after.why) == (
        changes.get("seq", 7), changes.get("mode", Mode.READY), Result.ACCEPTED, Why.NONE
    )  # fmt: skip
    assert after.voided_seq == 3
    assert wish.mode == after.mode


def test_a_refused_command_is_void_and_says_why() -> None:
    after, wish = judged(command(seq=8, mode=Mode.SERVICE))
    assert (after.voided_seq, after.result, after.why) == (8, Result.REJECTED, Why.NOT_ISOLATED)
    assert wish.mode is Mode.READY


def test_a_new_command_in_a_severe_state_is_refused_with_its_reason() -> None:
    after, wish = judged(command(seq=8, mode=Mode.CHARGE), state=State.FAULT)
    assert (after.voided_seq, after.result, after.why) == (8, Result.REJECTED, Why.FAULT_LATCHED)
    assert wish.mode is Mode.OFF


def test_a_new_command_without_permit_is_refused_with_what_forbids_closing() -> None:
    after, _ = judged(command(seq=8, mode=Mode.CHARGE), state=State.ISOLATED, permit=Why.PCS_FAULT)
    assert (after.voided_seq, after.result, after.why) == (8, Result.REJECTED, Why.PCS_FAULT)


def test_a_voided_number_is_not_new_under_another_mode() -> None:
    after, _ = judged(command(seq=3, mode=Mode.CHARGE))
    assert (after.voided_seq, after.result, after.why) == (3, Result.REJECTED, Why.SEQ_NOT_NEW)
    after, _ = judged(command(seq=3, mode=Mode.OFF))
    assert (after.voided_seq, after.result, after.why) == (3, Result.ACCEPTED, Why.NONE)


def test_a_new_command_under_a_lost_heartbeat_is_refused_but_off_is_not() -> None:
    lost = KNOWN._replace(lost=True)
    silent = {"heartbeat_armed": True, "heartbeat_timeout_s": 0.0, "loss_policy": LossPolicy.HOLD}
    after, _ = judged(command(seq=8, mode=Mode.CHARGE, **silent), lost)
    assert (after.voided_seq, after.result, after.why) == (8, Result.REJECTED, Why.HEARTBEAT_LOST)
    after, _ = judged(command(seq=8, mode=Mode.OFF, **silent), lost)
    assert (after.voided_seq, after.result, after.why) == (3, Result.ACCEPTED, Why.NONE)


@pytest.mark.parametrize("state", State)
def test_a_command_that_was_there_in_a_severe_state_is_void(state: State) -> None:
    after, wish = judged(command(), state=state)
    voids = state in (State.INIT, State.FAULT, State.EMERGENCY_STOP, State.LOCKOUT)
    assert after.voided_seq == (7 if voids else 3)
    assert wish.mode is (Mode.OFF if voids else Mode.READY)
    assert after.why is Why.NONE


@pytest.mark.parametrize("state", State)
def test_a_void_command_keeps_closed_contactors_closed_and_service_serviced(state: State) -> None:
    _, wish = judged(command(mode=Mode.CHARGE), KNOWN._replace(mode=Mode.CHARGE, voided_seq=7), state)
    expected = Mode.READY if state in CLOSED and state is not State.STOPPING else Mode.OFF
    assert wish.mode is (Mode.SERVICE if state is State.SERVICE else expected)


def test_off_stays_off_even_when_its_number_is_void() -> None:
    was = KNOWN._replace(mode=Mode.OFF, voided_seq=7)
    assert judged(command(mode=Mode.OFF), was)[1].mode is Mode.OFF
    assert judged(command(mode=Mode.OFF), was, State.SERVICE)[1].mode is Mode.OFF


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("mode", Mode)
def test_where_contactors_open_a_missing_permit_ends_the_command(state: State, mode: Mode) -> None:
    was = KNOWN._replace(mode=mode)
    after, _ = judged(command(mode=mode), was, state, Why.INTERLOCK_OPEN)
    severe = state in (State.INIT, State.FAULT, State.EMERGENCY_STOP, State.LOCKOUT)
    opening = state in (State.ISOLATED, State.STOPPING) and mode is not Mode.SERVICE
    assert after.voided_seq == (7 if severe or opening else 3)
    rejected = opening and mode not in (Mode.OFF, Mode.SERVICE)
    assert (after.result, after.why) == (
        (Result.REJECTED, Why.INTERLOCK_OPEN) if rejected else (Result.ACCEPTED, Why.NONE)
    )


def test_a_void_command_is_not_refused_a_second_time() -> None:
    was = KNOWN._replace(voided_seq=7, why=Why.BMS_ALARM, result=Result.REJECTED)
    assert judged(command(), was, State.ISOLATED, Why.NO_DATA)[0].why is Why.BMS_ALARM


# heartbeat


def test_a_heartbeat_that_differs_is_alive_even_when_it_falls_to_zero() -> None:
    was = KNOWN._replace(heartbeat=5, quiet_ms=9000.0, lost=True)
    after, _ = judged(command(heartbeat=0), was)
    assert (after.heartbeat, after.quiet_ms, after.lost) == (0, 0.0, False)


@pytest.mark.parametrize(("age_ms", "alive"), [(2000.0, True), (2001.0, False)])
def test_a_server_that_is_silent_for_two_seconds_is_no_heartbeat(age_ms: float, alive: bool) -> None:
    after, _ = judged(command(heartbeat=1), age_ms=age_ms)
    assert (after.heartbeat, after.quiet_ms, after.lost) == ((1, 0.0, False) if alive else (0, 10.0, True))


@pytest.mark.parametrize(("age_ms", "lost"), [(2000.0, False), (2001.0, True)])
def test_without_a_new_heartbeat_a_silent_server_is_lost(age_ms: float, lost: bool) -> None:
    assert judged(command(), KNOWN._replace(lost=not lost), age_ms=age_ms)[0].lost is lost


@pytest.mark.parametrize(
    ("armed", "quiet_ms", "lost"), [(True, 9990.0, False), (True, 9991.0, True), (False, 1e9, False)]
)
def test_an_armed_heartbeat_is_lost_after_its_time(armed: bool, quiet_ms: float, lost: bool) -> None:
    was = KNOWN._replace(quiet_ms=quiet_ms, lost=not lost)
    after, _ = judged(command(heartbeat_armed=armed, heartbeat_timeout_s=10.0), was)
    assert (after.quiet_ms, after.lost) == (quiet_ms + 10.0, lost)


@pytest.mark.parametrize(
    ("policy", "mode"),
    [(LossPolicy.STANDBY, Mode.READY), (LossPolicy.HOLD, Mode.CHARGE), (LossPolicy.ISOLATE, Mode.OFF)],
)
def test_what_a_lost_heartbeat_does_is_the_policy(policy: LossPolicy, mode: Mode) -> None:
    was = KNOWN._replace(mode=Mode.CHARGE, why=Why.BMS_ALARM)
    silent = command(mode=Mode.CHARGE, heartbeat_armed=True, heartbeat_timeout_s=0.0, loss_policy=policy)
    after, wish = judged(silent, was)
    hold = policy is LossPolicy.HOLD
    assert wish.mode is mode
    assert (after.voided_seq, after.why) == ((3, Why.BMS_ALARM) if hold else (7, Why.HEARTBEAT_LOST))
    again, _ = judged(silent, after._replace(why=Why.BMS_ALARM))
    assert again.why is Why.BMS_ALARM, "it is said once"


def test_a_void_command_isolates_only_while_the_heartbeat_is_lost() -> None:
    was = KNOWN._replace(mode=Mode.CHARGE, voided_seq=7)
    present = command(mode=Mode.CHARGE, loss_policy=LossPolicy.ISOLATE)
    assert judged(present, was)[1].mode is Mode.READY


# service that the grid does not permit


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("mode", [Mode.READY, Mode.CHARGE, Mode.DISCHARGE, Mode.GRID])
def test_without_permission_to_serve_a_command_is_void_and_nothing_stays_closed(state: State, mode: Mode) -> None:
    was = KNOWN._replace(mode=mode)
    after, wish = wishes.step(was, command(mode=mode), 0.0, state, Why.NONE, True, 10.0, CEASED)
    assert after.voided_seq == 7
    assert wish.mode is (Mode.SERVICE if state is State.SERVICE else Mode.OFF)
    if state not in wishes.VOIDING:
        assert (after.result, after.why) == (Result.REJECTED, Why.SERVICE_NOT_PERMITTED)


def test_without_permission_to_serve_off_is_no_refusal_but_its_number_is_used_up() -> None:
    was = KNOWN._replace(mode=Mode.OFF)
    after, wish = wishes.step(was, command(mode=Mode.OFF), 0.0, State.READY, Why.NONE, True, 10.0, CEASED)
    assert (after.voided_seq, after.result, after.why, wish.mode) == (7, Result.ACCEPTED, Why.NONE, Mode.OFF)


def test_maintenance_goes_on_without_permission_to_serve() -> None:
    was = KNOWN._replace(mode=Mode.SERVICE)
    after, wish = wishes.step(was, command(mode=Mode.SERVICE), 0.0, State.ISOLATED, Why.NONE, True, 10.0, CEASED)
    assert (after.voided_seq, wish.mode) == (3, Mode.SERVICE)


@pytest.mark.parametrize("mode", list(Mode))
def test_the_power_belongs_to_the_content_of_mode_grid_only(mode: Mode) -> None:
    _, wish = judged(command(mode=mode, w=-5.0), KNOWN._replace(mode=mode))
    assert wish.content == (mode, -5.0 if mode is Mode.GRID else 0.0, 0.0, 0.0)


# reversion of the SunSpec power set-point

SET = {"w": 5.0, "wset_enabled": True, "wset_w": -1000.0, "wset_revert_w": 300.0, "wset_revert_s": 0.02}


def test_a_new_set_point_starts_its_time_and_acts() -> None:
    after, wish = judged(command(wset_version=1, **SET))
    assert after.wset == Reversion(1, 20.0, 0)
    assert (wish.grid_w, wish.wset_active, wish.reverted) == (-1000.0, True, False)
    assert wish.content == (Mode.READY, 0.0, 0.0, 0.0), "power is what mode grid asks for, and no other mode"


@pytest.mark.parametrize(("left_ms", "reverted"), [(10.1, 0), (10.0, 1), (9.9, 1), (0.5, 1)])
def test_a_set_point_reverts_when_its_time_is_over(left_ms: float, reverted: int) -> None:
    was = KNOWN._replace(wset=Reversion(1, left_ms))
    after, wish = judged(command(wset_version=1, wset_revert_enabled=True, **SET), was)
    assert after.wset.left_ms == pytest.approx(max(0.0, left_ms - 10.0))
    assert after.wset.reverted == reverted
    assert (wish.grid_w, wish.reverted) == ((300.0, True) if reverted else (-1000.0, False))


def test_a_reverted_set_point_may_be_none_at_all() -> None:
    was = KNOWN._replace(wset=Reversion(1, 0.0, 1))
    _, wish = judged(command(wset_version=1, wset_revert_enabled=False, **SET), was)
    assert (wish.grid_w, wish.wset_active, wish.reverted) == (5.0, False, True)


def test_without_a_time_a_set_point_stays_and_nothing_reverts() -> None:
    was = KNOWN._replace(wset=Reversion(2, 0.0, 1))
    after, wish = judged(command(wset_version=2, **SET), was)
    assert after == was._replace(quiet_ms=10.0)
    assert (wish.grid_w, wish.reverted) == (-1000.0, False)


def test_version_zero_was_never_written_and_never_reverts() -> None:
    _, wish = judged(command(**SET))
    assert not wish.reverted


# the key switch


@pytest.mark.parametrize("c", [None, command(mode=Mode.OFF)])
@pytest.mark.parametrize(
    ("stood_ms", "seen", "counts", "stands_ms"),
    [
        (1000.0, True, True, 1000.0),
        (1000.0, False, False, 0.0),
        (0.0, False, False, 0.0),
        (0.0, True, False, 10.0),
        (989.0, True, False, 999.0),
        (990.0, True, True, 1000.0),
        (995.0, True, True, 1000.0),
    ],
)
def test_local_counts_at_once_and_remote_after_a_second_also_without_a_server(
    c: Command | None, stood_ms: float, seen: bool, counts: bool, stands_ms: float
) -> None:
    was = KNOWN._replace(mode=Mode.OFF, remote=not counts, remote_ms=stood_ms)
    after, _ = judged(c, was, remote=seen)
    assert (after.remote, after.remote_ms) == (counts, stands_ms)


def test_what_stands_is_no_news() -> None:
    for was in (KNOWN, KNOWN._replace(remote=False, remote_ms=0.0)):
        assert wishes._key(was, was.remote, 10.0) is was
    assert wishes._validity(KNOWN, COMMAND, 10.0) is KNOWN


@pytest.mark.parametrize("mode", Mode)
def test_local_takes_every_command_out_of_force_but_off_and_service(mode: Mode) -> None:
    was = KNOWN._replace(mode=mode, why=Why.BMS_ALARM)
    after, wish = judged(command(mode=mode), was, remote=False)
    left = mode in (Mode.OFF, Mode.SERVICE)
    assert (after.voided_seq, after.why) == ((3, Why.BMS_ALARM) if left else (7, Why.LOCAL_CONTROL))
    assert wish.mode is (mode if left else Mode.OFF)


@pytest.mark.parametrize("state", State)
def test_in_local_a_void_command_opens_but_does_not_end_service(state: State) -> None:
    _, wish = judged(command(), KNOWN._replace(voided_seq=7), state, remote=False)
    assert wish.mode is (Mode.SERVICE if state is State.SERVICE else Mode.OFF)


def test_what_local_took_out_of_force_stays_out_and_is_said_once() -> None:
    void, _ = judged(command(), remote=False)
    after, wish = judged(command(), void._replace(why=Why.BMS_ALARM), remote=False)
    assert (after.why, wish.mode) == (Why.BMS_ALARM, Mode.OFF)
    void = void._replace(remote_ms=990.0)
    after, wish = judged(command(mode=Mode.CHARGE), void, State.ISOLATED)
    assert (after.result, after.why, wish.mode) == (Result.REJECTED, Why.SEQ_NOT_NEW, Mode.OFF)
    after, wish = judged(command(seq=8), void, State.ISOLATED)
    assert (after.result, after.why, wish.mode) == (Result.ACCEPTED, Why.NONE, Mode.READY)


def test_a_new_command_in_local_is_refused_and_never_acts_later() -> None:
    after, _ = judged(command(seq=8, mode=Mode.CHARGE), remote=False)
    assert (after.voided_seq, after.result, after.why) == (8, Result.REJECTED, Why.LOCAL_CONTROL)


# frames of redundant masters: Epoch and CmdSeq make the number, ValidMs its time


def test_a_number_is_epoch_and_sequence() -> None:
    assert EPOCH == 2**32
    assert command(epoch=0).number == 7
    assert command(epoch=1).number == 2**32 + 7
    assert command(epoch=0xFFFFFFFE, seq=0xFFFFFFFE).number == 0xFFFFFFFE * 2**32 + 0xFFFFFFFE


def test_the_same_sequence_in_another_epoch_is_another_command() -> None:
    after, wish = judged(command(seq=3, epoch=9, mode=Mode.CHARGE))
    assert (after.seq, after.voided_seq, after.result) == (9 * 2**32 + 3, 3, Result.ACCEPTED)
    assert wish.mode is Mode.CHARGE
    again, wish = judged(command(seq=3, epoch=9, mode=Mode.CHARGE), after._replace(voided_seq=after.seq))
    assert (again.seq, wish.mode) == (after.seq, Mode.READY)


@pytest.mark.parametrize("changes", [{"state": State.FAULT}, {"remote": False}, {"permit": Why.NO_DATA}])
def test_what_takes_a_frame_out_of_force_takes_its_whole_number(changes: dict[str, Any]) -> None:
    frame = command(epoch=9, mode=Mode.CHARGE)
    was = KNOWN._replace(seq=frame.number, mode=Mode.CHARGE)
    assert judged(frame, was, **{"state": State.ISOLATED, **changes})[0].voided_seq == frame.number
    assert judged(frame, KNOWN, **{"state": State.ISOLATED, **changes})[0].voided_seq == frame.number


FRAME = command(epoch=9, mode=Mode.CHARGE, valid_ms=500)
IN_FORCE = KNOWN._replace(seq=FRAME.number, mode=Mode.CHARGE)


@pytest.mark.parametrize(
    ("frame_ms", "expired"), [(0.0, False), (490.0, False), (3489.0, False), (3490.0, False), (3490.1, True)]
)
def test_a_frame_is_held_for_three_seconds_beyond_its_validity(frame_ms: float, expired: bool) -> None:
    after, wish = judged(FRAME, IN_FORCE._replace(frame_ms=frame_ms))
    assert (after.frame_ms, after.expired) == (frame_ms + 10.0, expired)
    assert (after.voided_seq, after.why) == ((FRAME.number, Why.VALIDITY_OVER) if expired else (3, Why.NONE))
    assert wish.mode is (Mode.READY if expired else Mode.CHARGE), "contactors stay closed"


def test_the_next_frame_brings_back_what_ran_out() -> None:
    over, _ = judged(FRAME, IN_FORCE._replace(frame_ms=1e4))
    after, wish = judged(FRAME._replace(seq=8), over)
    assert (after.frame_ms, after.expired, after.why, wish.mode) == (0.0, False, Why.NONE, Mode.CHARGE)


def test_that_the_validity_is_over_is_said_once() -> None:
    over, _ = judged(FRAME, IN_FORCE._replace(frame_ms=1e4))
    assert judged(FRAME, over._replace(why=Why.BMS_ALARM))[0].why is Why.BMS_ALARM


def test_a_frame_without_a_validity_never_ends_and_its_age_is_not_counted() -> None:
    after, wish = judged(FRAME._replace(valid_ms=0), IN_FORCE._replace(frame_ms=1e9, expired=True))
    assert (after.frame_ms, after.expired, wish.mode) == (0.0, False, Mode.CHARGE)


def test_the_shortest_validity_is_one() -> None:
    after, _ = judged(FRAME._replace(valid_ms=1), IN_FORCE._replace(frame_ms=2995.0))
    assert (after.frame_ms, after.expired) == (3005.0, True)


def test_the_first_scan_of_a_frame_does_not_count() -> None:
    after, _ = judged(FRAME._replace(seq=8, valid_ms=1), IN_FORCE._replace(frame_ms=2999.0), dt_ms=9000.0)
    assert (after.frame_ms, after.expired) == (0.0, False)


def test_a_lost_heartbeat_is_named_before_the_validity() -> None:
    silent = FRAME._replace(heartbeat_armed=True, heartbeat_timeout_s=0.0)
    assert judged(silent, IN_FORCE._replace(frame_ms=1e4))[0].why is Why.HEARTBEAT_LOST
    holding = silent._replace(loss_policy=LossPolicy.HOLD)
    assert judged(holding, IN_FORCE._replace(frame_ms=1e4))[0].why is Why.VALIDITY_OVER


def test_in_mode_grid_the_power_is_part_of_what_is_commanded() -> None:
    _, wish = judged(command(mode=Mode.GRID, w=-2e5), KNOWN._replace(mode=Mode.GRID))
    assert wish.content == (Mode.GRID, -2e5, 0.0, 0.0)
