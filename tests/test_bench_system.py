"""The bench as a process: its Modbus devices, its control map, its board, and how it starts and ends."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from pymodbus.client import ModbusTcpClient
from pymodbus.pdu.mei_message import ReadDeviceInformationResponse
from waiting import wait_until

from drivers.bench.control import POINTS
from drivers.bench.wire import DeviceMode
from drivers.board import Board, open_board
from drivers.modbus.point import Point
from drivers.profile import load

pytestmark = pytest.mark.system

BY_NAME = {p.name: p for p in POINTS}
DOCUMENTED = (
    "kill_switch", "tamper", "reset_button", "weld_pos", "weld_neg", "stuck_pos", "stuck_neg", "ground_fault",
    "dv_offset_v", "hot_cell_index", "hot_cell_c", "bms_mode", "pcs_mode", "speed", "soc_preset", "true_pos",
    "true_neg", "true_precharge", "true_safe_enable", "true_current_a", "true_soc", "true_cell_max_v",
    "true_cell_min_v", "true_cell_max_c", *(f"{name}_{n}" for name in ("interlock", "loop_ma") for n in range(1, 9)),
)  # fmt: skip
READ_STRING_1 = bytes.fromhex("000100000006 01 03 2100 0001")
BMS, PCS = load("bms_2100"), load("pcs_bench")


class BenchProcess:
    """A bench on ports of its own, driven through its control map."""

    def __init__(self, directory: Path, **environment: str) -> None:
        self.directory = directory
        ports = dict.fromkeys(("EMS_BMS_PORT", "EMS_PCS_PORT", "EMS_BENCH_PORT"), "0")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "drivers.bench"],
            env={**os.environ, **ports, "EMS_RUN_DIR": str(directory), **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.greeting = self.process.stderr.readline()
        found = re.search(r"BMS \S+:(\d+) units 1..(\d+), PCS \S+:(\d+), control \S+:(\d+)", self.greeting)
        assert found, self.greeting
        self.bms_port, self.strings, self.pcs_port, self.control_port = map(int, found.groups())
        self.bms, self.pcs, self.control = map(_client, (self.bms_port, self.pcs_port, self.control_port))

    def set(self, name: str, value: float) -> None:
        point = BY_NAME[name]
        raw = list(struct.unpack(f">{point.count}H", point.encode(value)))
        assert not self.control.write_registers(point.address, raw).isError(), name

    def get(self, name: str) -> float:
        return _value(self.control, BY_NAME[name])

    def reconnect(self) -> None:
        for client in (self.bms, self.pcs):
            client.close()  # type: ignore[no-untyped-call]
            assert client.connect()  # type: ignore[no-untyped-call]

    def close(self) -> int:
        for client in (self.bms, self.pcs, self.control):
            client.close()  # type: ignore[no-untyped-call]
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(5)
        assert self.process.stderr is not None
        assert self.process.stderr.read() == ""
        return code


def _client(port: int) -> ModbusTcpClient:
    client = ModbusTcpClient("127.0.0.1", port=port, timeout=1, retries=0)
    assert client.connect()  # type: ignore[no-untyped-call]
    return client


def _registers(client: ModbusTcpClient, address: int, count: int, unit: int = 1) -> bytes:
    answer = client.read_holding_registers(address, count=count, device_id=unit)
    assert not answer.isError(), answer
    return struct.pack(f">{count}H", *answer.registers)


def _value(client: ModbusTcpClient, point: Point) -> float:
    value = point.decode(_registers(client, point.address, point.count))
    assert not isinstance(value, str)
    return value


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BenchProcess]:
    made = BenchProcess(tmp_path_factory.mktemp("bench"), EMS_BENCH_SPEED="60")
    yield made
    assert made.close() == 0


@pytest.fixture(autouse=True)
def healthy_wires(bench: BenchProcess) -> Iterator[None]:
    yield
    for name in ("bms_mode", "pcs_mode", "bms_lost_pct"):
        bench.set(name, 0)


class Appliance:
    """A guard that keeps `alive` toggling and a controller that closes the contactors."""

    def __init__(self, directory: Path) -> None:
        self.controller, self.guard = open_board("controller", directory), open_board("guard", directory)
        self._stop = threading.Event()
        self._pulse = threading.Thread(target=self._toggle)
        self._pulse.start()

    def _toggle(self) -> None:
        while not self._stop.wait(0.02):
            self.guard.outputs["alive"].toggle()

    def coils(self, **levels: int) -> None:
        for name, level in levels.items():
            self.controller.outputs[f"coil_{name}"].value = level

    def stop_pulse(self) -> None:
        self._stop.set()
        self._pulse.join()

    def close(self) -> None:
        self.stop_pulse()
        boards: tuple[Board, ...] = (self.controller, self.guard)
        for board in boards:
            for output in board.outputs.values():
                output.off()
            board.close()


@pytest.fixture
def appliance(bench: BenchProcess) -> Iterator[Appliance]:
    made = Appliance(bench.directory)
    yield made
    made.close()


@contextmanager
def connected(bench: BenchProcess, appliance: Appliance) -> Iterator[None]:
    appliance.guard.outputs["safe_enable"].on()
    appliance.coils(neg=1, pre=1)
    wait_until(lambda: abs(bench.get("true_rack_v") - bench.get("true_dc_link_v")) < 2.0, 10, "precharge")
    appliance.coils(pos=1, pre=0)
    wait_until(lambda: bench.get("true_pos") and not bench.get("true_precharge"), 1, "mains closed")
    yield
    appliance.coils(neg=0, pos=0)


def _command_pcs(bench: BenchProcess, setpoint_a: float, heartbeat: int) -> None:
    blocks = PCS.blocks(["run", "setpoint_a", "charge_limit_a", "discharge_limit_a", "ems_heartbeat"], max_gap=0)
    values = {"run": 1.0, "setpoint_a": setpoint_a, "ems_heartbeat": float(heartbeat)}
    for block in blocks:
        data = b"".join(PCS.encode(name, values.get(name, 1000.0)) for name in block.names)
        raw = list(struct.unpack(f">{block.count}H", data))
        assert not bench.pcs.write_registers(block.address, raw).isError()


def _summary(bench: BenchProcess, unit: int) -> dict[str, float]:
    readable = [name for name, point in BMS.points.items() if point.access == "R"]
    (block,) = BMS.blocks(readable, max_gap=100)
    return BMS.decode(block, _registers(bench.bms, block.address, block.count, unit))


def _cells(bench: BenchProcess, name: str, unit: int) -> bytes:
    blocks = BMS.arrays[name].blocks(300)
    return b"".join(_registers(bench.bms, address, count, unit) for address, count in blocks)


def test_the_bms_serves_1200_cells_that_agree_with_its_summary(bench: BenchProcess) -> None:
    assert bench.strings == 4
    for unit in range(1, 5):
        cell_v = np.array(BMS.arrays["cell_v"].decode(_cells(bench, "cell_v", unit)))
        cell_c = np.array(BMS.arrays["cell_c"].decode(_cells(bench, "cell_c", unit)))
        balancing = _cells(bench, "balancing", unit)
        summary = _summary(bench, unit)
        assert len(cell_v) == len(cell_c) == 300
        assert len(balancing) == 2 * 19
        assert summary["string_v"] == pytest.approx(cell_v.sum(), rel=0.002)
        assert summary["cell_v_max"] == pytest.approx(cell_v.max(), abs=0.0015)
        assert summary["cell_v_min_at"] in np.flatnonzero(cell_v < cell_v.min() + 0.0015)
        assert summary["cell_c_max"] == pytest.approx(cell_c.max(), abs=0.11)
        assert summary["soc_pct"] == pytest.approx(20, abs=1)
        assert summary["charge_limit_a"] == summary["discharge_limit_a"] == 280.0
        assert summary["alarm_trip"] == summary["alarm_stop"] == summary["alarm_warn"] == 0


def test_devices_tell_who_they_are_and_refuse_what_they_do_not_have(bench: BenchProcess) -> None:
    for client, profile in ((bench.bms, BMS), (bench.pcs, PCS)):
        answer = client.read_device_information(read_code=1, device_id=1)
        assert isinstance(answer, ReadDeviceInformationResponse)
        assert profile.identity.vendor is not None
        assert profile.identity.product is not None
        assert answer.information[0] == profile.identity.vendor.encode()
        assert answer.information[1] == profile.identity.product.encode()
        assert client.read_holding_registers(0x0000, count=1, device_id=1).exception_code == 2
        assert client.read_holding_registers(0x2100, count=1, device_id=9).exception_code == 11
    assert bench.bms.write_register(0x2100, 1, device_id=1).exception_code == 2
    assert bench.pcs.write_register(0x1100, 2, device_id=1).exception_code == 3
    assert bench.pcs.write_registers(0x1103, [10, 1, 1], device_id=1).exception_code == 2


def test_every_control_point_is_named_as_documented_and_reads(bench: BenchProcess) -> None:
    assert set(DOCUMENTED) <= BY_NAME.keys()
    whole = _registers(bench.control, 0, POINTS[-1].end)
    assert len(whole) == 2 * POINTS[-1].end
    assert bench.get("true_soc") == pytest.approx(20, abs=1)
    assert 3.3 < bench.get("true_cell_min_v") < bench.get("true_cell_max_v") < 3.6


@pytest.mark.parametrize("point", [p for p in POINTS if p.access == "RW"], ids=lambda p: p.name)
def test_a_control_point_takes_its_ends_at_once_and_nothing_beyond(bench: BenchProcess, point: Point) -> None:
    assert point.low is not None
    assert point.high is not None
    before = _value(bench.control, point)
    for end, step in ((point.low, -1), (point.high, 1)):
        bench.set(point.name, end)
        assert bench.get(point.name) == pytest.approx(end)
        beyond = (round(end / point.scale) + step).to_bytes(2 * point.count + 1, "big", signed=True)[1:]
        words = list(struct.unpack(f">{point.count}H", beyond))
        assert bench.control.write_registers(point.address, words).exception_code == 3
        assert bench.get(point.name) == pytest.approx(end)
    bench.set(point.name, before)
    bench.reconnect()


def test_a_control_write_is_whole_or_refused(bench: BenchProcess) -> None:
    half = BY_NAME["grid_hz"].address
    assert bench.control.write_register(half, 0).exception_code == 2
    assert bench.control.write_register(half + 1, 50_000).exception_code == 2
    first = BY_NAME["interlock_1"].address
    assert bench.control.write_registers(first, [0, 0, 7]).exception_code == 3
    assert bench.get("interlock_1") == bench.get("interlock_2") == 1
    truth = BY_NAME["true_pos"].address
    assert bench.control.write_registers(truth - 1, [500, 1]).exception_code == 2
    assert bench.control.write_register(POINTS[-1].end, 1).exception_code == 2
    assert bench.control.read_holding_registers(POINTS[-1].end, count=1).exception_code == 2
    assert bench.get("soc_preset") == 20.0


def test_bench_inputs_reach_the_board_before_the_write_is_answered(bench: BenchProcess, appliance: Appliance) -> None:
    board = appliance.guard
    wait_until(lambda: board.inputs["reset_button"].value == 0, 2, "an earlier press is over")
    board.edges()
    for name in ("kill_switch", "tamper", "reset_button"):
        bench.set(name, 1)
        assert board.inputs[name].value == (1 if name == "reset_button" else 0)
        bench.set(name, 0)
    edges = board.edges()
    assert [edge.line for edge in edges] == ["kill_switch"] * 2 + ["tamper"] * 2 + ["reset_button"]
    wait_until(lambda: board.inputs["reset_button"].value == 0, 2, "the button springs back")
    released = board.edges()
    assert [(edge.line, edge.level) for edge in released] == [("reset_button", 0)]
    assert released[0].stamp_ns - edges[-1].stamp_ns >= 190_000_000, "a press as short as a thumb can make it"
    bench.set("interlock_4", 0)
    assert board.inputs["interlock_4"].value == 0
    bench.set("interlock_4", 1)
    bench.set("loop_ma_3", 4.2)
    wait_until(lambda: board.loops()[0][2] == 4.2, 1, "the next sample of the loops")
    bench.set("loop_ma_3", 13)


def test_a_rack_is_precharged_charged_and_cut_off_by_the_kill_switch(bench: BenchProcess, appliance: Appliance) -> None:
    soc = bench.get("true_soc")
    with connected(bench, appliance):
        beats = itertools.count(1)

        def follows() -> bool:
            _command_pcs(bench, -560.0, next(beats))
            return bench.get("true_current_a") == pytest.approx(-560.0, abs=1)

        wait_until(follows, 5, "the PCS at its set-point", 0.02)
        assert sum(_summary(bench, unit)["string_a"] for unit in range(1, 5)) == pytest.approx(-560.0, abs=3)
        assert bench.get("true_soc") > soc
        assert BMS.points["string_a"].sign == -1
        bench.set("kill_switch", 1)
        appliance.guard.outputs["safe_enable"].off()
        wait_until(lambda: not bench.get("true_pos") and not bench.get("true_neg"), 1, "open contactors")
        assert bench.get("true_current_a") == 0
        assert bench.get("true_opened_under_load") == 1
        assert bench.get("true_opened_at_a") == pytest.approx(-560.0, abs=5)
        assert 0 < bench.get("true_edge_to_safe_us") < 1e6
        bench.set("kill_switch", 0)


def test_a_dead_guard_opens_the_contactors(bench: BenchProcess) -> None:
    appliance = Appliance(bench.directory)
    appliance.guard.outputs["safe_enable"].on()
    appliance.coils(neg=1)
    wait_until(lambda: bench.get("true_neg"), 1, "a closed contactor")
    appliance.stop_pulse()
    wait_until(lambda: not bench.get("true_neg"), 1, "the alive relay to fall out")
    assert bench.get("true_safe_enable") == 1
    assert bench.get("true_alive_relay") == 0
    assert bench.get("true_coils") == 1
    appliance.close()


def test_a_hot_cell_is_reported_where_it_was_put(bench: BenchProcess) -> None:
    bench.set("hot_cell_index", 2 * 300 + 17)
    bench.set("hot_cell_c", 61.5)
    assert bench.get("true_cell_max_c") == 61.5
    wait_until(lambda: _summary(bench, 3)["cell_c_max"] == 61.5, 1, "the BMS to see it")
    hot = _summary(bench, 3)
    assert hot["cell_c_max_at"] == 17
    assert hot["charge_limit_a"] == 0
    assert int(hot["alarm_trip"]) & 1 << 6
    bench.set("hot_cell_c", -40)
    wait_until(lambda: _summary(bench, 3)["cell_c_max"] < 30, 1, "the cell to be cool again")


def _ask(port: int, timeout_s: float) -> tuple[bytes, float]:
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as raw:
        raw.sendall(READ_STRING_1)
        start = time.monotonic()
        try:
            return raw.recv(256), time.monotonic() - start
        except TimeoutError:
            return b"", timeout_s


def test_the_bms_misbehaves_on_the_wire_as_its_mode_says(bench: BenchProcess) -> None:
    good, _ = _ask(bench.bms_port, 1)
    assert good[:9] == bytes.fromhex("000100000005 01 03 02")
    bench.set("bms_mode", DeviceMode.SILENT)
    assert _ask(bench.bms_port, 0.3)[0] == b""
    bench.set("bms_mode", DeviceMode.GARBAGE)
    assert _ask(bench.bms_port, 1)[0][:9] != good[:9]
    bench.set("bms_mode", DeviceMode.WRONG_UNIT)
    assert _ask(bench.bms_port, 1)[0][6:7] == b"\x02"
    bench.set("bms_mode", DeviceMode.SLOW)
    answer, took_s = _ask(bench.bms_port, 2)
    assert answer[:9] == good[:9]
    assert took_s > 0.39
    bench.set("bms_mode", DeviceMode.BUSY)
    assert _ask(bench.bms_port, 1)[0].hex() == "000100000003018306"
    assert bench.bms.write_register(0x2011, 9, device_id=1).exception_code == 6
    bench.set("bms_mode", DeviceMode.NORMAL)
    assert _ask(bench.bms_port, 1)[0][:9] == good[:9]


def test_a_half_open_bms_accepts_and_never_answers_until_it_is_mended(bench: BenchProcess) -> None:
    bench.set("bms_mode", DeviceMode.HALF_OPEN)
    with socket.create_connection(("127.0.0.1", bench.bms_port), timeout=0.3) as raw:
        raw.sendall(READ_STRING_1)
        with pytest.raises(TimeoutError):
            raw.recv(256)
        bench.set("bms_mode", DeviceMode.NORMAL)
        assert raw.recv(256)[:9] == bytes.fromhex("000100000005 01 03 02"), "what waited in the socket is read now"


def test_a_dribbling_bms_sends_a_byte_at_a_time(bench: BenchProcess) -> None:
    bench.set("bms_mode", DeviceMode.DRIBBLE)
    with socket.create_connection(("127.0.0.1", bench.bms_port), timeout=1) as raw:
        raw.sendall(READ_STRING_1)
        start, answer, pieces = time.monotonic(), b"", 0
        while len(answer) < 11:
            answer, pieces = answer + raw.recv(256), pieces + 1
        assert answer[:9] == bytes.fromhex("000100000005 01 03 02")
        assert pieces > 5
        assert time.monotonic() - start > 0.29
    bench.set("bms_mode", DeviceMode.NORMAL)


def test_a_closed_bms_resets_every_connection(bench: BenchProcess) -> None:
    with socket.create_connection(("127.0.0.1", bench.bms_port), timeout=1) as before:
        bench.set("bms_mode", DeviceMode.CLOSED)
        with pytest.raises(ConnectionError):
            before.sendall(READ_STRING_1)
            before.recv(256)
    with pytest.raises(ConnectionError):
        _ask(bench.bms_port, 1)
    bench.set("bms_mode", DeviceMode.NORMAL)
    bench.reconnect()
    assert _summary(bench, 1)["string_v"] > 900


def test_a_stranger_in_place_of_the_pcs_costs_its_connections_and_shows_another_product(bench: BenchProcess) -> None:
    assert len(_registers(bench.pcs, 0x1000, 1)) == 2
    for stranger, product in ((1, b"STRANGER"), (0, b"PCS-BENCH")):
        bench.set("pcs_stranger", stranger)
        with pytest.raises(ConnectionResetError):
            bench.pcs.read_holding_registers(0x1000, count=1)
        bench.reconnect()
        answer = bench.pcs.read_device_information(read_code=1, device_id=1)
        assert isinstance(answer, ReadDeviceInformationResponse)
        assert answer.information[1] == product


def test_lost_answers_are_about_as_many_as_asked_for(bench: BenchProcess) -> None:
    bench.set("bms_lost_pct", 30)
    with socket.create_connection(("127.0.0.1", bench.bms_port), timeout=0.3) as raw:
        for _ in range(200):
            raw.sendall(READ_STRING_1)
        got = b""
        with contextlib.suppress(TimeoutError):
            while part := raw.recv(65536):
                got += part
    bench.set("bms_lost_pct", 0)
    assert 110 < len(got) / 11 < 170


def test_a_held_coil_terminal_keeps_its_level_and_reads_back_so(bench: BenchProcess, appliance: Appliance) -> None:
    bench.set("hold_coil_neg", 1)
    appliance.guard.outputs["safe_enable"].on()
    appliance.coils(neg=1, pos=1)
    wait_until(lambda: bench.get("true_pos"), 1, "the other contactor to close")
    assert bench.get("true_neg") == 0
    assert bench.get("true_coils") == 2
    assert appliance.controller.outputs["coil_neg"].value == 0
    assert appliance.controller.outputs["coil_pos"].value == 1
    appliance.coils(neg=0, pos=0)
    bench.set("hold_coil_neg", 0)
    assert bench.get("hold_coil_neg") == 0


def test_the_map_only_ever_grows(bench: BenchProcess) -> None:
    places = {"kill_switch": 0, "loop_ma_8": 18, "bms_mode": 27, "soc_preset": 30, "true_edge_to_safe_us": 54}
    assert {name: BY_NAME[name].address for name in places} == places
    assert BY_NAME["weld_pre"].address == 56


def test_a_silent_pcs_leaves_the_bms_alone(bench: BenchProcess) -> None:
    bench.set("pcs_mode", DeviceMode.SILENT)
    assert bench.pcs.connected
    with socket.create_connection(("127.0.0.1", bench.pcs_port), timeout=0.2) as raw, pytest.raises(TimeoutError):
        raw.sendall(bytes.fromhex("000100000006 01 03 1000 0001"))
        raw.recv(256)
    assert _summary(bench, 1)["string_v"] > 900
    bench.set("pcs_mode", DeviceMode.NORMAL)
    assert len(_registers(bench.pcs, 0x1000, 1)) == 2


def test_a_frozen_bms_answers_with_its_heartbeat_and_values_standing(bench: BenchProcess) -> None:
    bench.set("bms_mode", DeviceMode.FROZEN)
    frozen = _summary(bench, 2)
    bench.set("soc_preset", 60)
    time.sleep(1.1)  # one beat of a healthy BMS
    assert _summary(bench, 2) == frozen
    bench.set("bms_mode", DeviceMode.NORMAL)
    wait_until(lambda: _summary(bench, 2)["heartbeat"] > frozen["heartbeat"], 1, "the heartbeat to move again")
    assert _summary(bench, 2)["soc_pct"] == pytest.approx(60, abs=1)
    bench.set("soc_preset", 20)


def test_a_port_in_use_is_one_clear_line(bench: BenchProcess, tmp_path: Path) -> None:
    taken = {"EMS_RUN_DIR": str(tmp_path), "EMS_BMS_PORT": "0", "EMS_PCS_PORT": str(bench.pcs_port)}
    ended = subprocess.run(
        [sys.executable, "-m", "drivers.bench"], env={**os.environ, **taken}, capture_output=True, text=True, timeout=20
    )
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert f"PCS port 127.0.0.1:{bench.pcs_port}" in ended.stderr
    assert "EMS_PCS_PORT" in ended.stderr


@pytest.mark.parametrize(
    ("variable", "text"),
    [("EMS_BENCH_SPEED", "601"), ("EMS_BENCH_SOC", "full"), ("EMS_BENCH_SIZE", "4x20"), ("EMS_BENCH_CHEMISTRY", "lto")],
)
def test_a_wrong_setting_is_named_with_its_value(variable: str, text: str, tmp_path: Path) -> None:
    from drivers.bench.__main__ import settings

    with pytest.raises(ValueError, match=f"{variable}={text}: "):
        settings({variable: text, "EMS_RUN_DIR": str(tmp_path)})
