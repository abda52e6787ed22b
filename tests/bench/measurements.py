"""The measurements: each drives a running appliance and yields rows, ours beside the yardstick's of the same time."""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from appliance import Appliance, free_ports
from sunspec2.modbus.client import SunSpecModbusClientDeviceTCP
from waiting import wait_until

from drivers.bench.plant import ALIVE_NS, OPEN_NS
from drivers.board_file import GUARD_TICK_MS
from drivers.modbus.client import Link
from drivers.modbus.server import StrictServer
from drivers.profile import load as load_profile
from drivers.ring import RingReader
from firmware import image
from firmware.config import Site
from firmware.controller import PRIORITY
from firmware.freeze_frame import FRAME, RING_FILE, RING_SLOTS
from firmware.guard import PRIORITY as GUARD_PRIORITY
from firmware.models.string_units import FIRST_UNIT
from firmware.registers import BASE, END, POINT
from statemachine.signals import InterlockBit, LimitReason, Mode, Why
from statemachine.states import CHARGING, State

from .yardsticks import (
    LEAST,
    Burst,
    Cyclictest,
    Latencies,
    Missing,
    Spread,
    burst,
    least_server,
    load,
    modbus_server,
    polls,
    raised,
    spread,
)

LIMIT: int = signature(StrictServer).parameters["max_connections"].default
"""Connections that the appliance takes."""
CLIENTS = (1, 8, min(32, LIMIT))
REGISTERS = 125
_READ = (BASE + 400, REGISTERS)
YARDSTICKS = ("libmodbus", "pymodbus", "pyModbusTCP", LEAST)
BURST_PAUSE_S = 0.45
"""After a burst at real-time priority: the rest of the machine, starved meanwhile, catches up."""
_STEP_C = 0.001
_ANSWER_P50_US, _ANSWER_P99_US = 5900, 10_500
_POLL_RATIO = 1.5
_BARE = "bare libmodbus server that copies it in a scan of the same period, by turns"
_SITE = Site()
_UNITS = range(FIRST_UNIT, FIRST_UNIT + _SITE.strings)


class Plan(NamedTuple):
    """How much is measured."""

    window_s: float  # of charging
    rate_c: float
    trials: int  # of write to output
    presses: int  # of the kill-switch
    kills: int  # of controller and guard each; the runner gives up after more than 5 a minute
    rounds: int  # BMS polls
    repeats: int  # of each server and number of clients
    burst_s: float


FULL = Plan(60.0, 0.5, 300, 60, 5, 200, 5, 0.65)
WITHOUT_MINUTE = FULL._replace(window_s=30.0)
QUICK = Plan(10.0, 0.2, 60, 12, 1, 50, 2, 0.3)


class Row(NamedTuple):
    """One line of the report."""

    what: str
    ours: str
    against: str
    theirs: str
    ratio: str
    asked: str = ""  # and whether it was met


def asked(what: str, met: bool) -> str:
    return f"{what}: {'met' if met else '**not met**'}"


def _us(s: Spread) -> str:
    return f"p50 {s.p50:.0f}, p99 {s.p99:.0f} us"


def compared(what: str, ours: Spread, against: str, theirs: Spread | None, skipped: str = "", asked: str = "") -> Row:
    """A row of two spreads; without `theirs` it says why."""
    counted = f"{_us(ours)} (n = {ours.n})"
    if theirs is None:
        return Row(what, counted, against, f"skipped: {skipped}", "", asked)
    ratio = f"x{ours.p50 / theirs.p50:.2f}, x{ours.p99 / theirs.p99:.2f}"
    return Row(what, counted, against, _us(theirs), ratio, asked)


def charging(a: Appliance, plan: Plan) -> Iterator[Row]:
    """Normal charging, from the first scans on: scan wake, missed deadlines, execution time, poll rates."""
    period_us = int(a.get("ScanPeriodUs"))
    with Cyclictest(PRIORITY + 1, period_us, _core(a)) as yardstick:
        first = _scans(a)
        a.until(State.ISOLATED)
        a.command(Mode.CHARGE, plan.rate_c, 80.0)
        a.until(*CHARGING)
        polls_before, began_s = a.site.read("BmsPolls", "PcsPolls"), time.monotonic()
        time.sleep(plan.window_s)
        polls_after, lasted_s = a.site.read("BmsPolls", "PcsPolls"), time.monotonic() - began_s
        last = _scans(a)
    assert a.state() in CHARGING, f"the charge did not last: {_condition(a)}"
    yield from _scan_rows(first, last, yardstick)
    exec_p50, exec_p99 = last["ScanExecP50us"], last["ScanExecP99us"]
    shares = f"{exec_p50 / period_us:.1%}, {exec_p99 / period_us:.1%}"
    yield Row("scan execution time", f"p50 {exec_p50}, p99 {exec_p99} us", "scan period", f"{period_us} us", shares)
    for what, name, period_ms in (
        ("polls of 1,200 cells", "BmsPolls", _SITE.bms_poll_ms), ("PCS polls", "PcsPolls", _SITE.pcs_poll_ms),
    ):  # fmt: skip
        per_s, wanted = (polls_after[name] - polls_before[name]) / lasted_s, 1000 / period_ms
        what = f"{what} over {lasted_s:.0f} s of charging"
        yield Row(what, f"{per_s:.2f} /s", "period in site.conf", f"{wanted:.2f} /s", f"x{per_s / wanted:.3f}")


def _condition(a: Appliance) -> str:
    return f"{a.state()!r}, faults {a.faults()}"


def _core(a: Appliance) -> int:
    return min(os.sched_getaffinity(a.pid("controller")))


def _scans(a: Appliance) -> dict[str, int]:
    names = [name for name in POINT if name.startswith("Scan")]
    return {name: int(value) for name, value in a.site.read(*names).items()}


def _scan_rows(first: dict[str, int], last: dict[str, int], yardstick: Cyclictest) -> Iterator[Row]:
    scans, missed = (last[name] - first[name] for name in ("ScanCount", "ScanOverruns"))
    seen, longest = yardstick.seen, last["ScanWakeMaxus"]
    wake = Spread(last["ScanWakeP50us"], last["ScanWakeP99us"], scans)
    yield compared("scan wake latency", wake, yardstick.name, seen and seen.spread, yardstick.missing)
    ours = f"{missed} of {scans}"
    if seen is None:
        yield Row("missed deadlines", ours, yardstick.name, f"skipped: {yardstick.missing}", "")
        return
    times = f"x{longest / max(1, seen.longest):.2f}"
    yield Row("longest scan wake latency", f"{longest} us", yardstick.name, f"{seen.longest} us", times)
    yield _missed("missed deadlines", missed, scans, yardstick, seen)


def _missed(what: str, missed: int, scans: int, yardstick: Cyclictest, seen: Latencies) -> Row:
    above = f"{yardstick.name}, latencies above the period"
    ratio, met = f"{missed} against {seen.late}", missed <= seen.late
    late = f"{seen.late} of {seen.spread.n}"
    return Row(what, f"{missed} of {scans}", above, late, ratio, asked("not more than cyclictest", met))


def writes(a: Appliance, plan: Plan) -> Iterator[Row]:
    """While it charges steadily: a register written until its effect is read over Modbus, at random phases."""
    steady = LimitReason.COMMAND
    wait_until(lambda: a.get("LimReason") == steady, 60, lambda: f"the commanded rate is reached; {_condition(a)}")
    yield from _reactions(a, plan.trials, "")


def writes_under_load(a: Appliance, plan: Plan) -> Iterator[Row]:
    """The same while all other connections ask for registers in a closed loop; and what that does to the scan."""
    first, period_us = _scans(a), int(a.get("ScanPeriodUs"))
    frames = _frames(a)
    loaded = f", {LIMIT} clients load the server"
    with Cyclictest(PRIORITY + 1, period_us, _core(a)) as yardstick:
        try:
            yield from _reactions(a, plan.trials // 2, loaded)
        except Missing as missing:
            yield Row("write to output under load", "", "load generator", f"skipped: {missing}", "")
            return
        last = _scans(a)
    scans, missed = (last[name] - first[name] for name in ("ScanCount", "ScanOverruns"))
    seen, wake = yardstick.seen, _wakes(frames, period_us)
    what = f"scan wake latency above the shortest{loaded}"
    yield compared(what, wake, yardstick.name, seen and seen.spread, yardstick.missing)
    if seen is not None:
        yield _missed(f"missed deadlines{loaded}", missed, scans, yardstick, seen)


def _frames(a: Appliance) -> RingReader:
    """The controller's scans from now on, the last ten seconds at most."""
    ring = RingReader(_run_directory(a) / RING_FILE, RING_SLOTS, FRAME.size)
    list(ring.new())
    return ring


def _wakes(ring: RingReader, period_us: int) -> Spread:
    """How much later than the earliest the scans woke, all deadlines being whole periods apart."""
    frames = [FRAME.unpack(data) for _, data in ring.new()]
    woke_us = [before.monotonic_ns / 1e3 - after.exec_us for before, after in pairwise(frames)]
    middle = statistics.median(us % period_us for us in woke_us)
    around = [(us - middle + period_us / 2) % period_us for us in woke_us]
    return spread([us - min(around) for us in around])


def _reactions(a: Appliance, trials: int, loaded: str) -> Iterator[Row]:
    """Without load the first beside a bare scan, by turns."""
    first, period_us, rate_c = int(a.get("CmdSeq")), a.get("ScanPeriodUs"), a.get("CmdRamp")
    a.site.close()  # every connection counts
    with ExitStack() as during:
        bare = None if loaded else _bare_scan(during, int(period_us), _core(a))
        if loaded:
            during.enter_context(load(a.ports.EMS_MODBUS_PORT, *_READ, LIMIT - 1))
        during.enter_context(raised())
        site, pcs = (during.enter_context(_connected(p)) for p in (a.ports.EMS_MODBUS_PORT, a.ports.EMS_PCS_PORT))
        profile = load_profile(_SITE.pcs_profile)
        setpoint = partial(pcs.read, profile.first_unit, profile.points["setpoint_a"].address, 1)

        def lower(trial: int) -> float:
            rate, before = POINT["CmdRamp"].encode(rate_c - trial * _STEP_C), setpoint()
            return reaction(lambda: site.write(1, POINT["CmdRamp"].address, rate), lambda: setpoint() != before)

        answered, copied, trip_us = list[float](), list[float](), _trip_us(partial(_acknowledged, site))
        for number, us in enumerate(_phases(trials, period_us), 1):
            wanted = (first + number).to_bytes(4, "big")
            answered.append(_later(us, partial(_answer, site, wanted)))
            if bare is not None:
                copied.append(_later(us, partial(_answer, bare, wanted)))
        ours = spread(answered)
        met = ours.p50 <= _ANSWER_P50_US and ours.p99 <= _ANSWER_P99_US
        wanted_us = asked(f"p50 <= {_ANSWER_P50_US}, p99 <= {_ANSWER_P99_US} us", met)
        against, expected = (_BARE, spread(copied)) if bare is not None else _least(period_us, trip_us)
        yield compared(f"CmdSeq written to AckSeq read{loaded}", ours, against, expected, asked=wanted_us)

        trip_us = _trip_us(setpoint)
        ours = spread([_later(us, partial(lower, number)) for number, us in enumerate(_phases(trials, period_us), 1)])
        most_us = 2 * period_us + trip_us
        wanted_us = asked(f"p99 <= 2 scan periods + one PCS request = {most_us:.0f} us", ours.p99 <= most_us)
        what = f"CmdRamp written to set-point read at the PCS{loaded}"
        yield compared(what, ours, *_least(period_us, trip_us), asked=wanted_us)


def _bare_scan(during: ExitStack, period_us: int, core: int) -> Link | None:
    """A libmodbus server that copies CmdSeq to AckSeq in a scan of the same period, on the same core."""
    port, points = free_ports().EMS_MODBUS_PORT, (POINT["CmdSeq"].address, POINT["AckSeq"].address)
    try:
        during.enter_context(modbus_server("libmodbus", port, BASE, END - BASE, period_us, core, *points))
    except Missing:
        return None
    return during.enter_context(_connected(port))


def _least(period_us: float, trip_us: float) -> tuple[str, Spread]:
    against = f"half and whole scan period + round trip of {trip_us:.0f} us"
    return against, Spread(period_us / 2 + trip_us, period_us + trip_us, 0)


def _trip_us(read: Callable[[], object]) -> float:
    return statistics.median([_duration_us(read) for _ in range(100)])


def _acknowledged(link: Link) -> bytes:
    return link.read(1, POINT["AckSeq"].address, 2)


def _answer(link: Link, wanted: bytes) -> float:
    """Us from CmdSeq written until AckSeq is the same."""
    return reaction(lambda: link.write(1, POINT["CmdSeq"].address, wanted), lambda: _acknowledged(link) == wanted)


@contextmanager
def _connected(port: int) -> Iterator[Link]:
    link = Link("127.0.0.1", port, 1.0)
    link.connect()
    try:
        yield link
    finally:
        link.close()


def _duration_us(act: Callable[[], object]) -> float:
    began_ns = time.monotonic_ns()
    act()
    return (time.monotonic_ns() - began_ns) / 1e3


def reaction(act: Callable[[], None], seen: Callable[[], bool]) -> float:
    """Microseconds from the begin of `act` until `seen` is true."""

    def until_seen() -> None:
        act()
        end_s = time.monotonic() + 2.0
        while not seen():
            assert time.monotonic() < end_s, "a written register has no effect within 2 s"

    return _duration_us(until_seen)


def _phases(trials: int, period_us: float) -> list[float]:
    """Evenly over the period, in random order: of 300 phases drawn freely the median alone is 300 us off."""
    phases = [(n + random.random()) / trials * period_us for n in range(trials)]
    random.shuffle(phases)
    return phases


def _later(us: float, trial: Callable[[], float]) -> float:
    time.sleep(us / 1e6)
    return trial()


def kill_switch(a: Appliance, plan: Plan) -> Iterator[Row]:
    """Presses with open contactors; the bench stamps the edge, the guard's terminal stamps safe-enable."""
    a.command(Mode.OFF)
    a.until(State.ISOLATED)
    with Cyclictest(GUARD_PRIORITY, round(GUARD_TICK_MS * 1000), _core(a)) as yardstick:
        measured = spread([_press(a) for _ in range(plan.presses)])
    theirs = yardstick.seen and yardstick.seen.spread
    yield compared("kill-switch edge to safe-enable off", measured, yardstick.name, theirs, yardstick.missing)
    _acknowledge(a)


def _press(a: Appliance) -> float:
    def shown(bit: InterlockBit) -> bool:
        return bool(int(a.get("Interlocks")) >> bit & 1)

    time.sleep(random.uniform(0.0, 0.01))
    a.inject(kill_switch=1)
    wait_until(lambda: not shown(InterlockBit.KILL_OK), 5, "the controller sees the kill-switch")
    wait_until(lambda: a.truth("true_safe_enable") == 0, 5, "safe-enable drops")
    took_us = a.truth("true_edge_to_safe_us")
    a.inject(kill_switch=0, reset_button=1)
    a.inject(reset_button=0)
    wait_until(lambda: shown(InterlockBit.RESET_PRESSED), 5, "the reset button is down")
    wait_until(lambda: not shown(InterlockBit.RESET_PRESSED), 5, "the reset button is up")
    wait_until(lambda: a.truth("true_safe_enable") == 1, 5, "the guard is armed again")
    return took_us


def _acknowledge(a: Appliance) -> None:
    def isolated() -> bool:
        a.site.write({"AckFaults": 1})
        return a.state() is State.ISOLATED

    wait_until(isolated, 10, lambda: f"ISOLATED after the kill-switch; {_condition(a)}", pause_s=0.1)


def deaths(a: Appliance, plan: Plan) -> Iterator[Row]:
    """kill -9 under charge: the controller until the guard's store, the guard until the true contactors are open."""
    period_us = a.get("ScanPeriodUs")
    events = image.EventReader("guard", _run_directory(a))
    list(events.new())
    measured = [_controller_killed(a, events) for _ in range(plan.kills)]
    three = Spread(3 * period_us, 3 * period_us, 0)
    yield compared("kill -9 of the controller to safe-enable off", spread(measured), "three scan periods", three)
    measured = [_guard_killed(a) for _ in range(plan.kills)]
    relay_us = ALIVE_NS / 1e3 + OPEN_NS / 1e3
    bound = Spread(relay_us, relay_us, 0)
    yield compared(
        "kill -9 of the guard to contactors open", spread(measured), "relay's 100 ms + contactor's 20 ms", bound
    )


def _controller_killed(a: Appliance, events: image.EventReader) -> float:
    _charging_again(a)
    list(events.new())
    time.sleep(random.uniform(0.0, 0.01))
    began_ns = time.monotonic_ns()
    os.kill(a.pid("controller"), signal.SIGKILL)
    found: list[image.Event] = []

    def dropped() -> bool:
        found.extend(events.new())
        return bool(found)

    wait_until(dropped, 5, "the guard drops safe-enable")
    return (found[0].monotonic_ns - began_ns) / 1e3


def _guard_killed(a: Appliance) -> float:
    _charging_again(a)

    def kill() -> None:
        os.kill(a.pid("guard"), signal.SIGKILL)
        wait_until(a.all_open, 5, "the contactors open")

    return _duration_us(kill)


def _charging_again(a: Appliance) -> None:
    """The technician's way back: reset, acknowledge, a new command."""

    def isolated() -> bool:
        if a.state() is State.ISOLATED:
            return a.get("Permit") == Why.NONE
        a.inject(reset_button=1)
        a.inject(reset_button=0)
        a.site.write({"AckFaults": 1})
        return False

    wait_until(isolated, 30, "ISOLATED after reset and acknowledge", pause_s=0.4)
    a.command(Mode.CHARGE, 0.02, 80.0)
    a.until(*CHARGING)


def _run_directory(a: Appliance) -> Path:
    environment = Path(f"/proc/{a.pid('aggregator')}/environ").read_bytes().split(b"\0")
    return Path(next(v[12:].decode() for v in environment if v.startswith(b"EMS_RUN_DIR=")))


def bms_poll(a: Appliance, plan: Plan) -> Iterator[Row]:
    """The aggregator's polls beside the same requests by a bare libmodbus client, half a period apart."""
    directory = _run_directory(a)
    what, against = "poll of 1,200 cells", f"bare libmodbus client, same {len(_requests())} requests, same bench"
    with ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(_polls_between, a.ports.EMS_BMS_PORT, directory, plan.rounds)
        ours = spread(_own_polls(directory, theirs, _SITE.bms_poll_ms / 1000 * plan.rounds))
        try:
            bare = spread(theirs.result())
            wanted = asked(f"<= {_POLL_RATIO}", ours.p50 <= _POLL_RATIO * bare.p50)
            yield compared(what, ours, against, bare, asked=wanted)
        except Missing as missing:
            yield compared(what, ours, against, None, str(missing))


def _requests() -> list[tuple[int, int, int]]:
    """What the aggregator reads in one poll."""
    profile = load_profile(_SITE.bms_profile)
    cells = _SITE.modules_per_string * _SITE.cells_per_module
    units = [profile.unit(string) for string in range(_SITE.strings)]
    summary = profile.blocks(name for name, point in profile.points.items() if point.access == "R")
    arrays = [block for name in ("cell_v", "cell_c", "balancing") for block in profile.arrays[name].blocks(cells)]
    summaries = [(unit, block.address, block.count) for unit in units for block in summary]
    return summaries + [(unit, address, count) for unit in units for address, count in arrays]


def _polls_between(port: int, directory: Path, rounds: int) -> list[float]:
    """libmodbus in the middle between two polls of the aggregator, whose schedule is absolute."""
    found = image.reader("aggregator", "bms", directory).read()
    assert found is not None
    period_us = int(1000 * _SITE.bms_poll_ms)
    start_ns = found.stamp_ns + period_us * 5_500
    return [float(us) for us in polls(port, _requests(), start_ns, period_us, rounds)]


def _own_polls(directory: Path, others: Future[list[float]], at_least_s: float) -> list[float]:
    """BmsPollUs of every poll seen while the other client works."""
    links, samples, seen, end_s = image.View(image.LINKS, "aggregator", "links", directory), [], 0, 0.0
    end_s = time.monotonic() + at_least_s
    while time.monotonic() < end_s or not others.done():
        now = links.refresh()
        if now is not None and now.bms_polls != seen:
            seen = now.bms_polls
            samples.append(float(now.bms_poll_us))
        time.sleep(0.02)
    return samples


def cells_by_sunspec(a: Appliance, plan: Plan) -> Iterator[Row]:
    """Every cell by an independent SunSpec client, which has scanned before, and the bare requests beside it."""
    devices = [
        SunSpecModbusClientDeviceTCP(unit, ipaddr="127.0.0.1", ipport=a.ports.EMS_MODBUS_PORT) for unit in _UNITS
    ]
    for device in devices:
        device.scan()
    models = [(device, model) for device in devices for model in device.models[805]]
    rounds = max(5, plan.rounds // 10)

    def read() -> None:
        for _, model in models:
            model.read()

    ours = spread([_duration_us(read) for _ in range(rounds)])
    cells = sum(len(model.groups[name]) for _, model in models for name in model.groups)
    for device in devices:
        device.close()
    requests = [(device.slave_id, model.model_addr, 2 + model.len) for device, model in models]
    what, against = f"{cells:,} cells read by pysunspec2", f"bare libmodbus client, same {len(requests)} requests"
    try:
        bare = polls(a.ports.EMS_MODBUS_PORT, requests, time.monotonic_ns(), 20_000, rounds)
        yield compared(what, ours, against, spread(bare))
    except Missing as missing:
        yield compared(what, ours, against, None, str(missing))


def throughput(a: Appliance, plan: Plan) -> Iterator[Row]:
    """Requests a second in a closed loop, in bursts that alternate between the servers."""
    a.site.close()
    cores, own = _apart(_core(a)), (a.pid("server"), a.ports.EMS_MODBUS_PORT)
    with ExitStack() as running:
        others: dict[str, tuple[int, int]] = {}
        for name in YARDSTICKS:
            port = free_ports().EMS_MODBUS_PORT
            try:
                others[name] = running.enter_context(_yardstick(name, port)), port
            except Missing as missing:
                yield Row("Modbus requests a second", "", name, f"skipped: {missing}", "")
        for clients in CLIENTS:
            what = f"FC3 x {REGISTERS}, {clients} client{'s' * (clients > 1)}{', its limit' * (clients == LIMIT)}"
            rounds = [
                [_burst(*at, clients, plan, cores) for at in (own, *others.values())] for _ in range(plan.repeats)
            ]
            ours, *all_theirs = (_middle(side) for side in zip(*rounds, strict=True))
            least = all_theirs[list(others).index(LEAST)] if LEAST in others else None
            for name, theirs in zip(others, all_theirs, strict=True):
                against, wanted = f"{name} server, same load, medians of {plan.repeats}", _wanted(name, clients)
                met = asked(f">= {wanted:g}", ours.per_s >= wanted * theirs.per_s) if wanted else ""
                if wanted and least:
                    met += f" ({LEAST}: x{least.per_s / theirs.per_s:.2f})"
                yield Row(what, _told(ours), against, _told(theirs), _ratio(ours, theirs), met)


def _yardstick(name: str, port: int) -> AbstractContextManager[int]:
    return least_server(port, REGISTERS) if name == LEAST else modbus_server(name, port, BASE, END - BASE)


def _wanted(yardstick: str, clients: int) -> float:
    """How many times the yardstick's requests a second are asked of us; 0 when nothing is."""
    if yardstick == "libmodbus":
        return 0.9
    return 12.0 if yardstick == "pymodbus" and clients > 1 else 0.0


def _apart(scan_core: int) -> tuple[int, int]:
    """Cores of server and load generator: never the same, and the scan's only when there is no other."""
    others = sorted(os.sched_getaffinity(0) - {scan_core}) or [scan_core]
    return others[0], others[1] if len(others) > 1 else scan_core


def _burst(pid: int, port: int, clients: int, plan: Plan, cores: tuple[int, int]) -> Burst:
    time.sleep(BURST_PAUSE_S)
    return burst(pid, port, *_READ, clients, plan.burst_s, cores)


def _middle(bursts: tuple[Burst, ...]) -> Burst:
    return Burst(*map(statistics.median, zip(*bursts, strict=True)))


def _told(b: Burst) -> str:
    return f"{b.per_s:.0f} /s, p50 {b.p50_us:.0f}, p99 {b.p99_us:.0f} us, server CPU {b.cpu_us:.1f} us"


def _ratio(ours: Burst, theirs: Burst) -> str:
    return f"x{ours.per_s / theirs.per_s:.2f} /s, CPU x{ours.cpu_us / max(0.1, theirs.cpu_us):.1f}"
