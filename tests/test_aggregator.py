"""The aggregator against devices that work, hang, lie, refuse and come back."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from modbus_peers import Answer, Bank, liar, served
from msgspec.structs import replace
from waiting import wait_until

from drivers.modbus.adu import AduReader, frame
from drivers.modbus.session import Counters, ModbusError, Session
from drivers.profile import Heartbeats, Profile, ProfileError, load
from firmware import image, poller
from firmware.aggregator import Aggregator, AggregatorSettings, settings_of_site
from firmware.poller import Heartbeat, Reports
from firmware.reduction import StringPoll, reduce, wire_cells
from statemachine.signals import Bms, Pcs

BMS, PCS = load("bms_2100"), load("pcs_bench")
STRINGS, CELLS = 4, 300
SUMMARY = {"string_v": 1095.0, "string_a": 25.0, "soc_pct": 50, "soh_pct": 99, "insulation_kohm": 900,
           "charge_limit_a": 280, "discharge_limit_a": 200}  # fmt: skip
STALE_MS = 300.0


def put(bank: Bank, unit: int, profile: Profile, name: str, value: float) -> None:
    bank.put(unit, profile.points[name].address, profile.encode(name, value))


def put_cells(bank: Bank, unit: int, name: str, values: object) -> None:
    array = BMS.arrays[name]
    bank.put(unit, array.address, array.encode(np.asarray(values)))


def rack(strings: int = STRINGS, cells: int = CELLS) -> Bank:
    bank = Bank(tuple(range(1, strings + 1)), {0: b"OpenBESS", 1: b"BMS-2100", 2: b"1"})
    for unit in bank.memory:
        for name, value in SUMMARY.items():
            put(bank, unit, BMS, name, value * cells / CELLS if name == "string_v" else value)
        put_cells(bank, unit, "cell_v", np.full(cells, 3.65))
        put_cells(bank, unit, "cell_c", np.full(cells, 25.0))
    return bank


def converter() -> Bank:
    bank = Bank((1,), {0: b"OpenBESS", 1: b"PCS-BENCH", 2: b"1"})
    for name, value in {"state": 1, "dc_v": 1095.2, "dc_a": -12.5, "ac_w": -13000, "ac_hz": 50.01}.items():
        put(bank, 1, PCS, name, value)
    return bank


class Beating:
    """Moves the heartbeat registers of the banks while it runs."""

    def __init__(self, *banks: tuple[Bank, Profile]) -> None:
        self.frozen: set[int] = set()  # units of the first bank that stand still
        self._banks, self._stop = banks, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        beat = 0
        while not self._stop.wait(0.2):
            beat += 1
            for number, (bank, profile) in enumerate(self._banks):
                for unit in bank.memory:
                    if number or unit not in self.frozen:
                        put(bank, unit, profile, "heartbeat", beat)

    def __enter__(self) -> Beating:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(2)


class Plant:
    """A running aggregator and what it published."""

    def __init__(
        self, directory: Path, bms_port: int, pcs_port: int, strings: int = 1, cells: int = 30, profile: Profile = BMS,
        request_timeout_ms: int = 150,
    ) -> None:  # fmt: skip
        settings = AggregatorSettings(
            "127.0.0.1", bms_port, profile, strings, cells, "127.0.0.1", pcs_port, PCS,
            request_timeout_ms=request_timeout_ms,
        )  # fmt: skip
        self.aggregator = Aggregator(settings, directory)
        self._bms = image.View(image.BMS, "aggregator", "bms", directory)
        self._pcs = image.View(image.PCS, "aggregator", "pcs", directory)
        self._links = image.View(image.LINKS, "aggregator", "links", directory)
        self.cells = image.reader("aggregator", "cells", directory)
        self._events = image.EventReader("aggregator", directory)
        self._texts: list[str] = []
        self.controller = image.writer("controller", directory)

    def __enter__(self) -> Plant:
        self.aggregator.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.aggregator.close()
        self.controller.close()

    @property
    def bms(self) -> Bms | None:
        return self._bms.refresh()

    @property
    def pcs(self) -> Pcs | None:
        return self._pcs.refresh()

    @property
    def links(self) -> image.Links:
        self.aggregator.step()
        links = self._links.refresh()
        assert links is not None
        return links

    @property
    def texts(self) -> list[str]:
        self._texts += [event.text for event in self._events.new()]
        return self._texts

    def bms_fresh(self) -> bool:
        self._bms.refresh()
        return self._bms.age_ms() < STALE_MS

    def pcs_age_ms(self) -> float:
        self._pcs.refresh()
        return self._pcs.age_ms()

    def control(self, setpoint_a: float, run: bool = True) -> None:
        control = image.Control(1, setpoint_a, run, True, 300.0, 200.0, 10, False)
        self.controller["control"].publish(image.CONTROL.pack(*control))


@contextlib.contextmanager
def plant(directory: Path, bms: Bank, pcs: Bank, cells: int = 30) -> Iterator[Plant]:
    with (
        served(bms) as bms_server,
        served(pcs) as pcs_server,
        Plant(directory, bms_server.port, pcs_server.port, len(bms.memory), cells) as running,
    ):
        yield running


def string_polls(volts: np.ndarray, temperatures: np.ndarray, **values: float) -> list[StringPoll]:
    """Poll results of a rack whose cells are rows of `volts` and `temperatures`."""
    arrays = BMS.arrays
    return [
        StringPoll(
            1000.0 + 2 * n,
            {**SUMMARY, "string_v": float(np.nansum(v)), **values},
            arrays["cell_v"].encode(v),
            arrays["cell_c"].encode(c),
            arrays["balancing"].encode(np.zeros(v.size, np.bool_)),
        )
        for n, (v, c) in enumerate(zip(volts, temperatures, strict=True))
    ]


def even() -> tuple[np.ndarray, np.ndarray]:
    return np.full((STRINGS, CELLS), 3.65), np.full((STRINGS, CELLS), 25.0)


def reduced(volts: np.ndarray, temperatures: np.ndarray, **values: float) -> Bms:
    return reduce(string_polls(volts, temperatures, **values), BMS, volts.shape[1], 1)


def test_a_healthy_rack_is_plausible_and_adds_up() -> None:
    bms = reduced(*even())
    assert bms.plausible
    assert [bms.rack_v, bms.rack_a, bms.v_stamp_ms] == pytest.approx([1095.0, 100.0, 1003.0])
    assert (bms.charge_max_a, bms.discharge_max_a) == (1120.0, 800.0)
    assert bms.cells_bad == 0


def test_cell_737_of_1200_over_its_limit_is_named() -> None:
    volts, temperatures = even()
    volts.flat[737], temperatures.flat[737] = 4.31, 61.5
    volts.flat[12], temperatures.flat[1199] = 3.01, -3.5
    bms = reduced(volts, temperatures)
    assert (bms.cell_v_max_at, bms.cell_c_max_at) == (737, 737)
    assert (bms.cell_v_min_at, bms.cell_c_min_at) == (12, 1199)
    assert (bms.cell_v_max, bms.cell_v_min) == pytest.approx((4.31, 3.01))
    assert (bms.cell_c_max, bms.cell_c_min) == pytest.approx((61.5, -3.5))
    assert bms.plausible


@pytest.mark.parametrize("sentinel", [0.0, 0x8000 / 1000, float("nan")], ids=["0 mV", "0x8000", "0xffff"])
def test_a_cell_without_a_measurement_is_bad_and_kept_out_of_the_extremes(sentinel: float) -> None:
    volts, temperatures = even()
    volts.flat[737] = sentinel
    temperatures.flat[3] = float("nan")
    bms = reduced(volts, temperatures)
    assert (bms.cell_v_max, bms.cell_v_min) == pytest.approx((3.65, 3.65))
    assert (bms.cell_c_max, bms.cell_c_min) == pytest.approx((25.0, 25.0))
    assert bms.cells_bad == 2
    assert not bms.plausible


def test_a_rack_without_any_measurement_is_not_plausible() -> None:
    nothing = np.full((STRINGS, CELLS), np.nan)
    bms = reduced(nothing, nothing)
    assert bms.cells_bad == 1200
    assert np.isnan(bms.cell_v_max)
    assert not bms.plausible


@pytest.mark.parametrize(("string_v", "plausible"), [(1095 * 1.02 + 2.9, True), (1095 * 1.02 + 3.1, False)])
def test_a_string_voltage_must_be_the_sum_of_its_cells(string_v: float, plausible: bool) -> None:
    assert reduced(*even(), string_v=string_v).plausible is plausible


@pytest.mark.parametrize(("volts", "celsius"), [(5.2, 25.0), (3.65, 121.0), (0.4, 25.0), (3.65, -41.0)])
def test_impossible_extremes_are_not_plausible(volts: float, celsius: float) -> None:
    v, c = even()
    v.flat[5], c.flat[5] = volts, celsius
    assert not reduced(v, c).plausible


def test_a_summary_value_that_was_not_measured_is_not_plausible() -> None:
    bms = reduced(*even(), soc_pct=float("nan"))
    assert np.isnan(bms.soc_max_pct)
    assert not bms.plausible


def test_the_worst_string_counts() -> None:
    polls = string_polls(*even())
    polls[2] = polls[2]._replace(
        values={**polls[2].values, "soc_pct": 60, "charge_limit_a": 10, "alarm_stop": 4, "insulation_kohm": 80}
    )
    bms = reduce(polls, BMS, CELLS, 1)
    assert (bms.soc_pct, bms.soc_max_pct, bms.soc_min_pct) == (52.5, 60, 50)
    assert (bms.charge_max_a, bms.alarm_stop, bms.insulation_kohm) == (40, 4, 80)


def test_cells_of_another_scale_are_published_in_mv() -> None:
    other = replace(BMS, arrays={**BMS.arrays, "cell_v": replace(BMS.arrays["cell_v"], scale=0.0001)})
    volts, temperatures = even()
    polls = [p._replace(cell_v=other.arrays["cell_v"].encode(volts[0])) for p in string_polls(volts, temperatures)]
    assert wire_cells(polls, other)[:4].hex() == struct.pack(">HH", 3650, 3650).hex()


@pytest.mark.parametrize("sentinel", [-1, 0xFFFF])
def test_a_sentinel_of_temperatures_is_bad_and_published_as_not_measured(sentinel: int) -> None:
    other = replace(BMS, arrays={**BMS.arrays, "cell_c": replace(BMS.arrays["cell_c"], sentinels=[sentinel])})
    polls = string_polls(*even())
    polls[0] = polls[0]._replace(cell_c=b"\xff\xff" + polls[0].cell_c[2:])
    cells_c = wire_cells(polls, other)[2 * STRINGS * CELLS :]
    assert cells_c[:4].hex() == "800000fa"
    bms = reduce(polls, other, CELLS, 1)
    assert (bms.cells_bad, bms.plausible) == (1, False)
    assert bms.cell_c_min == pytest.approx(25.0)


def test_a_poll_that_lacks_a_temperature_is_not_plausible() -> None:
    polls = string_polls(*even())
    polls[3] = polls[3]._replace(cell_c=polls[3].cell_c[:-2])
    assert not reduce(polls, BMS, CELLS, 1).plausible


def test_a_heartbeat_that_stands_for_more_than_two_seconds_is_frozen() -> None:
    heart = Heartbeat()
    assert [heart.frozen(7, s) for s in (10.0, 12.0, 12.1)] == [False, False, True]
    assert not heart.frozen(8, 13.0)


def test_reports_are_one_a_change_and_one_reminder_a_minute() -> None:
    told: list[str] = []
    now = [0.0]
    reports = Reports(told.append, lambda: now[0])
    for now[0] in np.arange(0.0, 119.0, 0.5):
        reports.trouble("Timeout", "Timeout")
    assert told == ["Timeout"] * 2
    reports.change("up", "connected")
    assert told[-1] == "connected"


def test_a_flapping_device_cannot_flood_the_event_log() -> None:
    told: list[str] = []
    now = [0.0]
    reports = Reports(told.append, lambda: now[0])
    for now[0] in np.arange(0.0, 59.0, 0.5):
        reports.change("up", "connected")
        reports.change("Timeout", "Timeout")
    assert len(told) == 20


def test_1200_cells_are_polled_ten_times_a_second_and_decoded_right(tmp_path: Path) -> None:
    bms, pcs = rack(), converter()
    hot = np.full(CELLS, 25.0)
    hot[737 - 600] = 47.5
    put_cells(bms, 3, "cell_c", hot)
    balancing = np.zeros(CELLS, np.bool_)
    balancing[[0, 17, 299]] = True
    put_cells(bms, 2, "balancing", balancing)
    with Beating((bms, BMS), (pcs, PCS)), plant(tmp_path, bms, pcs, CELLS) as running:
        wait_until(lambda: running.bms, 2, "first poll")
        first, start = running.links, time.monotonic()
        time.sleep(1.0)
        rate = (running.links.bms_polls - first.bms_polls) / (time.monotonic() - start)
        pcs_rate = (running.links.pcs_polls - first.pcs_polls) / (time.monotonic() - start)
        assert rate == pytest.approx(10, abs=1.1)
        assert pcs_rate > 20
        found = running.bms
        assert found is not None and found.plausible and found.identity_ok
        assert (found.cell_c_max, found.rack_a) == pytest.approx((47.5, 100.0))
        assert (found.cell_c_max_at, found.cells_balancing, found.strings_online) == (737, 3, 4)
        cells = running.cells.read()
        assert cells is not None and len(cells.payload) == 2 * (1200 + 1200 + 4 * 19)
        assert struct.unpack_from(">h", cells.payload, 2 * (1200 + 737))[0] == 475
        assert [w[:2] for w in bms.writes[:4]] == [(unit, 0x2011) for unit in (1, 2, 3, 4)]


def test_the_pcs_is_read_and_told_a_fresh_set_point_within_milliseconds(tmp_path: Path) -> None:
    bms, pcs = rack(1, 30), converter()
    with Beating((bms, BMS), (pcs, PCS)), plant(tmp_path, bms, pcs) as running:
        wait_until(lambda: running.pcs, 2, "first poll")
        found = running.pcs
        assert found is not None
        assert (found.dc_v, found.dc_a, found.ac_w, found.ac_hz) == pytest.approx((1095.2, -12.5, -13000, 50.01))
        assert pcs.writes[0][2][:4] == b"\0\0\0\0"
        waits = []
        for setpoint_a in range(-100, 0):
            running.control(setpoint_a)
            wire = struct.pack(">Hh", 1, setpoint_a * 10)
            waits.append(wait_until(lambda wire=wire: pcs.writes[-1][2][:4] == wire, 1, "set-point"))  # type: ignore[misc]
        assert sorted(waits)[50] < 0.010
        wait_until(lambda: pcs.writes[-1][2][:4] == b"\0\0\0\0", 0.5, "0 A and stop for a controller that is gone")
        running.control(-50)
        wait_until(lambda: pcs.writes[-1][2][:4] == struct.pack(">Hh", 1, -500), 1, "set-point")
    assert pcs.writes[-1][2][:4] == b"\0\0\0\0"


def answering_in_place_of(bank: Bank, change: Callable[[bytes], bytes]) -> Answer:
    """A peer that serves `bank` but changes each answer."""

    def answer(request: bytes) -> bytes:
        each = (frame(*adu) for adu in AduReader().feed(request))
        return b"".join(change(Session(bank, "test", Counters(), lambda error: None).receive(one)[0]) for one in each)

    return answer


LIES = [
    pytest.param(lambda a: b"", "bms_timeouts", "Timeout waiting for response from BMS 127.0.0.1:", id="silent"),
    pytest.param(lambda a: a[:6] + b"\7" + a[7:], "bms_wrong_unit", "answered for unit 7 instead of 1", id="unit"),
    pytest.param(
        lambda a: a if a[7] == 43 else a[:4] + b"\0\5" + a[6:8] + b"\2\0\0",
        "bms_wrong_length",
        "bytes, not",
        id="length",
    ),
    pytest.param(lambda a: b"\xff\xff" + a[2:], "bms_garbage", "transaction 65535", id="transaction"),
    pytest.param(lambda a: b"\xa5" * 40, "bms_garbage", "sent garbage", id="garbage"),
    pytest.param(lambda a: a[:4] + b"\0\3" + a[6:7] + b"\x83\6", "bms_exceptions", "exception 06", id="busy"),
    pytest.param(lambda a: a[: len(a) // 2], "bms_timeouts", "Timeout waiting", id="half an answer"),
    pytest.param(
        lambda a: a.replace(b"BMS-2100", b"BMS-9999"), "bms_wrong_unit", "not OpenBESS BMS-2100", id="identity"
    ),
]


@pytest.mark.parametrize(("change", "counter", "text"), LIES)
def test_a_bms_that_lies_is_counted_and_never_published(
    tmp_path: Path, change: Callable[[bytes], bytes], counter: str, text: str
) -> None:
    def busy_but_named(answer: bytes) -> bytes:
        return answer if counter == "bms_exceptions" and answer[7] == 43 else change(answer)

    bms, pcs = rack(1, 30), converter()
    with (
        liar(answering_in_place_of(bms, busy_but_named)) as port,
        served(pcs) as pcs_server,
        Plant(tmp_path, port, pcs_server.port) as running,
    ):
        wait_until(lambda: getattr(running.links, counter) >= 2, 3, counter)
        wait_until(lambda: any(text in line for line in running.texts), 1, text)
        assert running.bms is None or (running.bms.poll, running.bms.identity_ok) == (0, False)
        assert (running.bms is not None) == (text == "not OpenBESS BMS-2100"), "only a stranger is told of"
        assert not running.links.bms_up
        assert sum(text in line for line in running.texts) == 1


def test_a_bms_that_hangs_goes_stale_comes_back_within_a_second_and_leaves_the_pcs_alone(tmp_path: Path) -> None:
    bms, pcs = rack(1, 30), converter()
    hung = threading.Event()

    def change(answer: bytes) -> bytes:
        return b"" if hung.is_set() else answer

    with (
        Beating((bms, BMS), (pcs, PCS)),
        liar(answering_in_place_of(bms, change)) as port,
        served(pcs) as pcs_server,
        Plant(tmp_path, port, pcs_server.port) as running,
    ):
        wait_until(lambda: running.links.bms_up and running.links.pcs_up, 2, "both up")
        hung.set()
        assert wait_until(lambda: not running.bms_fresh(), 1, "stale") < 0.4
        ages = []
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            ages.append(running.pcs_age_ms())
            time.sleep(0.002)
        assert np.percentile(ages, 99) < 60
        hung.clear()
        assert wait_until(running.bms_fresh, 2, "back") <= 1.0
        wait_until(lambda: sum("BMS" in line for line in running.texts) >= 3, 1, "the connect to be told")
        changes = [line for line in running.texts if "BMS" in line]
        assert [line.split()[0] for line in changes] == ["BMS", "Timeout", "BMS"]
        assert changes[0].endswith("connected: OpenBESS BMS-2100")


def test_a_bms_that_restarts_is_read_again_within_a_second(tmp_path: Path) -> None:
    bms, pcs = rack(1, 30), converter()
    with served(pcs) as pcs_server:
        with served(bms) as first:
            port = first.port
            running = Plant(tmp_path, port, pcs_server.port)
            running.__enter__()
            wait_until(running.bms_fresh, 2, "first poll")
        wait_until(lambda: not running.bms_fresh(), 1, "stale")
        time.sleep(0.7)
        with served(bms, port=port):
            assert wait_until(running.bms_fresh, 2, "back") <= 1.0
            assert running.links.bms_connects == 2
        running.__exit__()


def test_a_device_that_refuses_is_not_cut_off(tmp_path: Path) -> None:
    bms, pcs = rack(1, 30), converter()

    def busy() -> None:
        raise ModbusError(6)

    with Beating((bms, BMS), (pcs, PCS)), plant(tmp_path, bms, pcs) as running:
        wait_until(running.bms_fresh, 2, "first poll")
        bms.fail = busy
        wait_until(lambda: not running.bms_fresh(), 1, "stale")
        bms.fail = lambda: None
        assert wait_until(running.bms_fresh, 1, "back") < 0.3
        assert running.links.bms_connects == 1
        assert running.links.bms_exceptions >= 2


def test_one_string_with_a_frozen_heartbeat_stops_the_whole_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "FROZEN_S", 0.5)
    bms, pcs = rack(2, 30), converter()
    with Beating((bms, BMS), (pcs, PCS)) as beating, plant(tmp_path, bms, pcs) as running:
        wait_until(running.bms_fresh, 2, "first poll")
        beating.frozen.add(2)
        assert 0.5 < wait_until(lambda: not running.bms_fresh(), 4, "stale") < 1.2
        assert running.links.bms_garbage >= 1
        assert any("heartbeat stands still" in line for line in running.texts)
        beating.frozen.clear()
        assert wait_until(running.bms_fresh, 2, "fresh again") < 0.5


def test_a_profile_without_heartbeats_neither_watches_nor_writes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "FROZEN_S", 0.4)
    plain = replace(BMS, heartbeats=Heartbeats())
    bms, pcs = rack(1, 30), converter()
    with (
        served(bms) as bms_server,
        served(pcs) as pcs_server,
        Plant(tmp_path, bms_server.port, pcs_server.port, profile=plain) as running,
    ):
        wait_until(lambda: running.links.bms_polls >= 8, 2, "polls beyond the time-out of a heartbeat")
        assert not bms.writes
        assert running.links.bms_garbage == 0


def test_the_settings_come_from_site_conf(tmp_path: Path) -> None:
    (tmp_path / "site.conf").write_text("bms_host = 10.0.0.7\nbms_port = 5502\nstrings = 2\nmodules_per_string = 3\n")
    settings = settings_of_site(tmp_path)
    assert (settings.bms_host, settings.bms_port, settings.strings, settings.cells_per_string) == (
        "10.0.0.7",
        5502,
        2,
        45,
    )
    assert settings.pcs_profile == PCS


def test_a_pcs_profile_for_the_bms_is_refused(tmp_path: Path) -> None:
    (tmp_path / "site.conf").write_text("bms_profile = pcs_bench\n")
    with pytest.raises(ProfileError, match=r"bms_profile = pcs_bench in site.conf: that is a pcs profile"):
        settings_of_site(tmp_path)


@pytest.mark.system
def test_the_process_says_one_line_publishes_and_ends_on_sigterm(tmp_path: Path) -> None:
    bms, pcs = rack(1, 30), converter()
    environment = {**os.environ, "EMS_RUN_DIR": str(tmp_path), "EMS_CONFIG_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "firmware.aggregator"]
    view = image.View(image.BMS, "aggregator", "bms", tmp_path)
    with served(bms) as bms_server, served(pcs) as pcs_server:
        (tmp_path / "site.conf").write_text(
            f"bms_host = 127.0.0.1\nbms_port = {bms_server.port}\nstrings = 1\nmodules_per_string = 2\n"
            f"pcs_host = 127.0.0.1\npcs_port = {pcs_server.port}\n"
        )
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            wait_until(view.refresh, 5, "first poll")
            second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=10, check=False)
        finally:
            process.terminate()
        _, said = process.communicate(timeout=5)
    assert process.returncode == 0
    assert len(said.splitlines()) == 1 and "1 x 30 cells" in said
    assert (second.returncode, len(second.stderr.splitlines())) == (2, 1)
    assert "already has a writer" in second.stderr
