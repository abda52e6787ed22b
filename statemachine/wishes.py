"""What the site controller's command means in this scan: newness, refusal, heartbeat, validity, reversion."""

from __future__ import annotations

from typing import NamedTuple

from . import reversion
from .commands import refusal
from .reversion import Reversion
from .signals import Command, LossPolicy, Mode, Result, Why
from .states import CLOSED, State

SERVER_STALE_MS = 2000.0
HOLD_MS = 3000.0
"""A frame whose validity is over is held for this long: redundant masters were measured to take over in 2.2 s."""
REMOTE_MS = 1000.0
"""LOCAL acts in the scan that sees it, REMOTE after it stood for this long: a loose wire is LOCAL, and told once."""
VOIDING = frozenset({State.INIT, State.FAULT, State.EMERGENCY_STOP, State.LOCKOUT})
"""A command that was there in one of these never acts afterwards: a newer CmdSeq is needed."""
OPENING = frozenset({State.ISOLATED, State.STOPPING})
"""Here a command to close is refused, and never acts afterwards, as soon as closing is not permitted."""

Content = tuple[int, float, float, float]  # mode, W, C-rate, target


class Wishes(NamedTuple):
    """Memory of the command side."""

    seq: int = -1  # Command.number, as last judged
    mode: int = Mode.OFF  # as last judged
    voided_seq: int = -1  # Command.number of the command that is out of force
    result: Result = Result.NONE
    why: Why = Why.NONE
    heartbeat: int = -1
    quiet_ms: float = 0.0
    lost: bool = False
    wset: Reversion = Reversion()
    frame_ms: float = 0.0  # since the frame in force came; counted for one with a validity
    expired: bool = False  # its validity and the hold time are over
    remote: bool = True  # the key switch, as it counts
    remote_ms: float = REMOTE_MS  # how long it has been seen at REMOTE, up to REMOTE_MS


class Wish(NamedTuple):
    """The command in force."""

    mode: Mode
    content: Content
    c_rate: float
    target_soc_pct: float
    grid_w: float  # set-point of GRID_SUPPORT, + is discharge
    wset_active: bool
    reverted: bool


IDLE = Wish(Mode.OFF, (0, 0.0, 0.0, 0.0), 0.0, 0.0, 0.0, False, False)


def _key(w: Wishes, remote: bool, dt_ms: float) -> Wishes:
    stood_ms = min(REMOTE_MS, w.remote_ms + dt_ms) if remote else 0.0
    counts = stood_ms >= REMOTE_MS
    return w if (w.remote, w.remote_ms) == (counts, stood_ms) else w._replace(remote=counts, remote_ms=stood_ms)


def _heartbeat(w: Wishes, c: Command | None, age_ms: float, dt_ms: float) -> Wishes:
    """Alive is a value that differs from the last one; a reset to 0 counts. A silent server counts as silence."""
    if c is None:
        return w
    if c.heartbeat != w.heartbeat and age_ms <= SERVER_STALE_MS:
        return w._replace(heartbeat=c.heartbeat, quiet_ms=0.0, lost=False)
    quiet = w.quiet_ms + dt_ms
    overdue = c.heartbeat_armed and quiet > c.heartbeat_timeout_s * 1000.0
    return w._replace(quiet_ms=quiet, lost=overdue or age_ms > SERVER_STALE_MS)


def _validity(w: Wishes, c: Command, dt_ms: float) -> Wishes:
    """A frame with a validity ages by scans from the one on in which it is seen; a new number is a new frame."""
    if c.number != w.seq or not c.valid_ms:
        return w._replace(frame_ms=0.0, expired=False) if w.frame_ms or w.expired else w
    aged_ms = w.frame_ms + dt_ms
    return w._replace(frame_ms=aged_ms, expired=aged_ms > c.valid_ms + HOLD_MS)


def _void(w: Wishes, c: Command, state: State) -> Wishes:
    """Takes the command out of force where state, key switch, a lost heartbeat or the end of its validity demand it."""
    if state in VOIDING:
        return w._replace(voided_seq=c.number)
    if w.voided_seq == c.number:
        return w
    if not w.remote and c.mode not in (Mode.OFF, Mode.SERVICE):
        return w._replace(voided_seq=c.number, why=Why.LOCAL_CONTROL)
    if w.lost and c.loss_policy != LossPolicy.HOLD:
        return w._replace(voided_seq=c.number, why=Why.HEARTBEAT_LOST)
    if w.expired:
        return w._replace(voided_seq=c.number, why=Why.VALIDITY_OVER)
    return w


def _judge(w: Wishes, c: Command, state: State, permit: Why) -> Wishes:
    """Accepts or rejects a command that is new or changed its mode; a rejected one never acts later."""
    if (c.number, c.mode) == (w.seq, w.mode):
        return w
    why = refusal(c.mode, state, permit, w.remote)
    if why is Why.NONE and c.mode != Mode.OFF:
        why = Why.SEQ_NOT_NEW if c.number == w.voided_seq else Why.HEARTBEAT_LOST if w.lost else Why.NONE
    w = w._replace(seq=c.number, mode=c.mode, why=why, result=Result.REJECTED if why else Result.ACCEPTED)
    return w._replace(voided_seq=c.number) if why else w


def _kept(w: Wishes, c: Command, state: State, ceased: Why) -> Mode:
    """The mode while the command is void: closed contactors stay closed at 0 A, and SERVICE is left by OFF only.

    In LOCAL they open: who turned the key wants to work at the rack.
    """
    if state is State.SERVICE:
        return Mode.SERVICE
    isolate = bool(ceased) or not w.remote or (w.lost and c.loss_policy == LossPolicy.ISOLATE)
    return Mode.READY if state in CLOSED and state is not State.STOPPING and not isolate else Mode.OFF


def step(
    w: Wishes, c: Command | None, age_ms: float, state: State, permit: Why, remote: bool, dt_ms: float,
    ceased: Why = Why.NONE,
) -> tuple[Wishes, Wish]:  # fmt: skip
    """One scan of the command side. `ceased`: why, whatever the state, nothing stays closed."""
    w = _heartbeat(_key(w, remote, dt_ms), c, age_ms, dt_ms)
    if c is None:
        return w, IDLE
    w = _validity(w._replace(wset=reversion.step(w.wset, c.wset_version, c.wset_revert_s, dt_ms)), c, dt_ms)
    w = _judge(w, c, state, permit)
    w = _void(w, c, state)
    why = ceased or (permit if state in OPENING else Why.NONE)
    if why and c.number != w.voided_seq and c.mode != Mode.SERVICE:
        w = w._replace(voided_seq=c.number)  # OFF's number too: it cannot close anything later
        if Mode.READY <= c.mode <= Mode.GRID:
            w = w._replace(result=Result.REJECTED, why=why)
    mode = _kept(w, c, state, ceased) if c.number == w.voided_seq and c.mode != Mode.OFF else Mode(c.mode)
    reverted = w.wset.over(c.wset_version)
    enabled = c.wset_revert_enabled if reverted else c.wset_enabled
    wset_w = c.wset_revert_w if reverted else c.wset_w
    grid_w = wset_w if enabled else c.w
    content = (mode, grid_w if mode is Mode.GRID else 0.0, c.c_rate, c.target_soc_pct)
    return w, Wish(mode, content, c.c_rate, c.target_soc_pct, grid_w, enabled, reverted)
