"""What may never be seen from outside, whatever was injected: judged on the bench's truth, sample by sample.

The rules know nothing of the core. They excuse only what the injected fault itself does: a welded contactor cannot
open, and precharge cannot be verified by a voltmeter that was told to lie.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from statemachine.states import State

CONTACTORS = ("pos", "neg", "precharge")
_SHORT = {"pos": "pos", "neg": "neg", "precharge": "pre"}  # as the injection points name them
LIES = ("dv_offset_v", "bms_offset_v", "bms_offset_a", "pcs_dc_v")
TRUTH = (
    *(f"true_{name}" for name in CONTACTORS), "true_safe_enable", "true_alive_relay", "true_current_a",
    "true_opened_under_load", "true_opened_at_a", "true_closed_at_dv_v", "true_cell_max_v", "true_cell_min_v",
    "kill_switch", "tamper", "supply_24v_lost", "cell_v_unmeasured", *LIES,
    *(f"{what}_{name}" for what in ("weld", "drop", "hold_coil", "open_ms") for name in _SHORT.values()),
)  # fmt: skip
OPEN_WITHIN_S = 0.25  # chain open -> contactors open, beyond their own opening time; a loaded machine included
PRECHARGED_V = 20.0  # precharge_voltage, errors of two meters
OPEN_A = 5.0
CELL_TOP_V, CELL_BOTTOM_V, CELL_S = 4.26, 2.74, 20.0
"""v_stop_v and v_min_v less its margin, with the meters' errors; BMS time-out, ramp and stop time-limit fit in 20 s."""
FLOWS_A = 20.0
STOP_BOUND_S = 9.5  # stop_time_limit: the contactors open whatever the current
LATELY_S = 2.0
LIED_S = 15.0  # the longest precharge that may have believed a meter

DEBTS = {
    State.EMERGENCY_STOP: frozenset({"reset", "acknowledge", "command"}),
    State.LOCKOUT: frozenset({"service press", "acknowledge", "command"}),
    State.FAULT: frozenset({"acknowledge", "command"}),
}
"""What must have happened since the state was entered before any contactor closes again."""


class Sample(NamedTuple):
    at_s: float
    truth: dict[str, float]
    state: State | None  # as the appliance says; None when it does not answer


class Watch:
    """`sample` gives what is wrong in each sample, `did` hears of what a person did."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.visited: Counter[State] = Counter()
        self._before: Sample | None = None
        self._since: dict[str, float] = {}  # condition -> when it began
        self._last: dict[str, float] = {}  # condition -> when it was last true
        self._stopping_s = 0.0
        self._state: State | None = None
        self._debts: frozenset[str] = frozenset()

    def did(self, what: str) -> None:
        """A reset, a service press, an acknowledge or a command with a new number was given."""
        self._debts -= {what}

    def missed(self) -> None:
        """Nothing could be seen: what stood before is not known to have stood meanwhile."""
        self.counts["looks without an answer"] += 1
        self._before = None
        self._since.clear()

    def sample(self, s: Sample) -> list[str]:
        """One look."""
        self._conditions(s)
        wrong = list(self._edges(s))  # before the state: a contactor may have closed and then a fault have come
        self._enter(s)
        wrong += [what for rule in (self._chain, self._current, self._load, self._cells) for what in rule(s)]
        self._before = s
        self.counts["samples"] += 1
        return wrong

    def _stood_s(self, name: str, s: Sample) -> float:
        return s.at_s - self._since[name] if name in self._since else -1.0

    def _lately(self, name: str, s: Sample, within_s: float) -> bool:
        return s.at_s - self._last.get(name, -1e9) <= within_s

    def _conditions(self, s: Sample) -> None:
        t = s.truth
        off = t["kill_switch"] or t["tamper"] or t["supply_24v_lost"]
        now = {
            "chain": bool(off or not t["true_safe_enable"] or not t["true_alive_relay"]),
            "lies": any(t[name] for name in LIES),
            "overcharge": t["true_current_a"] < -FLOWS_A and t["true_cell_max_v"] > CELL_TOP_V,
            "overdischarge": t["true_current_a"] > FLOWS_A and t["true_cell_min_v"] < CELL_BOTTOM_V,
            "open current": abs(t["true_current_a"]) > OPEN_A and not self._path(t),
            "blind": t["cell_v_unmeasured"] > 0,
            **{f"held {n}": bool(t[f"weld_{p}"] or t[f"hold_coil_{p}"]) for n, p in _SHORT.items()},
            **{f"drop {n}": bool(t[f"drop_{p}"]) for n, p in _SHORT.items()},
        }
        for name, on in now.items():
            if on:
                self._since.setdefault(name, s.at_s)
                self._last[name] = s.at_s
            else:
                self._since.pop(name, None)

    @staticmethod
    def _path(t: dict[str, float]) -> bool:
        return bool(t["true_neg"] and (t["true_pos"] or t["true_precharge"]))

    def _enter(self, s: Sample) -> None:
        if s.state is None or s.state is self._state:
            return
        self._debts |= DEBTS.get(s.state, frozenset())
        if s.state is State.STOPPING:
            self._stopping_s = s.at_s
        self._state = s.state
        self.visited[s.state] += 1

    def _chain(self, s: Sample) -> Iterator[str]:
        stood_s = self._stood_s("chain", s)
        for name, point in _SHORT.items():
            most_s = OPEN_WITHIN_S + s.truth[f"open_ms_{point}"] / 1000.0
            if stood_s > most_s and s.truth[f"true_{name}"] and not self._lately(f"held {name}", s, most_s):
                yield f"contactor {name} is closed {stood_s:.2f} s after kill-switch, tamper, supply or guard went off"

    def _closing(self, s: Sample) -> list[str]:
        before = self._before
        return [n for n in CONTACTORS if before and s.truth[f"true_{n}"] and not before.truth[f"true_{n}"]]

    def _edges(self, s: Sample) -> Iterator[str]:
        closing, t = self._closing(s), s.truth
        for name in closing:
            self.counts[f"closings of {name}"] += 1
            if self._debts and not self._lately(f"held {name}", s, LATELY_S):
                yield f"contactor {name} closes without {', '.join(sorted(self._debts))} since {self._state}"
        lied = self._lately("lies", s, LIED_S) or any(self._lately(f"held {n}", s, LIED_S) for n in CONTACTORS)
        mains = t["true_pos"] and t["true_neg"] and {"pos", "neg"} & set(closing)
        if mains and not lied and abs(t["true_closed_at_dv_v"]) > PRECHARGED_V:
            yield f"mains closed at {t['true_closed_at_dv_v']:.1f} V without precharge"

    def _current(self, s: Sample) -> Iterator[str]:
        if self._stood_s("open current", s) > 0.0:
            yield f"{s.truth['true_current_a']:.0f} A with a contactor open"

    def _load(self, s: Sample) -> Iterator[str]:
        if self._before is None or s.truth["true_opened_under_load"] == self._before.truth["true_opened_under_load"]:
            return
        why = self._reason(s)
        self.counts[f"opened under load: {why or 'without a reason'}"] += 1
        if not why:
            name = self._state.name if self._state else "?"
            yield f"opened at {s.truth['true_opened_at_a']:.0f} A in {name}, no category 0, before the bound"

    def _reason(self, s: Sample) -> str:
        if self._lately("chain", s, LATELY_S) or self._state in (State.EMERGENCY_STOP, State.LOCKOUT):
            return "category 0"
        if any(self._lately(f"{what} {n}", s, LATELY_S) for what in ("drop", "held") for n in CONTACTORS):
            return "a contactor dropped"
        stopped = self._state in (State.STOPPING, State.FAULT, State.ISOLATED)
        return "stop time limit" if stopped and s.at_s - self._stopping_s >= STOP_BOUND_S else ""

    def _cells(self, s: Sample) -> Iterator[str]:
        if self._lately("blind", s, CELL_S):
            return
        if self._stood_s("overcharge", s) > CELL_S:
            yield f"charged on at {s.truth['true_cell_max_v']:.3f} V for {CELL_S:g} s"
        if self._stood_s("overdischarge", s) > CELL_S:
            yield f"discharged on at {s.truth['true_cell_min_v']:.3f} V for {CELL_S:g} s"
