"""The update agent: installs a bundle while the rack is in SERVICE, and says after the start whether it may stay.

A bundle comes on a stick (EMS_UPDATE_DIR) or from the site server (update_url), never over Modbus; SERVICE is the
permission. It is copied, checked by signature and read through before the standby slot is touched. From then on the
section `hold` keeps the controller from closing anything, until the new version has passed its self-test; one that does
not pass it is taken back. rauc writes, the bootloader counts the starts.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from enum import IntEnum
from importlib.metadata import version
from pathlib import Path
from time import monotonic_ns
from typing import NamedTuple

from drivers.modbus.client import Link, LinkError
from drivers.section import SectionFile
from statemachine.signals import EventKind, Updater, Why
from statemachine.states import State

from . import bundle, image, rauc, update_source
from .authority import LOCAL
from .bundle import Manifest, Refused
from .conf_file import migrate
from .config import FILES, ConfigError, Site, config_directory, load_site
from .image import Status, Update
from .realtime import STOP_SIGNALS, arrived
from .registers import POINT
from .store import Slots
from .update_codes import TEXT, UpdateResult, UpdateState
from .update_source import Found

PERIOD_NS, PUBLISH_NS = 500_000_000, 200_000_000
FRESH_MS, GUARD_FRESH_MS = 500.0, 1000.0
HOLD_NS = 2_000_000_000
"""The controller answers a hold within a scan; a loaded machine gets this long."""
CHECK_NS = 300_000_000_000
"""A version that has not passed its self-test by then is taken back."""
WATCH_NS = 10_000_000_000
"""How long the scan is watched."""
RETRY_NS = 30_000_000_000
LATE_SHARE = 0.05
"""Of the scans watched; $EMS_LATE_SHARE changes it where the machine is simulated."""
_MB = 1 << 20


class Phase(IntEnum):
    IDLE = 0
    INSTALLING = 1
    INSTALLED = 2  # and the restart has not happened
    TRIAL = 3  # the new version came up and is not confirmed


class Record(NamedTuple):
    """What the agent must not forget over a restart."""

    phase: int = Phase.IDLE
    boot: int = 0  # boot in which the phase began
    slot: int = 0  # that was installed
    root: int = 0  # of its bundle
    why: int = UpdateResult.NOT_BOOTED  # what the self-test lacked last
    result: int = UpdateResult.NONE
    detail: int = 0
    rolled_back: int = 0  # 1 until somebody enters SERVICE
    taken_back: int = 0  # root of the bundle that was taken back last


class Tools(NamedTuple):
    """What the agent does to the machine; tests put recorders here."""

    check: Callable[[Path, rauc.System, Callable[[], None]], None] = rauc.check
    install: Callable[[Path, Callable[[], None], Callable[[int], None]], tuple[int, str]] = rauc.install
    busy: Callable[[Callable[[], None]], bool] = rauc.busy
    mark: Callable[[str, Callable[[], None]], int] = rauc.mark
    restart: Callable[[Callable[[], None]], int] = rauc.restart
    firewall: Callable[[Callable[[], None]], bool] = rauc.firewall
    stop: Callable[[], bool] = lambda: False
    pause: Callable[[float], None] = time.sleep
    now_ns: Callable[[], int] = monotonic_ns


class Machine(NamedTuple):
    """Where the agent runs."""

    system: rauc.System
    slot: int  # booted
    boot: int  # another number after every start
    running: str  # version
    stick: Path
    config: Path
    state: Path


class Stopped(Exception):
    """SIGTERM: what runs is left as it is, the record says how far it was."""


def refusal(status: Status | None) -> UpdateResult:
    """Why nothing may be installed or restarted now; NONE when it may. `status` None: the controller is silent."""
    if status is None:
        return UpdateResult.CONTROLLER_SILENT
    if status.state != State.SERVICE:
        return UpdateResult.NOT_IN_SERVICE
    return UpdateResult.CONTACTORS_NOT_OPEN if status.coils or status.feedback else UpdateResult.NONE


class Agent:
    """`look()` twice a second."""

    def __init__(self, files: SectionFile, site: Site, machine: Machine, tools: Tools) -> None:
        self._hold_section, self._section = files["hold"], files["update"]
        self._log = image.EventLog(files["events"])
        self._site, self._machine, self._tools = site, machine, tools
        self._status = image.View(image.STATUS, "controller", "status")
        self._guard = image.View(image.GUARD, "guard", "guard")
        self._slots = Slots(machine.state, "update", Record)
        self._record = self._slots.load().saved or Record()
        self._bundle = machine.state / "update.raucb"
        self._step, self._progress, self._done, self._total = UpdateState.IDLE, 0, 0, 0
        self._offered, self._hold, self._served = "", False, False
        self._judged: Found | None = None
        self._published_ns = self._tried_ns = -RETRY_NS
        self._watched: tuple[int, Status] | None = None
        self._began_ns, self._checking = tools.now_ns(), True
        self._came_up()

    @property
    def record(self) -> Record:
        return self._record

    def look(self) -> None:
        """One pass: the self-test after a start, a restart that is due, then what there is to install."""
        entered = self._entered_service()
        if self._record.phase == Phase.INSTALLING:
            self._await_rauc()
        elif self._record.phase == Phase.INSTALLED:
            self._restart()
        elif self._record.phase == Phase.TRIAL:
            self._check()
        else:
            if self._checking:
                self._check()
            self._offer(entered)
        self._publish()

    def _entered_service(self) -> bool:
        """Whoever enters SERVICE has seen what the panel says, and wants to be told again what is on the stick."""
        status = self._fresh()
        served, self._served = self._served, status is not None and status.state == State.SERVICE
        if served or not self._served:
            return False
        self._judged = None
        self._save(rolled_back=0)
        return True

    def _came_up(self) -> None:
        """What the start says of an update that was under way."""
        r, m = self._record, self._machine
        if r.boot != m.boot or r.phase != Phase.INSTALLING:
            with contextlib.suppress(OSError):
                self._bundle.unlink(missing_ok=True)
        if r.boot == m.boot or r.phase == Phase.IDLE:
            self._hold = r.phase != Phase.IDLE
            if r.phase == Phase.IDLE:
                self._came_up_in(m.slot)
        elif m.slot and m.slot == r.slot:
            self._hold = True
            self._save(phase=Phase.TRIAL, boot=m.boot)
        elif r.phase == Phase.INSTALLING:
            self._save(phase=Phase.IDLE)
            self._tell(UpdateResult.INSTALL_FAILED, "the supply failed while it was installed")
        else:
            self._save(phase=Phase.IDLE, boot=m.boot, rolled_back=1, taken_back=r.root)
            self._tell(UpdateResult(r.why), f"slot {'?AB'[m.slot]} runs again")
        self._publish()

    def _came_up_in(self, slot: int) -> None:
        """Tells, once, that the bootloader would have started the other slot if that had had a start left.

        Not of a version that was taken back. Where it runs again there is nothing left to tell.
        """
        r, first = self._record, rauc.first(self._machine.system.grubenv)
        passed_over = bool(slot and first) and first != slot and not (r.slot == first and r.root == r.taken_back)
        told = r.result == UpdateResult.FELL_BACK
        if passed_over and not told:
            self._save(rolled_back=1)
            self._tell(UpdateResult.FELL_BACK, f"slot {'?AB'[slot]} runs")
        elif told and not passed_over:
            self._save(result=UpdateResult.NONE, rolled_back=0)

    # the self-test

    def _check(self) -> None:
        """After every start; only a version that is new here is taken back when it does not pass."""
        trial = self._record.phase == Phase.TRIAL
        self._step = UpdateState.CHECKING if trial else self._step
        why = self._lacking()
        if why is UpdateResult.NONE and self._tools.mark("good", self._beat):
            why = UpdateResult.CHECK_MARK
        if why is UpdateResult.NONE:
            self._confirm()
        elif trial:
            self._save(why=self._record.why if why is None else why)
            if self._tools.now_ns() - self._began_ns > CHECK_NS:
                self._take_back()

    def _confirm(self) -> None:
        trial, self._checking = self._record.phase == Phase.TRIAL, False
        self._step = UpdateState.IDLE
        for text in migrate(self._machine.config, FILES):
            self._log.add(0, text=f"CONFIG {text}")
        if trial:
            self._hold, r = False, self._record
            self._save(phase=Phase.IDLE, taken_back=0 if r.taken_back == r.root else r.taken_back)
            self._tell(UpdateResult.CONFIRMED, self._machine.running)

    def _lacking(self) -> UpdateResult | None:
        """The first thing that the self-test lacks; NONE when it is passed, None while the scan is watched."""
        status = self._fresh()
        if status is None or not self._guard_heard():
            self._watched = None
            return UpdateResult.CHECK_IO
        on_time = self._on_time(status)
        if not on_time:
            return None if on_time is None else UpdateResult.CHECK_SCAN
        if not self._answers():
            return UpdateResult.CHECK_MODBUS
        return UpdateResult.NONE if self._tools.firewall(self._beat) else UpdateResult.CHECK_FIREWALL

    def _guard_heard(self) -> bool:
        return self._guard.refresh() is not None and self._guard.age_ms() <= GUARD_FRESH_MS

    def _on_time(self, status: Status) -> bool | None:
        """No more than LATE_SHARE of the scans of WATCH_NS were late, and none are missing; None before it is over."""
        now_ns = self._tools.now_ns()
        if self._watched is None or self._watched[1].started_ns != status.started_ns:
            self._watched = now_ns, status
        began_ns, before = self._watched
        if now_ns - began_ns < WATCH_NS:
            return None
        self._watched = now_ns, status
        share = float(os.environ.get("EMS_LATE_SHARE", LATE_SHARE))
        scans, late = status.scan - before.scan, status.late_scans - before.late_scans
        expected = (now_ns - began_ns) / 1000 / max(1, status.period_us)
        return scans >= (1.0 - share) * expected - 2 and late <= share * scans

    def _answers(self) -> bool:
        """The unit's own registers say what the controller says."""
        host = self._site.modbus_host if self._site.modbus_plain else LOCAL
        host = LOCAL if host in ("0.0.0.0", "::") else host
        port = int(os.environ.get("EMS_MODBUS_PORT", self._site.modbus_port))
        link, points = Link(host, port, 1.0), (POINT["CmfState"], POINT["ScanPeriodUs"])
        try:
            link.connect()
            seen = [p.decode(link.read(p.device_id, p.address, p.count)) for p in points]
        except (LinkError, OSError):
            return False
        finally:
            link.close()
        status = self._fresh()
        return status is not None and seen == [status.state, status.period_us]

    def _take_back(self) -> None:
        """The other slot starts next. Waits while a contactor that somebody still watches is not open."""
        status, now_ns = self._fresh(), self._tools.now_ns()
        if (status is not None and (status.coils or status.feedback)) or now_ns - self._tried_ns < RETRY_NS:
            return
        self._tried_ns = now_ns
        self._step = UpdateState.RESTARTING
        self._log.add(EventKind.UPDATE, self._record.why)
        self._tools.mark("bad", self._beat)
        self._tools.restart(self._beat)

    # installing

    def _offer(self, entered: bool) -> None:
        """A stick when it is new here or SERVICE was entered; else, on entering, the site server."""
        try:
            found = update_source.find(self._machine.stick)
            new = found is not None and found != self._judged
            self._judged = found
            if new and found is not None:
                self._update(lambda: update_source.copy(found, self._bundle, self._copied), UpdateState.COPYING, True)
            elif entered and self._site.update_url != "none":
                self._update(self._pull, UpdateState.DOWNLOADING, False)
        except Refused as refused:
            if refused.result != self._record.result or entered:
                self._refuse(refused)

    def _pull(self) -> None:
        roots = self._machine.config / "tls" / "ca.crt"
        update_source.pull(self._site.update_url, self._site.update_hosts, roots, self._bundle, self._copied)

    def _update(self, fetch: Callable[[], None], step: UpdateState, by_hand: bool) -> None:
        try:
            with self._running():
                self._gate()
                self._begin(step)
                fetch()
                self._install(self._verified(by_hand))
        except Refused as refused:
            told = self._record.boot == self._machine.boot and not self._served
            self._refuse(refused, keep=told)  # a stick that was left in does not hide how its update ended

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Afterwards nothing is left but what the record says."""
        try:
            yield
        finally:
            if self._record.phase == Phase.IDLE:
                self._hold = False
                with contextlib.suppress(OSError):
                    self._bundle.unlink(missing_ok=True)
            self._begin(UpdateState.RESTARTING if self._record.phase == Phase.INSTALLED else UpdateState.IDLE)

    def _verified(self, by_hand: bool) -> Manifest:
        """Raises Refused before anything but our own copy was touched."""
        self._begin(UpdateState.VERIFYING)
        running, system = self._machine.running, self._machine.system
        try:
            bundle.manifest(self._bundle)  # its shape, so that what was cut off is told as that
            self._tools.check(self._bundle, system, self._gate)
            m = bundle.manifest(self._bundle)
            self._offered = m.version
            if m.compatible != system.compatible:
                raise Refused(UpdateResult.COMPATIBLE, f"compatible = {m.compatible}, allowed is {system.compatible}")
            if m.version == running:
                raise Refused(UpdateResult.NOTHING_NEW, m.version)
            if bundle.older(m.version, running):
                raise Refused(UpdateResult.OLDER, f"version {m.version}, {running} runs")
            if not by_hand and _number(m) == self._record.taken_back:
                raise Refused(UpdateResult.TAKEN_BACK_BEFORE, m.version)
            bundle.read_through(self._bundle, m, self._copied)
        except OSError as error:
            raise Refused(UpdateResult.NOT_READABLE, f"{error.filename}: {error.strerror}", error.errno or 0) from error
        return m

    def _install(self, m: Manifest) -> None:
        self._take_hold()
        self._begin(UpdateState.INSTALLING)
        target = {1: 2, 2: 1}.get(self._machine.slot, 0)
        if not self._save(phase=Phase.INSTALLING, boot=self._machine.boot, slot=target, root=_number(m)):
            self._record = self._record._replace(phase=Phase.IDLE)
            raise Refused(UpdateResult.NO_SPACE, "without its record a new version could not be taken back")
        self._log.add(0, text=f"UPDATE {m.version} is installed over slot {'?AB'[target]}")
        code, said = self._tools.install(self._bundle, self._beat, self._installed)
        if code:
            self._save(phase=Phase.IDLE)
            raise Refused(UpdateResult.INSTALL_FAILED, said.strip().rpartition("\n")[2], code)
        self._save(phase=Phase.INSTALLED, why=UpdateResult.NOT_BOOTED)
        self._tell(UpdateResult.INSTALLED, m.version)

    def _take_hold(self) -> None:
        """Raises Refused when the controller does not say, in a scan after the hold, that it closes nothing."""
        self._hold = True
        self._publish(now=True)
        asked_ns = self._tools.now_ns()
        while not self._held():
            self._gate()
            if self._tools.now_ns() - asked_ns > HOLD_NS:
                raise Refused(UpdateResult.NOT_HELD)
            self._tools.pause(0.01)

    def _held(self) -> bool:
        status = self._fresh()
        return status is not None and status.permit == Why.UPDATING and not refusal(status)

    def _await_rauc(self) -> None:
        """This process was started again while rauc wrote: the hold stays until rauc has ended."""
        self._step, self._hold = UpdateState.INSTALLING, True
        if not self._tools.busy(self._beat):
            self._hold, self._step = False, UpdateState.IDLE
            self._save(phase=Phase.IDLE)
            self._tell(UpdateResult.INSTALL_FAILED, "the agent was started again while it was installed")

    def _restart(self) -> None:
        """Into the new version, as soon as the rack is in SERVICE and open; until then nothing closes."""
        self._step, self._hold, now_ns = UpdateState.RESTARTING, True, self._tools.now_ns()
        if refusal(self._fresh()) or now_ns - self._tried_ns < RETRY_NS:
            return
        self._tried_ns = now_ns
        if code := self._tools.restart(self._beat):
            self._tell(UpdateResult.RESTART_FAILED, "", code)

    # what is said

    def _fresh(self) -> Status | None:
        status = self._status.refresh()
        return status if self._status.age_ms() <= FRESH_MS else None

    def _gate(self) -> None:
        """Raises Refused as soon as the rack may not be updated any more, Stopped at SIGTERM."""
        self._beat()
        if why := refusal(self._fresh()):
            raise Refused(why)

    def _beat(self) -> None:
        if self._tools.stop():
            raise Stopped
        self._publish()

    def _copied(self, done: int, total: int) -> None:
        self._done, self._total = done // _MB, total // _MB
        self._progress = 100 * done // max(1, total)
        self._gate()

    def _installed(self, percent: int) -> None:
        self._progress = percent
        self._beat()

    def _begin(self, step: UpdateState) -> None:
        self._step, self._progress = step, 0
        self._publish(now=True)

    def _publish(self, now: bool = False) -> None:
        now_ns = self._tools.now_ns()
        if not now and now_ns - self._published_ns < PUBLISH_NS:
            return
        self._published_ns, r, m = now_ns, self._record, self._machine
        self._hold_section.publish(image.HOLD.pack(*Updater(self._hold, bool(r.rolled_back))))
        tries = rauc.tries_left(m.system.grubenv, m.slot)
        self._section.publish(
            image.UPDATE.pack(
                *Update(
                    self._step, self._progress, r.result, r.detail, m.slot, tries, self._done, self._total,
                    m.running.encode()[:16], self._offered.encode()[:16],
                )
            )
        )  # fmt: skip

    def _refuse(self, refused: Refused, keep: bool = False) -> None:
        self._tell(refused.result, str(refused), refused.detail, keep)

    def _tell(self, result: UpdateResult, text: str = "", detail: int = 0, keep: bool = False) -> None:
        """In battery.log, in the journal and, unless what they say is to be kept, in the registers."""
        if not keep:
            self._save(result=result, detail=detail)
        self._log.add(EventKind.UPDATE, result, detail, text[:88])
        print(f"updater: {result.name}: {TEXT[result]}{f' [{text}]' if text else ''}", file=sys.stderr, flush=True)
        self._publish(now=True)

    def _save(self, **changed: int) -> bool:
        """Whether it is on the disk."""
        after = self._record._replace(**changed)
        if after == self._record:
            return True
        self._record = after
        try:
            self._slots.save(after)
        except OSError as error:
            print(f"updater: {self._machine.state}: {error.strerror}; the disk does not keep it", file=sys.stderr)
            return False
        return True


def _number(m: Manifest) -> int:
    """A bundle's identity, small enough to be saved."""
    return int.from_bytes(m.root[:7], "big")


def _boot() -> int:
    """Another number after every start."""
    text = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
    return int(text.replace("-", "")[:14], 16)


def running_version() -> str:
    """Of the image, or of the package where there is no image."""
    with contextlib.suppress(OSError):
        for line in Path("/etc/os-release").read_text("utf-8").splitlines():
            if line.startswith("IMAGE_VERSION="):
                return line.partition("=")[2].strip("\"'")
    return version("ems-edge")


def machine() -> Machine:
    """Raises ValueError, OSError."""
    return Machine(
        system=rauc.system(),
        slot=rauc.booted(Path("/proc/cmdline").read_text("utf-8")),
        boot=_boot(),
        running=running_version(),
        stick=Path(os.environ.get("EMS_UPDATE_DIR", "/run/ems-update")),
        config=config_directory(),
        state=image.state_directory(),
    )


def _site(directory: Path) -> Site:
    """site.conf, or its defaults: an update may be what mends it."""
    try:
        return load_site(directory)
    except ConfigError as error:
        print(f"updater: {error}", file=sys.stderr)
        return Site()


class _Asked:
    """SIGTERM or SIGINT, remembered once it came; SIGHUP means nothing here."""

    def __init__(self) -> None:
        self.stop = False

    def __call__(self, timeout_s: float = 0.0) -> bool:
        while not self.stop and (number := arrived(timeout_s)):
            self.stop = number != signal.SIGHUP
        return self.stop


def run(agent: Agent, asked: Callable[[float], bool]) -> None:
    """A look every PERIOD_NS until SIGTERM or SIGINT, which must be blocked."""
    deadline_ns = monotonic_ns()
    with contextlib.suppress(Stopped):
        while not asked(max(0.0, (deadline_ns - monotonic_ns()) / 1e9)):
            agent.look()
            deadline_ns = max(deadline_ns + PERIOD_NS, monotonic_ns())


def main() -> int:
    """Process entry."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    asked = _Asked()
    try:
        here, files = machine(), image.writer("updater")
    except (ValueError, OSError) as error:
        print(f"updater: {error}", file=sys.stderr)
        return 2
    agent = Agent(files, _site(here.config), here, Tools(stop=asked))
    slot = " AB"[here.slot].strip() or "without a slot"
    print(f"updater: version {here.running} in slot {slot}, bundles from {here.stick}", file=sys.stderr, flush=True)
    run(agent, asked)
    return 0


if __name__ == "__main__":
    sys.exit(main())
