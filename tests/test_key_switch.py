"""The key switch LOCAL/REMOTE at the Modbus server: who is at the rack is not commanded from afar."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_appliance import Client, FakeAppliance

from firmware.registers import POINT, WSET_GROUP
from firmware.sunspec import Control
from statemachine.signals import InterlockBit, Mode, Why
from statemachine.states import State

LOCAL = 1 << InterlockBit.KEY_LOCAL


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[FakeAppliance]:
    with FakeAppliance(tmp_path) as made:
        made.show(interlocks=LOCAL, state=State.ISOLATED)
        yield made


@pytest.fixture
def site(appliance: FakeAppliance) -> Iterator[Client]:
    client = Client(appliance.port)
    yield client
    client.close()


def block(mode: Mode) -> tuple[float, ...]:
    return 9, mode, 1000, 0.4, 70


@pytest.mark.parametrize("mode", [Mode.READY, Mode.CHARGE, Mode.DISCHARGE, Mode.GRID])
def test_in_local_no_mode_is_commanded_but_off_and_service(appliance: FakeAppliance, site: Client, mode: Mode) -> None:
    before = appliance.command
    for state in State:
        appliance.show(state=state)
        assert site.write("CmdSeq", *block(mode)) == 4
        assert (site.read("AckWhy"), appliance.command) == (Why.LOCAL_CONTROL, before)


@pytest.mark.parametrize("name", ["CmdW", "CmdRamp", "CmdTgtSoC", "OpCtl", "SetOp", *sorted(WSET_GROUP)])
def test_in_local_no_set_point_is_changed_and_nothing_is_started(
    appliance: FakeAppliance, site: Client, name: str
) -> None:
    before = appliance.command
    assert site.write(name, 1) == 4
    assert (site.read("AckWhy"), site.read("RefAddr"), appliance.command) == (
        Why.LOCAL_CONTROL, POINT[name].address, before
    )  # fmt: skip


def test_in_local_a_new_number_for_the_mode_that_stands_is_a_command(appliance: FakeAppliance, site: Client) -> None:
    appliance.show(interlocks=0, state=State.READY)
    assert site.write("CmdSeq", *block(Mode.GRID)) == 0
    appliance.show(interlocks=LOCAL)
    assert site.write("CmdSeq", 10) == 4
    assert site.read("AckWhy") == Why.LOCAL_CONTROL


def test_in_local_off_service_acknowledge_heartbeat_and_loss_policy_are_taken(
    appliance: FakeAppliance, site: Client
) -> None:
    assert site.write("CmdSeq", *block(Mode.SERVICE)) == 0
    assert appliance.command.mode == Mode.SERVICE
    for name, value in (("CmdMode", Mode.OFF), ("OpCtl", 0), ("SetOp", 2), ("AckFaults", 1), ("AlarmReset", 1),
                        ("AlmRst", 1), ("ControllerHb", 5), ("CtrlHb", 6), ("HbTmo", 20), ("LossPol", 1)):  # fmt: skip
        assert site.write(name, value) == 0
    assert site.write("CmdSeq", 11, Mode.OFF, 5) == 0
    assert (appliance.command.mode, appliance.command.ack_count) == (Mode.OFF, 3)


def test_both_models_show_where_the_key_is(appliance: FakeAppliance, site: Client) -> None:
    for interlocks, control in ((LOCAL, Control.LOCAL), (0xFFFF, Control.REMOTE)):
        appliance.show(interlocks=interlocks)
        assert site.read("715.LocRemCtl") == site.read("802.LocRemCtl") == control
