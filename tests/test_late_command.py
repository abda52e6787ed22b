"""The command is read when all else of a scan is judged: what was written till then counts in this scan, whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fake_board import board_lines, controller_of
from rig import COMMAND, Rig

from firmware import image
from statemachine.core import HEARTBEAT_BIT, Core, Prepared
from statemachine.signals import Command, EventKind, Inputs, Mode, Outputs, Result
from statemachine.states import State


class _LateCore(Core):
    """Prepares each scan on the command of the scan before."""

    before: Command | None = None

    def step(self, inputs: Inputs, dt_ms: float) -> Outputs:
        prepared = self.prepare(inputs._replace(command=self.before or inputs.command), dt_ms)
        self.before = inputs.command
        return self.decide(prepared, inputs)


@dataclass
class _LateRig(Rig):
    core: Core = field(default_factory=_LateCore)


def _charged_tripped_and_acknowledged(rig: Rig) -> Rig:
    rig.charging().scan(2000)
    rig.send(mode=Mode.SERVICE).scan(20).send(mode=Mode.CHARGE, c_rate=0.3, target_soc_pct=79.0).scan(5000)
    rig.lines = rig.lines._replace(kill_ok=False)
    rig.scan(500)
    rig.lines = rig.lines._replace(kill_ok=True)
    return rig.press_reset().acknowledge().scan(500)


def test_a_command_that_comes_late_in_a_scan_is_followed_as_one_that_was_there_before_it() -> None:
    plain, late = (_charged_tripped_and_acknowledged(rig) for rig in (Rig(soc=78.5), _LateRig(soc=78.5)))
    assert State.EMERGENCY_STOP in plain.visited
    assert plain.visited[-1] is State.ISOLATED
    assert EventKind.COMMAND in [kind for kind, _, _ in plain.events]
    assert late.visited == plain.visited
    assert late.events == plain.events
    assert late.core.memory == plain.core.memory
    assert repr(late.o) == repr(plain.o)  # some are nan


def test_a_heartbeat_that_is_lost_is_a_fault_in_the_scan_that_finds_it_lost() -> None:
    for rig in (Rig(), _LateRig()):
        rig.ready().send(heartbeat=5, heartbeat_armed=True, heartbeat_timeout_s=0.1).scan(110)
        assert (rig.core.memory.wishes.lost, rig.o.faults_active) == (False, 0)
        rig.once()
        assert (rig.core.memory.wishes.lost, rig.o.faults_active) == (True, HEARTBEAT_BIT)
        rig.command = rig.command._replace(heartbeat=6)
        rig.once()
        assert rig.o.faults_active == 0


def test_preparing_a_scan_leaves_nothing_behind() -> None:
    rig = Rig().charging()
    before, inputs = rig.core.memory, rig.inputs(rig.coils)
    tripped = inputs._replace(lines=inputs.lines._replace(kill_ok=False))
    assert rig.core.prepare(tripped, 10.0).standing & 1
    prepared = rig.core.prepare(inputs, 10.0)
    assert rig.core.memory is before
    first = rig.core.decide(prepared, inputs)
    rig.core.memory = before
    assert repr(rig.core.decide(prepared, inputs)) == repr(first)


def test_the_controller_answers_in_this_scan_what_was_written_while_it_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = controller_of(board_lines(), tmp_path, monkeypatch)
    site, seen = image.writer("server")["command"], image.View(image.STATUS, "controller", "status")
    prepare = controller._core.prepare

    def written_meanwhile(inputs: Inputs, dt_ms: float) -> Prepared:
        prepared = prepare(inputs, dt_ms)
        site.publish(image.COMMAND.pack(*COMMAND._replace(seq=inputs.command.seq + 1 if inputs.command else 1)))
        return prepared

    controller.scan(1)
    monkeypatch.setattr(controller._core, "prepare", written_meanwhile)
    for seq in (1, 2):
        out = controller.scan(1)
        status = seen.refresh()
        assert status is not None
        assert (out.ack_seq, status.ack_seq, status.ack_result) == (seq, seq, Result.ACCEPTED)
    controller.stopping = True
    assert controller.scan(1).ack_seq == 3


def test_an_orderly_stop_takes_no_other_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = controller_of(board_lines(), tmp_path, monkeypatch)
    site = image.writer("server")["command"]
    site.publish(image.COMMAND.pack(*COMMAND._replace(seq=4, mode=Mode.SERVICE)))
    assert controller.scan(1).ack_result == Result.REJECTED
    controller.stopping = True
    site.publish(image.COMMAND.pack(*COMMAND._replace(seq=5, mode=Mode.SERVICE)))
    assert controller.scan(1).ack_result == Result.ACCEPTED
