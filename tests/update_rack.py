"""A rack as the update agent sees it, with recorders in the place of rauc, bootloader and firewall."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import monotonic_ns
from typing import Any

from bundles import COMPATIBLE
from fake_appliance import zeros

from firmware import image, rauc
from firmware.bundle import Refused
from firmware.config import Site
from firmware.image import GUARD, STATUS, EventReader, Status, View, writer
from firmware.rauc import System
from firmware.update_codes import UpdateResult as R
from firmware.updater import Agent, Machine, Tools
from statemachine.signals import Guard, Why
from statemachine.states import State

SERVICE = zeros(Status, state=State.SERVICE, period_us=10_000, permit=Why.NO_DATA, started_ns=1)
ARMED = zeros(Guard, armed=True)
NEW, RUNNING = "9.1.0", "9.0.0"


class Rack:
    """A rack as the agent sees it, with recorders in the place of rauc, bootloader and firewall."""

    def __init__(self, directory: Path, slot: int = 1, boot: int = 1, **site: Any) -> None:
        self.directory, self.status, self.guard, self.answers = directory, SERVICE, ARMED, True
        self.done: list[str] = []
        self.code = dict.fromkeys(("install", "good", "bad", "restart"), 0)
        self.signed: R | None = R.NONE
        self.firewall = self.holds = True
        self.modbus: bool | None = True
        self.busy = False
        self.ahead_ns, self.scan_late = 0, 0
        self.on_beat: Callable[[], None] = lambda: None
        self.during_install: Callable[[], None] = lambda: None
        self.site, self.slot, self.boot, self.running = Site(**site), slot, boot, RUNNING
        self.grubenv = directory / "grubenv"
        self.stick = directory / "stick"
        self.stick.mkdir(exist_ok=True)
        self.writers = {name: writer(name) for name in ("controller", "guard")}
        self.hold = View(image.HOLD, "updater", "hold")
        self.said = View(image.UPDATE, "updater", "update")
        self.events = EventReader("updater")
        self.seen_states: list[int] = []
        self.start()

    def start(self) -> None:
        """The agent's process, again."""
        self.files = writer("updater")
        machine = Machine(
            System(self.directory / "system.conf", COMPATIBLE, self.directory / "pki" / "site CA.crt", self.grubenv),
            self.slot, self.boot, self.running, self.stick, self.directory / "config", self.directory / "state",
        )  # fmt: skip
        tools = Tools(
            check=self._check, install=self._install, busy=lambda beat: self.busy,
            mark=lambda word, beat: self._does(word), restart=lambda beat: self._does("restart"),
            firewall=lambda beat: self.firewall, stop=self._stop, pause=lambda s: self.leap(s),
            now_ns=lambda: monotonic_ns() + self.ahead_ns,
        )  # fmt: skip
        self.scan()
        self.agent = Agent(self.files, self.site, machine, tools)
        if self.modbus is not None:
            self.agent._answers = lambda: bool(self.modbus)  # type: ignore[method-assign]

    def reboot(self, slot: int) -> None:
        self.files.close()
        self.slot, self.boot = slot, self.boot + 1
        self.start()

    def close(self) -> None:
        for file in (self.files, *self.writers.values()):
            file.close()

    def scan(self) -> None:
        """The controller answers a hold as it does, unless it is silent."""
        if not self.answers:
            return
        held = self.hold.refresh()
        permit = Why.UPDATING if self.holds and held is not None and held.hold else self.status.permit
        self.writers["controller"]["status"].publish(STATUS.pack(*self.status._replace(permit=permit)))
        self.writers["guard"]["guard"].publish(GUARD.pack(*self.guard))

    def leap(self, seconds: float) -> None:
        """Time passes and the controller scans in it."""
        self.ahead_ns += round(seconds * 1e9)
        scans = round(seconds * 100)
        self.status = self.status._replace(
            scan=self.status.scan + scans, late_scans=self.status.late_scans + self.scan_late * scans
        )
        self.scan()

    def look(self, times: int = 1, seconds: float = 0.5) -> Rack:
        for _ in range(times):
            self.leap(seconds)
            self.agent.look()
            self._note()
        return self

    def _check(self, path: Path, of: System, beat: Callable[[], None]) -> None:
        if self.signed is None:
            rauc.check(path, of, beat)
        elif self.signed:
            raise Refused(self.signed)

    def _install(self, path: Path, beat: Callable[[], None], tell: Callable[[int], None]) -> tuple[int, str]:
        assert path.exists()
        self.done.append("install")
        for percent in (0, 40, 100):
            self.during_install()
            self.scan()
            tell(percent)
        return self.code["install"], "LastError: no room"

    def _does(self, what: str) -> int:
        self.done.append(what)
        return self.code[what]

    def _stop(self) -> bool:
        self.scan()
        self.on_beat()
        self._note()
        return False

    def _note(self) -> None:
        said = self.said.refresh()
        if said is not None and self.seen_states[-1:] != [said.state]:
            self.seen_states.append(said.state)

    @property
    def result(self) -> R:
        return R(self.agent.record.result)

    @property
    def held(self) -> bool:
        found = self.hold.refresh()
        return found is not None and found.hold

    def ready(self) -> Rack:
        """Booted, self-test passed, marked good."""
        self.look(30)
        assert self.done == ["good"]
        self.done.clear()
        return self
