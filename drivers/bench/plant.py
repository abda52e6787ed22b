"""The simulated plant in real time: contactors, precharge, DC link, PCS, meters, and the guard's wiring.

`Plant.tick` moves it to a time; only the cells run faster, by `speed`. A tick may come late: nothing is judged by when
the bench looked, only by the stamps that the other processes left, and never more than `MAX_TICK_S` is made up for.
Currents in ampere, + is discharge.
"""

from __future__ import annotations

import math
import random
from typing import Protocol

from .loops import Sampler
from .rack import Rack

CLOSE_NS, OPEN_NS = 30_000_000, 20_000_000
PRESS_NS = 200_000_000
"""No thumb presses a button for less, however fast a client writes 1 and 0."""
ALIVE_NS = 100_000_000
"""The retriggerable relay falls out this long after the last toggle of `alive`."""
MAX_TICK_S = 0.05

PRECHARGE_OHM, DC_LINK_F = 150.0, 5e-3
BLEED_TAU_S = 30.0
CONNECTION_OHM = 0.5e-3
PCS_TAU_S, PCS_RAMP_A_S = 0.05, 2000.0
PCS_WATCHDOG_S = 1.0
PCS_RATED_A = 1250.0
PCS_EFFICIENCY = 0.985
BREAK_A = 20.0
"""Mains opened above this current count as opened under load."""

PCS_GAIN, BMS_GAIN = 1.0005, 0.9997
VOLT_NOISE, CURRENT_NOISE = 0.05, 0.2

INSULATION_KOHM, GROUND_FAULT_KOHM = 2000.0, 10.0
COILS = ("neg", "pos", "pre")


class Wiring(Protocol):
    """What the plant is wired to: the terminals."""

    def set_input(self, name: str, level: bool) -> None: ...
    def set_loops(self, microampere: tuple[int, ...], stamp_ns: int) -> None: ...
    def output(self, name: str) -> tuple[int, int]: ...
    def hold_output(self, name: str, hold: bool) -> None: ...
    def held_output(self, name: str) -> bool: ...


class Contactor:
    """Closes 30 ms after its coil is energised, opens 20 ms after; stuck does not close, welded does not open.

    Dropped is without coil current, whatever the coil supply does.
    """

    def __init__(self) -> None:
        self.closed = self.energised = self.welded = self.stuck = self.dropped = False
        self.close_ns, self.open_ns = CLOSE_NS, OPEN_NS
        self._since_ns = 0

    def tick(self, energised: bool, now_ns: int) -> None:
        """Moves the armature."""
        energised = energised and not self.dropped
        if energised != self.energised:
            self.energised, self._since_ns = energised, now_ns
        delay_ns = self.close_ns if energised else self.open_ns
        held = self.stuck if energised else self.welded
        if energised != self.closed and not held and now_ns - self._since_ns >= delay_ns:
            self.closed = energised


class Pcs:
    """Follows a current set-point while it runs, is connected and its own watchdog sees the EMS heartbeat change."""

    STANDBY, RUN, FAULT = 1, 2, 3

    def __init__(self) -> None:
        self.run = False
        self.setpoint_a = 0.0
        self.charge_limit_a = self.discharge_limit_a = PCS_RATED_A
        self.current_a = 0.0
        self.connected = False
        self.fault_bits = 0  # any: it carries nothing
        self.follow_pct = 100.0  # share of the set-point that it works towards
        self._silent_s = math.inf

    @property
    def state(self) -> int:
        """RUN when it may carry current, else STANDBY; its control supply is not the rack."""
        if self.fault_bits:
            return Pcs.FAULT
        return Pcs.RUN if self.run and self.connected else Pcs.STANDBY

    def heartbeat(self) -> None:
        """The EMS heartbeat has changed."""
        self._silent_s = 0.0

    def demand_a(self) -> float:
        """What it works towards."""
        if not self.run or self.fault_bits or self._silent_s > PCS_WATCHDOG_S:
            return 0.0
        return min(self.discharge_limit_a, max(-self.charge_limit_a, self.setpoint_a)) * self.follow_pct / 100.0

    def tick(self, connected: bool, dt_s: float) -> None:
        """First-order lag behind a ramp limit; at once 0 A when the DC side is lost."""
        self._silent_s += dt_s
        self.connected = connected
        if not connected:
            self.current_a = 0.0
            return
        change_a = (self.demand_a() - self.current_a) * -math.expm1(-dt_s / PCS_TAU_S)
        most_a = PCS_RAMP_A_S * dt_s
        self.current_a += min(most_a, max(-most_a, change_a))


class Plant:
    """Everything behind the terminals. Faults and settings are plain attributes; the control server sets them."""

    def __init__(self, rack: Rack, wiring: Wiring, now_ns: int, speed: float = 1.0) -> None:
        self.rack, self.wiring, self.speed = rack, wiring, speed
        self.pcs = Pcs()
        self.contactors = {name: Contactor() for name in COILS}
        self.interlocks = [True] * 8
        self.sampler = Sampler()
        self.chatter_interlock, self.chatter_period_ms, self.chatter_open_ms = 0, 100.0, 10.0
        self.supply_24v_lost = False
        self.insulation_set_kohm = INSULATION_KOHM
        self.kill_pressed = self.tamper_open = self.reset_pressed = self.ground_fault = self.key_local = False
        self.dv_offset_v = self.bms_offset_v = self.bms_offset_a = self.pcs_offset_a = 0.0
        self.pcs_gain = 1.0
        self.pcs_forced_v = 0.0  # what its DC voltmeter shows, 0 = the voltage
        self.grid_hz, self.grid_v = 50.0, 400.0  # line to line
        self.dc_link_v = 0.0
        self.rack_a = 0.0
        self.alive_relay = self.safe_enable = False
        self.opened_under_load, self.opened_at_a, self.closed_at_dv_v = 0, 0.0, 0.0
        self.edge_to_safe_us = math.nan
        self._kill_edge_ns = 0
        self._now_ns = now_ns
        self._charge_as = self._cells_due_s = 0.0
        self._noise = random.Random(1)
        self.ticks = 0
        self._reset_ns, self._reset_held = -PRESS_NS, False
        self.set_kill_switch(False, now_ns)
        self._drive_inputs(now_ns)

    def set_kill_switch(self, pressed: bool, now_ns: int) -> None:
        """Moves the kill-switch; pressing it starts the measurement of kill-switch edge to safe-enable."""
        if pressed and not self.kill_pressed:
            self._kill_edge_ns = now_ns
        self.kill_pressed = pressed
        self.wiring.set_input("kill_switch", not pressed and not self.supply_24v_lost)

    def tick(self, now_ns: int) -> None:
        """Moves the plant to `now_ns`, CLOCK_MONOTONIC; read the clock before the call."""
        dt_s = min(MAX_TICK_S, max(0, now_ns - self._now_ns) / 1e9)
        self._now_ns = now_ns
        self.ticks += 1
        self._guard(now_ns)
        self._move_contactors(now_ns)
        self._flow(dt_s)
        self._cells(dt_s)
        self._drive_inputs(now_ns)

    @property
    def insulation_kohm(self) -> float:
        """Towards earth."""
        return GROUND_FAULT_KOHM if self.ground_fault else self.insulation_set_kohm

    @property
    def rack_v(self) -> float:
        """True terminal voltage of the rack."""
        return self.rack.bus_v(self.rack_a)

    def bms_v(self) -> float:
        """The BMS's voltmeter: its own gain, noise and the injected offset."""
        return max(0.0, self.rack_v * BMS_GAIN + self._noise.gauss(0.0, VOLT_NOISE) + self.bms_offset_v)

    def bms_string_a(self) -> list[float]:
        """The BMS's ammeters, one a string, with their share of the injected offset."""
        strings = self.rack.size.strings
        noise, offset_a = CURRENT_NOISE / strings, self.bms_offset_a / strings
        return [float(a) + self._noise.gauss(offset_a, noise) for a in self.rack.string_a(self.rack_a)]

    def pcs_v(self) -> float:
        """The PCS's DC voltmeter: its own gain, noise and the injected offset or reading."""
        if self.pcs_forced_v:
            return self.pcs_forced_v
        return max(0.0, self.dc_link_v * PCS_GAIN + self._noise.gauss(0.0, VOLT_NOISE) + self.dv_offset_v)

    def pcs_a(self) -> float:
        """The PCS's DC ammeter with the injected errors."""
        return self.pcs.current_a * self.pcs_gain + self._noise.gauss(self.pcs_offset_a, CURRENT_NOISE)

    def ac_w(self) -> float:
        """AC power with the losses of conversion, + is export."""
        dc_w = self.dc_link_v * self.pcs.current_a
        return dc_w * PCS_EFFICIENCY if dc_w > 0.0 else dc_w / PCS_EFFICIENCY

    def _guard(self, now_ns: int) -> None:
        enable, changed_ns = self.wiring.output("safe_enable")
        self.safe_enable = bool(enable)
        alive_ns = self.wiring.output("alive")[1]
        self.alive_relay = bool(alive_ns) and now_ns - alive_ns < ALIVE_NS
        if self._kill_edge_ns and not enable:
            if changed_ns >= self._kill_edge_ns:
                self.edge_to_safe_us = (changed_ns - self._kill_edge_ns) / 1e3
            self._kill_edge_ns = 0

    def _move_contactors(self, now_ns: int) -> None:
        supply = self.safe_enable and self.alive_relay and not self.kill_pressed and not self.supply_24v_lost
        for name, contactor in self.contactors.items():
            contactor.tick(supply and bool(self.wiring.output(f"coil_{name}")[0]), now_ns)

    def _flow(self, dt_s: float) -> None:
        neg, pos, pre = (self.contactors[name].closed for name in COILS)
        connected = neg and pos
        if self.pcs.connected and not connected and abs(self.pcs.current_a) > BREAK_A:
            self.opened_under_load += 1
            self.opened_at_a = self.pcs.current_a
        if connected and not self.pcs.connected:
            self.closed_at_dv_v = self.rack.emf_v - self.dc_link_v
        self.pcs.tick(connected, dt_s)
        self.rack_a = self.pcs.current_a
        if connected:
            self.dc_link_v = self.rack_v - self.rack_a * CONNECTION_OHM
        elif neg and pre:
            self._precharge(dt_s)
        else:
            self.dc_link_v *= math.exp(-dt_s / BLEED_TAU_S)
        self._charge_as += self.rack_a * dt_s

    def _precharge(self, dt_s: float) -> None:
        to_go_v = (self.rack.emf_v - self.dc_link_v) * math.exp(-dt_s / (PRECHARGE_OHM * DC_LINK_F))
        self.dc_link_v = self.rack.emf_v - to_go_v
        self.rack_a = to_go_v / PRECHARGE_OHM

    def _cells(self, dt_s: float) -> None:
        self._cells_due_s += dt_s
        due_s = self._cells_due_s
        if due_s < 0.02 or (due_s < 0.1 and due_s * self.speed < 1.0):
            return
        self.rack.step(self._charge_as / due_s, due_s * self.speed)
        self._charge_as = self._cells_due_s = 0.0

    def _drive_inputs(self, now_ns: int) -> None:
        supply, set_input = not self.supply_24v_lost, self.wiring.set_input
        set_input("kill_switch", supply and not self.kill_pressed)
        set_input("tamper", supply and not self.tamper_open)
        if self.reset_pressed and not self._reset_held:
            self._reset_ns = now_ns
        self._reset_held = self.reset_pressed
        set_input("reset_button", supply and (self.reset_pressed or now_ns - self._reset_ns < PRESS_NS))
        set_input("insulation", supply and not self.ground_fault)
        set_input("local_remote", supply and not self.key_local)
        open_now = self._chattering(now_ns)
        for at, closed in enumerate(self.interlocks, 1):
            set_input(f"interlock_{at}", supply and closed and at != open_now)
        for name, contactor in self.contactors.items():
            set_input(f"fb_{name}", supply and contactor.closed)
        if microampere := self.sampler.due(now_ns):
            self.wiring.set_loops(microampere, now_ns)

    def _chattering(self, now_ns: int) -> int:
        """The interlock that chatters, while it is open; else 0."""
        return self.chatter_interlock if now_ns / 1e6 % self.chatter_period_ms < self.chatter_open_ms else 0
