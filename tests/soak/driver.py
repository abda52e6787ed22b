"""Somebody who breaks things at random, mends them, and goes the technician's way back. All from one seed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TextIO

from appliance import Appliance

from drivers.bench.control import POINTS
from drivers.modbus.point import Point
from firmware.points import PointError
from statemachine.signals import Mode
from statemachine.states import State

NOT_FAULTS = {"speed", "soc_preset", "reset_button", "hot_cell_index", "forced_cell_index"}
FAULTS = tuple(p for p in POINTS if p.access == "RW" and p.name not in NOT_FAULTS)
SERVICE_PRESS_S, PRESS_S = 10.6, 0.3
MODES = (Mode.CHARGE, Mode.CHARGE, Mode.CHARGE, Mode.DISCHARGE, Mode.DISCHARGE, Mode.GRID, Mode.READY, Mode.OFF)
KEPT = 50


class Driver:
    """`go()` once is one round: something breaks, stands, is mended; then the way back and a command."""

    def __init__(self, a: Appliance, seed: int, did: Callable[[str], None], until_s: float, log: TextIO) -> None:
        self._a, self._random, self._did, self._until_s = a, random.Random(seed), did, until_s
        self._log = log
        self._began_s = time.monotonic()
        self._seq = int(a.get("CmdSeq"))
        self.healthy = {p.name: a.truth(p.name) for p in FAULTS}
        self._broken: set[str] = set()
        self.actions: list[str] = []
        self.count = 0

    def round(self) -> None:
        """Breaks one to three things, with or without somebody who presses buttons meanwhile; then mends."""
        broken = self._random.sample(FAULTS, self._random.choice((1, 1, 1, 2, 3)))
        for point in broken:
            self._inject(point.name, self._value(point))
            self._broken.add(point.name)
            self._wait(self._random.uniform(0.0, 2.0))
        for _ in range(self._random.randrange(3)):
            self._random.choice((self._acknowledge, self._reset, self._command))()
            self._wait(self._random.uniform(0.0, 2.0))
        self._wait(self._random.uniform(0.5, 10.0))
        self.mend([p.name for p in broken])
        self._back()
        self._wait(self._random.uniform(2.0, 20.0))

    def mend(self, names: list[str]) -> None:
        """Back to what it was at the start."""
        for name in names:
            self._inject(name, self.healthy[name])
        self._broken -= set(names)

    def home(self) -> bool:
        """Everything mended, the way back, mode off: whether the appliance reaches ISOLATED within a minute."""
        self.mend([name for name in self.healthy if name in self._broken])
        end_s = time.monotonic() + 90.0
        while time.monotonic() < end_s:
            if self._a.state() is State.ISOLATED:
                return True
            self._back(Mode.OFF)
            time.sleep(1.0)
        return False

    def _back(self, mode: Mode | None = None) -> None:
        self._wait(self._random.uniform(0.3, 1.5))
        state = self._a.state()
        if state is State.LOCKOUT:
            self._press("service press", SERVICE_PRESS_S)
        elif state is State.EMERGENCY_STOP or self._random.random() < 0.2:
            self._reset()
        self._acknowledge()
        self._wait(0.3)
        if self._random.random() < 0.15:
            self._inject("soc_preset", self._random.choice((8.0, 20.0, 50.0, 80.0, 96.0)))
        self._command(mode)

    def _value(self, point: Point) -> float:
        low, high = point.low or 0.0, point.high or 0.0
        if (low, high) == (0.0, 1.0):
            return 1.0 - self.healthy[point.name]
        if point.values:
            return float(self._random.randint(1, int(high)))
        drawn = self._random.choice((low, high, self._random.uniform(low, high), self._near(point)))
        return round(min(high, max(low, drawn)) / point.scale) * point.scale

    def _near(self, point: Point) -> float:
        return (
            self.healthy[point.name] + self._random.uniform(-1.0, 1.0) * ((point.high or 0.0) - (point.low or 0.0)) / 50
        )

    def _inject(self, name: str, value: float) -> None:
        self._try(f"{name}={value:g}", lambda: self._a.inject(**{name: value}))

    def _reset(self) -> None:
        self._press("reset", PRESS_S)

    def _press(self, what: str, seconds: float) -> None:
        self._did(what)
        self._inject("reset_button", 1)
        time.sleep(seconds)
        self._inject("reset_button", 0)

    def _acknowledge(self) -> None:
        self._did("acknowledge")
        self._try("AckFaults", lambda: self._a.site.write({"AckFaults": 1}))

    def _command(self, mode: Mode | None = None) -> None:
        draw = self._random
        mode = draw.choice(MODES) if mode is None else mode
        self._seq += 1
        values = {
            "CmdSeq": float(self._seq), "CmdMode": float(mode), "CmdW": draw.uniform(-500e3, 500e3) // 1000 * 1000,
            "CmdRamp": round(draw.uniform(0.02, 1.0), 2), "CmdTgtSoC": float(draw.choice((30, 60, 80, 100))),
        }  # fmt: skip
        self._did("command")
        self._try(f"command {self._seq} {mode.name} {values['CmdRamp']:g} C", lambda: self._a.site.write(values))

    def _try(self, what: str, write: Callable[[], object]) -> None:
        outcome = ""
        try:
            write()
        except PointError as error:
            outcome = f" -> {error}"
        self.count += 1
        said = f"{time.monotonic() - self._began_s:8.2f} s  {what}{outcome}"
        self.actions = [*self.actions[1 - KEPT :], said]
        print(said, file=self._log)

    def _wait(self, seconds: float) -> None:
        time.sleep(max(0.0, min(seconds, self._until_s - time.monotonic())))
