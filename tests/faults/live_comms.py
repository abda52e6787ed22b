"""Communication faults on the live appliance: BMS, PCS and site controller that are silent, lying, rude or too many."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from pathlib import Path

from appliance import Appliance
from pymodbus.client import ModbusTcpClient
from waiting import wait_until

from drivers.bench.wire import DeviceMode
from firmware.points import PointClient, PointError, Refusal
from firmware.registers import POINT
from statemachine.signals import Mode, StatusBit, Why
from statemachine.states import State

from .live_inputs import stops
from .scenario import Reaction, live
from .stand import Stand

WEATHER_S = 8.0
READ_STATE = struct.pack(">HHHBBHH", 7, 0, 6, 1, 3, POINT["CmfState"].address, 1)


def descriptors(s: Stand, name: str) -> int:
    """Open file descriptors of a process."""
    return len(os.listdir(f"/proc/{s.pid(name)}/fd"))


def rss_kb(s: Stand, name: str) -> int:
    """Resident memory of a process."""
    status = Path(f"/proc/{s.pid(name)}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


@live("C1", quick=True)
def the_bms_falls_silent(s: Stand) -> Reaction:
    reaction = stops(s, "ERR_COMM_LOST", bms_mode=DeviceMode.SILENT)
    s.stamp("Timeout waiting for response", time.monotonic() - 30.0)
    return reaction


@live("C3")
def the_bms_sends_garbage(s: Stand) -> Reaction:
    errors = s.get("BmsErrors")
    reaction = stops(s, "ERR_COMM_LOST", bms_mode=DeviceMode.GARBAGE)
    assert s.get("BmsErrors") > errors, "garbage is counted"
    return reaction


@live("C4")
def the_bms_answers_for_another_unit(s: Stand) -> Reaction:
    errors = s.get("BmsErrors")
    reaction = stops(s, "ERR_COMM_LOST", bms_mode=DeviceMode.WRONG_UNIT)
    assert s.get("BmsErrors") > errors, "the wrong unit is counted"
    return reaction


@live("C8", start="ready", repeats=1)
def a_peer_vanishes_without_a_word_many_times(s: Stand) -> str:
    """The BMS takes requests and never answers: as a half-open connection, the peer acknowledges nothing above TCP."""
    before = descriptors(s, "aggregator")
    since = s.inject(bms_mode=DeviceMode.SILENT)
    s.until(State.FAULT)
    time.sleep(4.0)
    s.inject(bms_mode=DeviceMode.NORMAL)
    back = time.monotonic()
    wait_until(lambda: not int(s.get("StatusBits")) >> StatusBit.BMS_STALE & 1, 10, "BMS data is fresh again")
    ms = (time.monotonic() - back) * 1e3
    assert ms <= 5000.0, f"reconnected after {ms:.0f} ms"
    assert descriptors(s, "aggregator") <= before + 2, "descriptors are flat"
    return f"{time.monotonic() - since:.0f} s of silence, fresh data {ms:.0f} ms after it, descriptors flat"


@live("C2")
def the_bms_answers_busy(s: Stand) -> Reaction:
    return stops(s, "ERR_COMM_LOST", bms_mode=DeviceMode.BUSY)


@live("C9", repeats=1)
def a_gateway_loses_frames(s: Stand) -> str:
    s.inject(bms_lost_pct=5.0, pcs_lost_pct=5.0)
    s.shows("ERR_BMS_LINK_POOR", "ERR_PCS_LINK_POOR")
    s.scans(3000)
    s.charges_on()
    s.inject(bms_lost_pct=60.0, pcs_lost_pct=0.0)
    s.until(State.FAULT)
    s.shows("ERR_COMM_LOST")
    return "5 % of BMS and PCS answers lost for more than 30 s: both links told as poor, charges on; 60 %: FAULT"


@live("C10")
def the_bms_freezes(s: Stand) -> Reaction:
    since = s.inject(bms_mode=DeviceMode.FROZEN)
    s.until(State.FAULT, State.EMERGENCY_STOP)
    ms = min(s.after_ms(since, text, 5) for text in ("-> STOPPING", "-> EMERGENCY_STOP") if s.told(text, since))
    s.open_ms(since, 5)
    return Reaction(ms, s.allowance_ms)


@live("C13", start="ready", repeats=1)
def the_bms_is_slower_than_its_poll(s: Stand) -> str:
    s.inject(bms_mode=DeviceMode.SLOW)
    s.until(State.FAULT)
    first = descriptors(s, "aggregator"), rss_kb(s, "aggregator")
    time.sleep(4.0)
    last = descriptors(s, "aggregator"), rss_kb(s, "aggregator")
    assert last[0] <= first[0] + 1, "polls do not pile up connections"
    assert last[1] < first[1] + 2000, f"nor memory: {first[1]} to {last[1]} kB"
    return f"descriptors {first[0]} to {last[0]}, memory {last[1] - first[1]:+d} kB over 4 s of 400 ms answers"


@live("ERR_PCS_LOST", repeats=1)
def the_pcs_falls_silent(s: Stand) -> Reaction:
    return stops(s, "ERR_PCS_LOST", pcs_mode=DeviceMode.SILENT)


def answered(port: int) -> float:
    """Milliseconds a new client needs for one read."""
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), 5.0) as peer:
        peer.settimeout(5.0)
        peer.sendall(READ_STATE)
        assert len(peer.recv(64)) == 11, "the answer has one register"
    return (time.monotonic() - start) * 1e3


def kept(client: PointClient) -> float:
    """Milliseconds the connected site controller waits for one read."""
    start = time.monotonic()
    client.read("CmfState")
    return (time.monotonic() - start) * 1e3


@live("C17", repeats=1)
def two_hundred_clients_send_half_a_request(s: Stand) -> str:
    port = s.a.ports.EMS_MODBUS_PORT
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", port), 5.0))
            with contextlib.suppress(OSError):
                peer.sendall(READ_STATE[:6])
        worst = max(kept(s.a.site) for _ in range(100))
    wait_until(lambda: served(port), 5, "a new client is served again")
    s.charges_on()
    return f"the connected master waited {worst:.1f} ms at most over 100 reads"


def served(port: int) -> bool:
    """Whether a new client gets an answer."""
    try:
        return answered(port) > 0.0
    except (OSError, AssertionError):
        return False


@live("C18", repeats=1)
def five_hundred_clients_come_and_go(s: Stand) -> str:
    port, before, over = s.a.ports.EMS_MODBUS_PORT, descriptors(s, "server"), s.get("ScanOverruns")
    end, worst, made = time.monotonic() + 5.0, 0.0, 0
    with contextlib.ExitStack() as stack:
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                peer = socket.create_connection(("127.0.0.1", port), 1.0)
                made += 1
                (stack.enter_context(peer) if made < 500 else peer.close())
            if made % 20 == 0:
                worst = max(worst, kept(s.a.site))
    assert worst <= 1000.0, f"the master waited {worst:.0f} ms"
    wait_until(lambda: descriptors(s, "server") <= before + 2, 10, "descriptors of the server fall back")
    s.charges_on()
    missed = s.get("ScanOverruns") - over
    return f"{made} connections in 5 s; the connected master waited {worst:.1f} ms at most; {missed:.0f} scans missed"


@live("C19", repeats=1)
def a_client_that_never_reads(s: Stand) -> str:
    before = rss_kb(s, "server")
    with socket.create_connection(("127.0.0.1", s.a.ports.EMS_MODBUS_PORT), 5.0) as peer:
        peer.settimeout(0.5)
        request = struct.pack(">HHHBBHH", 7, 0, 6, 1, 3, POINT["CmfState"].address, 90)
        sent, end = 0, time.monotonic() + 5.0
        with contextlib.suppress(OSError):
            while time.monotonic() < end:
                sent += peer.send(request * 100)
    grown = rss_kb(s, "server") - before
    assert grown < 4000, f"the server grew by {grown} kB"
    kept(s.a.site)
    s.charges_on()
    return f"closed after {sent // 12} unread requests, server {grown:+d} kB"


@live("C21", repeats=1)
def a_storm_of_writes(s: Stand) -> str:
    """Valid commands as fast as one client can send them; the last one is in force."""
    before, over = written_bytes(s), s.get("ScanOverruns")
    end, count, taken, seq = time.monotonic() + 8.0, 0, 0, int(s.get("CmdSeq"))
    while time.monotonic() < end:
        count += 1
        rate = 0.2 + (count % 5) * 0.01
        command = {"CmdSeq": seq + count, "CmdMode": Mode.CHARGE, "CmdW": 0.0, "CmdRamp": rate, "CmdTgtSoC": 95.0}
        try:
            s.a.site.write(command)
            taken = count
        except Refusal as refusal:
            assert refusal.code == 6, refusal
            wait_until(lambda: s.get("AckWhy") == Why.TOO_MANY_WRITES, 1, "the reason")
    wait_until(lambda: s.get("AckSeq") == seq + taken, 5, "the last command that was taken is in force")
    s.charges_on()
    log_bytes = written_bytes(s) - before
    missed = s.get("ScanOverruns") - over
    return f"{count / 8.0:.0f} commands/s, the last taken in force; {log_bytes} bytes logged, {missed:.0f} scans missed"


def written_bytes(s: Stand) -> int:
    """Bytes the historian has written."""
    return int(Path(f"/proc/{s.pid('historian')}/io").read_text().partition("wchar: ")[2].split()[0])


@live("C22")
def the_site_controllers_heartbeat_stops(s: Stand) -> Reaction:
    s.a.site.write({"HbTmo": 2})
    since = time.monotonic()
    s.a.site.write({"CtrlHb": int(since) & 0xFFF | 1})
    try:
        ms = s.after_ms(since, "HEARTBEAT of the site controller lost", 10)
        wait_until(lambda: abs(s.truth("true_current_a")) < 1.0, 20, "the current is ramped to zero")
        assert s.state() is State.READY
        s.a.site.write({"CtrlHb": int(since) + 1 & 0xFFF | 1})
        s.scans(100)
        assert s.state() is State.READY, "traffic alone does not restart"
    finally:
        s.command(Mode.OFF)
        s.a.site.write({"HbTmo": 300})
    return Reaction(ms)


@live("C23", repeats=1)
def bad_weather_between_site_and_appliance(s: Stand) -> str:
    """A wire that holds each segment for 0 to 200 ms and breaks one in twenty connections, with a heartbeat on it."""
    with Wire(s.a) as wire, PointClient("127.0.0.1", wire.port, POINT, timeout_s=2.0) as far:
        beats = lost = 0
        s.a.site.write({"HbTmo": 5})
        end = time.monotonic() + WEATHER_S
        while time.monotonic() < end:
            try:
                far.write({"CtrlHb": beats % 60000 + 1})
                beats += 1
            except PointError:
                lost += 1
        s.charges_on()
    s.command(Mode.OFF)
    s.a.site.write({"HbTmo": 300})
    assert beats and not s.told("HEARTBEAT of the site controller lost", end - WEATHER_S)
    return f"{beats} heartbeats arrived, {lost} were lost with their connection: nothing tripped"


class Wire:
    """A TCP wire to the appliance with weather in it."""

    def __init__(self, a: Appliance) -> None:
        self._to = ("127.0.0.1", a.ports.EMS_MODBUS_PORT)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._count = 0

    def __enter__(self) -> Wire:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._to, 2.0)
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError), one, other:
            while data := one.recv(4096):
                self._count += 1
                time.sleep(self._count * 37 % 200 / 1000.0)
                if self._count % 20 == 0:
                    one.shutdown(socket.SHUT_RDWR)
                    return
                other.sendall(data)


@live("O6", repeats=1)
def two_masters_write(s: Stand) -> str:
    """The second one, at another address, is refused with the reason; only its stop is taken."""
    other = ModbusTcpClient("127.0.0.1", port=s.a.ports.EMS_MODBUS_PORT, source_address=("127.0.0.2", 0), retries=0)
    seq = int(s.get("CmdSeq"))

    def write(mode: Mode) -> int:
        block = [(seq + 1) >> 16, (seq + 1) & 0xFFFF, mode]
        return int(getattr(other.write_registers(POINT["CmdSeq"].address, block, device_id=1), "exception_code", 0))

    assert other.connect()  # type: ignore[no-untyped-call]
    assert write(Mode.DISCHARGE) == 4
    assert s.get("AckWhy") == Why.NOT_IN_AUTHORITY
    s.charges_on()
    assert write(Mode.OFF) == 0
    s.until(State.STOPPING, State.ISOLATED)
    with contextlib.suppress(PointError):
        s.a.site.write({"CmdSeq": seq + 1, "CmdMode": Mode.CHARGE})
    s.until(State.ISOLATED)
    other.close()  # type: ignore[no-untyped-call]
    return "a second master is refused with the reason, its stop stops"
