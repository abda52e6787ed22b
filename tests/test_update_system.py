"""The real update agent beside the real appliance: rauc itself judges the bundle, a stand-in writes no slot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from appliance import Appliance, appliance
from bundles import COMPATIBLE, authority, bundle, issued, needs_rauc
from waiting import wait_until

from firmware.points import Refusal
from firmware.update_codes import UpdateResult, UpdateState
from statemachine.signals import Mode, Why
from statemachine.states import State

pytestmark = [pytest.mark.system, needs_rauc]

STAND_INS = {
    "rauc": """case "$*" in
*info*) exec {rauc} "$@" ;;
*install*) echo "  0% Installing"; echo install >> {log}
  while [ ! -e {go} ]; do sleep 0.02; done
  echo "100% Installing done." ;;
*) echo "$@" >> {log} ;;
esac""",
    "systemctl": 'echo "$@" >> {log}',
    "busctl": "echo 's \"idle\"'",
    "nft": "echo 'type filter hook input priority filter; policy drop;'",
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    with appliance(tmp_path_factory.mktemp("run"), configured={}) as made:
        yield made


def _stand_ins(directory: Path, log: Path, go: Path) -> None:
    directory.mkdir()
    for name, text in STAND_INS.items():
        path = directory / name
        body = text.replace("{rauc}", str(shutil.which("rauc"))).replace("{log}", str(log)).replace("{go}", str(go))
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)


def test_an_update_from_a_stick_and_a_charge_that_is_refused_meanwhile(running: Appliance, tmp_path: Path) -> None:
    log, go, stick = tmp_path / "done", tmp_path / "go", tmp_path / "stick"
    log.touch()
    stick.mkdir()
    _stand_ins(tmp_path / "bin", log, go)
    root = authority(tmp_path / "pki")
    (tmp_path / "system.conf").write_text(
        f"[system]\ncompatible={COMPATIBLE}\n[keyring]\npath={root.certificate}\n"
    )  # fmt: skip
    environ = {
        **os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "EMS_RUN_DIR": str(running.image()),
        "EMS_CONFIG_DIR": str(running.logs / "config"), "EMS_STATE_DIR": str(tmp_path / "state"),
        "EMS_UPDATE_DIR": str(stick), "EMS_RAUC_CONF": str(tmp_path / "system.conf"), "EMS_LATE_SHARE": "1",
    }  # fmt: skip
    agent = subprocess.Popen([sys.executable, "-m", "firmware.updater"], env=environ)
    try:
        running.until(State.ISOLATED)
        bundle(tmp_path / "new.raucb", issued(root, "signer"), root)
        shutil.copy(tmp_path / "new.raucb", stick)
        wait_until(lambda: running.get("UpdResult") == UpdateResult.NOT_IN_SERVICE, 10, "refused outside of SERVICE")
        assert log.read_text() == ""
        running.command(Mode.SERVICE)
        wait_until(lambda: "install" in log.read_text(), 10, "the slot is written")
        assert (running.get("UpdState"), running.get("Permit")) == (UpdateState.INSTALLING, Why.UPDATING)
        with pytest.raises(Refusal):
            running.command(Mode.CHARGE)
        running.command(Mode.OFF)
        wait_until(lambda: running.get("AckSeq") == running.get("CmdSeq"), 5, "mode off is seen")
        assert running.state() is State.SERVICE
        assert running.all_open()
        running.command(Mode.SERVICE)
        go.touch()
        wait_until(lambda: "reboot" in log.read_text(), 10, "the unit restarts")
        assert (running.get("UpdState"), running.get("UpdResult")) == (UpdateState.RESTARTING, UpdateResult.INSTALLED)
        assert (running.state(), running.get("Permit")) == (State.SERVICE, Why.UPDATING)
        wait_until(lambda: "updater UPDATE INSTALLED: installed" in running.log(), 5, "battery.log has it")
    finally:
        agent.terminate()
        assert agent.wait(10) == 0
