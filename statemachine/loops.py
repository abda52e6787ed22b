"""4-20 mA thermal loops: which to believe, and how hot it is. Two wrong ones in a zone are worse than one.

*Broken* (NAMUR NE43): below 3.6 mA, above 21 mA or not a number; at once, and its value is not used. What lies between
that and 4..20 mA is saturated and counts as 4 or 20 mA.

*Used value*: the median of the last three samples, so that a spike of one sample neither derates nor trips and a true
step counts from its second sample on. A rise counts at once, a fall only through `loop_filter_time`: nothing hot ever
waits for a filter, and noise does not make the derating hunt.

*Jumped*: the median is further than JUMP_K from where `loop_max_rate` could have brought it, so one spike does not do
it. No thermal mass does that, but a fire may: the loop counts as failed, and its used value goes on rising, while it
does not fall until the loop was quiet for JUMP_HOLD_MS. So a jump up is acted upon and a jump down is not believed.

*Stuck*: under load, a loop that did not leave a band of STUCK_K for STUCK_MS while the median of the others went
STUCK_OTHERS_K away; until it moves again, because a derated rack has no load. Who is broken, jumped or stuck is not
among the others, and nothing is compared across a change of who they are.

A loop that is broken, jumped or stuck is in `failed`. Two of them in one zone lose the zone; one alone derates, also
where it is the zone's only one. Without a sample for `loop_timeout` all used loops are failed and nothing else is said:
that is a fault of its own. New settings count from the next sample on.
"""

from __future__ import annotations

from math import inf, nan
from typing import NamedTuple

from .settings import Settings

LOOPS = 8
NE43_LOW_MA, NE43_HIGH_MA = 3.6, 21.0  # NAMUR NE43: outside is a broken or shorted transmitter
SETTLED_K = 1 / 64  # a falling value this near is there: a limit is then met exactly
JUMP_K = 2.0  # beyond loop_max_rate: some ten times the noise of a loop, reached by 5 + 1 K/s in 2 s
JUMP_HOLD_MS = 5000.0
STUCK_K = 1 / 64  # some LSB of a 16-bit converter, less than one of a 12-bit one; real loops are noisier
STUCK_OTHERS_K = 2.0
STUCK_MS = 60_000.0
STUCK_LOAD_C = 0.2
UNSEEN = -1.0  # there is no load, so nothing to compare
DISAGREE_K = 10.0


class Track(NamedTuple):
    """One loop with a current inside NE43, degC."""

    before_c: float  # the last two samples
    last_c: float
    middle_c: float  # median of three
    used_c: float
    reach_c: float  # follows middle_c at loop_max_rate at most
    hold_ms: float = 0.0  # jumped until it is 0
    still_ms: float = UNSEEN  # under load within STUCK_K of anchor_c
    anchor_c: float = 0.0
    others_c: float = 0.0  # median of the others at the anchor, nan = there were none


class Judged(NamedTuple):
    """Bits are of used loops, bit n-1 = loop n."""

    hottest_c: float = nan  # of all with a current inside NE43, nan = none
    failed: int = 0  # not to be believed: broken, jumped or stuck
    stuck: int = 0
    jumped: int = 0
    zone_lost: bool = False  # two failed in one zone
    disagree: bool = False  # two healthy ones of a zone are DISAGREE_K apart
    stale: bool = False


class LoopMemory(NamedTuple):
    """What is remembered from scan to scan.

    For a search of states: constant samples come to rest, with `hold_ms` at 0 and `still_ms` at UNSEEN or STUCK_MS.
    Representatives that promise the same: `age_ms` inf when the next sample shall count; `hold_ms` 0 or JUMP_HOLD_MS;
    `still_ms` UNSEEN, 0 or STUCK_MS; one temperature in all six fields of a track that is at rest, to 0.1 K.
    """

    age_ms: float = inf  # of the samples, one scan ago
    tracks: tuple[Track | None, ...] = (None,) * LOOPS  # None: not used or outside NE43
    members: int = 0  # loops that the others are compared with
    judged: Judged = Judged()


def judge(
    memory: LoopMemory, loops_ma: tuple[float, ...], age_ms: float, s: Settings, rate_c: float, dt_ms: float
) -> tuple[LoopMemory, Judged]:
    """One scan, `dt_ms` after the one before. A sample is new when it is younger than the one before could be now."""
    if not abs(age_ms) <= s.loop_timeout * 1000.0:  # a stamp from the future is no better than an old one
        return LoopMemory(), Judged(failed=s.loops_used, stale=True)
    if not age_ms < memory.age_ms + dt_ms / 2.0:
        return LoopMemory(age_ms, memory.tracks, memory.members, memory.judged), memory.judged
    step_ms = memory.age_ms + dt_ms - age_ms
    tracks = [
        _sample(memory.tracks[i], scaled(loops_ma[i], s), s, step_ms) if used and _inside_ne43(loops_ma[i]) else None
        for i, used in enumerate(_flags(s.loops_used))
    ]
    stuck, members = _compare(tracks, memory, abs(rate_c) > STUCK_LOAD_C, step_ms)
    judged = _verdict(tracks, stuck, s)
    return LoopMemory(age_ms, tuple(tracks), members, judged), judged


def _inside_ne43(ma: float) -> bool:
    return NE43_LOW_MA <= ma <= NE43_HIGH_MA


def scaled(ma: float, s: Settings) -> float:
    """degC of a loop current; beyond 4..20 mA it is saturated."""
    return s.loop_low_c + (min(20.0, max(4.0, ma)) - 4.0) / 16.0 * (s.loop_high_c - s.loop_low_c)


def _sample(t: Track | None, c: float, s: Settings, step_ms: float) -> Track:
    if t is None:
        return Track(c, c, c, c, c)
    step_s = step_ms / 1000.0
    middle = sorted((t.before_c, t.last_c, c))[1]
    most_k = s.loop_max_rate * step_s
    reach = t.reach_c + min(most_k, max(-most_k, middle - t.reach_c))
    hold_ms = max(0.0, t.hold_ms - step_ms)
    if abs(middle - reach) > JUMP_K:
        reach, hold_ms = middle, JUMP_HOLD_MS
    used = max(middle, t.used_c) if hold_ms else _filtered(t.used_c, middle, s, step_s)
    return Track(t.last_c, c, middle, used, reach, hold_ms, t.still_ms, t.anchor_c, t.others_c)


def _filtered(used_c: float, middle_c: float, s: Settings, step_s: float) -> float:
    """First order on the way down; up, and when it is there, the median itself."""
    used_c -= (used_c - middle_c) * step_s / (s.loop_filter_time + step_s)
    return used_c if used_c - middle_c > SETTLED_K else middle_c


def _compare(tracks: list[Track | None], memory: LoopMemory, loaded: bool, step_ms: float) -> tuple[int, int]:
    """Moves the anchors; gives the stuck loops and those that were compared."""
    was = _flags(memory.judged.stuck)
    compared = [None if t is None or t.hold_ms or was[i] else t.middle_c for i, t in enumerate(tracks)]
    members = _bits([c is not None for c in compared])
    loaded = loaded and members == memory.members
    stuck = [False] * LOOPS
    for i, t in enumerate(tracks):
        if t is None or (t.still_ms == UNSEEN and not loaded):
            continue
        if not (loaded or was[i]):
            tracks[i] = t._replace(still_ms=UNSEEN)
            continue
        if t.still_ms == UNSEEN or abs(t.middle_c - t.anchor_c) > STUCK_K:
            tracks[i] = t._replace(anchor_c=t.middle_c, others_c=_others(compared, i), still_ms=0.0)
            continue
        still_ms = min(STUCK_MS, t.still_ms + step_ms)
        tracks[i] = t._replace(still_ms=still_ms)
        stuck[i] = was[i] or (still_ms >= STUCK_MS and abs(_others(compared, i) - t.others_c) > STUCK_OTHERS_K)
    return _bits(stuck), members


def _others(compared: list[float | None], i: int) -> float:
    """Median of all but one."""
    return _median([c for j, c in enumerate(compared) if c is not None and j != i])


def _median(values: list[float]) -> float:
    """nan of nothing."""
    count = len(values)
    values.sort()
    return (values[(count - 1) // 2] + values[count // 2]) / 2.0 if values else nan


def _bits(flags: list[bool]) -> int:
    return sum(1 << i for i, flag in enumerate(flags) if flag)


def _flags(bits: int) -> list[bool]:
    return [bool(bits >> i & 1) for i in range(LOOPS)]


def _verdict(tracks: list[Track | None], stuck: int, s: Settings) -> Judged:
    jumped = _bits([t is not None and bool(t.hold_ms) for t in tracks])
    broken = s.loops_used & ~_bits([t is not None for t in tracks])
    failed = broken | jumped | stuck
    zones: dict[int, list[float]] = {}
    lost: dict[int, int] = {}
    for i, t in enumerate(tracks):
        if failed >> i & 1:
            lost[s.loop_zones[i]] = lost.get(s.loop_zones[i], 0) + 1
        elif t is not None:
            zones.setdefault(s.loop_zones[i], []).append(t.middle_c)
    return Judged(
        hottest_c=max((t.used_c for t in tracks if t is not None), default=nan),
        failed=failed,
        stuck=stuck,
        jumped=jumped,
        zone_lost=any(count > 1 for count in lost.values()),
        disagree=any(max(values) - min(values) > DISAGREE_K for values in zones.values()),
    )
