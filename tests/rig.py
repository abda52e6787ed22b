"""A rack small enough to think about, for tests of the pure core: `Rig().scan(ms=200)` reads like a scan log.

One lumped cell stands for all: SoC integrates, V = OCV + I R. The contactors follow their coils after 30 ms, the DC
link charges through the precharge resistor, BMS answers every 100 ms and PCS every 20 ms. Nothing sleeps.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Self

from firmware.settings_codec import cell_profile
from statemachine.contactors import Coils
from statemachine.core import Core
from statemachine.settings import CellProfile, Settings
from statemachine.signals import (
    Bms,
    BootReason,
    Clock,
    Command,
    Grid,
    Guard,
    GuardTrip,
    Inputs,
    Lines,
    Outputs,
    Pcs,
    Store,
    Updater,
    WatchdogState,
)
from statemachine.states import State

CELLS = Path(__file__).parents[1] / "statemachine" / "cells"


@cache
def profile(name: str = "nmc_energy") -> CellProfile:
    """A cell profile as shipped."""
    return cell_profile(tomllib.loads((CELLS / f"{name}.toml").read_text()))


def settings(**changes: Any) -> Settings:
    """The default rack's settings."""
    base = Settings(
        revision=1, cell=profile(), rated_ah=1120.0, cells_in_series=300, strings=4,
        max_charge_voltage=1260.0, min_discharge_voltage=900.0, max_charge_current=1120.0,
        max_discharge_current=1120.0, max_charge_rate=1.0, max_discharge_rate=1.0, max_cell_temperature=50.0,
        trip_cell_temperature=60.0, min_cell_temperature=-10.0, max_soc=100.0, min_soc=5.0, max_delta_voltage=2.0,
        max_delta_offset=12.0, break_current=10.0, stop_time_limit=10.0, ramp_up_rate=0.02, ramp_down_rate=0.1,
        bms_timeout=0.35, pcs_timeout=0.2, min_insulation=100.0, precharge_voltage=13.0, precharge_current=1.0,
        precharge_min_time=0.3, precharge_max_time=6.0, interlocks_required=0xFF, loops_used=0xFF, loop_low_c=-20.0,
        loop_high_c=60.0, loop_zones=(1, 1, 2, 2, 3, 3, 4, 4), loop_timeout=0.3, loop_filter_time=1.0,
        loop_max_rate=5.0, max_closings_per_hour=20, max_precharges=6, max_under_load=10, contactor_life=100_000,
        cell_balancing_threshold=0.010, balance_time_limit=7200.0, loss_policy=0, scan_period_ms=10, clock_servers=0,
        nominal_frequency=50.0, nominal_voltage=400.0, enter_service_delay=0.0, enter_service_ramp=0.0,
        commissioned=True,
    )  # fmt: skip
    return replace(base, **changes)


NONE = Coils(False, False, False)
ARMED = Guard(True, GuardTrip.NONE, True, True, 0, WatchdogState.NONE, BootReason.POWER)
LINES = Lines(True, True, False, True, 0xFF, False, False, False, (13.0,) * 8, 0.0, False, False, False, True)
STORE = Store(True, 0, 0, 0)
CLOCK = Clock(True, True, 0.0, 0, 0)
COMMAND = Command(0, 0, 0.0, 0.0, 0.0, 0, False, 10.0, 0, 0, 0, False, 0.0, 0.0, False, 0.0, False, 0, 0)


@dataclass
class Rig:
    """The core and the world around it."""

    soc: float = 20.0
    temperature_c: float = 25.0
    spread_v: float = 0.0
    settings: Settings = field(default_factory=settings)
    core: Core = field(default_factory=Core)
    dt_ms: float = 10.0
    dv_offset_v: float = 0.0
    cell_r_v_per_c: float = 0.25
    welded: Coils = NONE
    stuck: Coils = NONE
    supply_ok: bool = True  # kill-switch and guard are in series with the coils
    bms_alive: bool = True
    pcs_alive: bool = True
    precharge_works: bool = True
    guard: Guard = ARMED
    store: Store | None = STORE
    clock: Clock | None = CLOCK
    output_sticks: Coils | None = None  # what the coil outputs read back, whatever is written
    lines: Lines = LINES
    command: Command = COMMAND
    grid: Grid | None = None
    updater: Updater | None = None
    updater_age_ms: float = 0.0
    bms_changes: dict[str, Any] = field(default_factory=dict)
    pcs_changes: dict[str, Any] = field(default_factory=dict)
    command_age_ms: float = 0.0
    overruns_in_row: int = 0
    now_ms: float = 0.0
    current_a: float = 0.0
    link_v: float = 0.0
    held_ms: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    bms: Bms | None = None
    pcs: Pcs | None = None
    bms_at: float = -1e9
    pcs_at: float = -1e9
    out: Outputs | None = None
    visited: list[State] = field(default_factory=list)
    events: list[tuple[int, int, int]] = field(default_factory=list)
    heartbeats: bool = False

    @property
    def o(self) -> Outputs:
        assert self.out is not None
        return self.out

    def state(self) -> State:
        return self.o.state

    @property
    def coils(self) -> Coils:
        return Coils(self.o.coil_neg, self.o.coil_pos, self.o.coil_pre) if self.out else NONE

    def cell_v(self) -> float:
        """NMC-like open-circuit voltage plus the drop of the present current."""
        ocv = 3.3 + 0.008 * self.soc + max(0.0, self.soc - 90.0) * 0.006
        return ocv - self.current_a / self.settings.rated_ah * self.cell_r_v_per_c

    def rack_v(self) -> float:
        return 300.0 * self.cell_v()

    def _contactors(self) -> Coils:
        true = []
        for i, coil in enumerate(self.coils):
            live = coil and self.supply_ok and not self.stuck[i]
            self.held_ms[i] = min(60.0, self.held_ms[i] + self.dt_ms) if live else max(0.0, self.held_ms[i] - 30.0)
            true.append(self.held_ms[i] >= 30.0 or self.welded[i])
        return Coils(*true)

    def _physics(self) -> Coils:
        true = self._contactors()
        both = true.neg and true.pos
        wanted = self.o.setpoint_a if self.out and both and self.o.pcs_run else 0.0
        self.current_a += (wanted - self.current_a) * min(1.0, self.dt_ms / 50.0) if both else -self.current_a
        self.soc -= self.current_a * self.dt_ms / 3.6e6 / self.settings.rated_ah * 100.0
        if both:
            self.link_v = self.rack_v()
        elif true.neg and true.pre and self.precharge_works:
            self.link_v += (self.rack_v() - self.link_v) * min(1.0, self.dt_ms / 750.0)
        return true

    def _answers(self, true: Coils) -> None:
        hold = self.current_a if true.neg and true.pos else 0.0
        if self.bms_alive and self.now_ms - self.bms_at >= 100.0:
            self.bms_at = self.now_ms
            v, c = self.cell_v(), self.temperature_c
            pre_a = (self.rack_v() - self.link_v) / 150.0 if true.pre and true.neg and not true.pos else 0.0
            poll = (self.bms.poll if self.bms else 0) + 1
            self.bms = Bms(
                poll, self.now_ms, self.rack_v(), hold + pre_a, self.soc, self.soc, self.soc, 100.0,
                v, v - self.spread_v, v - self.spread_v / 2, 0, 1, c, c, 2, 3, 1120.0, 1120.0, 2000.0, 0, 0, 0, 0, 0,
                4, True, True, 0.0,
            )._replace(**self.bms_changes)  # fmt: skip
        if self.pcs_alive and self.now_ms - self.pcs_at >= 20.0:
            self.pcs_at = self.now_ms
            poll = (self.pcs.poll if self.pcs else 0) + 1
            self.pcs = Pcs(
                poll,
                self.now_ms,
                self.link_v + self.dv_offset_v,
                hold,
                0.0,
                50.0,
                400.0,
                2,
                0,
                1120.0,
                1120.0,
                True,
                0.0,
            )._replace(**self.pcs_changes)

    def inputs(self, true: Coils) -> Inputs:
        out = self.coils if self.output_sticks is None else self.output_sticks
        lines = self.lines._replace(
            fb_neg=true.neg, fb_pos=true.pos, fb_pre=true.pre, out_neg=out.neg, out_pos=out.pos, out_pre=out.pre
        )
        return Inputs(
            lines, self.bms, self.now_ms - self.bms_at, self.pcs, self.now_ms - self.pcs_at, self.command,
            self.command_age_ms, self.guard, 0.0, self.store, 0.0, self.clock, 0.0, self.settings,
            self.overruns_in_row, False, self.grid, self.updater, self.updater_age_ms,
        )  # fmt: skip

    def once(self) -> Outputs:
        """One scan."""
        self.now_ms += self.dt_ms
        true = self._physics()
        self._answers(true)
        if self.heartbeats:
            self.command = self.command._replace(heartbeat=int(self.now_ms // 1000), heartbeat_armed=True)
        self.out = self.core.step(self.inputs(true), self.dt_ms)
        if not self.visited or self.visited[-1] is not self.out.state:
            self.visited.append(self.out.state)
        self.events.extend(self.out.events)
        return self.out

    def scan(self, ms: float) -> Self:
        """Scans for `ms` of plant time."""
        end = self.now_ms + ms - 1e-6
        while self.now_ms < end:
            self.once()
        return self

    def until(self, state: State, limit_ms: float) -> Self:
        """Scans until the state is reached; fails with the path taken when it is not."""
        end = self.now_ms + limit_ms
        while self.out is None or self.out.state is not state:
            assert self.now_ms < end, f"{state.name} not reached; went {[s.name for s in self.visited]}"
            self.once()
        return self

    def send(self, **changes: Any) -> Self:
        """A new command: the next CmdSeq with these fields."""
        self.command = self.command._replace(seq=self.command.seq + 1, **changes)
        return self

    def acknowledge(self) -> Self:
        self.command = self.command._replace(ack_count=self.command.ack_count + 1)
        return self.scan(20)

    def press_reset(self) -> Self:
        self.lines = self.lines._replace(reset_pressed=True)
        self.scan(100)
        self.lines = self.lines._replace(reset_pressed=False)
        return self.scan(50)

    def ready(self) -> Self:
        """READY, calibrated, 0 A."""
        self.until(State.ISOLATED, 1000).send(mode=1).until(State.READY, 15_000)
        return self.scan(1500)

    def charging(self, c_rate: float = 0.5, target: float = 80.0) -> Self:
        """In CHARGE_RAMP with current flowing."""
        return self.ready().send(mode=2, c_rate=c_rate, target_soc_pct=target).until(State.CHARGE_RAMP, 1000).scan(5000)


@dataclass
class CoarseRig(Rig):
    """Scanned every 20 ms, for what takes long; the manual's charge is run at 10 and at 50 ms."""

    dt_ms: float = 20.0
