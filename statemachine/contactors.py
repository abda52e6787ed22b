"""The contactor sequence: negative, precharge resistor, positive, release. Every step is confirmed by feedback.

Precharge is done when dV, current and time all say so, on samples taken after the resistor was switched in. Three
tries, then the sequence has failed.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from .settings import Settings
from .signals import Bms, Lines, Pcs


class Phase(IntEnum):
    OPEN = 0
    NEGATIVE = 1  # negative main closes
    PRECHARGE = 2  # resistor charges the DC link
    POSITIVE = 3  # positive main closes
    RELEASE = 4  # resistor goes out
    CLOSED = 5
    PAUSE = 6  # all open between two tries


class Coils(NamedTuple):
    neg: bool
    pos: bool
    pre: bool


COILS: dict[Phase, Coils] = {
    Phase.OPEN: Coils(False, False, False),
    Phase.NEGATIVE: Coils(True, False, False),
    Phase.PRECHARGE: Coils(True, False, True),
    Phase.POSITIVE: Coils(True, True, True),
    Phase.RELEASE: Coils(True, True, False),
    Phase.CLOSED: Coils(True, True, False),
    Phase.PAUSE: Coils(False, False, False),
}

FEEDBACK_MS = 200  # a healthy contactor follows its coil within this
PAUSE_MS = 2000  # the resistor cools between two tries
TRIES = 3


class Sequence(NamedTuple):
    phase: Phase = Phase.OPEN
    in_phase_ms: float = 0.0
    tries: int = 0
    failed: bool = False
    failed_in: Phase = Phase.OPEN  # where the last try ended: PRECHARGE by voltage or current, else by feedback


def feedback(lines: Lines) -> Coils:
    """Contactor positions as the auxiliary contacts report them."""
    return Coils(lines.fb_neg, lines.fb_pos, lines.fb_pre)


def _precharged(
    s: Settings, in_phase_ms: float, bms: Bms | None, bms_age: float, pcs: Pcs | None, pcs_age: float
) -> bool:
    if bms is None or pcs is None or in_phase_ms < s.precharge_min_time * 1000.0:
        return False
    if bms_age >= in_phase_ms or pcs_age >= in_phase_ms:
        return False
    return abs(bms.rack_v - pcs.dc_v) <= s.precharge_voltage and abs(bms.rack_a) <= s.precharge_current


def advance(
    seq: Sequence,
    close: bool,
    lines: Lines,
    s: Settings,
    bms: Bms | None,
    bms_age_ms: float,
    pcs: Pcs | None,
    pcs_age_ms: float,
    dt_ms: float,
) -> Sequence:
    """One scan. `close` False opens at once, whatever the phase; a failed sequence stays open until then."""
    if not close:
        return Sequence(tries=seq.tries)
    if seq.failed:
        return seq
    phase, at, tries = seq.phase, seq.in_phase_ms, seq.tries
    at += dt_ms
    seen = feedback(lines) == COILS[phase]
    if phase is Phase.OPEN:
        return Sequence(Phase.NEGATIVE, 0.0, 1) if seen else _timed(seq, at, FEEDBACK_MS)
    if phase is Phase.PAUSE:
        return Sequence(Phase.NEGATIVE, 0.0, tries + 1) if at >= PAUSE_MS and seen else _timed(seq, at, 2 * PAUSE_MS)
    if phase is Phase.PRECHARGE:
        if seen and _precharged(s, at, bms, bms_age_ms, pcs, pcs_age_ms):
            return Sequence(Phase.POSITIVE, 0.0, tries)
        return _timed(seq, at, s.precharge_max_time * 1000.0)
    if phase is Phase.CLOSED:
        return Sequence(Phase.CLOSED, at, tries)
    if seen:
        return Sequence(Phase(phase + 1), 0.0, tries)
    return _timed(seq, at, FEEDBACK_MS)


def _timed(seq: Sequence, at_ms: float, limit_ms: float) -> Sequence:
    """Waits on; at the limit the try is over: pause, or failure after the last."""
    if at_ms < limit_ms:
        return seq._replace(in_phase_ms=at_ms)
    if seq.tries >= TRIES or seq.phase in (Phase.OPEN, Phase.PAUSE):
        return Sequence(Phase.OPEN, 0.0, seq.tries, True, seq.phase)
    return Sequence(Phase.PAUSE, 0.0, seq.tries)
