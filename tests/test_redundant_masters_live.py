"""Two masters and the whole appliance: takeover, a killed server, silence, the key switch, a reboot."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
from appliance import PATIENT, RUNNER, Appliance, appliance
from test_authority import Site
from test_redundant_masters import frame
from waiting import wait_until

from firmware.sunspec import Control
from statemachine.signals import Mode, Why
from statemachine.states import State
from statemachine.wishes import HOLD_MS

pytestmark = pytest.mark.system

VALID_MS = 500
CALM = {**PATIENT, "bms_timeout": 5, "pcs_timeout": 5}
"""A busy machine is not the subject."""
DOWN = -1


class Master:
    """Sends frames as long as it is asked to; connects again when the server was away."""

    def __init__(self, port: int, host: str, epoch: int) -> None:
        self._port, self._host, self.epoch, self.seq = port, host, epoch, 0
        self._site: Site | None = None
        self.sent_s = 0.0

    def again(self) -> int:
        """The last frame once more. Exception code, 0 = taken, DOWN = nobody answers on a new connection either."""
        for _ in range(2):
            try:
                if self._site is None:
                    self._site = Site(self._port, self._host)
                self.sent_s = time.monotonic()
                return self._site.write(**frame(self.epoch, self.seq, Mode.GRID, -100_000, ValidMs=VALID_MS))
            except (OSError, AssertionError):
                self.close()
        return DOWN

    def send(self) -> int:
        self.seq += 1
        return self.again()

    def stream(self, a: Appliance, state: State) -> None:
        """Ten frames a second until the rack is in `state`."""
        wait_until(
            lambda: self.send() == 0 and a.state() is state, 40, lambda: f"{state.name}; is {a.state()}", pause_s=0.1
        )

    def close(self) -> None:
        if self._site is not None:
            with contextlib.suppress(OSError):
                self._site.close()
        self._site = None


def refused(a: Appliance, code: int, why: Why) -> bool:
    return code == 4 and a.get("AckWhy") == why


def test_two_masters_and_one_rack(tmp_path: Path) -> None:
    with appliance(tmp_path, soc=40.0, configured=CALM) as a:
        old, new = (
            Master(a.ports.EMS_MODBUS_PORT, host, epoch) for host, epoch in (("127.0.0.2", 7), ("127.0.0.3", 9))
        )
        a.until(State.ISOLATED)
        old.stream(a, State.GRID_SUPPORT)
        takes_over(a, old, new)
        survives_kill(a, old, new)
        stands_by(a, new)
        new.stream(a, State.GRID_SUPPORT)
        obeys_the_key(a, new)
        told(a)
        old.close()
        new.close()
    with appliance(tmp_path, soc=40.0, configured=CALM, start=(*RUNNER, "--keep-state")) as a:
        remembers(a)


def takes_over(a: Appliance, old: Master, new: Master) -> None:
    assert new.send() == 0
    assert refused(a, old.send(), Why.STALE_EPOCH)
    assert refused(a, new.again(), Why.STALE_EPOCH)
    new.stream(a, State.GRID_SUPPORT)
    assert a.get("Epoch") == 9


def survives_kill(a: Appliance, old: Master, new: Master) -> None:
    server = a.pid("server")
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: new.send() == 0 and a.pid("server") != server, 20, "the next server takes a frame", pause_s=0.1)
    assert refused(a, new.again(), Why.STALE_EPOCH)
    assert refused(a, old.send(), Why.STALE_EPOCH)
    new.stream(a, State.GRID_SUPPORT)


def stands_by(a: Appliance, master: Master) -> None:
    """No frame for ValidMs and the hold time: 0 A, contactors closed."""
    wait_until(lambda: a.get("AckWhy") == Why.VALIDITY_OVER, 20, "the validity is over")
    assert time.monotonic() - master.sent_s > (VALID_MS + HOLD_MS) / 1000
    a.until(State.READY)
    wait_until(lambda: a.get("SetA") == 0.0, 20, "0 A")
    assert a.truth("true_pos") == a.truth("true_neg") == 1


def obeys_the_key(a: Appliance, master: Master) -> None:
    a.inject(key_local=1)
    a.until(State.ISOLATED)
    wait_until(a.all_open, 5, "the true contactors open")
    assert a.truth("true_opened_under_load") == 0
    assert refused(a, master.send(), Why.LOCAL_CONTROL)
    assert a.get("715.LocRemCtl") == a.get("802.LocRemCtl") == Control.LOCAL
    a.inject(key_local=0)
    wait_until(lambda: a.get("715.LocRemCtl") == Control.REMOTE, 5, "REMOTE is seen")
    scans = a.get("ScanCount")
    wait_until(lambda: a.get("ScanCount") > scans + 200, 30, "200 scans at REMOTE")
    assert a.state() is State.ISOLATED, "nothing closes without a new command"
    master.stream(a, State.READY)


def told(a: Appliance) -> None:
    """Each once, however many frames there were."""
    wait_until(lambda: "KEY SWITCH at REMOTE" in a.log(), 5, "the key in battery.log")
    log = a.log()
    for text in ("FENCE epoch 7 by 127.0.0.2", "FENCE epoch 9 by 127.0.0.3", "VALIDITY over", "KEY SWITCH at LOCAL"):
        assert log.count(text) == 1, text
    assert log.count(" COMMAND ") < 12


def remembers(a: Appliance) -> None:
    old, new = (Master(a.ports.EMS_MODBUS_PORT, host, epoch) for host, epoch in (("127.0.0.2", 7), ("127.0.0.3", 9)))
    a.until(State.ISOLATED)
    old.seq = 100_000
    assert refused(a, old.send(), Why.STALE_EPOCH)
    with contextlib.closing(Site(a.ports.EMS_MODBUS_PORT, "127.0.0.2")) as plain:
        assert refused(a, plain.write(CmdMode=Mode.READY), Why.EPOCH_REQUIRED)
    assert a.all_open()
    new.stream(a, State.GRID_SUPPORT)
    old.close()
    new.close()
