"""ems-control and ems-tool as the manual has them: what they print, and what they exit with."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_appliance import FakeAppliance

from firmware import docgen, ems_control, ems_tool
from firmware.appliance import STALE_MS
from firmware.image import Status
from firmware.registers import POINT
from statemachine.faults import BY_NAME
from statemachine.signals import Command, InterlockBit, Mode, Result, Why
from statemachine.states import State

HEALTHY = 0b111_1111_1111
"""Interlocks register: all interlocks, kill-switch, tamper and insulation good, contactors open."""


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[FakeAppliance]:
    with FakeAppliance(tmp_path) as made:
        made.show(interlocks=HEALTHY)
        yield made


def control(appliance: FakeAppliance, line: str) -> int:
    return ems_control.main([*line.split(), "--port", str(appliance.port)])


def tool(appliance: FakeAppliance, option: str) -> int:
    return ems_tool.main([option, "--port", str(appliance.port)])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    return text


@pytest.mark.parametrize("dash", ["--", "–", "—"])
def test_the_manuals_command_charges(appliance: FakeAppliance, dash: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert control(appliance, f"{dash}mode charge {dash}ramp 0.5C {dash}target 80%") == 0
    command = appliance.command
    assert (command.mode, command.c_rate, command.target_soc_pct, command.seq) == (Mode.CHARGE, 0.5, 80, 1)
    assert "mode charge accepted" in capsys.readouterr().out


def test_what_is_not_given_stays_as_it_was(appliance: FakeAppliance) -> None:
    assert control(appliance, "--mode charge --ramp 0.25C --target 70%") == 0
    assert control(appliance, "--mode grid --power -250000W") == 0
    command = appliance.command
    assert (command.mode, command.w, command.c_rate, command.seq) == (Mode.GRID, -250_000, 0.25, 2)
    assert command.target_soc_pct == pytest.approx(70)


@pytest.mark.parametrize("power", ["-250000W", "-250000", "−250000W"])
def test_a_charging_power_is_a_value_not_an_option(appliance: FakeAppliance, power: str) -> None:
    assert control(appliance, f"--mode grid --power {power}") == 0
    assert appliance.command.w == -250_000


def test_a_power_that_the_704_set_point_overrides_is_not_taken(
    appliance: FakeAppliance, capsys: pytest.CaptureFixture[str]
) -> None:
    appliance.call(lambda: appliance.device.write(1, POINT["WSetEna"].address, b"\0\1", "site"))
    assert control(appliance, "--mode grid --power -250000W") == 1
    assert "WSetEna" in one_line(capsys)
    assert appliance.command.mode == Mode.OFF


def test_a_command_refused_by_the_server_names_the_reason(
    appliance: FakeAppliance, capsys: pytest.CaptureFixture[str]
) -> None:
    appliance.show(state=State.LOCKOUT)
    assert control(appliance, "--mode charge") == 1
    assert "locked out" in one_line(capsys)
    assert control(appliance, "--mode off") == 0


def test_a_command_rejected_by_the_controller_names_the_reason(
    appliance: FakeAppliance, capsys: pytest.CaptureFixture[str]
) -> None:
    def reject(command: Command, status: Status) -> Status:
        return status._replace(ack_seq=command.seq, ack_result=Result.REJECTED, ack_why=Why.HEARTBEAT_LOST)

    appliance.answer = reject
    assert control(appliance, "--mode ready") == 1
    assert "heartbeat" in one_line(capsys)


def test_a_silent_controller_is_an_error(
    appliance: FakeAppliance, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ems_control, "_ANSWER_S", 0.2)
    appliance.echo = False
    assert control(appliance, "--mode ready") == 1
    assert "no answer to command 1" in one_line(capsys)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("", "--mode"),
        ("--mode fly", "fly"),
        ("--mode charge --ramp 3C", "0C to 2C"),
        ("--mode charge --ramp fast", "fast"),
        ("--mode charge --target 120%", "0% to 100%"),
        ("--mode grid", "--power"),
        ("--mode off --watch", "--watch"),
        ("--mode off --port 99999", "99999"),
        ("--mode off --speed 3", "--speed"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(line: str, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        ems_control.main(line.split())
    assert stopped.value.code == 2
    assert named in one_line(capsys)


@pytest.mark.parametrize("main", [ems_control.main, ems_tool.main])
def test_no_connection_is_one_line_and_exit_1(
    main: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("EMS_PORT", str(port))
    code = ems_control.main(["--mode", "off"]) if main is ems_control.main else ems_tool.main(["--status"])
    assert code == 1
    assert f"127.0.0.1:{port}" in one_line(capsys)


def test_watch_ends_at_the_target(appliance: FakeAppliance, capsys: pytest.CaptureFixture[str]) -> None:
    appliance.show(state=State.CHARGED)
    assert control(appliance, "--mode charge --target 42.5% --watch") == 0
    out = capsys.readouterr().out
    assert "[##" in out and "done at 42.5 %" in out


def test_watch_ends_with_the_fault(appliance: FakeAppliance, capsys: pytest.CaptureFixture[str]) -> None:
    def trip(command: Command, status: Status) -> Status:
        return status._replace(
            ack_seq=command.seq, ack_result=Result.ACCEPTED, faults_latched=1 << BY_NAME["ERR_GROUND_FAULT"].bit,
            state=State.EMERGENCY_STOP if command.mode == Mode.CHARGE else State.READY,
        )  # fmt: skip

    appliance.answer = trip
    assert control(appliance, "--mode charge --watch") == 1
    assert "ERR_GROUND_FAULT" in one_line(capsys)


def test_the_estimate_follows_the_pace() -> None:
    assert ems_control.remaining_s([(0, 20), (60, 30)], 80) == pytest.approx(300)
    assert ems_control.remaining_s([(0, 60), (60, 50)], 40) == pytest.approx(60)
    assert math.isnan(ems_control.remaining_s([(0, 20)], 80))
    assert math.isnan(ems_control.remaining_s([(0, 30), (60, 20)], 80))


def test_the_bar_fills_from_start_to_target() -> None:
    assert ems_control.bar(20, 20, 80) == "[" + "." * 30 + "]"
    assert ems_control.bar(20, 50, 80) == "[" + "#" * 15 + "." * 15 + "]"
    assert ems_control.bar(80, 20, 20) == "[" + "#" * 30 + "]"


def test_healthy_interlocks_verify(appliance: FakeAppliance, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool(appliance, "--verify-interlocks") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 16
    assert all(line.endswith("ok") for line in lines)
    assert lines[3].startswith("interlock 4 (24 V)")
    assert lines[12].split() == ["key", "switch", "expected", "any", "seen", "remote", "ok"]


def test_a_key_at_local_is_shown_and_is_no_mistake(
    appliance: FakeAppliance, capsys: pytest.CaptureFixture[str]
) -> None:
    appliance.show(interlocks=HEALTHY | 1 << InterlockBit.KEY_LOCAL)
    assert tool(appliance, "--verify-interlocks") == 0
    assert "key switch             expected any       seen local     ok" in capsys.readouterr().out
    assert tool(appliance, "--status") == 0
    assert "control          local, by the key switch\n" in capsys.readouterr().out
    appliance.show(interlocks=HEALTHY)
    assert tool(appliance, "--status") == 0
    assert "control          remote\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("interlocks", "coils", "named"),
    [
        (HEALTHY & ~0b1000, 0, "interlock 4 (24 V) is open, expected closed"),
        (HEALTHY & ~(1 << 8), 0, "kill-switch is open, expected closed"),
        (HEALTHY & ~(1 << 10), 0, "insulation is fault, expected good"),
        (HEALTHY | 1 << 12, 0, "contactor positive is closed, expected open"),
        (HEALTHY | 1 << 12, 0b11, "contactor negative is open, expected closed"),
    ],
)
def test_a_wrong_input_or_feedback_is_named(
    appliance: FakeAppliance, capsys: pytest.CaptureFixture[str], interlocks: int, coils: int, named: str
) -> None:
    appliance.show(interlocks=interlocks, coils=coils)
    assert tool(appliance, "–verify-interlocks") == 1
    out, err = capsys.readouterr()
    assert named in err
    assert out.count("WRONG") == 1


def test_acknowledge_clears_what_is_gone(appliance: FakeAppliance, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool(appliance, "--ack-faults") == 0
    assert "no faults" in capsys.readouterr().out
    appliance.show(faults_latched=1 << BY_NAME["ERR_COMM_LOST"].bit, state=State.FAULT)
    appliance.answer = lambda command, status: status._replace(faults_latched=0) if command.ack_count else status
    assert tool(appliance, "--ack-faults") == 0
    assert "acknowledged" in capsys.readouterr().out


def test_acknowledge_names_what_remains(
    appliance: FakeAppliance, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ems_tool, "_ACK_S", 0.1)
    appliance.show(faults_active=1 << BY_NAME["ERR_KILL_SWITCH"].bit, state=State.EMERGENCY_STOP)
    assert tool(appliance, "--ack-faults") == 1
    assert "ERR_KILL_SWITCH" in one_line(capsys)


def test_status_names_state_limits_and_faults(appliance: FakeAppliance, capsys: pytest.CaptureFixture[str]) -> None:
    appliance.show(state=State.CHARGE_STEP, charge_reason=5, faults_active=1 << BY_NAME["ERR_SITE_HEARTBEAT"].bit)
    assert tool(appliance, "--status") == 0
    out = capsys.readouterr().out
    for expected in ("CHARGE_STEP", "42.5 %", "step-charge", "ERR_SITE_HEARTBEAT", "500.0 A", "-560.0 A", "armed"):
        assert expected in out, expected


def test_status_without_a_controller_is_an_error(
    appliance: FakeAppliance, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    appliance.alive = False
    monkeypatch.setitem(STALE_MS, "status", 0.0)
    appliance.call(appliance.device.tick)
    assert tool(appliance, "--status") == 1
    assert "controller does not answer" in one_line(capsys)


def test_a_stale_document_is_named(tmp_path: Path) -> None:
    assert docgen.stale(tmp_path) == [path for path, _ in docgen.DOCUMENTS]
