"""What goes into one scan and what comes out of it.

Sign everywhere: + is discharge (export), - is charge, as SunSpec has it. A current *limit* has no sign.
A number that crosses the border carries its unit in its name. `nan` means "not measured".
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from .settings import Settings
from .states import State
from .wear import Wear


class Bms(NamedTuple):
    """One complete poll of the battery, reduced to what the scan needs."""

    poll: int  # complete polls since start; 0 = none yet
    v_stamp_ms: float  # CLOCK_MONOTONIC, when rack_v was answered
    rack_v: float  # mean of the parallel strings, V
    rack_a: float  # sum of the strings, A, + is discharge
    soc_pct: float  # energy-weighted over the strings
    soc_max_pct: float  # highest string: drives the plating limit
    soc_min_pct: float  # lowest string: ends a discharge
    soh_pct: float  # lowest string
    cell_v_max: float
    cell_v_min: float
    cell_v_avg: float
    cell_v_max_at: int  # flat cell index: string-major, 0 based
    cell_v_min_at: int
    cell_c_max: float
    cell_c_min: float
    cell_c_max_at: int
    cell_c_min_at: int
    charge_max_a: float  # the BMS's own charge limit for the rack, >= 0
    discharge_max_a: float
    insulation_kohm: float
    alarm_trip: int  # bits: the BMS trips by itself (level 2)
    alarm_stop: int  # bits: we must stop (level 1)
    alarm_warn: int  # bits: pre-alarm
    cells_bad: int  # cells with a sentinel or an impossible value, kept out of the extremes
    cells_balancing: int
    strings_online: int
    plausible: bool  # cell sum, extremes and string voltages agree with each other
    identity_ok: bool  # unit ids and device identity were verified
    loss_pct: float  # requests without a good answer, smoothed over some 200 requests


class Pcs(NamedTuple):
    """One poll of the power conversion system."""

    poll: int
    v_stamp_ms: float
    dc_v: float  # DC terminal voltage, V
    dc_a: float  # A, + is discharge
    ac_w: float
    ac_hz: float
    ac_v: float  # line to line; nan = it measures none
    state: int  # PcsState
    fault_bits: int
    charge_max_a: float
    discharge_max_a: float
    identity_ok: bool
    loss_pct: float  # as Bms.loss_pct


class PcsState(IntEnum):
    OFF = 0
    STANDBY = 1
    RUN = 2
    FAULT = 3


class Mode(IntEnum):
    """CmdMode: what the site controller wants. A level, not an edge."""

    OFF = 0
    READY = 1
    CHARGE = 2
    DISCHARGE = 3
    GRID = 4
    SERVICE = 5


class LossPolicy(IntEnum):
    """What follows a lost site-controller heartbeat, after the ramp to zero."""

    STANDBY = 0  # 0 A, contactors stay closed
    HOLD = 1  # keep the command, local limits only
    ISOLATE = 2  # open the contactors


class Command(NamedTuple):
    """The site controller's wishes, as the server accepted them (whole or not at all)."""

    seq: int  # CmdSeq; a new number makes a new command
    mode: int  # Mode
    w: float  # GRID set-point, W, + is discharge
    c_rate: float  # CmdRamp: the commanded charge or discharge rate, C on rated capacity
    target_soc_pct: float
    heartbeat: int  # the last heartbeat value written by the site controller
    heartbeat_armed: bool  # set by the first heartbeat written, or by configuration
    heartbeat_timeout_s: float
    loss_policy: int  # LossPolicy
    ack_count: int  # grows by one with each accepted AckFaults
    wset_version: int  # grows by one with each accepted write to the 704 WSet group
    wset_enabled: bool
    wset_w: float
    wset_revert_w: float
    wset_revert_enabled: bool
    wset_revert_s: float  # 0 = no timer
    config_error: bool  # the last configuration read was refused
    epoch: int  # Epoch of the redundant masters' frames, 0 = not fenced
    valid_ms: int  # ValidMs: how long the frame is in force, 0 = without end

    @property
    def number(self) -> int:
        """Epoch and CmdSeq as one: a command of a higher epoch is another one, and newer, whatever its CmdSeq."""
        return self.epoch * EPOCH + self.seq


EPOCH = 1 << 32
"""A command's number in Epoch 1, CmdSeq 0; below it nothing is fenced."""


class Grid(NamedTuple):
    """The grid functions as the site controller set them: SunSpec 703, the limit of 704, 711. 1 pu is 702.WMax."""

    service_permitted: bool  # 703.ES; False: cease to energise
    v_low_pu: float  # of the nominal voltage
    v_high_pu: float
    hz_low: float
    hz_high: float
    delay_s: float
    ramp_s: float
    limit_version: int  # grows by one with each accepted write to the 704 WMaxLimPct group
    limit_enabled: bool
    limit_pu: float
    limit_revert_enabled: bool
    limit_revert_pu: float
    limit_revert_s: float  # 0 = no timer
    droop_version: int  # grows by one with each accepted write to 711 but its sets
    droop_enabled: bool
    droop_revert_s: float
    droop_revert_set: int
    droop_followed: int  # version whose reversion the sets show: for a server that starts again, as set 2 is
    db_of_hz: float  # set 1, in force
    db_uf_hz: float
    k_of: float  # pu frequency a pu power
    k_uf: float
    response_s: float  # until 90 % of the answer
    p_min_pu: float
    next_db_of_hz: float  # set 2, not adopted
    next_db_uf_hz: float
    next_k_of: float
    next_k_uf: float
    next_response_s: float
    next_p_min_pu: float


class Guard(NamedTuple):
    """What the second channel says of itself."""

    armed: bool  # safe-enable is on
    trip: int  # GuardTrip that dropped it last
    kill_ok: bool
    tamper_ok: bool
    resets: int  # accepted presses of the physical reset since start
    watchdog: int  # WatchdogState
    boot_reason: int  # BootReason


class GuardTrip(IntEnum):
    NONE = 0
    KILL_SWITCH = 1
    TAMPER = 2
    HEARTBEAT_LATE = 3
    CONTROLLER_RESTARTED = 4
    START = 5  # not armed yet
    GUARD_RESTARTED = 6
    GUARD_STALLED = 7  # its own ticks had a gap in which the alive relay fell out
    CONTROLLER_TRIP = 8  # the controller saw a cause for a category 0 stop


class WatchdogState(IntEnum):
    """The hardware watchdog, which the guard alone pets."""

    NONE = 0  # the board file names none
    RUNNING = 1
    FAILED = 2  # it could not be opened or petted


class BootReason(IntEnum):
    UNKNOWN = 0
    POWER = 1
    COMMAND = 2  # an orderly reboot
    WATCHDOG = 3  # the hardware watchdog reset the machine


class Store(NamedTuple):
    """What the historian says of the disk."""

    writes_ok: bool  # the last write of log, journal and saved state worked
    lost: int  # lines and records lost since start
    saved_latched: int  # faults_latched as last saved
    saved_cycles: int  # contactor cycles as last saved


class Clock(NamedTuple):
    """What is known of the wall clock. It stamps history; nothing is timed by it."""

    trusted: bool  # synchronised, and the configured servers agree within max_clock_offset
    synchronised: bool  # by the kernel's own account
    offset_ms: float  # measured against the servers; nan = no acceptable answer
    servers_ok: int
    steps: int  # jumps of the wall clock since start


class Updater(NamedTuple):
    """What the update agent asks of the rack."""

    hold: bool  # an update is being installed, or the version that runs is not confirmed: nothing may close
    rolled_back: bool  # the version before runs again, and nobody entered SERVICE since


class Lines(NamedTuple):
    """The terminals of the board, read once at the start of the scan. True is the healthy level."""

    kill_ok: bool
    tamper_ok: bool
    reset_pressed: bool
    insulation_ok: bool  # relay of the insulation monitor
    interlocks: int  # bit n-1 set = interlock n closed (24 V present); n = 1..8
    fb_neg: bool  # auxiliary contact: main contactor negative is closed
    fb_pos: bool
    fb_pre: bool
    loops_ma: tuple[float, ...]  # 4-20 mA thermal loops 1..8
    loops_age_ms: float
    out_neg: bool  # coil outputs as the board reads them back
    out_pos: bool
    out_pre: bool
    remote: bool  # the key switch: True = REMOTE, False = LOCAL (or its wire is broken)


class Inputs(NamedTuple):
    """One scan's inputs. A section never received is None; its age then has no meaning."""

    lines: Lines
    bms: Bms | None
    bms_age_ms: float
    pcs: Pcs | None
    pcs_age_ms: float
    command: Command | None
    command_age_ms: float
    guard: Guard | None
    guard_age_ms: float
    store: Store | None
    store_age_ms: float
    clock: Clock | None
    clock_age_ms: float
    settings: Settings | None  # latest valid configuration, None before the first
    overruns_in_row: int  # late scans in a row, as the controller counted
    restarted: bool  # the controller found a predecessor that did not stop in order, or damaged saved state
    grid: Grid | None = None  # None: every grid function as it is before it was written
    updater: Updater | None = None  # the rack works without one
    updater_age_ms: float = 0.0


class Result(IntEnum):
    """AckResult."""

    NONE = 0
    ACCEPTED = 1
    REJECTED = 2


class Why(IntEnum):
    """AckWhy: why a write was refused or a command is not followed. Numbers never change."""

    NONE = 0
    SEQ_NOT_NEW = 1  # a command must carry a CmdSeq that was not used before the last trip or restart
    FAULT_LATCHED = 2
    EMERGENCY_STOP = 3
    LOCKOUT = 4
    IN_SERVICE = 5  # leave SERVICE first (mode off)
    NOT_ISOLATED = 6  # SERVICE only from ISOLATED
    NO_DATA = 7  # BMS or PCS data missing, stale or implausible
    INTERLOCK_OPEN = 8
    GUARD_NOT_ARMED = 9
    NO_CONFIGURATION = 10
    STARTING = 11
    OUT_OF_RANGE = 12
    READ_ONLY = 13
    HALF_POINT = 14  # half of a 32-bit point
    UNDEFINED_VALUE = 15  # enum value or sentinel
    CAUSE_ACTIVE = 16  # acknowledge refused: the cause is still there
    HEARTBEAT_LOST = 17
    NOT_IN_AUTHORITY = 18  # another site controller commands
    TOO_MANY_WRITES = 19
    NO_SUCH_REGISTER = 20
    BMS_ALARM = 21  # the BMS has a stop or trip alarm
    PCS_FAULT = 22  # the PCS reports a fault
    ENTER_SERVICE = 23  # the grid is outside 703's range, or its delay is running
    SERVICE_NOT_PERMITTED = 24  # 703.ES is DISABLED
    LOCAL_CONTROL = 25  # the key switch is at LOCAL
    STALE_EPOCH = 26  # Epoch and CmdSeq are not above the highest that were accepted
    EPOCH_REQUIRED = 27  # fenced: a command without Epoch, or Epoch 0 outside SERVICE
    VALIDITY_OVER = 28  # no frame came for ValidMs and the hold time
    EPOCH_NOT_SAVED = 29  # the disk does not take the new Epoch
    INCOMPLETE_FRAME = 30  # Epoch, CmdSeq and ValidMs are not in the same write
    UPDATING = 31  # an update is being installed or is not confirmed yet
    NOT_COMMISSIONED = 32  # no valid record of the interlock checks, or the configuration has changed since
    NOT_IN_SERVICE = 33  # CmdComm is taken in SERVICE only
    CHECKS_MISSING = 34  # CmdComm: CommMissing is not 0
    RECORD_NOT_SAVED = 35  # the disk does not take the commissioning record


class Outputs(NamedTuple):
    """One scan's outputs."""

    state: State
    coil_neg: bool
    coil_pos: bool
    coil_pre: bool
    setpoint_a: float  # DC current demanded of the PCS, + is discharge
    pcs_run: bool
    charge_limit_a: float
    discharge_limit_a: float
    charge_reason: int  # LimitReason
    discharge_reason: int
    available_charge_a: float  # what the rack could take now: every limit but command and ramp
    available_discharge_a: float
    demand_w: float  # setpoint_a * rack voltage
    faults_active: int  # bit = Fault.bit
    faults_latched: int
    trip: bool  # a cause for a category 0 stop stands: the guard opens by its own output as well
    led_codes: tuple[int, int, int, int, int]  # RUN, CHARGE, COMM, FAULT, KILL
    led_levels: tuple[bool, bool, bool, bool, bool]
    ack_seq: int
    ack_result: int  # Result
    ack_why: int  # Why
    permit: int  # Why that forbids closing now, NONE = allowed
    status_bits: int  # StatusBit
    wset_active_w: float  # nan when no WSet is in force
    wset_remaining_s: float
    wset_reverted: int  # wset_version whose timer has run out
    service_delay_s: float  # until service may be entered
    limit_remaining_s: float
    limit_reverted: int  # limit_version whose timer has run out
    droop_remaining_s: float
    droop_reverted: int
    dv_v: float  # PCS minus BMS terminal voltage after calibration, nan before
    precharge_tries: int
    interlocks: int  # InterlockBit
    settings_revision: int
    wear: Wear
    events: tuple[tuple[int, int, int], ...]  # (EventKind, a, b), this scan's


class EventKind(IntEnum):
    STATE = 1  # a = from, b = to
    FAULT_ON = 2  # a = fault bit
    FAULT_OFF = 3
    FAULT_ACK = 4
    COMMAND = 5  # a = seq, b = Why (0 = accepted)
    COILS = 6  # a = bits neg, pos, pre
    SETTINGS = 7  # a = revision, b = 1 when a widening waits for open contactors
    PRECHARGE = 8  # a = try, b = 1 verified, 0 failed
    REVERT = 9  # a = version of the group, b = 0 set-point, 1 limit, 2 droop
    DV_ZERO = 10  # a = offset in mV
    HEARTBEAT = 11  # a = 0 lost, 1 back
    SERVICE_PRESS = 12  # RESET was held for 10 s; a = 1 when the contactor counters were set to zero
    KEY_SWITCH = 13  # a = 0 LOCAL, 1 REMOTE
    VALIDITY = 14  # a = 0 over, 1 a frame is in force again
    UPDATE = 15  # of the update agent: a = UpdateResult, b = the number that came with it


class StatusBit(IntEnum):
    """StatusBits register, bit numbers."""

    NO_REALTIME = 0  # SCHED_FIFO refused
    NO_MEMLOCK = 1  # mlockall refused
    CONFIG_REFUSED = 2  # the last configuration read was invalid; the one before is in force
    CONFIG_PENDING = 3  # a widening waits until the contactors are open
    BMS_STALE = 4
    PCS_STALE = 5
    HEARTBEAT_ARMED = 6
    HEARTBEAT_LOST = 7
    DV_CALIBRATED = 8
    SERVER_STALE = 9
    BENCH = 10  # the I/O board is the bench, not hardware
    CLOCK_TRUSTED = 11


class InterlockBit(IntEnum):
    """Interlocks register, bit numbers; 0..7 are interlocks 1..8. Set = closed, healthy or pressed as the name says."""

    INTERLOCK_1 = 0
    INTERLOCK_2 = 1
    INTERLOCK_3 = 2
    INTERLOCK_4 = 3  # the manual's 24 V signal on digital input 4
    INTERLOCK_5 = 4
    INTERLOCK_6 = 5
    INTERLOCK_7 = 6
    INTERLOCK_8 = 7
    KILL_OK = 8
    TAMPER_OK = 9
    INSULATION_OK = 10
    FEEDBACK_NEG = 11
    FEEDBACK_POS = 12
    FEEDBACK_PRE = 13
    RESET_PRESSED = 14
    GUARD_ARMED = 15
    KEY_LOCAL = 16  # the key switch is at LOCAL


class LimitReason(IntEnum):
    """LimReason: the name of the limit that bites. Numbers never change."""

    NONE = 0
    COMMAND = 1  # the commanded C-rate or power
    BMS = 2  # the BMS's own limit
    PCS = 3  # the PCS's rating or own limit
    SITE = 4  # limits.conf
    STEP = 5  # step-charge from 70 % SoC
    PLATING = 6  # plating ceiling by SoC
    COLD = 7  # coldest cell
    HEALTH = 8  # SoH
    HOT = 9  # hottest cell
    VOLTAGE = 10  # voltage loop on the highest (discharge: lowest) cell
    LOW_CELL = 11  # recovery of a deeply discharged cell
    BALANCE = 12  # top balancing
    RAMP = 13  # the limit is still rising
    REVERSION = 14  # the set-point's timer ran out
    LOOP = 15  # a thermal loop is hot, broken or stale
    SOC = 16  # SoC window
    NO_DATA = 17  # an input is missing or stale
    STATE = 18  # contactors are not closed
    ENTER_SERVICE = 19  # the ramp after entering service
    WMAX_LIM = 20  # 704.WMaxLimPct
    DROOP = 21  # frequency droop
