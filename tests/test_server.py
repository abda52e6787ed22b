"""The appliance's Modbus server: what it accepts, what it refuses, and that it never does half of either."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_appliance import Client, FakeAppliance
from waiting import wait_until

from drivers.modbus.point import UNIMPLEMENTED, Point
from drivers.section import SectionReader
from firmware import config
from firmware.image import COMMAND, LAYOUT, EventReader, View, reader
from firmware.registers import BASE, END, POINT, POINTS
from firmware.settings_codec import settings_from_json
from firmware.sunspec import OpCtl, SetOp
from statemachine.signals import LossPolicy, Mode, Result, StatusBit, Why
from statemachine.states import State

WRITABLE = [point for point in POINTS if point.access == "RW"]
ONLY_IN_A_FRAME = ("Epoch", "ValidMs")
SELF_CLEARING = ("AckFaults", "AlarmReset", "AlmRst")


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[FakeAppliance]:
    with FakeAppliance(tmp_path) as made:
        yield made


@pytest.fixture
def site(appliance: FakeAppliance) -> Iterator[Client]:
    client = Client(appliance.port)
    yield client
    client.close()


def charge(site: Client, seq: int = 1, mode: Mode = Mode.CHARGE) -> int:
    return site.write("CmdSeq", seq, mode, 0, 0.5, 80)


def five_values(point: Point) -> list[float]:
    assert point.low is not None and point.high is not None
    if point.values is not None:
        return [value.value for value in point.values]
    steps = (point.high - point.low) / point.scale
    return [point.low + point.scale * round(steps * share) for share in (0, 0.25, 0.5, 0.75, 1)]


@pytest.mark.parametrize("name", [point.name for point in WRITABLE if point.name not in ONLY_IN_A_FRAME])
def test_a_writable_point_reads_back_at_once(appliance: FakeAppliance, site: Client, name: str) -> None:
    for value in five_values(POINT[name]):
        if name == "CmdMode" and value == Mode.SERVICE:
            appliance.show(state=State.ISOLATED)
        assert site.write(name, value) == 0
        assert site.read(name) == pytest.approx(0 if name in SELF_CLEARING else value)


@pytest.mark.parametrize("name", [point.name for point in WRITABLE])
def test_a_value_out_of_range_is_refused_and_not_applied(appliance: FakeAppliance, site: Client, name: str) -> None:
    point = POINT[name]
    assert point.low is not None and point.high is not None
    before, bits = site.read_raw(name), 16 * point.count
    for raw in {round(point.high / point.scale) + 1, round(point.low / point.scale) - 1, UNIMPLEMENTED[point.type]}:
        if raw < 0 and point.type not in ("int16", "int32"):
            continue
        words = (raw % (1 << bits)).to_bytes(2 * point.count, "big")
        code = site.write_raw(point.address, [int.from_bytes(words[i : i + 2], "big") for i in range(0, len(words), 2)])
        assert code == 3, raw
        assert site.read_raw(name) == before
        assert site.read("AckWhy") in (Why.OUT_OF_RANGE, Why.UNDEFINED_VALUE)
        assert site.read("RefAddr") == point.address


@pytest.mark.parametrize(
    ("address", "count", "why", "at"),
    [
        (POINT["CmfState"].address, 1, Why.READ_ONLY, POINT["CmfState"].address),
        (POINT["PFWInjEna"].address, 1, Why.READ_ONLY, POINT["PFWInjEna"].address),
        (40072, 1, Why.READ_ONLY, 40072),
        (POINT["CmdSeq"].address, 1, Why.HALF_POINT, POINT["CmdSeq"].address),
        (POINT["CmdSeq"].address + 1, 1, Why.HALF_POINT, POINT["CmdSeq"].address + 1),
        (POINT["CmdMode"].address, 2, Why.HALF_POINT, POINT["CmdW"].address),
        (POINT["LossPol"].address, 2, Why.HALF_POINT, POINT["Epoch"].address),
        (POINT["ValidMs"].address, 2, Why.READ_ONLY, POINT["ValidMs"].end),
        (39999, 1, Why.NO_SUCH_REGISTER, 39999),
        (END, 1, Why.NO_SUCH_REGISTER, END),
        (0, 1, Why.NO_SUCH_REGISTER, 0),
    ],
)
def test_what_cannot_be_written_is_refused_with_the_reason(
    appliance: FakeAppliance, site: Client, address: int, count: int, why: Why, at: int
) -> None:
    before = appliance.command
    assert site.write_raw(address, [0] * count) == 2
    assert (site.read("AckWhy"), site.read("RefAddr")) == (why, at)
    assert appliance.command == before


def test_reads_end_at_the_edges_of_the_map(site: Client) -> None:
    for address, count in ((BASE - 1, 2), (END - 1, 2), (END, 1), (0, 1), (65535, 1)):
        assert site.raw.read_holding_registers(address, count=count, device_id=1).exception_code == 2
    assert site.raw.read_input_registers(END - 1, count=1, device_id=1).registers == [0]
    assert site.raw.read_holding_registers(BASE, count=1, device_id=2).exception_code == 11


def test_one_bad_value_refuses_the_whole_block(appliance: FakeAppliance, site: Client) -> None:
    before = appliance.command
    assert site.write("CmdSeq", 9, Mode.CHARGE, 0, 0.5, 100.1) == 3
    assert site.read("RefAddr") == POINT["CmdTgtSoC"].address
    assert (site.read("CmdSeq"), site.read("CmdMode"), appliance.command) == (0, Mode.OFF, before)


def test_one_block_commands(appliance: FakeAppliance, site: Client) -> None:
    assert charge(site, seq=17) == 0
    command = appliance.command
    assert (command.seq, command.mode, command.c_rate, command.target_soc_pct) == (17, Mode.CHARGE, 0.5, 80)
    wait_until(lambda: site.read("AckSeq") == 17, 1, "the answer")


def test_single_register_writes_command(appliance: FakeAppliance, site: Client) -> None:
    assert site.write_one(POINT["CmdRamp"].address, 250) == 0
    assert site.write_one(POINT["CmdTgtSoC"].address, 905) == 0
    assert site.write_one(POINT["CmdMode"].address, Mode.CHARGE) == 0
    command = appliance.command
    assert (command.seq, command.mode, command.c_rate, command.target_soc_pct) == (1, Mode.CHARGE, 0.25, 90.5)


def test_the_same_mode_again_is_no_new_command(appliance: FakeAppliance, site: Client) -> None:
    for _ in range(3):
        assert site.write_one(POINT["CmdMode"].address, Mode.CHARGE) == 0
    assert appliance.command.seq == 1
    assert site.write_one(POINT["CmdMode"].address, Mode.OFF) == 0
    assert appliance.command.seq == 2


@pytest.mark.parametrize(
    ("operation", "mode", "reads"),
    [
        (OpCtl.START, Mode.GRID, OpCtl.START),
        (OpCtl.EXIT_STANDBY, Mode.GRID, OpCtl.EXIT_STANDBY),
        (OpCtl.ENTER_STANDBY, Mode.READY, OpCtl.ENTER_STANDBY),
    ],
)
def test_op_ctl_commands_the_mode(
    appliance: FakeAppliance, site: Client, operation: OpCtl, mode: Mode, reads: OpCtl
) -> None:
    assert site.write("OpCtl", operation) == 0
    assert (site.read("CmdMode"), site.read("SetOp"), site.read("OpCtl")) == (mode, SetOp.CONNECT, reads)
    assert (appliance.command.mode, appliance.command.seq) == (mode, 1)
    assert site.write("OpCtl", OpCtl.STOP) == 0
    assert (site.read("CmdMode"), site.read("SetOp"), appliance.command.seq) == (Mode.OFF, SetOp.DISCONNECT, 2)


def test_connect_and_start_change_nothing_while_charging(appliance: FakeAppliance, site: Client) -> None:
    charge(site, seq=5)
    assert site.read("OpCtl") == OpCtl.START
    assert site.write("OpCtl", OpCtl.START) == 0
    assert site.write("SetOp", SetOp.CONNECT) == 0
    assert (appliance.command.mode, appliance.command.seq) == (Mode.CHARGE, 5)
    assert site.write("SetOp", SetOp.DISCONNECT) == 0
    assert (appliance.command.mode, appliance.command.seq) == (Mode.OFF, 6)


@pytest.mark.parametrize(
    ("state", "permit", "mode", "why"),
    [
        (State.FAULT, Why.NONE, Mode.CHARGE, Why.FAULT_LATCHED),
        (State.EMERGENCY_STOP, Why.NONE, Mode.READY, Why.EMERGENCY_STOP),
        (State.LOCKOUT, Why.NONE, Mode.GRID, Why.LOCKOUT),
        (State.INIT, Why.NONE, Mode.CHARGE, Why.STARTING),
        (State.ISOLATED, Why.INTERLOCK_OPEN, Mode.CHARGE, Why.INTERLOCK_OPEN),
        (State.READY, Why.NONE, Mode.SERVICE, Why.NOT_ISOLATED),
        (State.SERVICE, Why.NONE, Mode.CHARGE, Why.IN_SERVICE),
    ],
)
def test_a_command_that_the_state_forbids_is_refused_with_the_reason(
    appliance: FakeAppliance, site: Client, state: State, permit: Why, mode: Mode, why: Why
) -> None:
    appliance.show(state=state, permit=permit)
    before = appliance.command
    assert charge(site, mode=mode) == 4
    assert (site.read("AckWhy"), site.read("RefAddr")) == (why, POINT["CmdMode"].address)
    assert appliance.command == before
    assert charge(site, mode=Mode.OFF) == 0
    assert site.read("AckWhy") == Why.NONE


def test_op_ctl_start_is_refused_with_a_latched_fault(appliance: FakeAppliance, site: Client) -> None:
    appliance.show(state=State.FAULT)
    assert site.write("OpCtl", OpCtl.START) == 4
    assert (site.read("OpCtl"), site.read("AckWhy")) == (OpCtl.STOP, Why.FAULT_LATCHED)


def test_without_a_controller_nothing_but_off_is_taken_and_nothing_old_is_shown(
    appliance: FakeAppliance, site: Client
) -> None:
    appliance.alive = False
    wait_until(lambda: site.read_raw("CmfState") == [0xFFFF], 2, "the state is not shown any more")
    assert charge(site) == 4
    assert site.read("AckWhy") == Why.NO_DATA
    assert charge(site, mode=Mode.OFF) == 0
    assert site.read("Soc") == pytest.approx(42.5)


def test_without_a_controller_the_appliance_heartbeat_stands(appliance: FakeAppliance, site: Client) -> None:
    first = site.read("DERHb")
    wait_until(lambda: site.read("DERHb") == first + 1, 1.5, "the heartbeat")
    assert 0.7 < wait_until(lambda: site.read("DERHb") == first + 2, 1.5, "the next beat") < 1.3
    assert site.read("Hb") == site.read("DERHb")
    appliance.alive = False
    wait_until(lambda: site.read_raw("CmfState") == [0xFFFF], 2, "the state is not shown any more")
    stopped, until_s = site.read("DERHb"), time.monotonic() + 1.3
    wait_until(lambda: site.read("DERHb") != stopped or time.monotonic() > until_s, 2, "the time of a beat")
    assert site.read("DERHb") == stopped


@pytest.mark.parametrize("name", ["CtrlHb", "802.CtrlHb", "ControllerHb"])
def test_heartbeats_are_one_counter_and_arm_at_the_first_write(
    appliance: FakeAppliance, site: Client, name: str
) -> None:
    before = appliance.command
    assert site.write(name, 1234) == 0
    after = appliance.command
    assert (before.heartbeat_armed, after.heartbeat_armed, after.heartbeat) == (False, True, 1234)
    assert {site.read(alias) for alias in ("CtrlHb", "802.CtrlHb", "ControllerHb")} == {1234}


def test_a_wide_heartbeat_reads_back_as_it_fits(appliance: FakeAppliance, site: Client) -> None:
    assert site.write("ControllerHb", 70_000) == 0
    assert (site.read("ControllerHb"), appliance.command.heartbeat) == (70_000, 70_000)
    assert site.read("CtrlHb") == 70_000 % 65_535


def lose_heartbeat(appliance: FakeAppliance, site: Client) -> None:
    site.write("CtrlHb", 1)
    beaten_s = time.monotonic()
    wait_until(lambda: time.monotonic() - beaten_s > 1.0, 2, "a heartbeat that may be lost")
    appliance.show(status_bits=1 << StatusBit.HEARTBEAT_LOST)


def test_a_new_command_without_a_heartbeat_is_refused_until_it_beats_again(
    appliance: FakeAppliance, site: Client
) -> None:
    lose_heartbeat(appliance, site)
    assert charge(site, seq=77) == 4
    assert (site.read("AckWhy"), site.read("CmdMode")) == (Why.HEARTBEAT_LOST, Mode.OFF)
    assert site.write("CtrlHb", 2) == 0
    assert charge(site, seq=78) == 0


def test_off_ends_the_watch_over_a_lost_heartbeat_until_it_is_written_again(
    appliance: FakeAppliance, site: Client
) -> None:
    lose_heartbeat(appliance, site)
    assert charge(site, seq=78, mode=Mode.OFF) == 0
    assert not appliance.command.heartbeat_armed
    assert charge(site, seq=79) == 0
    assert site.write("CtrlHb", 3) == 0
    assert appliance.command.heartbeat_armed


def test_off_leaves_a_beating_heartbeat_watched(appliance: FakeAppliance, site: Client) -> None:
    site.write("CtrlHb", 1)
    assert charge(site, mode=Mode.OFF) == 0
    assert appliance.command.heartbeat_armed


@pytest.mark.parametrize(
    "ended",
    [{"state": State.FAULT}, {"ack_result": Result.REJECTED}, {"status_bits": 1 << StatusBit.HEARTBEAT_LOST}],
)
def test_a_command_that_is_not_followed_any_more_is_not_taken_again(
    appliance: FakeAppliance, site: Client, ended: dict[str, int]
) -> None:
    site.write("CtrlHb", 1)
    assert charge(site) == 0
    wait_until(lambda: site.read("AckSeq") == 1, 1, "the controller's answer")
    assert charge(site) == 0
    appliance.answer = lambda command, status: status
    appliance.show(**ended)
    wait_until(lambda: charge(site) == 4, 2, "it is void")
    appliance.show(state=State.READY, ack_result=Result.ACCEPTED, status_bits=0)
    assert site.write_one(POINT["CmdMode"].address, Mode.CHARGE) == 4
    assert (site.read("AckWhy"), site.read("RefAddr")) == (Why.SEQ_NOT_NEW, POINT["CmdMode"].address)
    assert charge(site, seq=2) == 0
    assert (site.read("AckWhy"), site.read("RefAddr")) == (Why.NONE, 0)


def test_a_held_command_may_be_repeated_without_a_heartbeat(appliance: FakeAppliance, site: Client) -> None:
    site.write("LossPol", LossPolicy.HOLD)
    site.write("CtrlHb", 1)
    assert charge(site) == 0
    lose_heartbeat(appliance, site)
    assert charge(site, seq=2) == 4
    assert charge(site) == 0


def test_a_heartbeat_leaves_the_reason_of_a_refusal_readable(appliance: FakeAppliance, site: Client) -> None:
    appliance.show(state=State.LOCKOUT)
    charge(site)
    site.write("CtrlHb", 3)
    assert site.read("AckWhy") == Why.LOCKOUT


@pytest.mark.parametrize("name", SELF_CLEARING)
def test_every_acknowledge_is_passed_on_and_reads_0(appliance: FakeAppliance, site: Client, name: str) -> None:
    appliance.show(state=State.FAULT)
    assert (site.write(name, 0), appliance.command.ack_count) == (0, 0)
    assert (site.write(name, 1), appliance.command.ack_count) == (0, 1)
    assert (site.write(name, 1), appliance.command.ack_count) == (0, 2)
    assert site.read(name) == 0


def test_the_set_point_group_is_one_block(appliance: FakeAppliance, site: Client) -> None:
    version = appliance.command.wset_version
    assert site.write("WSetEna", 1, 1, -250_000, 1000, 0, 0, 0, 30) == 0
    command = appliance.command
    assert (command.wset_enabled, command.wset_w, command.wset_revert_w) == (True, -250_000, 1000)
    assert (command.wset_revert_s, command.wset_revert_enabled) == (30, False)
    assert command.wset_version == version + 1


def test_a_set_point_in_percent_is_of_the_rated_power(appliance: FakeAppliance, site: Client) -> None:
    assert site.write("WSetEna", 1, 0, 0, 0, -50, 25, 1, 0) == 0
    assert appliance.command.wset_w == pytest.approx(-0.5 * site.read("WChaRteMax"), rel=1e-3)
    assert appliance.command.wset_revert_w == pytest.approx(0.25 * site.read("WDisChaRteMax"), rel=1e-3)


def test_a_reversion_shows_in_the_registers_once(appliance: FakeAppliance, site: Client) -> None:
    site.write("WSetEna", 1, 1, -250_000, 4000, 0, 0, 0, 3)
    version = appliance.command.wset_version
    appliance.show(wset_remaining_s=1.6)
    assert (site.read("WSetRvrtRem"), site.read("WSet")) == (2, -250_000)
    appliance.show(wset_remaining_s=0.0, wset_reverted=version)
    assert (site.read("WSetEna"), site.read("WSet"), site.read("WSetRvrtRem")) == (0, 4000, 0)
    assert appliance.command.wset_version == version
    assert site.write("WSet", -9000) == 0
    assert (site.read("WSet"), appliance.command.wset_version) == (-9000, version + 1)


def test_a_hammering_writer_is_never_seen_half_done(appliance: FakeAppliance, site: Client) -> None:
    stop = threading.Event()

    def hammer() -> None:
        other, n = Client(appliance.port), 0
        while not stop.is_set():
            n = n % 1000 + 1
            other.write("CmdSeq", n, Mode.READY, n * 1000 + n, n / 1000, n / 10)
        other.close()

    thread = threading.Thread(target=hammer)
    thread.start()
    try:
        view = View(COMMAND, "server", "command", appliance.run_dir)
        wait_until(lambda: site.read("CmdSeq") > 0, 2, "the first write")
        first, seen = POINT["CmdSeq"].address, set()
        for _ in range(1500):
            high, low, mode, w_high, w_low, ramp, target = site.raw.read_holding_registers(
                first, count=7, device_id=1
            ).registers
            n = high << 16 | low
            assert (mode, w_high << 16 | w_low, ramp, target) == (Mode.READY, n * 1000 + n, n, n)
            command = view.refresh()
            assert command is not None
            assert command.w == command.seq * 1001
            assert command.c_rate == pytest.approx(command.seq / 1000)
            seen.add(n)
        assert len(seen) > 50
    finally:
        stop.set()
        thread.join()


def test_values_come_from_the_process_image(appliance: FakeAppliance, site: Client) -> None:
    appliance.show(
        state=State.CHARGE_STEP, setpoint_a=-560.04, charge_reason=5, faults_active=0b100, faults_latched=0b110,
        led_codes=1 | 2 << 8 | 3 << 16 | 4 << 24 | 5 << 32, dv_v=float("nan"), wake_p99_us=91, overruns=3,
    )  # fmt: skip
    expected = {
        "CmfState": State.CHARGE_STEP, "SetA": -560.0, "LimReason": 5, "FaultBits": 6, "FaultActive": 4, "LedRun": 1,
        "LedCharge": 2, "LedComm": 3, "LedFault": 4, "LedKill": 5, "ScanWakeP99us": 91, "ScanOverruns": 3,
        "WAvailCha": 550_000, "RackA": -560, "802.A": -560, "802.W": -616_000, "CellVMax": 3.7, "CellTmpMin": -4.5,
        "CellVMaxStr": 2, "PcsV": 1101, "BmsErrors": 5, "GuardArmed": 1, "802.AHRtg": 1120, "ChaSt": 4, "802.State": 3,
        "DoD": 57.5, "Sta": 2,
    }  # fmt: skip
    seen = {name: site.read(name if name in POINT else name.partition(".")[2]) for name in expected}
    assert seen == pytest.approx(expected)
    assert site.read("DvMv") != site.read("DvMv"), "nan"


def test_a_new_scan_is_seen_by_the_next_read(appliance: FakeAppliance, site: Client) -> None:
    for scan in range(1, 50):
        appliance.show(scan=scan)
        assert [site.read("ScanCount") for _ in range(3)] == 3 * [scan]


def test_a_restarted_server_goes_on_with_the_command_as_it_was(tmp_path: Path) -> None:
    with FakeAppliance(tmp_path) as appliance:
        site = Client(appliance.port)
        charge(site, seq=41)
        site.write("AckFaults", 1)
        site.write("CtrlHb", 7)
        site.write("HbTmo", 20)
        site.write("WSet", -5000)
        site.write("WSetEna", 1)
        before = appliance.command
        site.close()
    with FakeAppliance(tmp_path) as appliance:
        assert appliance.command == before
        site = Client(appliance.port)
        assert (site.read("CmdMode"), site.read("OpCtl"), site.read("WSet")) == (Mode.CHARGE, OpCtl.START, -5000)
        site.close()


def test_without_a_valid_configuration_the_server_serves_and_says_so(tmp_path: Path) -> None:
    with FakeAppliance(tmp_path, configured=False) as appliance:
        site = Client(appliance.port)
        assert appliance.command.config_error
        assert site.read_raw("AHRtg") == [0xFFFF]
        assert site.write("WSetMod", 0) == 4
        assert site.read("AckWhy") == Why.NO_CONFIGURATION
        site.close()


class Process:
    """The server as it runs on the appliance."""

    def __init__(self, directory: Path, port: int = 0) -> None:
        self.run_dir, self.config_dir = directory / "run", directory / "config"
        environment = os.environ | {
            "EMS_RUN_DIR": str(self.run_dir), "EMS_CONFIG_DIR": str(self.config_dir), "EMS_MODBUS_PORT": str(port),
            "EMS_MODBUS_HOST": "127.0.0.1",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "firmware.server"], env=environment, stderr=subprocess.PIPE, text=True
        )

    def line(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.readline().strip()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(5)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    config.prepare(tmp_path / "config", {"heartbeat_timeout": 7.0, "loss_policy": "isolate", "require_heartbeat": True})
    made = Process(tmp_path)
    yield made
    made.process.kill()
    made.process.wait()


def _configuration(process: Process) -> SectionReader:
    return reader("server", "config", process.run_dir)


@pytest.mark.system
def test_an_invalid_file_changes_nothing_and_is_named(process: Process) -> None:
    assert process.line().startswith("modbus server: unit 1 on 127.0.0.1:")
    section, view = _configuration(process), View(COMMAND, "server", "command", process.run_dir)
    before = section.read()
    assert before is not None
    limits = process.config_dir / "limits.conf"
    good = limits.read_text()
    limits.write_text(good.replace("max_charge_voltage = 1260", "max_charge_voltage = 9000"))
    process.process.send_signal(signal.SIGHUP)
    wait_until(lambda: (c := view.refresh()) is not None and c.config_error, 3, "the refusal")
    assert section.read() == before
    assert "limits.conf:" in (complaint := process.line())
    assert "9000" in complaint and "1500" in complaint
    texts = [event.text for event in EventReader("server", process.run_dir).new()]
    assert any(
        "limits.conf:" in text and text.endswith("max_charge_voltage = 9000: allowed 100 to 1500 V") for text in texts
    )
    limits.write_text(good.replace("max_charge_voltage = 1260", "max_charge_voltage = 1200"))
    process.process.send_signal(signal.SIGHUP)
    wait_until(lambda: (c := view.refresh()) is not None and not c.config_error, 3, "the correction")
    after = section.read()
    assert after is not None
    old, new = settings_from_json(before.payload), settings_from_json(after.payload)
    assert (new.max_charge_voltage, new.revision) == (1200, old.revision + 1)


@pytest.mark.system
def test_the_process_follows_the_site_file_and_stops_in_order(process: Process) -> None:
    site = Client(int(process.line().rpartition(":")[2]))
    assert (site.read("HbTmo"), site.read("LossPol")) == (7, LossPolicy.ISOLATE)
    command = View(COMMAND, "server", "command", process.run_dir).refresh()
    assert command is not None and command.heartbeat_armed
    identity = site.raw.read_device_information(read_code=1, object_id=0, device_id=1)
    assert getattr(identity, "information")[1] == b"EMS-1"  # noqa: B009
    site.close()
    assert process.stop() == 0


@pytest.mark.system
def test_a_port_in_use_is_one_clear_line(process: Process, tmp_path: Path) -> None:
    port = int(process.line().rpartition(":")[2])
    config.prepare(tmp_path / "second" / "config", {})
    second = Process(tmp_path / "second", port)
    assert second.process.wait(10) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in second.line()


@pytest.mark.system
def test_the_command_is_republished_while_nothing_happens(process: Process) -> None:
    process.line()
    section = SectionReader(process.run_dir / "server.img", LAYOUT["server"], "command")
    first = section.sequence
    assert wait_until(lambda: section.sequence >= first + 10, 2, "ten publishes") < 1.0
