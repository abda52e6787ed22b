"""`python -m tests.soak [--minutes 30] [--seed 1] [--speed 20]`: exit 1 when a rule was broken."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import threading
import time
from pathlib import Path

from appliance import Appliance, appliance

from drivers.bench.control import POINTS
from firmware.points import PointClient, PointError
from firmware.registers import POINT
from statemachine.states import State

from .driver import Driver
from .processes import Usage, children, more_descriptors, slope, usage
from .rules import TRUTH, Sample, Watch

LOOK_S, COUNT_S = 0.02, 5.0
BLIND_S = 10.0  # a loaded machine may keep the bench from answering for a while; nothing is judged meanwhile
WARM_UP = 0.2  # of the run
MOST_TOLD = 20
CONFIGURED = {"max_closings_per_hour": 1000, "max_precharges": 100}
"""So that the counters of wear do not end the run: they have tests of their own."""


class Observer(threading.Thread):
    """Looks at the truth all the time, and at the processes now and then."""

    def __init__(self, a: Appliance, watch: Watch) -> None:
        super().__init__(daemon=True)
        self._bench = PointClient("127.0.0.1", a.ports.EMS_BENCH_PORT, {p.name: p for p in POINTS})
        self._site = PointClient("127.0.0.1", a.ports.EMS_MODBUS_PORT, POINT)
        self._watch, self._runner = watch, a.runner.pid
        self._began_s, self._ended = time.monotonic(), threading.Event()
        self.pids = children(self._runner)
        self.used: dict[str, list[Usage]] = {name: [] for name in self.pids}
        self.wrong: list[str] = []
        self.silent_s = 0.0  # longest time without a look

    def run(self) -> None:
        counted_s, seen_s = -math.inf, 0.0
        while not self._ended.wait(LOOK_S):
            at_s = time.monotonic() - self._began_s
            try:
                self._say(at_s, self._watch.sample(Sample(at_s, self._bench.read(*TRUTH), self._state())))
                self.silent_s, seen_s = max(self.silent_s, at_s - seen_s), at_s
            except PointError as error:
                self._watch.missed()
                if at_s - seen_s > BLIND_S:
                    self._say(at_s, [f"the bench is silent since {seen_s:.2f} s: {error}"])
            if at_s - counted_s >= COUNT_S:
                counted_s = at_s
                self._count(at_s)

    def end(self) -> None:
        """Stops looking."""
        self._ended.set()
        self.join()

    def _state(self) -> State | None:
        try:
            value = self._site.read("CmfState")["CmfState"]
        except PointError:
            return None
        return None if value != value else State(int(value))

    def _count(self, at_s: float) -> None:
        now = children(self._runner)
        for name in self.pids.keys() | now.keys():
            if self.pids.get(name) != now.get(name):
                self._say(at_s, [f"{name} was {self.pids.get(name)} and is {now.get(name)}"])
        self.pids = now
        for name, pid in now.items():
            try:
                self.used.setdefault(name, []).append(usage(pid, at_s))
            except OSError as error:
                self._say(at_s, [f"{name} is gone: {error}"])

    def _say(self, at_s: float, wrong: list[str]) -> None:
        self.wrong += [f"{at_s:8.2f} s  {what}" for what in wrong]
        for what in self.wrong[len(self.wrong) - len(wrong) :] if len(self.wrong) <= MOST_TOLD else []:
            print(f"BROKEN {what}", flush=True)


def _resources(used: dict[str, list[Usage]]) -> list[str]:
    wrong = []
    for name, every in sorted(used.items()):
        warm = every[int(len(every) * WARM_UP) :]
        trend, more = slope(warm), more_descriptors(warm)
        print(
            f"{name:24} {warm[-1].rss_kb / 1024:6.1f} MiB, {trend.kb_per_min:+8.1f} ± {trend.bound:.1f} kB/min, "
            f"{warm[-1].descriptors} descriptors"
        )
        if trend.grows:
            wrong.append(f"{name} grows by {trend.kb_per_min:.1f} ± {trend.bound:.1f} kB/min")
        if more:
            wrong.append(f"{name} has {more} more open descriptors at the end")
    return wrong


def main() -> int:
    """1 when a rule was broken."""
    parser = argparse.ArgumentParser(prog="tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--speed", type=int, default=20, help="of the cells")
    parser.add_argument("--actions", type=Path, default=Path("build/soak/actions.log"), help="every action, as done")
    args = parser.parse_args()
    watch = Watch()
    args.actions.parent.mkdir(parents=True, exist_ok=True)
    with (
        args.actions.open("w", buffering=1) as log,
        tempfile.TemporaryDirectory(prefix="soak-") as logs,
        appliance(Path(logs), speed=args.speed, soc=50.0, configured=CONFIGURED) as a,
    ):
        end_s = time.monotonic() + 60.0 * args.minutes
        observer, driver = Observer(a, watch), Driver(a, args.seed, watch.did, end_s, log)
        observer.start()
        rounds = 0
        while time.monotonic() < end_s and len(observer.wrong) < MOST_TOLD:
            driver.round()
            rounds += 1
        if not driver.home():
            observer.wrong.append(f"no way home: {a.state()} with everything mended")
        observer.end()
    wrong = observer.wrong + _resources(observer.used)
    print(f"seed {args.seed}: {rounds} rounds, {driver.count} actions, unseen for at most {observer.silent_s:.2f} s")
    print(", ".join(f"{count:,} {what}" for what, count in sorted(watch.counts.items())))
    print(", ".join(f"{state.name} {count}" for state, count in sorted(watch.visited.items())))
    if wrong:
        print("\n".join([f"{len(wrong)} broken:", *wrong[:MOST_TOLD], "last actions:", *driver.actions]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
